//! Every wrong argument of the targets without metadata of pools, and the rules of tables.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use support::*;
use thinmap_block::{BlockDevice, QueueLimits};
use thinmap_dm::{StatusKind, WhichTable};
use thinmap_units::Sector;

/// Table, text of the error, errno.
const WRONG: &[(&str, &str, i32)] = &[
    ("", "table: no targets specified", 22),
    ("0 0 zero", "table: zero-length target", 22),
    ("0 36028797018963968 zero", "table: too large device", 22),
    ("1 8 zero", "zero: Gap in table", 22),
    ("0 8 zero\n9 8 zero", "zero: Gap in table", 22),
    ("0 8 zero\n7 8 zero", "zero: Gap in table", 22),
    ("0 8 nonsense x y", "nonsense: unknown target type", 22),
    ("0 8 zero 1", "zero: No arguments required", 22),
    ("0 8 linear", "linear: Invalid argument count", 22),
    ("0 8 linear a", "linear: Invalid argument count", 22),
    ("0 8 linear a 0 0", "linear: Invalid argument count", 22),
    ("0 8 linear a x", "linear: Invalid device sector", 22),
    ("0 8 linear a 0x1", "linear: Invalid device sector", 22),
    ("0 8 linear a -1", "linear: Invalid device sector", 22),
    (
        "0 8 linear a 18446744073709551616",
        "linear: Invalid device sector",
        22,
    ),
    (
        "0 8 linear nowhere 0",
        "linear: Device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "0 8 linear a 64",
        "table: 7:0 too small for target: start=64, len=8, dev_size=64",
        22,
    ),
    (
        "0 8 linear a 18446744073709551615",
        "table: 7:0 too small for target: start=18446744073709551615, len=8, dev_size=64",
        22,
    ),
    (
        "0 64 mirror",
        "mirror: Insufficient mirror log arguments",
        22,
    ),
    (
        "0 64 mirror core",
        "mirror: Insufficient mirror log arguments",
        22,
    ),
    (
        "0 64 mirror core x",
        "mirror: Invalid mirror log argument count",
        22,
    ),
    (
        "0 64 mirror core 1",
        "mirror: Insufficient mirror log arguments",
        22,
    ),
    (
        "0 64 mirror core 0",
        "mirror: Error creating mirror dirty log: wrong number of arguments to dirty region log",
        22,
    ),
    (
        "0 64 mirror core 3 8 nosync x 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: wrong number of arguments to dirty region log",
        22,
    ),
    (
        "0 64 mirror core 2 8 block_on_error 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: unrecognised sync argument: block_on_error",
        22,
    ),
    (
        "0 64 mirror core 1 1 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: invalid region size 1",
        22,
    ),
    (
        "0 64 mirror core 1 3 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: invalid region size 3",
        22,
    ),
    (
        "0 64 mirror core 1 128 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: invalid region size 128",
        22,
    ),
    (
        "0 64 mirror core 1 8x 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: invalid region size 8x",
        22,
    ),
    (
        "0 64 mirror core 1 4294967296 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: invalid region size 4294967296",
        22,
    ),
    (
        "0 64 mirror disk 0 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: wrong number of arguments to disk dirty region log",
        22,
    ),
    (
        "0 64 mirror disk 1 c 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: wrong number of arguments to dirty region log",
        22,
    ),
    (
        "0 64 mirror disk 2 nowhere 8 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: nowhere: no such device",
        22,
    ),
    (
        "0 64 mirror userspace 2 x 8 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: logs of a cluster (userspace) are not supported",
        22,
    ),
    (
        "0 64 mirror nosuch 1 8 2 a 0 b 0",
        "mirror: Error creating mirror dirty log: there is no log of type nosuch",
        22,
    ),
    (
        "0 64 mirror core 1 8",
        "mirror: Invalid number of mirrors",
        22,
    ),
    (
        "0 64 mirror core 1 8 x",
        "mirror: Invalid number of mirrors",
        22,
    ),
    (
        "0 64 mirror core 1 8 0",
        "mirror: Invalid number of mirrors",
        22,
    ),
    (
        "0 64 mirror core 1 8 1 a 0",
        "mirror: Invalid number of mirrors",
        22,
    ),
    (
        "0 64 mirror core 1 8 10 a 0",
        "mirror: Invalid number of mirrors",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b",
        "mirror: Too few mirror arguments",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a x b 0",
        "mirror: Invalid offset",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 nowhere x b 0",
        "mirror: Invalid offset",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 nowhere 0",
        "mirror: Device lookup failure: nowhere: no such device",
        19,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b 0 x",
        "mirror: Invalid number of features",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b 0 1",
        "mirror: Not enough arguments to support feature count",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b 0 1 x",
        "mirror: Unrecognised feature requested",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b 0 1 keep_log",
        "mirror: keep_log feature requires the handle_errors feature",
        22,
    ),
    (
        "0 64 mirror core 1 8 2 a 0 b 0 1 handle_errors keep_log",
        "mirror: Too many mirror arguments",
        22,
    ),
    ("0 8 striped", "striped: Not enough arguments", 22),
    ("0 8 striped 2", "striped: Not enough arguments", 22),
    ("0 8 striped 0 8 a 0", "striped: Invalid stripe count", 22),
    ("0 8 striped x 8 a 0", "striped: Invalid stripe count", 22),
    (
        "0 8 striped 4294967296 8 a 0",
        "striped: Invalid stripe count",
        22,
    ),
    ("0 8 striped 1 0 a 0", "striped: Invalid chunk_size", 22),
    ("0 8 striped 1 8k a 0", "striped: Invalid chunk_size", 22),
    (
        "0 9 striped 2 4 a 0 b 0",
        "striped: Target length not divisible by number of stripes",
        22,
    ),
    (
        "0 12 striped 2 4 a 0 b 0",
        "striped: Target length not divisible by chunk size",
        22,
    ),
    (
        "0 8 striped 2 4 a 0 b",
        "striped: Not enough destinations specified",
        22,
    ),
    (
        "0 8 striped 2 4 a 0 b 0 a",
        "striped: Not enough destinations specified",
        22,
    ),
    (
        "0 8 striped 2 4 a 0 b x",
        "striped: Couldn't parse stripe destination: 'x' is no sector",
        22,
    ),
    (
        "0 8 striped 2 4 a 0 nowhere 0",
        "striped: Couldn't parse stripe destination: nowhere: no such device",
        19,
    ),
    (
        "0 8 striped 2 4 a 0 b 61",
        "table: 7:1 too small for target: start=61, len=4, dev_size=64",
        22,
    ),
    (
        "0 8 multipath",
        "multipath: invalid number of feature args",
        22,
    ),
    (
        "0 8 multipath x 0 1 1 round-robin 0 1 0 a",
        "multipath: invalid number of feature args",
        22,
    ),
    (
        "0 8 multipath 9 a b c d e f g h i 0 1 1",
        "multipath: invalid number of feature args",
        22,
    ),
    (
        "0 8 multipath 1 nonsense 0 1 1 round-robin 0 1 0 a",
        "multipath: Unrecognised multipath feature request: 'nonsense'",
        22,
    ),
    (
        "0 8 multipath 1 queue_mode 0 1 1 round-robin 0 1 0 a",
        "multipath: Unrecognised multipath feature request: 'queue_mode'",
        22,
    ),
    (
        "0 8 multipath 2 queue_mode none 0 1 1 round-robin 0 1 0 a",
        "multipath: Unknown 'queue_mode' requested: 'none'",
        22,
    ),
    (
        "0 8 multipath 2 pg_init_retries 51 0 1 1 round-robin 0 1 0 a",
        "multipath: pg_init_retries must be between 1 and 50",
        22,
    ),
    (
        "0 8 multipath 2 pg_init_delay_msecs 60001 0 1 1 round-robin 0 1 0 a",
        "multipath: pg_init_delay_msecs must be between 0 and 60000",
        22,
    ),
    (
        "0 8 multipath 0 2 alua",
        "multipath: invalid number of hardware handler args",
        22,
    ),
    (
        "0 8 multipath 0 2 alua 1 1 1 round-robin 0 1 0 a",
        "multipath: unable to set hardware handler parameters",
        16,
    ),
    (
        "0 8 multipath 0 0 x 1",
        "multipath: invalid number of priority groups",
        22,
    ),
    (
        "0 8 multipath 0 0 1 x",
        "multipath: invalid initial priority group number",
        22,
    ),
    (
        "0 8 multipath 0 0 1 0",
        "multipath: invalid initial priority group",
        22,
    ),
    (
        "0 8 multipath 0 0 0 1",
        "multipath: invalid initial priority group",
        22,
    ),
    (
        "0 8 multipath 0 0 2 1 round-robin 0 1 0 a",
        "multipath: priority group count mismatch",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin",
        "multipath: not enough priority group arguments",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 io-affinity 0 1 0 a",
        "multipath: unknown path selector type: 'io-affinity'",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 9 1 0 a",
        "multipath: invalid number of path selector args",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 historical-service-time 1 1024 1 0 a",
        "multipath: path selector constructor failed",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 0 0 a",
        "multipath: invalid number of paths",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 1 x a",
        "multipath: invalid number of selector args",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 2 0 a",
        "multipath: not enough path parameters",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 1 0 nowhere",
        "multipath: error getting device: nowhere: no such device",
        19,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 1 2 a 1 1",
        "multipath: round-robin ps: incorrect number of arguments",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 queue-length 0 1 1 a x",
        "multipath: queue-length ps: invalid repeat count",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 service-time 0 1 2 a 1 101",
        "multipath: service-time ps: invalid relative_throughput value",
        22,
    ),
    (
        "0 128 multipath 0 0 1 1 round-robin 0 1 0 a",
        "table: 7:0 too small for target: start=0, len=128, dev_size=64",
        22,
    ),
    (
        "0 8 multipath 0 0 1 1 round-robin 0 1 0 a\n8 8 zero",
        "table: target type multipath must appear alone in table",
        22,
    ),
    (
        "0 8 zero\n8 8 multipath 0 0 1 1 round-robin 0 1 0 a",
        "multipath: singleton target type must appear alone in table",
        22,
    ),
    (
        "0 8 snapshot a b P",
        "snapshot: requires 4 or more arguments",
        22,
    ),
    (
        "0 8 snapshot nowhere b P 8",
        "snapshot: Cannot get origin device: nowhere: no such device",
        19,
    ),
    (
        "0 8 snapshot a nowhere P 8",
        "snapshot: Cannot get COW device: nowhere: no such device",
        19,
    ),
    (
        "0 8 snapshot a a P 8",
        "snapshot: COW device cannot be the same as origin device",
        22,
    ),
    (
        "0 8 snapshot a b X 8",
        "snapshot: Couldn't create exception store: Persistent flag is not P or N: 'X'",
        22,
    ),
    (
        "0 8 snapshot a b PX 8",
        "snapshot: Couldn't create exception store: Unsupported persistent store option: 'PX'",
        22,
    ),
    (
        "0 8 snapshot a b P x",
        "snapshot: Couldn't create exception store: Invalid chunk size: 'x'",
        22,
    ),
    (
        "0 8 snapshot a b P 4294967296",
        "snapshot: Couldn't create exception store: Invalid chunk size: '4294967296'",
        22,
    ),
    (
        "0 8 snapshot a b P 3",
        "snapshot: Couldn't create exception store: Chunk size is not a power of 2: 3",
        22,
    ),
    (
        "0 8 snapshot a b P 4194304",
        "snapshot: Couldn't create exception store: Chunk size is too high: 4194304",
        22,
    ),
    (
        "0 8 snapshot a b P 128",
        "snapshot: Failed to read snapshot metadata: the COW device cannot be read or written",
        5,
    ),
    ("0 8 snapshot a b N 0", "snapshot: Chunk size not set", 22),
    (
        "0 8 snapshot a b P 8 x",
        "snapshot: Invalid number of feature arguments: 'x'",
        22,
    ),
    (
        "0 8 snapshot a b P 8 3 a b c",
        "snapshot: Invalid number of feature arguments: '3'",
        22,
    ),
    (
        "0 8 snapshot a b P 8 1",
        "snapshot: Invalid number of feature arguments: '1'",
        22,
    ),
    (
        "0 8 snapshot a b P 8 1 nonsense",
        "snapshot: Unrecognised feature requested: 'nonsense'",
        22,
    ),
    (
        "0 8 snapshot a b P 8 1 discard_passdown_origin",
        "snapshot: discard_passdown_origin feature depends on discard_zeroes_cow",
        22,
    ),
    (
        "0 8 snapshot-merge a b P",
        "snapshot-merge: requires 4 or more arguments",
        22,
    ),
    (
        "0 8 snapshot-merge a b N 8",
        "snapshot-merge: Snapshot exception store does not support snapshot-merge.",
        22,
    ),
    (
        "0 8 snapshot-origin",
        "snapshot-origin: origin: incorrect number of arguments",
        22,
    ),
    (
        "0 8 snapshot-origin a 0",
        "snapshot-origin: origin: incorrect number of arguments",
        22,
    ),
    (
        "0 8 snapshot-origin nowhere",
        "snapshot-origin: Cannot get target device: nowhere: no such device",
        19,
    ),
    (
        "0 65 snapshot-origin a",
        "table: 7:0 too small for target: start=0, len=65, dev_size=64",
        22,
    ),
    (
        "0 65 snapshot a b P 8",
        "table: 7:0 too small for target: start=0, len=65, dev_size=64",
        22,
    ),
];

#[test]
fn every_wrong_argument_has_its_text_and_errno() {
    let world = World::new();
    world.memory("a", 64);
    world.memory("b", 64);
    for (table, text, errno) in WRONG {
        let dev = world.mapped("one");
        let error = load(&dev, table).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.errno()),
            (*text, *errno),
            "{table:?}"
        );
        assert!(dev.info().inactive.is_none());
    }
}

#[test]
fn table_lines_construct_the_same_table_again() {
    let world = World::new();
    world.memory("7:0", 64);
    world.memory("7:1", 64);
    let dev = world.live(
        "one",
        "0 8 linear 7:0 3\n8 16 striped 2 4 7:0 16 7:1 8\n24 8 zero\n32 8 error ignored words",
    );
    let text = |kind| -> Vec<String> {
        let lines = dev.table_status(kind, WhichTable::Live, false).unwrap();
        lines
            .iter()
            .map(|l| format!("{} {} {} {}", l.start, l.len, l.target, l.text))
            .collect()
    };
    let table = text(StatusKind::Table);
    assert_eq!(
        table,
        [
            "0 8 linear 7:0 3",
            "8 16 striped 2 4 7:0 16 7:1 8",
            "24 8 zero ",
            "32 8 error "
        ]
    );
    assert_eq!(
        text(StatusKind::Info),
        [
            "0 8 linear ",
            "8 16 striped 2 7:0 7:1 1 AA",
            "24 8 zero ",
            "32 8 error "
        ]
    );
    load(&dev, &table.join("\n")).unwrap();
    resume(&dev).unwrap();
    assert_eq!(text(StatusKind::Table), table);
    // Last opened first, each once.
    let deps = dev.deps(WhichTable::Live).unwrap();
    let deps: Vec<String> = deps.iter().map(ToString::to_string).collect();
    assert_eq!(deps, ["7:1", "7:0"]);
}

#[test]
fn limits_of_all_devices_and_hints_of_targets_combine() {
    let world = World::new();
    let double = Double::new(world.memory("below", 1 << 20));
    *double.limits.lock() = QueueLimits {
        logical_block_size: 4096,
        max_discard: Sector::ZERO,
        write_cache: true,
        ..QueueLimits::STACKING
    };
    world.add("big", double);
    world.memory("a", 1 << 20);
    let dev = world.live("one", "0 256 striped 2 128 a 0 big 0");
    let limits = dev.limits();
    assert_eq!((limits.io_min, limits.io_opt), (65536, 131_072));
    assert_eq!(limits.logical_block_size, 4096);
    assert!(limits.write_cache && !limits.supports_discard());

    let unaligned = world.mapped("two");
    let error = load(&unaligned, "0 8 linear big 1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "table: start=1 not aligned to h/w logical block size 4096 of 7:1"
    );
    let error = load(&unaligned, "0 4 linear a 0\n4 8 linear big 0").unwrap_err();
    assert_eq!(
        error.to_string(),
        "table: table line 1 (start sect 4 len 8) not aligned to h/w logical block size 4096"
    );
    load(&unaligned, "0 8 linear a 0\n8 8 linear big 0").unwrap();
}
