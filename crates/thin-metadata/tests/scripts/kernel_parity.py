#!/usr/bin/python3
"""Runs parity.ops on the running kernel and prints what each status says.

Needs root, dmsetup and a kernel to spare: use a virtual machine. The data device is dm-zero, so
nothing is stored.

    kernel_parity.py parity.ops METADATA_DEVICE >parity.kernel-6.1.txt

METADATA_DEVICE has 64 MiB and begins with a block of zeroes.
"""

import fcntl
import mmap
import os
import struct
import subprocess
import sys

BLOCK = 65536
SECTORS = BLOCK // 512
VOLUME_BLOCKS = 1 << 20
BLKDISCARD = 0x1277


def dmsetup(*words):
    return subprocess.run(
        ["dmsetup", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def message(text):
    dmsetup("message", "parity", "0", text)


def chosen(count, limit, seed):
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield (seed >> 33) % limit


class Volume:
    """One volume, active for as long as it is used."""

    def __init__(self, number):
        self.name = f"parity-{number}"
        size = VOLUME_BLOCKS * SECTORS
        table = f"0 {size} thin /dev/mapper/parity {number}"
        dmsetup("create", self.name, "--table", table)
        path = f"/dev/mapper/{self.name}"
        self.file = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, BLOCK)

    def write(self, blocks):
        for block in blocks:
            os.pwrite(self.file, self.buffer, block * BLOCK)

    def discard(self, begin, end):
        what = struct.pack("=QQ", begin * BLOCK, (end - begin) * BLOCK)
        fcntl.ioctl(self.file, BLKDISCARD, what)

    def close(self):
        os.close(self.file)
        dmsetup("remove", self.name)


def pool_table(metadata, blocks):
    features = "2 skip_block_zeroing no_discard_passdown"
    return f"0 {blocks * SECTORS} thin-pool {metadata} /dev/mapper/parity-data {SECTORS} 0 {features}"


def set_data(metadata, blocks, first):
    data = f"0 {blocks * SECTORS} zero"
    for name, table in (("parity-data", data), ("parity", pool_table(metadata, blocks))):
        if first:
            dmsetup("create", name, "--table", table)
        else:
            dmsetup("suspend", name)
            dmsetup("reload", name, "--table", table)
            dmsetup("resume", name)


def with_volume(number, work):
    volume = Volume(number)
    try:
        work(volume)
    finally:
        volume.close()


def run(metadata, verb, numbers):
    n = numbers
    if verb == "status":
        fields = dmsetup("status", "parity").split()
        print(fields[4], fields[5], flush=True)
    elif verb in ("creates", "snaps", "deletes"):
        for at in range(n[0], n[1] + 1):
            run(metadata, verb[:-1], [at, *n[2:]])
    elif verb == "create":
        message(f"create_thin {n[0]}")
    elif verb == "snap":
        message(f"create_snap {n[0]} {n[1]}")
    elif verb == "delete":
        message(f"delete {n[0]}")
    elif verb in ("reserve", "release"):
        message(f"{verb}_metadata_snap")
    elif verb == "discard":
        with_volume(n[0], lambda v: v.discard(n[1], n[2]))
    elif verb == "up":
        with_volume(n[0], lambda v: v.write(range(n[1], n[2], n[3])))
    elif verb == "down":
        blocks = reversed(range(n[1], n[2], n[3]))
        with_volume(n[0], lambda v: v.write(blocks))
    elif verb == "random":
        with_volume(n[0], lambda v: v.write(chosen(*n[1:])))
    elif verb == "punch":
        with_volume(n[0], lambda v: [v.discard(b, b + 1) for b in chosen(*n[1:])])
    elif verb == "grow":
        set_data(metadata, n[0], first=False)
    else:
        raise ValueError(verb)


def main():
    ops, metadata = sys.argv[1:]
    set_data(metadata, 100000, first=True)
    for line in open(ops, encoding="ascii"):
        words = line.split("#")[0].split()
        if words:
            run(metadata, words[0], [int(word) for word in words[1:]])


main()
