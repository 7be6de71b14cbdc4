//! Every wrong argument and message of writecache; its table line constructs the same again.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;
mod writecache_support;

use std::sync::Arc;

use support::*;
use thinmap_block::QueueLimits;
use thinmap_dm::{StatusKind, WhichTable};
use thinmap_units::Sector;
use writecache_support::{message, status_text};

/// A line of 64 sectors, text of the error, errno.
const WRONG: &[(&str, &str, i32)] = &[
    ("", "Bad arguments: the mode is missing", 22),
    ("s", "Bad arguments: the origin is missing", 22),
    ("s 7:0", "Bad arguments: the cache is missing", 22),
    ("s 7:0 7:1", "Bad arguments: the block size is missing", 22),
    (
        "p 7:0 7:1 4096 0",
        "Persistent memory or DAX not supported on this system: 'p'",
        95,
    ),
    ("q 7:0 7:1 4096 0", "Bad arguments: mode 'q'", 22),
    (
        "s nowhere 7:1 4096 0",
        "Origin data device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "s 7:0 nowhere 4096 0",
        "Cache data device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "s 7:0 7:0 4096 0",
        "Cache data device lookup failed: 7:0 is the origin",
        22,
    ),
    ("s 7:0 7:1 x 0", "Invalid block size: 'x'", 22),
    ("s 7:0 7:1 256 0", "Invalid block size: '256'", 22),
    ("s 7:0 7:1 8192 0", "Invalid block size: '8192'", 22),
    ("s 7:0 7:1 1536 0", "Invalid block size: '1536'", 22),
    (
        "s 7:0 large 512 0",
        "Block size is smaller than device logical block size: '512'",
        22,
    ),
    ("s 7:0 7:1 4096", "Invalid number of feature args: ''", 22),
    (
        "s 7:0 7:1 4096 x",
        "Invalid number of feature args: 'x'",
        22,
    ),
    (
        "s 7:0 7:1 4096 19",
        "Invalid number of feature args: '19'",
        22,
    ),
    (
        "s 7:0 7:1 4096 2 cleaner",
        "Invalid number of feature args: '2'",
        22,
    ),
    (
        "s 7:0 7:1 4096 1 fast",
        "Invalid optional argument: 'fast'",
        22,
    ),
    (
        "s 7:0 7:1 4096 1 fua",
        "Invalid optional argument: 'fua'",
        22,
    ),
    (
        "s 7:0 7:1 4096 1 nofua",
        "Invalid optional argument: 'nofua'",
        22,
    ),
    (
        "s 7:0 7:1 4096 4 high_watermark 30 low_watermark 31",
        "High watermark must be greater than or equal to low watermark: 30 and 31",
        22,
    ),
    (
        "s 7:0 7:1 4096 2 start_sector 504",
        "Invalid device size: 7:1",
        28,
    ),
    ("s 7:0 tiny 4096 0", "Invalid device size: 7:3", 28),
    (
        "s 7:0 junk 4096 0",
        "Invalid magic in the superblock: 7:2",
        22,
    ),
];

/// Names of options, and a number that is too large for each.
const NUMBERS: &[(&str, u64)] = &[
    ("start_sector", 512),
    ("high_watermark", 101),
    ("low_watermark", 101),
    ("writeback_jobs", 1 << 32),
    ("autocommit_blocks", 1 << 32),
    ("autocommit_time", 3_600_001),
    ("max_age", 86_400_001),
    ("pause_writeback", 60_001),
];

fn world() -> Arc<World> {
    let world = World::new();
    world.memory("7:0", 64);
    world.memory("7:1", 512);
    let junk = world.memory("junk", 512);
    assert!(write_fill(&*junk, 0, 8, 7).is_ok());
    world.memory("tiny", 8);
    let large = Double::new(world.memory("x", 512));
    *large.limits.lock() = QueueLimits {
        logical_block_size: 4096,
        ..thinmap_block::BlockDevice::limits(&*large.below)
    };
    world.add("large", large);
    world
}

fn refusal(world: &Arc<World>, line: &str) -> (String, i32) {
    let dev = world.mapped("one");
    let error = load(&dev, &format!("0 64 writecache {line}")).unwrap_err();
    (error.to_string(), error.errno())
}

#[test]
fn every_wrong_argument_has_its_text_and_errno() {
    let world = world();
    for (line, text, errno) in WRONG {
        let expected = (format!("writecache: {text}"), *errno);
        assert_eq!(refusal(&world, line), expected, "{line}");
    }
    for (name, too_large) in NUMBERS {
        let refused = |words: &str, count: u32| {
            let (text, errno) = refusal(&world, &format!("s 7:0 7:1 4096 {count} {words}"));
            let expected = format!("writecache: Invalid optional argument: '{words}'");
            assert_eq!((text, errno), (expected, 22));
        };
        refused(name, 1);
        for value in ["x", "-1", "1x", "+1"] {
            refused(&format!("{name} {value}"), 2);
        }
        refused(&format!("{name} {too_large}"), 2);
        if *too_large > 512 && *too_large < 1 << 32 {
            let line = format!("s 7:0 7:1 4096 2 {name} {}", too_large - 1);
            load(&world.mapped("one"), &format!("0 64 writecache {line}")).unwrap();
        }
    }
}

#[test]
fn an_origin_must_hold_the_line() {
    let dev = world().mapped("one");
    let error = load(&dev, "0 72 writecache s 7:0 7:1 4096 0").unwrap_err();
    assert!(
        error.to_string().contains("too small for target"),
        "{error}"
    );
}

#[test]
fn a_table_line_constructs_the_same_again() {
    for (line, status) in [
        ("s 7:0 7:1 4096 0", "0 63 63 0 0 0 0 0 0 0 0 0 0 0"),
        (
            "s 7:0 7:1 512 13 start_sector 8 high_watermark 0 low_watermark 0 writeback_jobs 0 autocommit_blocks 0 \
             cleaner pause_writeback 0 metadata_only",
            "",
        ),
        (
            "s 7:0 7:1 4096 16 start_sector 64 high_watermark 100 low_watermark 99 writeback_jobs 5 autocommit_blocks 7 \
             autocommit_time 3600000 max_age 86400000 pause_writeback 60000",
            "0 55 55 0 0 0 0 0 0 0 0 0 0 0",
        ),
    ] {
        let world = world();
        let count: usize = line.split(' ').nth(4).unwrap().parse().unwrap();
        let line = line.replacen(
            &format!(" {count} "),
            &format!(" {} ", line.split(' ').count() - 5),
            1,
        );
        let dev = world.live("one", &format!("0 64 writecache {line}"));
        let told = dev
            .table_status(StatusKind::Table, WhichTable::Live, false)
            .unwrap()[0]
            .text
            .clone();
        let mut words: Vec<&str> = told.split(' ').collect();
        let mut given: Vec<&str> = line.split(' ').collect();
        if !status.is_empty() {
            assert_eq!(told, line);
            assert_eq!(status_text(&dev), status);
        }
        words.sort_unstable();
        given.sort_unstable();
        assert_eq!(words, given);
        load(&dev, &format!("0 64 writecache {told}")).unwrap();
        resume(&dev).unwrap();
        let again = dev
            .table_status(StatusKind::Table, WhichTable::Live, false)
            .unwrap();
        assert_eq!(again[0].text, told);
        let measured = dev
            .table_status(StatusKind::Measurement, WhichTable::Live, false)
            .unwrap();
        assert_eq!(measured[0].text, "");
    }
}

#[test]
fn wrong_messages_have_their_text() {
    let world = world();
    let dev = world.live("one", "0 64 writecache s 7:0 7:1 4096 0");
    for (words, reason) in [
        ("hello", "unrecognised message received: hello"),
        ("flush now", "flush takes no arguments"),
        (
            "Flush_On_Suspend now",
            "flush_on_suspend takes no arguments",
        ),
        ("cleaner now", "cleaner takes no arguments"),
        ("clear_stats now", "clear_stats takes no arguments"),
    ] {
        let error = message(&dev, words).unwrap_err();
        assert_eq!(error, format!("writecache: {reason}"));
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        assert_eq!(dev.message(Sector(0), &words).unwrap_err().errno(), 22);
    }
    writecache_support::suspend(&dev);
    let error = message(&dev, "flush").unwrap_err();
    assert_eq!(error, "writecache: the device is suspended");
}
