"""Requests bent at random from a fixed seed: the same sequence wherever it runs, on devices whose state goes on changing."""

import random
import struct

from dm import COMMANDS, FLAG, PAGE, STATES, spec

NAMES = [b"a", b"b", b"c"]
BAD_NAMES = [b"", b"nosuch", b"a/b", b"x" * 127, b"x" * 128, b"a\0b", b" a"]
EDGES = [0, 1, 7, 8, 12, 40, 48, 304, 305, 306, 311, 312, 313, 319, 320, 352, 353, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF]
WEIGHTS = [1, 1, 4, 8, 6, 6, 12, 8, 3, 14, 4, 4, 8, 1, 5, 3, 1, 2]


def run(machine, disk, seed, rounds):
    """`rounds` requests from `seed`."""
    machine.clear_all()
    machine.begin(f"fuzz {seed}")
    random_ = random.Random(seed)
    for step in range(rounds):
        if step % 50 == 0:
            machine.clear_all()
            for name in NAMES:
                machine.make(name, random_.choice(STATES[1:]), uuid=random_.choice([b"", b"U-" + name]))
        one(machine, disk, random_, step)
    machine.clear_all()


def one(machine, disk, random_, step):
    command = random_.choices(COMMANDS, WEIGHTS)[0]
    size = random_.choice([PAGE, PAGE, PAGE, 1024, 400, 353, 340, 320, 313, 312, 305])
    fields = {}
    if command not in ("VERSION", "LIST_DEVICES", "LIST_VERSIONS", "REMOVE_ALL", "DEV_ARM_POLL"):
        fields["name"] = random_.choice(NAMES)
    if command == "GET_TARGET_VERSION":
        fields["name"] = random_.choice([b"zero", b"error", b"linear", b"nosuch"])
    payload, count = good_payload(disk, random_, command)
    fields["target_count"] = count
    if command == "DEV_SUSPEND" and random_.random() < 0.4:
        fields["flags"] = FLAG["SUSPEND"]
    if command == "DEV_WAIT":
        fields["event_nr"] = random_.choice([0, 1, 2, 3, 1000])
    # Beside the good ones: how many things are wrong with this one.
    for _ in range(random_.choice([0, 0, 0, 1, 1, 2, 3])):
        payload = bend(random_, command, fields, payload, machine)
    # No byte that is not UTF-8: which names may hold those is a known difference.
    fill = random_.choice([0, 0, 0x41, 0x7E])
    machine.try_(f"{step}", command, payload, size=size, fill=fill, **fields)
    if command in ("TABLE_LOAD", "DEV_RENAME", "DEV_SUSPEND"):
        machine.try_(f"({step})", "DEV_STATUS", name=fields.get("name", b""))


def bend(random_, command, fields, payload, machine):
    """Makes one thing wrong; the payload then."""
    which = random_.randrange(9)
    if which == 0:
        fields["flags"] = 1 << random_.randrange(32)
    elif which == 1:
        fields["flags"] = random_.getrandbits(32)
    elif which == 2:
        field = random_.choice(["data_start", "target_count", "open_count", "event_nr", "padding"])
        fields[field] = random_.choice(EDGES)
    elif which == 3:
        fields["data_size"] = random_.choice([edge for edge in EDGES if edge <= 353])
    elif which == 4:
        fields["name"] = random_.choice(NAMES + BAD_NAMES)
    elif which == 5:
        fields["uuid"] = random_.choice([b"", b"U1", b"U2", b"u" * 129])
    elif which == 6:
        fields["dev"] = random_.choice([0, 1, 0xFFFFF, (1 << 64) - 1])
    elif which == 7 and payload:
        bent = bytearray(payload)
        for _ in range(random_.randrange(1, 4)):
            # Not a type's letter: a kernel would look for a module of that name.
            at = random_.randrange(len(bent))
            if not (command == "TABLE_LOAD" and at % 48 >= 24):
                bent[at] = random_.choice([0, 1, 0x20, 0x2F, 0x7F, random_.randrange(128)])
        payload = bytes(bent)
    elif which == 8:
        payload = payload[: random_.randrange(len(payload) + 1)]
    if command == "DEV_CREATE":
        # Which numbers are free is another matter.
        fields["flags"] = fields.get("flags", 0) & ~FLAG["PERSISTENT"]
    return payload


def good_payload(disk, random_, command):
    if command == "TABLE_LOAD":
        count = random_.choice([1, 1, 1, 2, 3])
        start, records = 0, b""
        for _ in range(count):
            length = random_.choice([8, 8, 16, 24, 1])
            kind = random_.choice([b"zero", b"error", b"linear"])
            params = b"" if kind != b"linear" else disk.encode() + b" %d" % random_.choice([0, 8, 100, 2047, 5000])
            following = (40 + len(params) + 1 + 7) // 8 * 8
            records += spec(start, length, kind, params, following)
            start += length
        return records, count
    if command == "DEV_RENAME":
        return random_.choice(NAMES + [b"U1", b"U2"]) + b"\0", 0
    if command == "TARGET_MSG":
        return struct.pack("=Q", random_.choice([0, 7, 8, 100])) + random_.choice([b"word", b"@x", b"@cancel_deferred_remove", b""]) + b"\0", 0
    if command == "DEV_SET_GEOMETRY":
        return random_.choice([b"1 2 3 0", b"1 2 3 100", b"1 2 3", b"x"]) + b"\0", 0
    return b"", 0
