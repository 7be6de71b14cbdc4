"""The call itself: numbers, addresses, lengths of memory, and everything else that one may do to a descriptor."""

import ctypes
import mmap
import os
import select
import stat
import struct

from dm import COMMANDS, CONTROL, FLAG, HEADER, HEADER_MIN, NR, PAGE, Machine, Memory, error_name, header, libc, number


def run(machine):
    machine.clear_all()
    machine.make(b"a", "live")
    numbers(machine)
    addresses(machine)
    secure(machine)
    descriptor(machine)
    machine.clear_all()


def numbers(machine):
    machine.begin("numbers")
    for nr in list(range(18, 40)) + list(range(40, 256, 12)) + [255]:
        machine.try_("unknown command", nr)
        machine.try_("unknown command, wrong version", nr, major=3)
    good = machine.build({"name": b"a"})
    status = NR["DEV_STATUS"]
    for direction in range(4):
        for size in (0, 1, 311, 312, 313, 16383):
            request = number(status, size=size, direction=direction)
            code, after = machine.exchange(status, good, request)
            machine.say(f"direction {direction} size {size}", machine.describe(code, good, after))
    for type_byte in (0, 1, 0x12, 0x54, 0xFC, 0xFE, 0xFF):
        code, after = machine.exchange(status, good, number(status, type_byte))
        machine.say(f"type {type_byte:#x}", machine.describe(code, good, after))
    # Of the number the kernel sees 32 bits.
    code, after = machine.exchange(status, good, number(status) | 1 << 40)
    machine.say("bits beyond 32", machine.describe(code, good, after))


def addresses(machine):
    machine.begin("addresses")
    page = Memory(PAGE)
    for command in COMMANDS:
        request = number(NR[command])
        for address in (0, 1, 8, page.start - 1, page.base, (1 << 64) - 8, (1 << 63) + 5, 1 << 47):
            label = "before memory" if address in (page.start - 1, page.base) else hex(address)
            machine.say(f"{command} {label}", error_name(machine.raw(request, address)))
        name = b"" if command in ("VERSION", "REMOVE_ALL", "LIST_DEVICES", "DEV_CREATE", "LIST_VERSIONS") else b"a"
        for fields in ({}, {"major": 3}, {"data_size": 304}, {"flags": FLAG["SECURE"]}, {"data_size": HEADER}):
            for length in (1, 11, 12, 13, 200, 304, 305, 306, 311, 312):
                buffer = header(name=name, **fields).ljust(HEADER, b"\0")[:length]
                before, code, after = at_the_end(machine, page, request, buffer)
                machine.say(f"{command} {fields} {length} bytes of memory", f"{error_name(code)} {changed(before, after)}")
        # The answer cannot be written: the version is the first that is missed.
        for how, what in ((1, "read only"), (0, "neither")):
            page.protect(3)
            buffer = header(name=name).ljust(PAGE, b"\0")
            ctypes.memmove(page.start, buffer, PAGE)
            page.protect(how)
            code = machine.raw(request, page.start)
            page.protect(3)
            after = ctypes.string_at(page.start, PAGE)
            machine.say(f"{command} memory is {what}", f"{error_name(code)} {changed(buffer, after)}")
    machine.clear_all()
    machine.make(b"a", "live")
    for odd in range(1, 9):
        buffer = header(name=b"a", data_size=1000).ljust(1000, b"\0")
        address = page.start + odd
        ctypes.memmove(address, buffer, 1000)
        code = machine.raw(number(NR["TABLE_STATUS"]), address)
        after = ctypes.string_at(address, 1000)
        machine.say(f"address off by {odd}", machine.describe(code, buffer, after))
    page.free()
    for size in (1 << 16, 1 << 20, 5 << 20):
        for command in ("LIST_DEVICES", "TABLE_STATUS", "DEV_STATUS"):
            named = {} if command == "LIST_DEVICES" else {"name": b"a"}
            machine.try_(f"{size} bytes of memory", command, size=size, **named)
    machine.try_("65 MiB of memory", "LIST_DEVICES", size=65 << 20)
    machine.try_("65 MiB of memory that are not there", "LIST_DEVICES", data_size=65 << 20)


def at_the_end(machine, page, request, buffer):
    address = page.end - len(buffer)
    ctypes.memmove(address, buffer, len(buffer))
    code = machine.raw(request, address)
    return buffer, code, ctypes.string_at(address, len(buffer))


def changed(before, after):
    at = [place for place in range(len(after)) if before[place] != after[place]]
    return "unchanged" if not at else f"{at[0]}..{at[-1]} {after[at[0]:at[0] + 12].hex()}"


def secure(machine):
    """A caller that asks for it finds its buffer wiped, but for the answer."""
    machine.begin("secure")
    for command in COMMANDS:
        for size in (HEADER_MIN, HEADER, 700):
            for label, fields in (("", {}), ("nosuch", {"name": b"nosuch"}), ("mismatch", {"major": 9})):
                name = {"name": b"a"} if command not in ("VERSION", "REMOVE_ALL", "DEV_CREATE", "DEV_REMOVE") else {}
                fields = {**name, **fields, "flags": FLAG["SECURE"]}
                machine.try_(f"{label} {size}", command, size=size, fill=0x77, **fields)
        machine.clear_all()
        machine.make(b"a", "live")
    machine.try_("a lying length", "DEV_STATUS", size=700, name=b"a", flags=FLAG["SECURE"], data_size=5000)
    machine.try_("a lying length", "TABLE_STATUS", size=700, name=b"a", flags=FLAG["SECURE"], data_size=5000)
    machine.try_("a short length", "TABLE_STATUS", size=700, fill=1, name=b"a", flags=FLAG["SECURE"], data_size=400)


def descriptor(machine):
    machine.begin("descriptor")
    fd = machine.fd

    def attempt(label, work):
        try:
            result = work()
        except OSError as error:
            result = error_name(error.errno)
        except ValueError as error:
            result = str(error)
        machine.say(label, result)

    attempt("read 0", lambda: os.read(fd, 0))
    attempt("read 8", lambda: os.read(fd, 8))
    attempt("write 0", lambda: os.write(fd, b""))
    attempt("write 8", lambda: os.write(fd, b"12345678"))
    attempt("pread", lambda: os.pread(fd, 8, 0))
    attempt("pwrite", lambda: os.pwrite(fd, b"x", 0))
    attempt("lseek set", lambda: os.lseek(fd, 5, os.SEEK_SET))
    attempt("lseek end", lambda: os.lseek(fd, 0, os.SEEK_END))
    attempt("mmap shared", lambda: mmap.mmap(fd, PAGE))
    attempt("mmap private", lambda: mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE))
    attempt("ftruncate", lambda: os.ftruncate(fd, 0))
    attempt("fsync", lambda: os.fsync(fd))
    attempt("fchdir", lambda: os.fchdir(fd))

    def poll():
        ready = select.poll()
        ready.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
        return ready.poll(0) and [events for _, events in ready.poll(0)]

    machine.raw(number(NR["DEV_ARM_POLL"]), armed(machine))
    attempt("poll when armed", poll)

    def described(status):
        kind = "character" if stat.S_ISCHR(status.st_mode) else oct(stat.S_IFMT(status.st_mode))
        return f"{kind} {stat.S_IMODE(status.st_mode):o} major {os.major(status.st_rdev)} size {status.st_size}"

    attempt("fstat", lambda: described(os.fstat(fd)))
    attempt("stat", lambda: described(os.stat(CONTROL)))
    for name, flags in (("RDONLY", os.O_RDONLY), ("WRONLY", os.O_WRONLY), ("RDWR", os.O_RDWR), ("NONBLOCK", os.O_NONBLOCK)):
        attempt(f"open {name}", lambda: opened(machine, flags))
    attempt("open DIRECTORY", lambda: opened(machine, os.O_DIRECTORY))
    attempt("open CREAT|EXCL", lambda: opened(machine, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    attempt("open PATH", lambda: opened(machine, os.O_PATH))
    attempt("open below", lambda: os.open(CONTROL + "/x", os.O_RDONLY))
    good = header(name=b"a").ljust(PAGE, b"\0")
    keep = ctypes.create_string_buffer(good, PAGE)
    other = os.open("/dev/null", os.O_RDWR)
    attempt("ioctl on another file", lambda: error_name(machine.raw(number(7), ctypes.addressof(keep), other)))
    attempt("ioctl on a closed descriptor", lambda: error_name(machine.raw(number(7), ctypes.addressof(keep), 777)))
    attempt("ioctl on a negative descriptor", lambda: error_name(machine.raw(number(7), ctypes.addressof(keep), -1)))
    os.close(other)
    copy = os.dup(fd)
    attempt("ioctl on a copy", lambda: error_name(machine.raw(number(7), ctypes.addressof(keep), copy)))
    os.close(copy)


def armed(machine):
    buffer = machine.build({})
    machine.arm = ctypes.create_string_buffer(buffer, len(buffer))
    return ctypes.addressof(machine.arm)


def opened(machine, flags):
    """Opens the node so and says whether its ioctls work."""
    fd = os.open(CONTROL, flags)
    buffer = ctypes.create_string_buffer(header(name=b"a").ljust(PAGE, b"\0"), PAGE)
    code = machine.raw(number(NR["DEV_STATUS"]), ctypes.addressof(buffer), fd)
    os.close(fd)
    return f"opened, then {error_name(code)}"
