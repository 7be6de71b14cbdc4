#!/usr/bin/python3
"""Puts garbage and good requests to device mapper and writes down every answer.

Usage: probe.py DISK OUTPUT GROUP...; DISK is a loop device of 2048 sectors, GROUP one of fields, calls, payloads, states, or
fuzz:SEED:ROUNDS.
"""

import os
import sys

sys.dont_write_bytecode = True

from cases import calls, fields, fuzz, payloads, states  # noqa: E402
from dm import Machine  # noqa: E402


def main():
    disk, output, *groups = sys.argv[1:]
    number = os.stat(disk).st_rdev
    with open(output, "w", encoding="utf-8") as out:
        machine = Machine(out)
        machine.disk_number = b"%d:%d" % (os.major(number), os.minor(number))
        machine.learn(os.minor(number) & 0xFF | os.major(number) << 8, "disk")
        for group in groups:
            name, *numbers = group.split(":")
            if name == "fields":
                fields.run(machine)
            elif name == "calls":
                calls.run(machine)
            elif name == "payloads":
                payloads.run(machine, disk)
            elif name == "states":
                states.run(machine)
            elif name == "fuzz":
                fuzz.run(machine, disk, int(numbers[0]), int(numbers[1]))
            else:
                sys.exit(f"no such group: {group}")
            out.flush()
        out.write(f"{machine.count} calls\n")


main()
