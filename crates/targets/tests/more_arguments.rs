//! Every wrong argument and message of the targets for tests and layouts; their table lines construct the same again.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::Arc;

use support::*;
use thinmap_dm::{MappedDevice, StatusKind, WhichTable};
use thinmap_units::Sector;

/// A line of 64 sectors, text of the error, errno. `7:0` to `7:2` have 64 sectors, `big` has 4096.
const WRONG: &[(&str, &str, i32)] = &[
    ("delay", "Requires exactly 3, 6 or 9 arguments", 22),
    ("delay 7:0 0", "Requires exactly 3, 6 or 9 arguments", 22),
    (
        "delay 7:0 0 1 7:1",
        "Requires exactly 3, 6 or 9 arguments",
        22,
    ),
    ("delay 7:0 x 1", "Invalid device sector: 'x'", 22),
    ("delay 7:0 0 1s", "Invalid delay: '1s'", 22),
    ("delay 7:0 0 4294967296", "Invalid delay: '4294967296'", 22),
    (
        "delay nowhere 0 1",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    ("delay 7:0 0 1 7:1 -1 1", "Invalid device sector: '-1'", 22),
    ("delay 7:0 0 1 7:1 0 1 7:2 0 +1", "Invalid delay: '+1'", 22),
    ("flakey 7:0 0 1", "Invalid argument count", 22),
    ("flakey 7:0 x 1 1", "Invalid device sector: 'x'", 22),
    ("flakey 7:0 0 x 1", "Invalid up interval: 'x'", 22),
    ("flakey 7:0 0 1 x", "Invalid down interval: 'x'", 22),
    ("flakey 7:0 0 0 0", "Total (up + down) interval is zero", 22),
    ("flakey 7:0 0 1 4294967295", "Interval overflow", 22),
    (
        "flakey nowhere 0 1 1",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "flakey 7:0 0 1 1 7 a b c d e f g",
        "Invalid number of feature args: '7'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 2 drop_writes",
        "Invalid number of feature args: '2'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 1 off",
        "Unrecognised flakey feature requested: 'off'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 2 drop_writes drop_writes",
        "Feature drop_writes duplicated",
        22,
    ),
    (
        "flakey 7:0 0 1 1 2 drop_writes error_writes",
        "Feature error_writes conflicts with feature drop_writes",
        22,
    ),
    (
        "flakey 7:0 0 1 1 1 corrupt_bio_byte",
        "Feature corrupt_bio_byte requires parameters",
        22,
    ),
    (
        "flakey 7:0 0 1 1 2 corrupt_bio_byte 1 r 1 0",
        "Insufficient feature arguments",
        22,
    ),
    (
        "flakey 7:0 0 1 1 5 corrupt_bio_byte 0 r 1 0",
        "Invalid corrupt bio byte: '0'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 5 corrupt_bio_byte 1 x 1 0",
        "Invalid corrupt bio direction (r or w): 'x'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 5 corrupt_bio_byte 1 r 256 0",
        "Invalid corrupt value to write into bio byte (0-255): '256'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 5 corrupt_bio_byte 1 r 1 x",
        "Invalid corrupt bio flags mask: 'x'",
        22,
    ),
    (
        "flakey 7:0 0 1 1 6 error_writes corrupt_bio_byte 1 w 1 0",
        "error_writes is incompatible with corrupt_bio_byte with the WRITE flag set",
        22,
    ),
    ("dust 7:0 0", "Invalid argument count", 22),
    ("dust 7:0 0 x", "Invalid block size parameter: 'x'", 22),
    ("dust 7:0 0 256", "Block size must be at least 512", 22),
    ("dust 7:0 0 768", "Block size must be a power of 2", 22),
    ("dust 7:0 0 65536", "Block size is too large", 22),
    ("dust 7:0 x 512", "Invalid device offset sector: 'x'", 22),
    (
        "dust nowhere 0 512",
        "Device lookup failed: nowhere: no such device",
        22,
    ),
    ("log-writes 7:0", "Invalid argument count", 22),
    (
        "log-writes nowhere 7:0",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "log-writes 7:0 nowhere",
        "Log device lookup failed: nowhere: no such device",
        19,
    ),
    ("unstriped 2 8 0 7:0", "Invalid number of arguments", 22),
    ("unstriped 0 8 0 7:0 0", "Invalid stripe count: '0'", 22),
    ("unstriped 2 0 0 7:0 0", "Invalid chunk_size: '0'", 22),
    ("unstriped 2 8 x 7:0 0", "Invalid stripe number: 'x'", 22),
    (
        "unstriped 2 8 3 7:0 0",
        "Please provide stripe between [0, # of stripes]",
        22,
    ),
    (
        "unstriped 2 8 0 nowhere 0",
        "Couldn't get striped device: nowhere: no such device",
        22,
    ),
    (
        "unstriped 2 8 0 7:0 x",
        "Invalid striped device offset: 'x'",
        22,
    ),
    (
        "unstriped 2 7 0 7:0 0",
        "Target length not divisible by chunk size",
        22,
    ),
    ("switch", "Invalid number of paths", 22),
    ("switch 0 8 0", "Invalid number of paths", 22),
    ("switch 1 0 0 7:0 0", "Invalid region size", 22),
    ("switch 1 8 1 7:0 0", "Invalid number of optional args", 22),
    (
        "switch 2 8 0 7:0 0",
        "Incorrect number of path arguments",
        22,
    ),
    (
        "switch 1 8 0 nowhere 0",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "switch 1 8 0 7:0 x",
        "Invalid device starting offset: 'x'",
        22,
    ),
    ("era big 7:0", "Invalid argument count", 22),
    (
        "era nowhere 7:0 8",
        "Error opening metadata device: nowhere: no such device",
        22,
    ),
    (
        "era big nowhere 8",
        "Error opening data device: nowhere: no such device",
        22,
    ),
    (
        "era big big 8",
        "Error opening data device: it is the metadata device",
        22,
    ),
    ("era big 7:0 x", "Error parsing block size: 'x'", 22),
    ("era big 7:0 12", "Invalid block size", 22),
    (
        "era junk 7:0 8",
        "Error reading metadata: this is no era metadata: the superblock's address is wrong (metadata block 0)",
        15,
    ),
    ("cache big 7:0 7:1", "Insufficient args", 22),
    (
        "cache nowhere 7:0 7:1 64 0 smq 0",
        "Error opening metadata device: nowhere: no such device",
        19,
    ),
    (
        "cache big nowhere 7:1 64 0 smq 0",
        "Error opening cache device: nowhere: no such device",
        19,
    ),
    (
        "cache big 7:0 nowhere 64 0 smq 0",
        "Error opening origin device: nowhere: no such device",
        19,
    ),
    (
        "cache big 7:0 small 64 0 smq 0",
        "Device size larger than cached device",
        22,
    ),
    (
        "cache big big 7:1 64 0 smq 0",
        "Error opening device: 7:3 is named twice",
        22,
    ),
    (
        "cache big 7:0 7:1 x 0 smq 0",
        "Invalid data block size: 'x'",
        22,
    ),
    (
        "cache big 7:0 7:1 96 0 smq 0",
        "Invalid data block size: '96'",
        22,
    ),
    (
        "cache big 7:0 7:1 128 0 smq 0",
        "Data block size is larger than the cache device: 128",
        22,
    ),
    (
        "cache big 7:0 7:1 64 4 a b c d smq 0",
        "Invalid number of cache feature arguments: '4'",
        22,
    ),
    (
        "cache big 7:0 7:1 64 1 fast smq 0",
        "Unrecognised cache feature requested: 'fast'",
        22,
    ),
    (
        "cache big 7:0 7:1 64 2 writeback passthrough smq 0",
        "Duplicate cache io_mode features requested: 'writeback passthrough'",
        22,
    ),
    (
        "cache big 7:0 7:1 64 0 lru 0",
        "Error creating cache's policy: unknown policy type 'lru'",
        22,
    ),
    (
        "cache big 7:0 7:1 64 0 smq 2 a",
        "Invalid number of policy arguments: '2'",
        22,
    ),
    (
        "cache big 7:0 7:1 64 0 smq 1 a",
        "Error setting cache policy's config values: Odd number of policy arguments given but they should be <key> <value> pairs.",
        22,
    ),
    (
        "cache big 7:0 7:1 64 0 smq 2 migration_threshold x",
        "Error setting cache policy's config values: bad config value for migration_threshold: x",
        22,
    ),
    (
        "cache junk 7:0 7:1 64 0 smq 0",
        "Error creating metadata object: this is no cache metadata: the superblock's address is wrong (metadata block 0)",
        15,
    ),
    ("clone big 7:0 7:1", "Invalid number of arguments", 22),
    (
        "clone nowhere 7:0 7:1 8",
        "Error opening metadata device: nowhere: no such device",
        19,
    ),
    (
        "clone big nowhere 7:1 8",
        "Error opening destination device: nowhere: no such device",
        19,
    ),
    (
        "clone big 7:0 nowhere 8",
        "Error opening source device: nowhere: no such device",
        19,
    ),
    (
        "clone big small 7:1 8",
        "Device size larger than destination device",
        22,
    ),
    (
        "clone big 7:0 small 8",
        "Device size larger than source device",
        22,
    ),
    (
        "clone big big 7:1 8",
        "Error opening destination device: it is the metadata device",
        22,
    ),
    ("clone big 7:0 7:1 4", "Invalid region size: '4'", 22),
    (
        "clone big 7:0 7:1 24",
        "Region size is not a power of 2",
        22,
    ),
    (
        "clone big 7:0 7:1 8 3 a b c",
        "Invalid number of feature arguments: '3'",
        22,
    ),
    (
        "clone big 7:0 7:1 8 1 fast",
        "Invalid feature argument: 'fast'",
        22,
    ),
    (
        "clone big 7:0 7:1 8 0 5 a b c d e",
        "Invalid number of core arguments: '5'",
        22,
    ),
    (
        "clone big 7:0 7:1 8 0 1 a",
        "Number of core arguments must be even",
        22,
    ),
    (
        "clone big 7:0 7:1 8 0 2 a 1",
        "Invalid core argument: 'a'",
        22,
    ),
    (
        "clone big 7:0 7:1 8 0 2 hydration_threshold x",
        "Invalid value for argument `hydration_threshold': 'x'",
        22,
    ),
    (
        "clone junk 7:0 7:1 8",
        "Failed to load metadata: this is no clone metadata: the superblock's address is wrong (metadata block 0)",
        15,
    ),
];

/// A line, a message, what is wrong with it.
const WRONG_MESSAGES: &[(&str, &str, &str)] = &[
    (
        "dust 7:0 0 512",
        "addbadblock",
        "addbadblock requires an additional argument",
    ),
    (
        "dust 7:0 0 512",
        "addbadblock 65",
        "selected block value out of range",
    ),
    (
        "dust 7:0 0 512",
        "addbadblock 1 256",
        "selected write fail count out of range",
    ),
    (
        "dust 7:0 0 512",
        "enable 1",
        "unrecognized message 'enable' received",
    ),
    (
        "dust 7:0 0 512",
        "a 1 2 3",
        "invalid number of arguments '4'",
    ),
    (
        "dust 7:0 0 512",
        "removebadblock 1",
        "dust_remove_block: block 1 not found in badblocklist",
    ),
    (
        "log-writes 7:0 7:4",
        "mark",
        "Invalid log-writes message arguments, expect 2 arguments, got 1",
    ),
    (
        "log-writes 7:0 7:4",
        "note it",
        "Unrecognised log writes target message received: note",
    ),
    (
        "switch 1 8 0 7:0 0",
        "hello",
        "Unrecognised message received.",
    ),
    (
        "era 7:4 7:0 8",
        "checkpoint now",
        "incorrect number of message arguments",
    ),
    ("era 7:4 7:0 8", "hello", "unsupported message 'hello'"),
    ("era 7:4 7:0 8", "drop_metadata_snap", "no snap to drop"),
    (
        "cache 7:4 7:0 7:1 64 1 passthrough smq 0",
        "invalidate_cblocks 1",
        "begin cblock out of range: 1 >= 1",
    ),
    (
        "cache 7:4 7:0 7:1 64 1 passthrough smq 0",
        "invalidate_cblocks 0-",
        "invalid cblock range '0-'",
    ),
    (
        "cache 7:4 7:0 7:1 64 0 mq 0",
        "random_threshold x",
        "bad config value for random_threshold: x",
    ),
    (
        "cache 7:4 7:0 7:1 64 0 smq 0",
        "hello",
        "'hello' takes one value",
    ),
    (
        "clone 7:4 7:0 7:1 8",
        "hello",
        "Unsupported message `hello'",
    ),
    (
        "clone 7:4 7:0 7:1 8",
        "hydration_threshold x",
        "no number: 'x'",
    ),
];

fn world() -> Arc<World> {
    let world = World::new();
    for name in ["7:0", "7:1", "7:2"] {
        world.memory(name, 64);
    }
    world.memory("big", 4096);
    world.memory("7:4", 4096);
    world.memory("small", 32);
    let junk = world.memory("junk", 4096);
    assert!(write_fill(&*junk, 0, 8, 7).is_ok());
    world
}

#[test]
fn every_wrong_argument_has_its_text_and_errno() {
    let world = world();
    for (line, text, errno) in WRONG {
        let dev = world.mapped("one");
        let error = load(&dev, &format!("0 64 {line}")).unwrap_err();
        let target = line.split(' ').next().unwrap();
        assert_eq!(
            (error.to_string(), error.errno()),
            (format!("{target}: {text}"), *errno),
            "{line}"
        );
    }
}

fn text(dev: &MappedDevice, kind: StatusKind) -> String {
    let lines = dev.table_status(kind, WhichTable::Live, false).unwrap();
    lines[0].text.clone()
}

#[test]
fn a_table_line_constructs_the_same_again() {
    for (target, line, status) in [
        ("delay", "7:0 0 20", "0 0 0"),
        ("delay", "7:0 0 20 7:1 0 30", "0 0 0"),
        ("delay", "7:0 0 20 7:1 0 30 7:2 0 40", "0 0 0"),
        ("flakey", "7:0 0 1 2 0 ", ""),
        (
            "flakey",
            "7:0 0 1 2 6 error_writes corrupt_bio_byte 7 r 255 4096 ",
            "",
        ),
        ("dust", "7:0 0 4096", "7:0 bypass verbose"),
        ("log-writes", "7:0 7:4", "0 0"),
        ("unstriped", "1 8 0 7:0 0", ""),
        ("switch", "3 24 0 7:0 0 7:1 0 7:2 0", ""),
        ("era", "7:4 7:0 24", "8 9/512 1 -"),
        (
            "clone",
            "7:4 7:0 7:1 16 1 no_hydration 2 hydration_threshold 7",
            "8 6/512 16 0/4 0 1 no_hydration 4 hydration_threshold 7 hydration_batch_size 1 rw",
        ),
    ] {
        let world = world();
        let dev = world.live("one", &format!("0 64 {target} {line}"));
        assert_eq!(text(&dev, StatusKind::Table), line);
        assert_eq!(text(&dev, StatusKind::Info), status, "{target}");
        assert_eq!(text(&dev, StatusKind::Measurement), "", "{target}");
        load(&dev, &format!("0 64 {target} {}", line.trim_end())).unwrap();
        resume(&dev).unwrap();
        assert_eq!(text(&dev, StatusKind::Table), line);
    }
}

#[test]
fn wrong_messages_have_their_text() {
    let message = |dev: &MappedDevice, words: &str| {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let error = dev.message(Sector(0), &words).unwrap_err();
        assert_eq!(error.errno(), 22);
        error.to_string()
    };
    for (table, words, reason) in WRONG_MESSAGES {
        let world = world();
        let dev = world.live("one", &format!("0 64 {table}"));
        let target = table.split(' ').next().unwrap();
        assert_eq!(message(&dev, words), format!("{target}: {reason}"));
    }
}
