#!/usr/bin/python3
"""Who may use device mapper: what a program is told that may not open the control node, or has it open and lacks the capability.

Usage: permission.py OUTPUT
"""

import ctypes
import os
import struct
import sys

sys.dont_write_bytecode = True

from dm import COMMANDS, CONTROL, NR, PAGE, Machine, error_name, header, number  # noqa: E402

NOBODY = 65534
CAP_SYS_ADMIN = 21
libc = ctypes.CDLL(None, use_errno=True)


def become_nobody():
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capability():
    """Root, but without the right to administer the system."""
    head = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(head, data) == 0
    words = list(struct.unpack("=6I", data.raw))
    for place in (0, 1, 2):
        words[place] &= ~(1 << CAP_SYS_ADMIN)
    assert libc.capset(head, struct.pack("=6I", *words)) == 0


def ioctls(machine, who, fd):
    for command in COMMANDS:
        name = b"" if command in ("VERSION", "REMOVE_ALL", "LIST_DEVICES", "LIST_VERSIONS") else b"a"
        buffer = ctypes.create_string_buffer(header(name=name).ljust(PAGE, b"\0"), PAGE)
        before = buffer.raw
        code = machine.raw(number(NR[command]), ctypes.addressof(buffer), fd)
        machine.say(f"{who} {command}", f"{error_name(code)} {'changed' if buffer.raw != before else 'unchanged'}")
    machine.say(f"{who} no address", error_name(machine.raw(number(NR["DEV_STATUS"]), 0, fd)))
    machine.say(f"{who} unknown command", error_name(machine.raw(number(99), 0, fd)))
    machine.say(f"{who} another type", error_name(machine.raw(number(7, 0x12), 0, fd)))


def attempt(machine, who, become):
    """In a child, which may not come back from what it becomes."""
    machine.out.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    become()
    ioctls(machine, f"{who}, inherited:", machine.fd)
    for flags in (os.O_RDONLY, os.O_RDWR):
        try:
            fd = os.open(CONTROL, flags)
        except OSError as error:
            machine.say(f"{who} opens {flags}", error_name(error.errno))
        else:
            machine.say(f"{who} opens {flags}", "opened")
            ioctls(machine, f"{who}, own {flags}:", fd)
    machine.out.flush()
    os._exit(0)


def main():
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        machine = Machine(out)
        machine.make(b"a", "live")
        machine.begin("permission")
        attempt(machine, "nobody", become_nobody)
        attempt(machine, "root without capability", drop_capability)
        # Nothing of what was tried has happened.
        machine.try_("afterwards", "DEV_STATUS", name=b"a")
        machine.try_("afterwards", "LIST_DEVICES")
        machine.clear_all()


main()
