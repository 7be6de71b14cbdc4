"""Every command on a device in every state; waits; what removal and deferral leave."""

from dm import COMMANDS, FLAG, STATES, specs

from cases.fields import CHANGES, request

SETS = {
    "plain": 0,
    "inactive": FLAG["QUERY_INACTIVE"],
    "suspend": FLAG["SUSPEND"],
    "noflush": FLAG["SUSPEND"] | FLAG["NOFLUSH"] | FLAG["SKIP_LOCKFS"],
    "readonly": FLAG["READONLY"],
    "table": FLAG["STATUS_TABLE"],
    "inactive table": FLAG["STATUS_TABLE"] | FLAG["QUERY_INACTIVE"],
    "measurement": FLAG["IMA"],
    "deferred": FLAG["DEFERRED"],
    "said": FLAG["ACTIVE"] | FLAG["INACTIVE"] | FLAG["INTERNAL"] | FLAG["DATA_OUT"] | FLAG["UEVENT"] | FLAG["FULL"],
}


def run(machine):
    machine.clear_all()
    every(machine)
    sequences(machine)
    machine.clear_all()


def every(machine):
    for command in COMMANDS:
        machine.begin(f"states {command}")
        for state in STATES:
            fresh = False
            for label, flags in SETS.items():
                if not fresh:
                    machine.clear_all()
                    machine.make(b"a", state, uuid=b"UUID-a")
                good = request(command)
                good["flags"] = flags
                if command == "DEV_CREATE":
                    good["name"] = b"a"
                if command == "DEV_WAIT" and label == "plain":
                    good["event_nr"] = 0
                done = machine.try_(f"{state} {label}", command, **good)
                fresh = command not in CHANGES or done != 0
                machine.try_(f"({state} {label})", "DEV_STATUS", name=b"z" if command == "DEV_RENAME" else b"a")


def sequences(machine):
    """One device through its life, every answer looked at: event numbers, flags, counts."""
    machine.begin("sequences")

    def do(command, *labels, **fields):
        machine.try_(" ".join(labels), command, **fields)
        machine.try_(f"(after {command} {' '.join(labels)})", "DEV_STATUS", name=fields.get("name", b"a"))

    machine.clear_all()
    do("DEV_CREATE", name=b"a", uuid=b"UUID-a")
    do("DEV_CREATE", "name taken", name=b"a")
    do("DEV_CREATE", "uuid taken", name=b"b", uuid=b"UUID-a")
    do("DEV_SUSPEND", "resume without table", name=b"a")
    do("DEV_SUSPEND", "suspend without table", name=b"a", flags=FLAG["SUSPEND"])
    do("TABLE_LOAD", "readonly", payload=specs([(0, 8, b"zero", b"")]), name=b"a", target_count=1, flags=FLAG["READONLY"])
    do("DEV_SUSPEND", "resume", name=b"a")
    do("TABLE_LOAD", payload=specs([(0, 16, b"error", b"")]), name=b"a", target_count=1)
    do("DEV_STATUS", "inactive", name=b"a", flags=FLAG["QUERY_INACTIVE"])
    do("DEV_SUSPEND", "swap", name=b"a")
    do("DEV_RENAME", payload=b"b\0", name=b"a")
    do("DEV_STATUS", name=b"b")
    do("DEV_WAIT", "rename counted", name=b"b", event_nr=0)
    do("DEV_SUSPEND", "suspend", name=b"b", flags=FLAG["SUSPEND"])
    do("DEV_SUSPEND", "suspend again", name=b"b", flags=FLAG["SUSPEND"])
    do("TABLE_CLEAR", name=b"b")
    do("DEV_RENAME", payload=b"a\0", name=b"b")
    do("DEV_SUSPEND", "resume", name=b"a")
    do("DEV_SUSPEND", "resume again", name=b"a")
    do("DEV_REMOVE", "with a cookie", name=b"a", event_nr=0xD4D1234)
    do("DEV_REMOVE", "again", name=b"a")
    # One stands on the other.
    machine.make(b"b", "live", [(0, 64, b"zero", b"")])
    number = [dev for dev, name in machine.devices.items() if name == "b"][-1]
    text = b"%d:%d 0" % (number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)
    machine.make(b"a", "live", [(0, 32, b"linear", text)])
    do("DEV_STATUS", name=b"b")
    do("DEV_REMOVE", "in use", name=b"b")
    do("DEV_REMOVE", "in use, deferred", name=b"b", flags=FLAG["DEFERRED"])
    do("TARGET_MSG", "taken back", payload=b"\0" * 8 + b"@cancel_deferred_remove\0", name=b"b")
    do("DEV_REMOVE", "in use, deferred", name=b"b", flags=FLAG["DEFERRED"])
    do("TABLE_DEPS", name=b"a")
    do("REMOVE_ALL", "deferred", flags=FLAG["DEFERRED"])
