#!/usr/bin/python3
"""Many programs at once that use device mapper in every way and are killed in the middle of it.

Usage: crowd.py DISK SEED COUNT
"""

import mmap
import os
import random
import signal
import sys
import time

sys.dont_write_bytecode = True

from cases import fuzz  # noqa: E402
from dm import NR, Machine  # noqa: E402

SECONDS = 3.0


def live(disk, seed, calls, nr):
    """What each of them does until it is killed; how often it has called is counted in `calls`."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        machine = Machine(nowhere)
        if seed % 10 == 0:
            # Some wait for an event that does not come.
            machine.quiet("DEV_CREATE", name=b"a")
            while True:
                machine.exchange(NR["DEV_WAIT"], machine.build({"name": b"a", "event_nr": 0}), patience=100)
        random_ = random.Random(seed)
        for step in range(1 << 30):
            fuzz.one(machine, disk, random_, step)
            calls[4 * nr : 4 * nr + 4] = machine.count.to_bytes(4, "little")


def main():
    disk, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random_ = random.Random(seed)
    children = []
    calls = mmap.mmap(-1, 4 * count)
    for nr in range(count):
        child = os.fork()
        if not child:
            try:
                live(disk, seed + nr, calls, nr)
            finally:
                # It never ends by itself; if it does, its end is seen.
                os._exit(9)
        children.append((time.monotonic() + random_.uniform(0.2, SECONDS), child))
    ended = []
    for moment, child in sorted(children):
        time.sleep(max(0, moment - time.monotonic()))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            ended.append(os.WEXITSTATUS(status))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        machine = Machine(nowhere)
        machine.clear_all()
        left = machine.names()
    total = sum(int.from_bytes(calls[4 * nr : 4 * nr + 4], "little") for nr in range(count))
    print(f"{count - len(ended)} killed, {len(ended)} ended early, {len(left)} devices left, {total} calls")


main()
