"""struct dm_ioctl by hand, and a call that says everything the other side wrote.

Speaks to libc's ioctl with addresses of its own, so that a buffer may end where memory ends. Nothing here knows which device
mapper answers: the same probe runs in a kernel and on thinmap, and the two transcripts are compared.
"""

import ctypes
import errno
import os
import re
import signal
import struct

CONTROL = "/dev/mapper/control"
PAGE = 4096
HEADER = 312
HEADER_MIN = 305
# Seconds until a wait is interrupted: longer than any answer takes on a busy machine.
PATIENCE = 0.15
COMMANDS = (
    "VERSION REMOVE_ALL LIST_DEVICES DEV_CREATE DEV_REMOVE DEV_RENAME DEV_SUSPEND DEV_STATUS DEV_WAIT TABLE_LOAD "
    "TABLE_CLEAR TABLE_DEPS TABLE_STATUS LIST_VERSIONS TARGET_MSG DEV_SET_GEOMETRY DEV_ARM_POLL GET_TARGET_VERSION"
).split()
NR = {name: nr for nr, name in enumerate(COMMANDS)}
FLAGS = (
    "READONLY SUSPEND 0x4 PERSISTENT STATUS_TABLE ACTIVE INACTIVE 0x80 FULL SKIP_BDGET SKIP_LOCKFS NOFLUSH QUERY_INACTIVE "
    "UEVENT UUID SECURE DATA_OUT DEFERRED INTERNAL IMA"
).split()
FLAG = {name: 1 << bit for bit, name in enumerate(FLAGS)}
LAYOUT = struct.Struct("=3I7I1Q128s129s")
FIELDS = "major minor patch data_size data_start target_count open_count flags event_nr padding dev name uuid".split()

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Memory:
    """Readable and writable bytes between two pages that nobody may touch."""

    def __init__(self, size):
        self.pages = -(-size // PAGE) * PAGE
        self.base = libc.mmap(None, self.pages + 2 * PAGE, 0, 0x22, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value)
        self.start = self.base + PAGE
        self.end = self.start + self.pages
        self.protect(3)

    def protect(self, how):
        assert libc.mprotect(self.start, self.pages, how) == 0

    def free(self):
        libc.munmap(self.base, self.pages + 2 * PAGE)


def header(**fields):
    """The header's bytes; what is not named is as libdevmapper would fill it in."""
    values = dict(major=4, minor=0, patch=0, data_size=PAGE, data_start=HEADER, target_count=0, open_count=0, flags=0)
    values.update(event_nr=0, padding=0, dev=0, name=b"", uuid=b"")
    values.update(fields)
    return LAYOUT.pack(*(values[field] for field in FIELDS))


def number(nr, type_byte=0xFD, size=HEADER, direction=3):
    """An ioctl's number as _IOC makes it."""
    return direction << 30 | size << 16 | type_byte << 8 | nr


def error_name(code):
    return errno.errorcode.get(code, str(code)) if code else "ok"


def flag_words(flags):
    words = [name for bit, name in enumerate(FLAGS) if flags & 1 << bit]
    if flags >> len(FLAGS):
        words.append(hex(flags & ~((1 << len(FLAGS)) - 1)))
    return "|".join(words) or "0"


def squeeze(data):
    """Bytes in short: long runs of one byte are counted."""
    text = repr(data)[2:-1]
    return re.sub(r"((?:\\x[0-9a-f]{2}|\\.|[^\\]))\1{7,}", lambda run: "{%s*%d}" % (run[1], len(run[0]) // len(run[1])), text)


class Machine:
    """One control node and what the probe knows of the devices behind it."""

    def __init__(self, out):
        self.fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        self.out = out
        self.memory = Memory(2 * PAGE)
        self.devices = {}
        self.section = ""
        self.count = 0
        signal.signal(signal.SIGALRM, lambda *_: None)

    def begin(self, section):
        self.section = section
        self.out.write(f"## {section}\n")

    def say(self, label, result):
        self.count += 1
        self.out.write(f"{self.section}: {label} -> {result}\n")

    # What both arms name differently: numbers of devices.

    def learn(self, dev, name):
        # The last one is the one that is there.
        self.devices.pop(dev, None)
        self.devices[dev] = name

    def mask(self, data):
        for dev, name in self.devices.items():
            token = (b"<dev " + name.encode() + b"  ")[:7] + b">"
            data = data.replace(struct.pack("=Q", dev), token)
            data = re.sub(rb"%d:%d(?!\d)" % (dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00), token, data)
        return data

    def dev_text(self, dev):
        return f"<{self.devices[dev]}>" if dev in self.devices else hex(dev)

    # Calls.

    def raw(self, request, address, fd=None):
        """The ioctl; its errno."""
        ctypes.set_errno(0)
        result = libc.ioctl(self.fd if fd is None else fd, request, address)
        self.result = max(0, result)
        return ctypes.get_errno() if result < 0 else 0

    def exchange(self, nr, buffer, request=None, patience=0):
        """Sends a buffer that ends where memory ends; errno and the buffer afterwards."""
        if len(buffer) > self.memory.pages:
            self.memory.free()
            self.memory = Memory(len(buffer))
        address = self.memory.end - len(buffer)
        ctypes.memmove(address, buffer, len(buffer))
        if nr == NR["DEV_WAIT"] or patience:
            signal.setitimer(signal.ITIMER_REAL, patience or PATIENCE, 0.2)
        code = self.raw(number(nr) if request is None else request, address)
        signal.setitimer(signal.ITIMER_REAL, 0)
        after = ctypes.string_at(address, len(buffer))
        if code == 0 and nr == NR["DEV_CREATE"]:
            dev, name = LAYOUT.unpack_from(after)[10:12]
            self.learn(dev, name.split(b"\0")[0].decode("latin1")[:1])
        return code, after

    def build(self, fields, payload=b"", size=PAGE, fill=0):
        """A buffer of `size` bytes with a header and a payload at `data_start`."""
        buffer = bytearray([fill]) * size
        head = header(**{"data_size": size, **fields})
        buffer[: len(head)] = head[:size]
        buffer[HEADER : HEADER + len(payload)] = payload[: max(0, size - HEADER)]
        return bytes(buffer[:size])

    def try_(self, label, command, payload=b"", size=PAGE, fill=0, **fields):
        """One call, written down. Gives its errno."""
        nr = NR.get(command, command)
        before = self.build(fields, payload, size, fill)
        code, after = self.exchange(nr, before)
        self.say(f"{command} {label}", self.describe(code, before, after))
        return code

    def quiet(self, command, payload=b"", **fields):
        """One call that only prepares."""
        return self.exchange(NR[command], self.build(fields, payload))[0]

    def describe(self, code, before, after):
        """The errno and everything that the call changed."""
        words = [error_name(code)]
        if code == 0 and self.result:
            words.append(f"returns {self.result}")
        if len(before) >= LAYOUT.size:
            sent, got = LAYOUT.unpack_from(before), LAYOUT.unpack_from(after)
            cookie = sent[FIELDS.index("event_nr")] & 0xFFFF
            for field, was, now in zip(FIELDS, sent, got):
                if field == "flags" and cookie:
                    # Who completes a cookie that has no semaphore is told by no rule.
                    now, was = now & ~FLAG["UEVENT"], was & ~FLAG["UEVENT"]
                if was != now:
                    if field == "flags":
                        now = flag_words(now)
                    elif field == "dev":
                        now = self.dev_text(now)
                    elif field in ("name", "uuid"):
                        now = squeeze(now.rstrip(b"\0"))
                    words.append(f"{field}={now}")
            before, after = before[LAYOUT.size :], after[LAYOUT.size :]
        if before != after:
            last = max(at for at in range(len(after)) if before[at] != after[at])
            # Whole words, so that the numbers of devices are seen whole.
            end = HEADER - HEADER_MIN
            end += max(0, last + 8 - end) // 8 * 8
            words.append("data=" + squeeze(self.mask(after[:end])))
        return " ".join(words)

    # Devices in a known state.

    def clear_all(self):
        """Removes every device, whatever state it is in."""
        for _ in range(4):
            self.quiet("REMOVE_ALL")
            names = self.names()
            if not names:
                return
            for name in names:
                self.quiet("DEV_SUSPEND", name=name)
                self.quiet("DEV_REMOVE", name=name)
        self.out.write(f"left behind: {self.names()}\n")

    def names(self):
        code, after = self.exchange(NR["LIST_DEVICES"], self.build({}, size=2 * PAGE))
        names, at = [], HEADER
        while code == 0 and struct.unpack_from("=Q", after, at)[0]:
            following = struct.unpack_from("=I", after, at + 8)[0]
            names.append(after[at + 12 :].split(b"\0")[0])
            if not following:
                break
            at += following
        return names

    def make(self, name, state, table=None, uuid=b""):
        """A device in one of STATES."""
        table = table or [(0, 8, b"zero", b"")]
        if state == "none":
            return
        code = self.quiet("DEV_CREATE", name=name, uuid=uuid)
        assert code == 0, (name, error_name(code))
        if state != "created":
            self.load(name, table)
        if state in ("live", "both", "suspended", "suspended+inactive"):
            self.quiet("DEV_SUSPEND", name=name)
        if state.startswith("suspended"):
            self.quiet("DEV_SUSPEND", name=name, flags=FLAG["SUSPEND"])
        if state in ("both", "suspended+inactive"):
            self.load(name, table + [(table[-1][0] + table[-1][1], 8, b"error", b"")])

    def load(self, name, table, flags=0):
        return self.quiet("TABLE_LOAD", specs(table), name=name, target_count=len(table), flags=flags)


STATES = ["none", "created", "inactive", "live", "both", "suspended", "suspended+inactive"]


def specs(table):
    """Target records as libdevmapper lays them out."""
    data = b""
    for start, length, kind, params in table:
        following = (40 + len(params) + 1 + 7) // 8 * 8
        data += spec(start, length, kind, params, following)
    return data


def spec(start, length, kind, params, following):
    text = struct.pack("=QQiI16s", start, length, 0, following & 0xFFFFFFFF, kind) + params + b"\0"
    return text.ljust((len(text) + 7) // 8 * 8, b"\0")
