"""qemu-storage-daemon: raw and qcow2, over NBD and over its FUSE export with a loop device on it.

Its NBD export has no iothread: Debian 12's 7.2 ends with a failed assertion when a client of such an export leaves.
"""

from ..jobs import Target
from ..world import loop_device, run as execute, server, sparse
from .base import EMPTY, FILLED, SNAPSHOT, Side

DAEMON = "qemu-storage-daemon"

# The settings it is measured with: as is recommended for speed. The `tuning-*` rows show whether that is so on a machine.
AIO = "io_uring"
DIRECT = "on"


class Qemu(Side):
    """A disk image behind the daemon."""

    kind = "raw"
    transport = "nbd"
    aio = AIO
    direct = DIRECT

    def start(self, stack, run, data, state):
        image = data / "disk"
        self._image(image)
        if state == EMPTY:
            return self._serve(stack, run, image, "first")
        if state == FILLED:
            target = self._serve(stack, run, image, "first")
            self.fill(target, run)
            return target
        with type(stack)() as filling:
            self.fill(self._serve(filling, run, image, "first"), run)
        overlay = data / "overlay"
        execute("qemu-img", "create", "-q", "-f", "qcow2", "-F", self.kind, "-b", image, overlay)
        return self._serve(stack, run, overlay, "second", backing=image)

    def _image(self, path):
        if self.kind == "raw":
            sparse(path, self.size)
        else:
            execute("qemu-img", "create", "-q", "-f", "qcow2", path, self.size)

    def _serve(self, stack, run, image, name, backing=None):
        nodes = self._nodes("disk", image, backing)
        if self.transport == "nbd":
            path = run / f"{name}.sock"
            export = [
                "--nbd-server", f"addr.type=unix,addr.path={path},max-connections=0",
                "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
            ]  # fmt: skip
            process = stack.enter_context(server([DAEMON, *nodes, *export], run / "qemu.log", path.exists))
            return Target(uri=f"nbd+unix:///disk?socket={path}", pids=(process.pid,))
        path = run / f"{name}.fuse"
        path.touch()
        export = [
            "--object", "iothread,id=thread",
            "--export", f"type=fuse,id=export,node-name=disk,mountpoint={path},writable=on,iothread=thread",
        ]  # fmt: skip
        # A killed daemon leaves its mount behind.
        stack.callback(_unmount_if_left, path)
        process = stack.enter_context(server([DAEMON, *nodes, *export], run / "qemu.log", lambda: _is_mount(path)))
        return Target(path=stack.enter_context(loop_device(path)), pids=(process.pid,))

    def _nodes(self, name, image, backing):
        file = f"filename={image},aio={self.aio},cache.direct={self.direct},discard=unmap"
        if self.kind == "raw" and not backing:
            return ["--blockdev", f"driver=file,node-name={name},{file}"]
        nodes = []
        parent = ""
        if backing:
            nodes += self._nodes("below", backing, None)
            parent = ",backing=below"
        nodes += ["--blockdev", f"driver=file,node-name={name}-file,{file}"]
        return [*nodes, "--blockdev", f"driver=qcow2,node-name={name},file={name}-file,discard=unmap{parent}"]


def _is_mount(path):
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return any(line.split()[1] == str(path) for line in mounts)


def _unmount_if_left(path):
    if _is_mount(path):
        execute("umount", "--lazy", path)


class RawNbd(Qemu):
    name = "qemu raw"
    words = f"qemu-storage-daemon, raw file, aio={AIO}, cache.direct={DIRECT}"


class RawThreadsNbd(RawNbd):
    name = "qemu raw threads"
    words = "qemu-storage-daemon, raw file, aio=threads, cache.direct=on"
    aio, direct = "threads", "on"


class RawBufferedNbd(RawNbd):
    name = "qemu raw buffered"
    words = "qemu-storage-daemon, raw file, aio=io_uring, cache.direct=off"
    aio, direct = "io_uring", "off"


class Qcow2Nbd(Qemu):
    name = "qemu qcow2"
    words = f"qemu-storage-daemon, qcow2, 64 KiB clusters, aio={AIO}, cache.direct={DIRECT}; its snapshot is an overlay"
    kind = "qcow2"
    states = (EMPTY, FILLED, SNAPSHOT)


class Qcow2ThreadsNbd(Qcow2Nbd):
    name = "qemu qcow2 threads"
    words = "qemu-storage-daemon, qcow2, 64 KiB clusters, aio=threads, cache.direct=on"
    aio, direct = "threads", "on"


class Qcow2BufferedNbd(Qcow2Nbd):
    name = "qemu qcow2 buffered"
    words = "qemu-storage-daemon, qcow2, 64 KiB clusters, aio=io_uring, cache.direct=off"
    aio, direct = "io_uring", "off"


class RawDevice(Qemu):
    name = "qemu raw device"
    words = f"qemu-storage-daemon, raw file, aio={AIO}, cache.direct={DIRECT}, iothread; FUSE export + loop (direct I/O)"
    transport = "fuse"


class Qcow2Device(Qcow2Nbd):
    name = "qemu qcow2 device"
    words = f"qemu-storage-daemon, qcow2, aio={AIO}, cache.direct={DIRECT}, iothread; FUSE export + loop (direct I/O)"
    transport = "fuse"


SIDES = [
    RawNbd, RawThreadsNbd, RawBufferedNbd, Qcow2Nbd, Qcow2ThreadsNbd, Qcow2BufferedNbd, RawDevice, Qcow2Device,
]  # fmt: skip
