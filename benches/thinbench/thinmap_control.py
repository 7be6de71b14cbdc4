"""thinmap's control socket: device mapper's ioctl buffers, as `crates/control/src/frame.rs` and `ioctl.rs` lay them out.

Spoken directly, because the start of a `dmsetup` process takes longer than what is measured.
"""

import os
import socket
import struct

from .world import Failure

_HEAD = struct.Struct("<4sIII")
_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
_SPEC = struct.Struct("=Q Q I I 16s")
_MAGIC, _KIND_IOCTL = b"TMC1", 1
_CREATE, _REMOVE, _SUSPEND, _LOAD, _STATUS, _MESSAGE = 3, 4, 6, 9, 12, 14
_FLAG_READ_ONLY = 1 << 0
_FLAG_SUSPEND = 1 << 1
_BUFFER_BYTES = 16 << 10


class Control:
    """A connection to the daemon."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))

    def close(self):
        self.socket.close()

    def create(self, name, length, target, read_only=False):
        """A device with a live table of one line; `length` in sectors, `target` is its type and arguments."""
        self._call(_CREATE, name)
        kind, _, arguments = target.partition(" ")
        text = arguments.encode() + b"\0"
        text += bytes(-len(text) % 8)
        spec = _SPEC.pack(0, length, 0, _SPEC.size + len(text), kind.encode())
        self._call(_LOAD, name, spec + text, flags=_FLAG_READ_ONLY if read_only else 0, targets=1)
        self._call(_SUSPEND, name)

    def remove(self, name):
        self._call(_REMOVE, name)

    def suspend(self, name):
        self._call(_SUSPEND, name, flags=_FLAG_SUSPEND)

    def resume(self, name):
        self._call(_SUSPEND, name)

    def message(self, name, text):
        self._call(_MESSAGE, name, struct.pack("=Q", 0) + text.encode() + b"\0")

    def status(self, name):
        """The words of a one-line device's status, behind its type."""
        body = self._call(_STATUS, name, bytes(_BUFFER_BYTES))
        start = struct.unpack_from("=I", body, 16)[0] + _SPEC.size
        return body[start:].split(b"\0")[0].decode().split()

    def _call(self, number, name, payload=b"", flags=0, targets=0):
        size = _HEADER.size + len(payload)
        header = _HEADER.pack(4, 0, 0, size, _HEADER.size, targets, 0, flags, 0, 0, 0, name.encode(), b"")
        self.socket.sendall(_HEAD.pack(_MAGIC, _KIND_IOCTL, number, size) + header + payload)
        magic, errno, text_len, body_len = _HEAD.unpack(self._receive(_HEAD.size))
        text, body = self._receive(text_len), self._receive(body_len)
        if magic != _MAGIC:
            raise Failure("the control socket speaks another protocol")
        if errno:
            raise Failure(f"thinmap: ioctl {number} on {name}: {os.strerror(errno)}: {text.decode()}")
        return body

    def _receive(self, count):
        parts = bytearray()
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise Failure("thinmap's daemon has closed the control socket")
            parts += part
        return bytes(parts)
