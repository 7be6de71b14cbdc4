//! writecache: data is right whoever holds it, counters and messages are the kernel's, wrong superblocks are refused.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
mod support;
mod writecache_support;

use std::sync::Arc;
use std::time::Duration;

use clocked::Ends;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_units::{BlkStatus, Sector};
use writecache_support::*;

/// Devices that complete in any order; reads, writes, flushes and discards of any length beside writing back.
#[test]
fn data_is_right_while_blocks_come_and_go() {
    for (seed, options, block) in [
        (1, "0", 8),
        (2, "4 high_watermark 10 low_watermark 5", 8),
        (3, "2 writeback_jobs 3", 1),
        (4, "1 cleaner", 8),
        (5, "2 autocommit_blocks 0", 2),
        (6, "2 max_age 1", 4),
        (7, "1 metadata_only", 8),
    ] {
        let world = World::new();
        let origin = Arc::new(MemoryDevice::new(Sector(SECTORS)));
        world.add("o", Delayed::new(origin.clone(), seed));
        let cache = Arc::new(MemoryDevice::new(Sector(400)));
        world.add("c", Delayed::new(cache, seed));
        let pause = "pause_writeback 0";
        let (count, words) = options.split_once(' ').unwrap_or((options, ""));
        let count: u32 = count.parse::<u32>().unwrap() + 2;
        let table = format!(
            "0 {SECTORS} writecache s o c {} {count} {words} {pause}",
            block * 512
        )
        .replace("  ", " ");
        let dev = world.live("one", &table);
        let mut model = vec![0; SECTORS as usize * 512];
        // What was discarded may change until it is written: as in a kernel, blocks that are being copied to the origin are read till then.
        let mut discarded = vec![false; SECTORS as usize];
        let same = |read: &[u8], model: &[u8], discarded: &[bool]| {
            let sectors = read.chunks(512).zip(model.chunks(512)).zip(discarded);
            read.len() == model.len()
                && sectors
                    .into_iter()
                    .all(|((read, model), discarded)| *discarded || read == model)
        };
        let mut rng = SmallRng::seed_from_u64(seed);
        for round in 0..1500_u32 {
            let sector = rng.random_range(0..SECTORS / block - 1) * block;
            let sectors = (rng.random_range(1..12) * block).min(SECTORS - sector);
            let range = sector as usize * 512..(sector + sectors) as usize * 512;
            let here = sector as usize..(sector + sectors) as usize;
            match rng.random_range(0..20) {
                0 => {
                    assert!(request(&*dev, Op::Discard, sector, sectors).is_ok());
                    discarded[here].fill(true);
                }
                1 => assert!(request(&*dev, Op::Flush, 0, 0).is_ok()),
                2..11 => {
                    let data: Vec<u8> = (sector..sector + sectors)
                        .flat_map(|at| pattern(at, rng.random()))
                        .collect();
                    assert!(write_at(&*dev, sector, &data).is_ok());
                    model[range].copy_from_slice(&data);
                    discarded[here].fill(false);
                }
                _ => {
                    let (data, end) = read_bytes(&*dev, sector, sectors);
                    assert!(
                        end.is_ok() && same(&data, &model[range], &discarded[here]),
                        "{seed} {round} {sector}+{sectors}"
                    );
                }
            }
            if round % 300 == 299 {
                suspend(&dev);
                if round % 600 == 599 {
                    load(&dev, &table).unwrap();
                }
                resume(&dev).unwrap();
            }
        }
        message(&dev, "flush").unwrap();
        let fields = status(&dev);
        assert_eq!((fields[0], fields[1] - fields[2], fields[3]), (0, 0, 0));
        let read = read_bytes(&*dev, 0, SECTORS).0;
        assert!(same(&read, &model, &discarded), "{seed}");
        assert!(
            read_bytes(&*origin, 0, SECTORS).0 == read,
            "{seed}: everything is on the origin"
        );
    }
}

/// Many requests at once: each block holds what one of its writers wrote, and what was read was written before.
#[test]
fn many_requests_at_once_all_end() {
    for seed in 0..10 {
        let world = World::new();
        world.add(
            "o",
            Delayed::new(Arc::new(MemoryDevice::new(Sector(512))), seed),
        );
        world.add(
            "c",
            Delayed::new(Arc::new(MemoryDevice::new(Sector(128))), seed),
        );
        let dev = world.live(
            "one",
            "0 512 writecache s o c 4096 4 pause_writeback 0 autocommit_blocks 3",
        );
        let ends = Ends::new();
        let mut rng = SmallRng::seed_from_u64(seed);
        for tag in 0..2000_u64 {
            let op = match rng.random_range(0..10) {
                0 => Op::Flush,
                1..4 => Op::Read,
                _ => Op::Write,
            };
            let fua = op == Op::Write && rng.random_range(0..10) == 0;
            let flags = IoFlags {
                fua,
                no_unmap: false,
            };
            let sector = rng.random_range(0..60) * 8;
            let range = match op {
                Op::Flush => (0, 0),
                _ => (sector, rng.random_range(1..4) * 8),
            };
            ends.send_with(&*dev, tag, (op, flags), range, 1 + tag as u8 % 250);
        }
        ends.wait(2000);
        assert_eq!(ends.ended().len(), 2000);
        let (data, _) = read_bytes(&*dev, 0, 512);
        message(&dev, "flush").unwrap();
        assert!(
            read_bytes(&*dev, 0, 512).0 == data,
            "writing back changes nothing"
        );
        for block in data.chunks(4096) {
            assert!(
                block.iter().all(|byte| *byte == block[0]),
                "one writer's block"
            );
        }
    }
}

#[test]
fn counters_are_the_kernels() {
    let world = World::new();
    world.memory("o", SECTORS);
    world.memory("c", 8192);
    let dev = world.live("one", &line(""));
    assert_eq!(
        status(&dev),
        [0, 1020, 1020, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert!(write_fill(&*dev, 80, 32, 1).is_ok());
    assert_eq!(status(&dev)[2..], [1016, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
    // Of an overwrite all but the first block count as allocated.
    assert!(write_fill(&*dev, 88, 16, 2).is_ok());
    assert_eq!(status(&dev)[2..], [1016, 0, 0, 0, 6, 1, 0, 0, 5, 0, 0, 0]);
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    assert!(write_fill(&*dev, 88, 8, 3).is_ok());
    assert_eq!(status(&dev)[2..], [1016, 0, 0, 0, 7, 1, 1, 0, 5, 0, 1, 0]);
    assert_eq!(read_bytes(&*dev, 72, 48).1, BlkStatus::Ok);
    assert_eq!(status(&dev)[4..6], [6, 4]);
    assert!(request(&*dev, Op::Discard, 80, 16).is_ok());
    assert_eq!(status(&dev)[2..], [1018, 0, 6, 4, 7, 1, 1, 0, 5, 0, 1, 2]);
    message(&dev, "cleaner").unwrap();
    assert!(write_fill(&*dev, 800, 16, 3).is_ok());
    assert_eq!(status(&dev)[9], 2);
    message(&dev, "clear_stats").unwrap();
    assert_eq!(status(&dev)[4..], [0; 10]);
}

#[test]
fn requests_that_are_no_blocks_fail() {
    let world = World::new();
    world.memory("o", SECTORS);
    world.memory("c", 8192);
    let dev = world.live("one", &line(""));
    assert_eq!(dev.limits().logical_block_size, 4096);
    assert!(dev.limits().write_cache);
    for (sector, sectors) in [(1, 8), (8, 1), (4, 4)] {
        assert!(!write_fill(&*dev, sector, sectors, 1).is_ok());
        assert!(!read_bytes(&*dev, sector, sectors).1.is_ok());
    }
}

/// Without a flush: after a second, or after so many blocks.
#[test]
fn commits_come_by_themselves() {
    let world = World::new();
    world.memory("o", SECTORS);
    let cache = world.memory("c", 8192);
    let (dev, time) = clocked::live(&world, &line("autocommit_blocks 10 autocommit_time 700"));
    let seq = || read_bytes(&*cache, 0, 1).0[24];
    assert!(write_fill(&*dev, 0, 72, 1).is_ok());
    assert_eq!(seq(), 0);
    assert!(write_fill(&*dev, 80, 8, 1).is_ok());
    eventually("ten blocks are a commit", || seq() == 1);
    assert!(write_fill(&*dev, 160, 8, 1).is_ok());
    time.advance(Duration::from_millis(699));
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(seq(), 1);
    time.advance(Duration::from_millis(1));
    eventually("it is time", || seq() == 2);
}

#[test]
fn old_blocks_are_written_back() {
    let world = World::new();
    let origin = world.memory("o", SECTORS);
    world.memory("c", 8192);
    let (dev, time) = clocked::live(&world, &line("max_age 16000"));
    assert!(write_fill(&*dev, 0, 8, 1).is_ok());
    time.advance(Duration::from_millis(14_000));
    assert!(write_fill(&*dev, 16, 8, 2).is_ok());
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(status(&dev)[2], 1018);
    time.advance(Duration::from_millis(1000));
    eventually("the older one has gone", || status(&dev)[2] == 1019);
    assert_eq!(read_bytes(&*origin, 0, 1).0[0], 1);
    assert_eq!(read_bytes(&*origin, 16, 1).0[0], 0);
}

#[test]
fn writing_back_pauses_while_the_origin_is_written_past_the_cache() {
    let world = World::new();
    let origin = Double::new(world.memory("x", SECTORS));
    world.add("o", origin.clone());
    // Five blocks.
    world.memory("c", 48);
    let table = format!(
        "0 {SECTORS} writecache s o c 4096 6 high_watermark 100 low_watermark 50 pause_writeback 5000"
    );
    let (dev, time) = clocked::live(&world, &table);
    let hold = || origin.hold.store(true, std::sync::atomic::Ordering::SeqCst);
    let rest = || std::thread::sleep(Duration::from_millis(10));
    let ends = Ends::new();
    // Nothing was written past the cache yet, so writing back begins at once.
    hold();
    assert!(write_fill(&*dev, 0, 40, 1).is_ok());
    eventually("all are on their way", || status(&dev)[3] == 5);
    ends.send(&*dev, 1, Op::Write, (400, 8), 5);
    origin.release();
    ends.wait(1);
    eventually("all have gone", || status(&dev)[2] == 5);
    // Full again within the pause, and another write past the cache is under way.
    assert!(write_fill(&*dev, 0, 40, 2).is_ok());
    hold();
    ends.send(&*dev, 2, Op::Write, (400, 8), 6);
    time.advance(Duration::from_secs(60));
    rest();
    assert_eq!(status(&dev)[2..4], [0, 0]);
    origin.release();
    ends.wait(1);
    time.advance(Duration::from_millis(4900));
    rest();
    assert_eq!(status(&dev)[2..4], [0, 0]);
    time.advance(Duration::from_millis(200));
    eventually("the pause is over", || status(&dev)[2] == 5);
    assert_eq!(read_bytes(&*dev, 0, 8).0[0], 2);
    assert_eq!(read_bytes(&*dev, 400, 8).0[0], 6);
}

/// A write that finds its block on the way to the origin waits for a free one.
#[test]
fn a_full_cache_holds_back_what_is_leaving() {
    let world = World::new();
    let origin = Double::new(world.memory("x", SECTORS));
    world.add("o", origin.clone());
    world.memory("c", 48);
    let table = format!("0 {SECTORS} writecache s o c 4096 4 high_watermark 90 low_watermark 50");
    let dev = world.live("one", &table);
    origin.hold.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(write_fill(&*dev, 0, 40, 1).is_ok());
    eventually("all are leaving", || status(&dev)[3] == 5);
    let ends = Ends::new();
    ends.send(&*dev, 1, Op::Write, (8, 8), 7);
    assert!(status(&dev)[11] > 0, "blocked");
    assert_eq!(read_bytes(&*dev, 8, 8).0[0], 1);
    origin.release();
    ends.wait(1);
    assert_eq!(read_bytes(&*dev, 8, 8).0, [7; 4096]);
    message(&dev, "flush").unwrap();
    assert_eq!(read_bytes(&*origin.below, 8, 8).0, [7; 4096]);
}

/// Runs that lie one after another in both places are one copy.
#[test]
fn writing_back_merges_what_belongs_together() {
    let world = World::new();
    let origin = Double::new(world.memory("x", SECTORS));
    world.add("o", origin.clone());
    world.memory("c", 8192);
    let dev = world.live("one", &line(""));
    for block in [0, 1, 2, 3, 10, 11, 20] {
        assert!(write_fill(&*dev, 8 * block, 8, block as u8).is_ok());
    }
    origin.seen.lock().clear();
    message(&dev, "flush").unwrap();
    let seen = origin.seen.lock();
    let writes: Vec<(u64, u64)> = seen
        .iter()
        .filter(|(op, ..)| *op == Op::Write)
        .map(|(_, sector, sectors)| (*sector, *sectors))
        .collect();
    assert_eq!(writes, [(0, 32), (80, 16), (160, 8)]);
}

#[test]
fn what_lies_behind_the_end_of_the_origin_is_forgotten() {
    let world = World::new();
    world.memory("o", 64);
    let cache = world.memory("c", 8192);
    drop(world.live("one", "0 64 writecache s o c 4096 0"));
    let entries = [(56, 1), (64, 1), (u64::MAX - 7, 1), (48, 1)];
    put_entries(&*cache, 2, &entries);
    let dev = world.live("two", "0 64 writecache s o c 4096 0");
    assert_eq!(status(&dev)[2], 1016);
    message(&dev, "flush").unwrap();
    assert_eq!(status(&dev)[..4], [0, 1020, 1020, 0]);
}

/// Whatever a superblock and entries say: an error or a device that works, never a panic.
#[test]
fn hostile_metadata_are_refused_or_harmless() {
    let world = World::new();
    let origin = world.memory("o", SECTORS);
    let cache = world.memory("c", 8192);
    drop(world.live("good", &line("")));
    let good = read_bytes(&*cache, 0, 32).0;
    let (mut refused, mut failed, mut lived) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..8) {
            let at = match rng.random_range(0..4) {
                0 => rng.random_range(0..32),
                1 => 24,
                _ => 64 + 8 * rng.random_range(0..40),
            };
            let value: u64 = match rng.random_range(0..4) {
                0 => rng.random(),
                1 => u64::MAX - rng.random_range(0..4),
                2 => rng.random_range(0..8) * 8,
                _ => rng.random_range(0..4),
            };
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        assert!(write_at(&*cache, 0, &bytes).is_ok());
        let dev = world.mapped("bad");
        if let Err(error) = load(&dev, &line("")) {
            assert!(error.to_string().contains("writecache: "), "{error}");
            refused += 1;
            continue;
        }
        resume(&dev).unwrap();
        let _ = write_fill(&*dev, 0, 64, 1);
        let _ = request(&*dev, Op::Flush, 0, 0);
        let _ = request(&*dev, Op::Discard, 0, 24);
        let reads = read_bytes(&*dev, 0, SECTORS).1.is_ok();
        let well = message(&dev, "flush").is_ok();
        // Nobody knows what the origin does not have.
        assert!(reads || !well, "{seed}");
        assert_eq!(status(&dev)[0], u64::from(!well));
        suspend(&dev);
        dev.destroy();
        *(if well { &mut lived } else { &mut failed }) += 1;
    }
    assert!(
        refused > 20 && failed > 20 && lived > 20,
        "{refused} refused, {failed} failed, {lived} lived"
    );
    assert!(read_bytes(&*origin, 0, SECTORS).1.is_ok());
}

#[test]
fn what_no_commit_wrote_is_cleared_before_numbers_rise() {
    let world = World::new();
    world.memory("o", SECTORS);
    let cache = world.memory("c", 8192);
    drop(world.live("one", &line("")));
    put_entries(
        &*cache,
        5,
        &[(8, 4), (16, 5), (8, 3), (24, u64::MAX), (32, 7)],
    );
    let dev = world.live("two", &line(""));
    assert_eq!(status(&dev)[..4], [0, 1020, 1019, 0]);
    let found: Vec<u64> = (0..5)
        .map(|entry| number(&*cache, 64 + 16 * entry + 8))
        .collect();
    assert_eq!(found, [4, u64::MAX, u64::MAX, u64::MAX, u64::MAX]);
}
