//! log-writes: what is in the log, in which order, and that it replays to what was.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use clocked::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{IoFlags, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::Sector;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

#[derive(Debug, Clone)]
struct Entry {
    first: u64,
    blocks: u64,
    flags: u64,
    data: Vec<u8>,
}

/// The entries that the super counts.
fn entries(log: &MemoryDevice) -> Vec<Entry> {
    let (head, _) = read_bytes(log, 0, 1);
    assert_eq!(&head[..8], b"rhswfsj\0");
    assert_eq!((number(&head, 8), head[24], head[25]), (1, 0, 2));
    let mut at = 1;
    let mut found = Vec::new();
    for _ in 0..number(&head, 16) {
        let (head, _) = read_bytes(log, at, 1);
        let [first, blocks, flags, bytes] = [0, 8, 16, 24].map(|at| number(&head, at));
        at += 1;
        let data = match flags & (MARK | DISCARD) {
            MARK => head[32..32 + bytes as usize].to_vec(),
            DISCARD => Vec::new(),
            _ => {
                at += blocks;
                read_bytes(log, at - blocks, blocks).0
            }
        };
        found.push(Entry {
            first,
            blocks,
            flags,
            data,
        });
    }
    found
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Writes F…, flushes, and so on, in short.
fn short(entries: &[Entry]) -> String {
    let words: Vec<String> = entries
        .iter()
        .map(|e| match e.flags {
            0 => format!("{}+{}", e.first, e.blocks),
            FLUSH => "flush".to_owned(),
            FUA => format!("fua{}+{}", e.first, e.blocks),
            DISCARD => format!("discard{}+{}", e.first, e.blocks),
            _ => String::from_utf8(e.data.clone()).unwrap(),
        })
        .collect();
    words.join(" ")
}

fn message(dev: &MappedDevice, words: &[&str]) -> Result<Option<String>, String> {
    let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
    dev.message(Sector(0), &words).map_err(|e| e.to_string())
}

fn status(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    lines.unwrap()[0].text.clone()
}

/// Ends a line: everything that waits is logged then.
fn end(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
    load(dev, "0 1024 zero").unwrap();
    resume(dev).unwrap();
}

#[test]
fn entries_come_in_the_order_in_which_they_became_durable() {
    let world = World::new();
    let double = Double::new(world.memory("below", 1024));
    world.add("a", double.clone());
    let log = world.memory("log", 4096);
    let dev = world.live("one", "0 1024 log-writes a log");
    let ends = Ends::new();
    let fua = IoFlags {
        fua: true,
        no_unmap: false,
    };
    // a, b, c are under way; c and a end, a flush and a FUA write come, then b ends, then those.
    double.hold.store(true, Ordering::SeqCst);
    for (tag, sector) in [(1, 8), (2, 16), (3, 24)] {
        ends.send(&*dev, tag, Op::Write, (sector, 8), 1);
    }
    let mut held = std::mem::take(&mut *double.held.lock());
    let (c, b, a) = (held.remove(2), held.remove(1), held.remove(0));
    double.below.submit(c);
    double.below.submit(a);
    ends.send(&*dev, 4, Op::Flush, (0, 0), 0);
    ends.send_with(&*dev, 5, (Op::Write, fua), (32, 8), 1);
    double.below.submit(b);
    double.release();
    ends.wait(5);
    assert!(request(&*dev, Op::Discard, 64, 128).is_ok());
    message(&dev, &["mark", "here"]).unwrap();
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    end(&dev);
    assert_eq!(
        short(&entries(&log)),
        "24+8 8+8 flush fua32+8 here 16+8 discard64+128 flush dm-log-writes-end"
    );
}

/// The main use: at each mark the log replays to the device as it was then.
#[test]
fn the_log_replays_to_the_state_at_each_mark() {
    let world = World::new();
    let below = world.memory("a", 1024);
    let log = world.memory("log", 1 << 20);
    let dev = world.live("one", "0 1024 log-writes a log");
    let mut random = SmallRng::seed_from_u64(7);
    let mut states = Vec::new();
    for round in 0..20_u8 {
        for _ in 0..random.random_range(1..40) {
            let sector = random.random_range(0..1000);
            let sectors = random.random_range(1..24);
            assert!(write_fill(&*dev, sector, sectors, random.random()).is_ok());
        }
        assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        message(&dev, &["mark", &format!("round {round}")]).unwrap();
        states.push(read_bytes(&*below, 0, 1024).0);
    }
    end(&dev);
    let mut replayed = vec![0; 1024 * 512];
    let mut round = 0;
    for entry in entries(&log) {
        if entry.flags == MARK && round < 20 {
            assert_eq!(entry.data, format!("round {round}").as_bytes());
            assert!(replayed == states[round], "round {round}");
            round += 1;
        } else if entry.flags == 0 {
            let at = entry.first as usize * 512;
            replayed[at..at + entry.data.len()].copy_from_slice(&entry.data);
        }
    }
    assert_eq!(round, 20);
}

#[test]
fn data_without_a_flush_takes_bounded_memory() {
    let world = World::new();
    let sectors = 200 << 11;
    world.memory("a", sectors);
    let log = world.memory("log", 2 * sectors);
    let dev = world.live("one", &format!("0 {sectors} log-writes a log"));
    for mib in 0..100 {
        assert!(write_fill(&*dev, mib << 11, 2048, 1).is_ok());
    }
    // What does not fit the 64 MiB that may wait is on its way, or there.
    while !status(&dev).starts_with("36 ") {
        std::thread::yield_now();
    }
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    message(&dev, &["mark", "all"]).unwrap();
    while !status(&dev).starts_with("102 ") {
        std::thread::yield_now();
    }
    let entries = entries(&log);
    assert!((0..100).all(|mib| entries[mib].first == (mib as u64) << 11));
}

#[test]
fn a_log_that_is_full_or_fails_stops_the_log_only() {
    let world = World::new();
    let below = world.memory("a", 1024);
    world.memory("small", 16);
    let failing = Double::new(world.memory("x", 1024));
    failing.fail_in.store(0, Ordering::SeqCst);
    world.add("failing", failing);
    for log in ["small", "failing"] {
        let dev = world.live("one", &format!("0 1024 log-writes a {log}"));
        for _ in 0..3 {
            assert!(write_fill(&*dev, 0, 8, 1).is_ok());
            assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        }
        while !status(&dev).ends_with(" logging_disabled") {
            std::thread::yield_now();
        }
        assert!(write_fill(&*dev, 0, 8, 77).is_ok());
        assert_eq!(read_bytes(&*below, 0, 1).0[0], 77);
        end(&dev);
    }
}

#[test]
fn blocks_are_those_of_the_device() {
    let world = World::new();
    let double = Double::new(world.memory("x", 1024));
    double.limits.lock().logical_block_size = 4096;
    world.add("a", double);
    let log: Arc<MemoryDevice> = world.memory("log", 4096);
    let dev = world.live("one", "0 1024 log-writes a log");
    assert!(write_fill(&*dev, 16, 8, 5).is_ok());
    assert_eq!(status(&dev), "0 7");
    end(&dev);
    let (head, _) = read_bytes(&*log, 0, 1);
    assert_eq!((number(&head, 16), number(&head, 24)), (2, 4096));
    let (entry, _) = read_bytes(&*log, 8, 1);
    assert_eq!([0, 8, 16].map(|at| number(&entry, at)), [2, 1, 0]);
    assert_eq!(read_bytes(&*log, 16, 8).0, [5; 4096]);
}

#[test]
fn a_line_that_was_never_live_leaves_an_end_mark() {
    let world = World::new();
    world.memory("a", 1024);
    let log = world.memory("log", 1024);
    let dev = world.mapped("one");
    load(&dev, "0 1024 log-writes a log").unwrap();
    load(&dev, "0 8 zero").unwrap();
    assert_eq!(short(&entries(&log)), "dm-log-writes-end");
}
