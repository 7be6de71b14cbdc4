"""Garbage in every field of the header, one at a time, to every command."""

from dm import COMMANDS, FLAG, FLAGS, HEADER, NR, PAGE, specs

BIG = 0xFFFFFFFF
HUGE = 0xFFFFFFFFFFFFFFFF
LONG = b"n" * 127
# What a well-formed request has behind the header.
PAYLOADS = {
    "DEV_RENAME": b"z\0",
    "TABLE_LOAD": specs([(0, 8, b"error", b"")]),
    "TARGET_MSG": b"\0" * 8 + b"hello\0",
    "DEV_SET_GEOMETRY": b"1 2 3 0\0",
}
NAMELESS = ("VERSION", "REMOVE_ALL", "LIST_DEVICES", "LIST_VERSIONS", "DEV_ARM_POLL")
CHANGES = ("REMOVE_ALL", "DEV_CREATE", "DEV_REMOVE", "DEV_RENAME", "DEV_SUSPEND", "TABLE_LOAD", "TABLE_CLEAR")

NUMBERS = {
    "major": [0, 3, 5, BIG],
    "minor": [1, 47, 48, BIG],
    "patch": [1, BIG],
    "data_size": [0, 1, 12, 304, 305, 306, 311, 312, 313, 320, 352, 353, 360, PAGE + 1, 1 << 20, 1 << 31, BIG],
    "data_start": [0, 1, 8, 304, 305, 306, 311, 313, 320, PAGE - 8, PAGE - 1, PAGE, PAGE + 1, 1 << 31, BIG],
    "target_count": [0, 1, 2, BIG],
    "open_count": [1, BIG],
    "event_nr": [1, BIG],
    "padding": [1, BIG],
    "dev": [1, 0xFFF00, HUGE],
}
TEXTS = {
    "name": [b"", b"nosuch", b"a/b", b"/", b"a b", LONG, b"n" * 128, b"a\0tail" + b"t" * 100, b"\n", b"\xff\xfe"],
    "uuid": [b"", b"nosuch", b"u/u", b"u" * 128, b"u" * 129, b"UUID-a", b"UUID-a\0tail" + b"t" * 100, b"\xff\xfe"],
}


def request(command):
    """A good request on the device `a`, which is live, as keyword arguments of try_."""
    good = {"payload": PAYLOADS.get(command, b"")}
    if command == "DEV_CREATE":
        good["name"] = b"new"
    elif command == "GET_TARGET_VERSION":
        good["name"] = b"linear"
    elif command not in NAMELESS:
        good["name"] = b"a"
    if command == "TABLE_LOAD":
        good["target_count"] = 1
    if command == "DEV_WAIT":
        good["event_nr"] = 77
    return good


def restore(machine):
    machine.clear_all()
    machine.make(b"a", "both", uuid=b"UUID-a")


def attempt(machine, command, label, **changes):
    good = {**request(command), **changes}
    done = machine.try_(label, command, **good)
    if done == 0 and command in CHANGES:
        restore(machine)


def run(machine):
    restore(machine)
    for command in COMMANDS:
        machine.begin(f"fields {command}")
        attempt(machine, command, "as it should be")
        attempt(machine, command, "over bytes of garbage", fill=0x5A)
        for field, values in NUMBERS.items():
            for value in values:
                attempt(machine, command, f"{field}={value:#x}", **{field: value})
        for field, values in TEXTS.items():
            for value in values:
                attempt(machine, command, f"{field}={value[:20]!r}*{len(value)}", **{field: value})
                other = "name" if field == "uuid" else "uuid"
                attempt(machine, command, f"only {field}={value[:20]!r}*{len(value)}", **{field: value, other: b""})
        for flag in range(32):
            name = FLAGS[flag] if flag < len(FLAGS) else str(flag)
            if command == "DEV_CREATE" and name == "PERSISTENT":
                continue
            attempt(machine, command, f"flag {name}", flags=1 << flag)
        most = BIG & ~FLAG["PERSISTENT"]
        attempt(machine, command, "all flags", flags=most)
        attempt(machine, command, "all flags but secure", flags=most & ~FLAG["SECURE"])
        by_number = [dev for dev, name in machine.devices.items() if name == "a"][-1]
        attempt(machine, command, "by number", name=b"", dev=by_number)
        attempt(machine, command, "by name and number", name=b"a", dev=by_number)
        attempt(machine, command, "by uuid and number", name=b"", uuid=b"UUID-a", dev=by_number)
        attempt(machine, command, "by all three", name=b"a", uuid=b"UUID-a", dev=by_number)
    machine.clear_all()
