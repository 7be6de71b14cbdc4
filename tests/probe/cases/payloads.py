"""What follows the header: target records, messages, names, geometries, and answers that need room."""

import struct

from dm import FLAG, HEADER, HEADER_MIN, PAGE, spec, specs

BIG = 0xFFFFFFFF


def run(machine, disk):
    machine.clear_all()
    records(machine, disk)
    messages(machine)
    renames(machine)
    geometries(machine)
    answers(machine, disk)
    machine.clear_all()


def records(machine, disk):
    machine.begin("records")
    machine.make(b"a", "live")

    def load(label, payload, count=1, **more):
        machine.try_(label, "TABLE_LOAD", payload, name=b"a", target_count=count, **more)
        machine.try_(f"({label})", "TABLE_STATUS", name=b"a", flags=FLAG["STATUS_TABLE"] | FLAG["QUERY_INACTIVE"])
        machine.quiet("TABLE_CLEAR", name=b"a")

    one = spec(0, 8, b"zero", b"", 48)
    two = one + spec(8, 8, b"error", b"", 48)
    load("one", one)
    load("two", two, 2)
    load("two of which one counts", two, 1)
    load("three of which two are there", two, 3)
    load("four billion", two, BIG)
    for following in (0, 1, 8, 39, 40, 41, 44, 47, 48, 49, 56, 64, 3700, 3736, 3737, 3784, 4096, 1 << 31, BIG, BIG - 7, BIG - 47):
        first = spec(0, 8, b"zero", b"", following)
        load(f"next {following}", first + spec(8, 8, b"error", b"", 0), 2)
        load(f"next {following} of the only one", first)
    for at in (HEADER_MIN, 306, 311, 312, 313, 316, 320):
        payload = bytes(at - HEADER if at > HEADER else 0) + one
        buffer_start = {"data_start": at}
        load(f"data_start {at}", payload if at >= HEADER else one[HEADER - at :], **buffer_start)
    for size in range(HEADER_MIN, HEADER + 60):
        machine.try_(f"size {size}", "TABLE_LOAD", one, size=size, name=b"a", target_count=1)
        machine.quiet("TABLE_CLEAR", name=b"a")
    load("no NUL to the end", one[:40] + b"x" * (PAGE - HEADER - 40))
    load("type without NUL", spec(0, 8, b"z" * 16, b"", 48))
    load("type of 15 bytes", spec(0, 8, b"z" * 15, b"", 48))
    load("type with NUL and more", spec(0, 8, b"zero\0garbage", b"", 48))
    load("no type", spec(0, 8, b"", b"", 48))
    load("type in capitals", spec(0, 8, b"ZERO", b"", 48))
    load("type with blank", spec(0, 8, b" zero", b"", 48))
    load("type of high bytes", spec(0, 8, b"\xff\xfe", b"", 48))
    load("arguments of high bytes", spec(0, 8, b"zero", b"\xff\xfe", 48))
    load("status is garbage", one[:16] + b"\xff" * 4 + one[20:])
    for start, length in ((0, 0), (1, 8), (8, 8), (0, 1), (0, 1 << 54), (0, (1 << 54) - 1), (0, 1 << 55), (0, (1 << 63)), (0, (1 << 64) - 1),
                          ((1 << 64) - 1, 1), ((1 << 64) - 8, 8), ((1 << 64) - 4, 8)):
        load(f"{start:#x} + {length:#x}", spec(start, length, b"error", b"", 48))
    for start, length in ((8, 0), (7, 8), (9, 8), (4, 2), (0, 8), (8, 1 << 54), (8, (1 << 54) - 8), (8, (1 << 64) - 8), (1 << 63, 8)):
        load(f"then {start:#x} + {length:#x}", one + spec(start, length, b"error", b"", 48), 2)
    for text in (b"", b"a", b"a b", b"x" * 3000, b"a " * 1200, b"\\", b"\n\t", b"0 0", b"-1"):
        for kind in (b"zero", b"error", b"linear", b"striped", b"thin", b"thin-pool"):
            load(f"{kind.decode()} {text[:10]!r}*{len(text)}", spec(0, 8, kind, text, 0))
    for text in (b"%s 0", b"%s  0 ", b" %s 0", b"%s", b"%s 0 0", b"%s -1", b"%s 0x8", b"%s 8 ", b"%s +0", b"%s 1e3", b"%s 0\0junk",
                 b"/dev/nosuch 0", b"%s/ 0", b"%s 2040", b"%s 2041", b"%s 2047", b"%s 2048", b"%s 99999999999999999999", b"7:41 0", b"0:0 0",
                 b"999:0 0", b"4095:1048575 0", b"8:9999999 0", b"7:41: 0", b"7:41x 0", b"\\%s 0", b"/dev 0", b"/etc/passwd 0", b"/dev/null 0"):
        filled = text.replace(b"%s", disk.encode()).replace(b"7:41", machine.disk_number)
        if b"0x8" in text or b"9999999999" in text:
            continue
        load(f"linear {text!r}", spec(0, 8, b"linear", filled, 0))
    machine.clear_all()


def messages(machine):
    machine.begin("messages")
    for state in ("created", "inactive", "live", "suspended"):
        machine.make(b"a", state)

        def send(label, text, sector=0, **more):
            payload = struct.pack("=Q", sector) + text
            machine.try_(f"{state} {label}", "TARGET_MSG", payload, **{"name": b"a", **more})

        send("word", b"word\0")
        send("empty", b"\0")
        send("blanks", b"  \t\n \0")
        send("no NUL", b"x" * (PAGE - HEADER - 8))
        send("long", b"x" * (PAGE - HEADER - 9) + b"\0")
        send("many words", b"x " * 1800 + b"\0")
        for text in (b"@", b"@@", b"@cancel_deferred_remove", b"@CANCEL_deferred_REMOVE", b"@cancel_deferred_remove now", b"@nosuch", b" @nosuch",
                     b"\\@nosuch", b"\xff\xfe", b"\\", b"@\xff"):
            send(repr(text), text + b"\0")
        for sector in (7, 8, 9, 1 << 63, (1 << 64) - 1):
            send(f"sector {sector:#x}", b"word\0", sector)
            send(f"@ sector {sector:#x}", b"@nosuch\0", sector)
        for start in (0, 304, 305, 312, 313, PAGE - 9, PAGE - 8, PAGE - 7, PAGE, BIG):
            send(f"data_start {start}", b"word\0", data_start=start)
        for size in range(HEADER_MIN, HEADER + 14):
            send(f"size {size}", b"word\0", size=size)
        machine.clear_all()


def renames(machine):
    for state in ("none", "created", "live", "both", "suspended"):
        machine.begin(f"renames {state}")

        def attempt(label, new, sets_uuid=False, **more):
            machine.clear_all()
            machine.make(b"a", state, uuid=b"UUID-a" if "has uuid" in label else b"")
            machine.make(b"b", "created", uuid=b"UUID-b")
            flags = FLAG["UUID"] if sets_uuid else 0
            what = "uuid" if sets_uuid else "name"
            more = {"name": b"a", "flags": flags, **more}
            machine.try_(f"{what} {label}", "DEV_RENAME", new, **more)
            machine.try_(f"({what} {label})", "LIST_DEVICES", flags=FLAG["UUID"])

        for sets_uuid in (False, True):
            attempt("fresh", b"fresh\0", sets_uuid)
            attempt("fresh, has uuid", b"fresh\0", sets_uuid)
            attempt("empty", b"\0", sets_uuid)
            attempt("its own", b"a\0", sets_uuid)
            attempt("its own, has uuid", b"UUID-a\0", sets_uuid)
            attempt("taken", b"b\0" if not sets_uuid else b"UUID-b\0", sets_uuid)
            attempt("with slash", b"a/b\0", sets_uuid)
            attempt("blank", b" \0", sets_uuid)
            attempt("no NUL", b"x" * (PAGE - HEADER), sets_uuid)
            attempt("high bytes", b"\xff\xfe\0", sets_uuid)
            for length in (126, 127, 128, 129, 130, 3000):
                attempt(f"{length} bytes", b"x" * length + b"\0", sets_uuid)
            for start in (0, 304, 305, 311, 313, PAGE - 1, PAGE, BIG):
                attempt(f"data_start {start}", b"fresh\0", sets_uuid, data_start=start)
            for size in (305, 306, 311, 312, 313, 314, 317, 318, 319):
                attempt(f"size {size}", b"fresh\0", sets_uuid, size=size)
            attempt("of nobody", b"fresh\0", sets_uuid, name=b"nosuch")
            attempt("of nobody to taken", b"b\0", sets_uuid, name=b"nosuch")
            attempt("of no name", b"fresh\0", sets_uuid, name=b"")
            attempt("by uuid", b"fresh\0", sets_uuid, name=b"", uuid=b"UUID-b")
            attempt("with a tail behind the name", b"fresh\0", sets_uuid, name=b"a\0tail")
    machine.clear_all()


def geometries(machine):
    machine.begin("geometries")
    for state in ("created", "inactive", "live", "suspended"):
        machine.make(b"a", state)
        for text in (b"", b"1", b"1 2", b"1 2 3", b"1 2 3 0", b"1 2 3 4 5", b"1 2 3 0 x", b"65535 255 255 0", b"65536 1 1 0", b"1 256 1 0", b"1 1 256 0",
                     b"0 0 0 0", b"1 1 1 8", b"1 1 1 9", b"8 1 1 8", b"1 2 3 6", b"1 2 3 7", b"-1 1 1 0", b"+1 1 1 0", b"x 1 1 0", b"0x1 1 1 0", b" 1  1\t1\n0 ", b"1 1 1 -1",
                     b"1 1 1 18446744073709551615", b"1 1 1 18446744073709551616", b"1,1,1,0", b"1 1 1 0x", b"\xff 1 1 0"):
            machine.try_(f"{state} {text!r}", "DEV_SET_GEOMETRY", text + b"\0", name=b"a")
        machine.try_(f"{state} no NUL", "DEV_SET_GEOMETRY", b"1 2 3 0" + b" " * (PAGE - HEADER - 7), name=b"a")
        for start in (0, 304, 305, 313, PAGE - 1, PAGE, BIG):
            machine.try_(f"{state} data_start {start}", "DEV_SET_GEOMETRY", b"1 2 3 0\0", name=b"a", data_start=start)
        for size in (305, 312, 313, 319, 320):
            machine.try_(f"{state} size {size}", "DEV_SET_GEOMETRY", b"1 2 3 0\0", name=b"a", size=size)
        machine.clear_all()


def answers(machine, disk):
    machine.begin("answers")
    for names in ([], [b"a"], [b"a", b"bcdefgh", b"c" * 127]):
        machine.clear_all()
        for at, name in enumerate(names):
            machine.make(name, "live" if at % 2 else "created", uuid=b"UUID-" + name[:3] if at != 1 else b"")
        for flags in (0, FLAG["UUID"]):
            for size in range(HEADER_MIN, 800 if len(names) > 1 else 420):
                machine.try_(f"{len(names)} devices, {size} bytes", "LIST_DEVICES", size=size, fill=0x33, flags=flags)
    for prefix in (b"a", b"b", b"bc", b"x", b"c" * 127, b"c" * 128, b"A"):
        machine.try_(f"names from {prefix[:5]!r}", "LIST_DEVICES", name=prefix)
        machine.try_(f"uuids from {prefix[:5]!r}", "LIST_DEVICES", uuid=b"UUID-" + prefix, flags=FLAG["UUID"])
        machine.try_(f"both from {prefix[:5]!r}", "LIST_DEVICES", name=prefix, uuid=b"U", flags=FLAG["UUID"])
    for size in range(HEADER_MIN, 620):
        machine.try_(f"{size} bytes", "LIST_VERSIONS", size=size, fill=0x33)
    for target in (b"linear", b"zero", b"thin-pool", b"nosuch", b"", b"lin", b"LINEAR", b"linear\0tail", b"l" * 128):
        for size in (305, 312, 340, 343, 344, 345, 346, 347, 348, 349, 350, 360, 400, PAGE):
            machine.try_(f"{target[:12]!r} {size} bytes", "GET_TARGET_VERSION", size=size, fill=0x33, name=target)
    machine.clear_all()
    number = machine.disk_number
    tables = {
        "zero": [(0, 8, b"zero", b"")],
        "linear": [(0, 8, b"linear", disk.encode() + b" 8")],
        "three": [(0, 8, b"linear", disk.encode() + b" 0"), (8, 8, b"error", b""), (16, 8, b"striped", b"1 8 " + disk.encode() + b" 0")],
    }
    for label, table in tables.items():
        machine.make(b"a", "live", table)
        for flags in (0, FLAG["STATUS_TABLE"], FLAG["IMA"]):
            for size in list(range(HEADER_MIN, 560, 1 if flags else 7)) + [PAGE]:
                machine.try_(f"{label} {flags:#x} {size} bytes", "TABLE_STATUS", size=size, fill=0x33, name=b"a", flags=flags)
            for size in (305, 312, 351, 352, 353, 354, 360, 400, PAGE):
                machine.try_(f"{label} {flags:#x} {size} bytes", "DEV_WAIT", size=size, fill=0x33, name=b"a", flags=flags, event_nr=9)
        for size in list(range(HEADER_MIN, 340)) + [PAGE]:
            machine.try_(f"{label} {size} bytes", "TABLE_DEPS", size=size, fill=0x33, name=b"a")
        machine.clear_all()
