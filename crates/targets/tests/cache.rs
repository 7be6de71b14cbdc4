//! cache: data are right in every mode while blocks come and go, at every power cut, and when devices fail.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
#[path = "snapshot_support/power.rs"]
mod power;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clocked::{Ends, ManualTime};
use power::Machine;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, Sector};

const BLOCK: u64 = 64;
const CACHE_BLOCKS: u64 = 12;
const BLOCKS: u64 = 40;
/// The last block is not whole.
const SECTORS: u64 = BLOCK * BLOCKS + 17;
const METADATA_SECTORS: u64 = 2048;
const SECOND: Duration = Duration::from_secs(1);

fn table(line: &str) -> String {
    format!("0 {SECTORS} cache m c o {BLOCK} {line}")
}

fn status(dev: &MappedDevice) -> Vec<String> {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    let text = lines.unwrap()[0].text.clone();
    text.split(' ').map(str::to_owned).collect()
}

/// A count of the status: 3 blocks in use, 4 to 7 hits and misses, 8 demotions, 9 promotions, 10 dirty blocks.
fn count(dev: &MappedDevice, word: usize) -> u64 {
    let status = status(dev);
    let number = status[word].split('/').next().unwrap();
    number.parse().unwrap()
}

const RESIDENT: usize = 3;
const DEMOTIONS: usize = 8;
const PROMOTIONS: usize = 9;
const DIRTY: usize = 10;

fn message(dev: &MappedDevice, words: &str) -> Result<Option<String>, String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &words).map_err(|e| e.to_string())
}

fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

fn reload(dev: &MappedDevice, line: &str) {
    load(dev, &table(line)).unwrap();
    suspend(dev);
    resume(dev).unwrap();
}

/// Each sector begins with its number and a seed.
fn pattern(sector: u64, seed: u8) -> [u8; 512] {
    let mut bytes = [seed; 512];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn patterns(sector: u64, sectors: u64, seed: u8) -> Vec<u8> {
    let all = sector..sector + sectors;
    all.flat_map(|s| pattern(s, seed)).collect()
}

fn put(dev: &dyn BlockDevice, image: &[u8]) {
    for (at, chunk) in (0..).zip(image.chunks(4096)) {
        assert!(write_at(dev, 8 * at, chunk).is_ok());
    }
}

fn write_at(dev: &dyn BlockDevice, sector: u64, data: &[u8]) -> BlkStatus {
    let mut buf = thinmap_runtime::IoBuf::alloc(data.len());
    buf.as_mut_slice().copy_from_slice(data);
    thinmap_block::write(dev, Sector(sector), buf).1
}

/// Until nothing is dirty.
fn wait_clean(dev: &MappedDevice, time: &ManualTime) {
    while count(dev, DIRTY) > 0 {
        time.advance(SECOND);
        std::thread::yield_now();
    }
}

/// A place: most requests go to a few blocks, so that there is something to be learned.
fn place(rng: &mut SmallRng) -> (u64, u64) {
    if rng.random_range(0..4) == 0 {
        return (rng.random_range(0..BLOCKS) * BLOCK, BLOCK);
    }
    let hot = rng.random_range(0..4) > 0;
    let sector = match hot {
        true => rng.random_range(0..BLOCK * 6),
        false => rng.random_range(0..SECTORS - 1),
    };
    (sector, rng.random_range(1..100).min(SECTORS - sector))
}

/// Devices that complete in any order; lines of every mode take over from each other.
#[test]
fn data_is_right_while_blocks_come_and_go() {
    const LINES: [&str; 6] = [
        "1 writeback smq 0",
        "1 writethrough default 0",
        "0 smq 2 migration_threshold 0",
        "1 writeback mq 2 migration_threshold 64",
        "2 no_discard_passdown writeback smq 0",
        "0 cleaner 0",
    ];
    for (seed, format) in [
        (1, "0 smq 0"),
        (2, "1 metadata2 smq 0"),
        (3, "1 metadata2 smq 0"),
    ] {
        let world = World::new();
        world.memory("m", METADATA_SECTORS);
        let (cache, origin) = (
            Arc::new(MemoryDevice::new(Sector(BLOCK * CACHE_BLOCKS + 9))),
            Arc::new(MemoryDevice::new(Sector(SECTORS))),
        );
        let mut model = patterns(0, SECTORS, 1);
        put(&*origin, &model);
        world.add("c", Delayed::new(cache, seed));
        world.add("o", Delayed::new(origin.clone(), seed + 9));
        let (dev, time) = clocked::live(&world, &table(format));
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut seen = [0; 2];
        for round in 0..3000_u32 {
            let (sector, sectors) = place(&mut rng);
            let range = sector as usize * 512..(sector + sectors) as usize * 512;
            if rng.random() {
                let data = patterns(sector, sectors, rng.random());
                assert!(write_at(&*dev, sector, &data).is_ok());
                model[range].copy_from_slice(&data);
            } else {
                let (data, end) = read_bytes(&*dev, sector, sectors);
                assert!(end.is_ok(), "{seed} {round} {sector}+{sectors}");
                let wrong = data.chunks(512).zip(model[range].chunks(512));
                let wrong = wrong.filter(|(found, wanted)| found != wanted).count();
                assert_eq!(wrong, 0, "{seed} {round} {sector}+{sectors}");
            }
            if rng.random_range(0..50) == 0 {
                time.advance(SECOND);
            }
            if rng.random_range(0..100) == 0 {
                assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
            }
            if round % 400 == 399 {
                suspend(&dev);
                resume(&dev).unwrap();
            }
            if round % 250 == 249 {
                seen[0] += count(&dev, PROMOTIONS);
                seen[1] += count(&dev, DEMOTIONS);
                reload(&dev, LINES[rng.random_range(0..LINES.len())]);
            }
        }
        assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
        reload(&dev, "0 cleaner 0");
        wait_clean(&dev, &time);
        suspend(&dev);
        assert!(
            read_bytes(&*origin, 0, SECTORS).0 == model,
            "{seed}: it is all on the origin"
        );
    }
}

#[test]
fn many_requests_to_one_block_at_once_all_arrive() {
    for line in ["1 writeback smq 0", "1 writethrough smq 0"] {
        let world = World::new();
        world.memory("m", METADATA_SECTORS);
        let cache = Arc::new(MemoryDevice::new(Sector(BLOCK * CACHE_BLOCKS)));
        let origin = Arc::new(MemoryDevice::new(Sector(SECTORS)));
        world.add("c", Delayed::new(cache, 5));
        world.add("o", Delayed::new(origin.clone(), 6));
        let (dev, time) = clocked::live(&world, &table(line));
        let ends = Ends::new();
        let fua = IoFlags {
            fua: true,
            no_unmap: false,
        };
        for tag in 0..64_u64 {
            if tag % 8 == 0 {
                // The whole block: it comes into the cache, at a moment that nobody knows.
                ends.send(&*dev, 1000 + tag, Op::Write, (BLOCK, BLOCK), 0xee);
                ends.wait(tag as usize + tag as usize / 8 + 1);
            }
            let flags = if tag % 7 == 0 {
                fua
            } else {
                IoFlags::default()
            };
            ends.send_with(&*dev, tag, (Op::Write, flags), (BLOCK + tag, 1), tag as u8);
            if tag % 8 == 7 {
                ends.wait(tag as usize + tag as usize / 8 + 2);
            }
        }
        ends.wait(72);
        ends.ended();
        for tag in 56..64_u64 {
            let (data, _) = read_bytes(&*dev, BLOCK + tag, 1);
            assert!(data.iter().all(|byte| u64::from(*byte) == tag), "{tag}");
        }
        reload(&dev, "0 cleaner 0");
        wait_clean(&dev, &time);
        let (data, _) = read_bytes(&*origin, BLOCK + 63, 1);
        assert_eq!(data[7], 63);
    }
}

/// Requests at once everywhere, none of which touches another's sectors, while blocks come, go and are written back.
#[test]
fn requests_beside_migrations_find_and_leave_the_right_data() {
    for (seed, line) in [
        (1, "0 smq 0"),
        (2, "0 smq 2 migration_threshold 100000"),
        (3, "1 writethrough smq 0"),
    ] {
        let world = World::new();
        world.memory("m", METADATA_SECTORS);
        let cache = Arc::new(MemoryDevice::new(Sector(BLOCK * CACHE_BLOCKS)));
        let origin = Arc::new(MemoryDevice::new(Sector(SECTORS)));
        world.add("c", Delayed::new(cache, seed));
        world.add("o", Delayed::new(origin.clone(), seed + 9));
        let (dev, time) = clocked::live(&world, &table(line));
        let mut rng = SmallRng::seed_from_u64(seed);
        // What was last written to each sector.
        let mut model = vec![0_u8; SECTORS as usize];
        for _ in 0..150 {
            let ends = Ends::new();
            let mut sent = Vec::new();
            let mut next = rng.random_range(0..200);
            while next < SECTORS {
                let sectors = match next % BLOCK == 0 && rng.random() {
                    true => BLOCK,
                    false => rng.random_range(1..8),
                };
                let sectors = sectors.min(SECTORS - next);
                let write = rng.random();
                let byte = rng.random();
                let op = if write { Op::Write } else { Op::Read };
                ends.send(&*dev, sent.len() as u64, op, (next, sectors), byte);
                sent.push((next, sectors, write.then_some(byte)));
                next += sectors + rng.random_range(0..60);
            }
            // Write-back and demotions begin in the midst of it, too.
            time.advance(SECOND);
            for (tag, status, data) in ends.wait(sent.len()) {
                let (sector, sectors, written) = sent[tag as usize];
                assert!(status.is_ok());
                let range = sector as usize..(sector + sectors) as usize;
                match written {
                    Some(byte) => model[range].fill(byte),
                    None => {
                        let found = data.chunks(512).map(|s| s[9]);
                        assert!(found.eq(model[range].iter().copied()), "{sector}+{sectors}");
                    }
                }
            }
            if rng.random_range(0..3) == 0 {
                time.advance(SECOND);
            }
        }
        reload(&dev, "0 cleaner 0");
        wait_clean(&dev, &time);
        suspend(&dev);
        let (data, _) = read_bytes(&*origin, 0, SECTORS);
        assert!(
            data.chunks(512).map(|s| s[9]).eq(model),
            "{seed}: all on the origin"
        );
    }
}

#[test]
fn a_discarded_block_is_not_copied_and_reads_the_same_every_time() {
    let world = World::new();
    world.memory("m", METADATA_SECTORS);
    let cache = world.memory("c", BLOCK * CACHE_BLOCKS);
    put(&*cache, &vec![0xaa; (BLOCK * CACHE_BLOCKS * 512) as usize]);
    let origin = world.memory("o", SECTORS);
    put(&*origin, &patterns(0, SECTORS, 1));
    let line = "1 no_discard_passdown smq 2 migration_threshold 0";
    let (dev, time) = clocked::live(&world, &table(line));
    assert!(request(&*dev, Op::Discard, 1, BLOCK * 3).is_ok());
    assert!(write_fill(&*dev, 10, 1, 5).is_ok());
    assert_eq!(
        count(&dev, PROMOTIONS),
        0,
        "block 0 was not discarded whole"
    );
    assert!(write_fill(&*dev, BLOCK + 10, 2, 5).is_ok());
    assert_eq!(count(&dev, PROMOTIONS), 1, "block 1 was");
    let (data, _) = read_bytes(&*dev, BLOCK, BLOCK);
    let expected = |at: usize| {
        if at / 512 == 10 || at / 512 == 11 {
            5
        } else {
            0
        }
    };
    assert!(
        data.iter()
            .enumerate()
            .all(|(at, byte)| *byte == expected(at))
    );
    // What was discarded is known after a reload.
    reload(&dev, line);
    assert!(write_fill(&*dev, 2 * BLOCK, 1, 6).is_ok());
    assert_eq!(count(&dev, PROMOTIONS), 1);
    assert_eq!(count(&dev, RESIDENT), 2);
    // It is written, so it is not discarded any more: the origin gets it.
    reload(&dev, "0 cleaner 0");
    wait_clean(&dev, &time);
    assert_eq!(read_bytes(&*origin, 2 * BLOCK, 1).0[0], 6);
    assert_eq!(read_bytes(&*dev, 2 * BLOCK, 1).0[0], 6);
}

/// Cut anywhere: what was flushed is there; what was not is old or new, sector by sector; and so it is after all was written back.
#[test]
fn what_was_flushed_is_there_after_a_power_cut() {
    const LINES: [&str; 5] = [
        "0 smq 0",
        "1 metadata2 smq 0",
        "0 smq 2 migration_threshold 0",
        "2 metadata2 writethrough smq 0",
        "1 writethrough smq 0",
    ];
    for seed in 0..150 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // What may be found in each sector.
        let allowed: Vec<Vec<u8>> = vec![vec![0]; SECTORS as usize];
        let sizes = [METADATA_SECTORS, BLOCK * CACHE_BLOCKS, SECTORS];
        let machine = Machine::new(seed, &sizes, allowed);
        let world = World::new();
        for (which, name) in ["m", "c", "o"].into_iter().enumerate() {
            world.add(name, machine.disk(which));
        }
        put(&*machine.disk(2), &patterns(0, SECTORS, 0));
        assert!(request(&*machine.disk(2), Op::Flush, 0, 0).is_ok());
        let (dev, time) = clocked::live(&world, &table(LINES[seed as usize % 3]));
        machine.cut_in(rng.random_range(0..1500));
        while !machine.is_cut() {
            for _ in 0..rng.random_range(1..20) {
                let (sector, sectors) = place(&mut rng);
                let byte = rng.random();
                if rng.random_range(0..3) == 0 {
                    let _ = read_bytes(&*dev, sector, sectors);
                    continue;
                }
                machine.note(|notes| {
                    let range = sector as usize..(sector + sectors) as usize;
                    notes[range].iter_mut().for_each(|s| s.push(byte));
                });
                let data = patterns(sector, sectors, byte);
                assert!(write_at(&*dev, sector, &data).is_ok());
            }
            if rng.random() {
                assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
                // Only now, and only when the cut did not come before the flush had ended.
                machine.note(|notes| {
                    for sector in notes {
                        let last = *sector.last().unwrap();
                        *sector = vec![last];
                    }
                });
            }
            match rng.random_range(0..12) {
                0..3 => time.advance(SECOND),
                3 => {
                    suspend(&dev);
                    resume(&dev).unwrap();
                }
                4 => reload(&dev, LINES[rng.random_range(0..LINES.len())]),
                _ => {}
            }
        }
        let (images, allowed) = machine.found();
        let again = World::new();
        for (image, (name, size)) in
            images
                .iter()
                .zip([("m", sizes[0]), ("c", sizes[1]), ("o", sizes[2])])
        {
            put(&*again.memory(name, size), image);
        }
        let (dev, time) = clocked::live(&again, &table("0 smq 2 migration_threshold 0"));
        let (data, _) = read_bytes(&*dev, 0, SECTORS);
        for (sector, bytes) in data.chunks(512).enumerate() {
            assert!(
                allowed[sector].contains(&bytes[100])
                    && bytes == pattern(sector as u64, bytes[100]),
                "seed {seed}: sector {sector}: {} is not among {:?}",
                bytes[100],
                allowed[sector]
            );
        }
        reload(&dev, "0 cleaner 0");
        wait_clean(&dev, &time);
        assert!(
            read_bytes(&*dev, 0, SECTORS).0 == data,
            "seed {seed}: cleaned"
        );
        reload(&dev, "1 passthrough smq 0");
        assert!(
            read_bytes(&*dev, 0, SECTORS).0 == data,
            "seed {seed}: past the cache"
        );
    }
}

#[test]
fn a_failing_metadata_device_makes_it_read_only_and_loses_nothing() {
    for fail_in in 0..8 {
        let world = World::new();
        let metadata = world.memory("x", METADATA_SECTORS);
        let double = Double::new(metadata.clone());
        world.add("m", double.clone());
        world.memory("c", BLOCK * CACHE_BLOCKS);
        let origin = world.memory("o", SECTORS);
        put(&*origin, &patterns(0, SECTORS, 1));
        let line = table("0 smq 2 migration_threshold 0");
        let (dev, _) = clocked::live(&world, &line);
        assert!(write_fill(&*dev, 0, BLOCK, 9).is_ok());
        assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        double.fail_in.store(fail_in, Ordering::SeqCst);
        let mut block = 1;
        loop {
            assert!(write_fill(&*dev, block * BLOCK, BLOCK, 8).is_ok());
            block += 1;
            if !request(&*dev, Op::Flush, 0, 0).is_ok() {
                break;
            }
            assert!(block < CACHE_BLOCKS);
        }
        let words = status(&dev);
        let tail = &words[words.len() - 3..];
        assert_eq!(tail, ["ro", "needs_check", ""], "{words:?}");
        // What was promised is there, and what was written too.
        assert_eq!(read_bytes(&*dev, 0, 1).0[0], 9);
        assert_eq!(read_bytes(&*dev, (block - 1) * BLOCK, 1).0[0], 8);
        assert!(write_fill(&*dev, 3, 1, 7).is_ok());
        assert!(
            !request(&*dev, Op::Flush, 0, 0).is_ok(),
            "no flush any more"
        );
        assert!(
            write_fill(&*dev, 20 * BLOCK, BLOCK, 7).is_ok(),
            "to the origin"
        );
        assert_eq!(read_bytes(&*origin, 20 * BLOCK, 1).0[0], 7);
        let error = message(&dev, "migration_threshold 1").unwrap_err();
        assert!(error.contains("READ_ONLY"), "{error}");
        suspend(&dev);
        resume(&dev).unwrap();
        assert_eq!(read_bytes(&*dev, 0, 1).0[0], 9);
        let error = load(&dev, &line).unwrap_err().to_string();
        assert!(error.contains("check/repair"), "{error}");
        suspend(&dev);
        drop(dev);
        // Another process finds what was flushed.
        let again = World::new();
        let image = read_bytes(&*metadata, 0, METADATA_SECTORS).0;
        put(&*again.memory("m", METADATA_SECTORS), &image);
        again.memory("c", BLOCK * CACHE_BLOCKS);
        again.memory("o", SECTORS);
        let dev = again.mapped("two");
        let error = load(&dev, &line).unwrap_err().to_string();
        assert!(error.contains("check/repair"), "{error}");
    }
}

#[test]
fn when_nothing_can_be_written_any_more_it_fails() {
    let world = World::new();
    let double = Double::new(world.memory("x", METADATA_SECTORS));
    world.add("m", double.clone());
    world.memory("c", BLOCK * CACHE_BLOCKS);
    world.memory("o", SECTORS);
    let (dev, _) = clocked::live(&world, &table("0 smq 2 migration_threshold 0"));
    assert!(write_fill(&*dev, 0, BLOCK, 9).is_ok());
    // The commit and then the mark.
    double.fail_always.store(true, Ordering::SeqCst);
    assert!(!request(&*dev, Op::Flush, 0, 0).is_ok());
    assert_eq!(status(&dev), ["Fail"]);
    assert_eq!(read_bytes(&*dev, 0, 1).0[0], 9);
}

#[test]
fn failing_devices_fail_what_needs_them_only() {
    let world = World::new();
    world.memory("m", METADATA_SECTORS);
    let cache = Double::new(world.memory("x", BLOCK * CACHE_BLOCKS));
    let origin = Double::new(world.memory("y", SECTORS));
    world.add("c", cache.clone());
    world.add("o", origin.clone());
    let (dev, time) = clocked::live(&world, &table("0 smq 0"));
    cache.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(write_fill(&*dev, 0, BLOCK, 9), BlkStatus::IoErr);
    assert_eq!(count(&dev, RESIDENT), 0, "nothing came");
    assert!(write_fill(&*dev, 0, BLOCK, 9).is_ok());
    assert_eq!(count(&dev, DIRTY), 1);
    // Write-back fails, and is tried again.
    origin.fail_in.store(0, Ordering::SeqCst);
    time.advance(SECOND);
    while origin.fail_in.load(Ordering::SeqCst) >= 0 {
        time.advance(SECOND);
        std::thread::yield_now();
    }
    wait_clean(&dev, &time);
    assert_eq!(read_bytes(&*origin.below, 5, 1).0[0], 9);
    // Both copies or an error.
    reload(&dev, "1 writethrough smq 0");
    origin.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(write_fill(&*dev, 3, 1, 7), BlkStatus::IoErr);
    assert!(write_fill(&*dev, 3, 1, 7).is_ok());
    cache.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(write_fill(&*dev, 3, 1, 6), BlkStatus::IoErr);
    cache.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(request(&*dev, Op::Flush, 0, 0), BlkStatus::IoErr);
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
}

#[test]
fn passthrough_takes_what_is_written_out_of_the_cache() {
    let world = World::new();
    world.memory("m", METADATA_SECTORS);
    world.memory("c", BLOCK * CACHE_BLOCKS);
    let origin = world.memory("o", SECTORS);
    let (dev, time) = clocked::live(&world, &table("0 smq 0"));
    for block in 0..6 {
        assert!(write_fill(&*dev, block * BLOCK, BLOCK, 1).is_ok());
    }
    let error = {
        load(&dev, &table("1 passthrough smq 0")).unwrap();
        suspend(&dev);
        resume(&dev).unwrap_err().to_string()
    };
    assert!(error.contains("unless all blocks are clean"), "{error}");
    load(&dev, &table("0 smq 0")).unwrap();
    resume(&dev).unwrap();
    wait_clean(&dev, &time);
    reload(&dev, "1 passthrough smq 0");
    assert_eq!(count(&dev, RESIDENT), 6);
    assert!(write_fill(&*dev, BLOCK + 3, 2, 9).is_ok());
    assert_eq!((count(&dev, RESIDENT), count(&dev, DEMOTIONS)), (5, 1));
    assert_eq!(read_bytes(&*origin, BLOCK + 4, 1).0[0], 9);
    assert!(write_fill(&*dev, 9 * BLOCK, BLOCK, 9).is_ok());
    assert_eq!(count(&dev, RESIDENT), 5, "nothing comes");
    message(&dev, "invalidate_cblocks 0 2-4").unwrap();
    assert_eq!(count(&dev, RESIDENT), 2);
    // A cut now: what is left is clean and right.
    reload(&dev, "0 smq 2 migration_threshold 0");
    assert_eq!((count(&dev, RESIDENT), count(&dev, DIRTY)), (2, 0));
    assert_eq!(read_bytes(&*dev, BLOCK + 4, 1).0[0], 9);
    assert_eq!(read_bytes(&*dev, 5 * BLOCK, 1).0[0], 1);
}

#[test]
fn a_cache_grows_and_shrinks_with_its_devices() {
    let world = World::new();
    let metadata = world.memory("m", METADATA_SECTORS);
    world.memory("c", BLOCK * CACHE_BLOCKS);
    world.memory("small", BLOCK * 4);
    let origin = world.memory("o", SECTORS);
    let line = |cache: &str, sectors: u64| {
        format!("0 {sectors} cache m {cache} o {BLOCK} 1 metadata2 smq 2 migration_threshold 0")
    };
    let (dev, time) = clocked::live(&world, &line("small", BLOCK * 5));
    for block in 0..4 {
        assert!(write_fill(&*dev, block * BLOCK, BLOCK, block as u8 + 1).is_ok());
    }
    message(&dev, "migration_threshold 9999").unwrap();
    wait_clean(&dev, &time);
    // Larger, with a larger origin.
    load(&dev, &line("c", SECTORS)).unwrap();
    suspend(&dev);
    resume(&dev).unwrap();
    assert_eq!((count(&dev, RESIDENT), count(&dev, DIRTY)), (4, 0));
    assert!(write_fill(&*dev, 30 * BLOCK, BLOCK, 77).is_ok());
    assert_eq!((count(&dev, RESIDENT), count(&dev, DIRTY)), (5, 1));
    // The dirty one would be lost.
    load(&dev, &line("small", SECTORS)).unwrap();
    suspend(&dev);
    let error = resume(&dev).unwrap_err().to_string();
    assert!(
        error.contains("unable to shrink cache; cache block 4 is dirty"),
        "{error}"
    );
    load(&dev, &line("c", SECTORS)).unwrap();
    resume(&dev).unwrap();
    assert_eq!(read_bytes(&*dev, 30 * BLOCK, 1).0[0], 77);
    message(&dev, "migration_threshold 9999").unwrap();
    wait_clean(&dev, &time);
    load(&dev, &line("small", SECTORS)).unwrap();
    suspend(&dev);
    resume(&dev).unwrap();
    assert_eq!(count(&dev, RESIDENT), 4);
    assert_eq!(read_bytes(&*origin, 30 * BLOCK, 1).0[0], 77);
    drop((dev, metadata));
}

#[test]
fn damaged_metadata_are_an_error_and_no_panic() {
    for format in [1, 2] {
        let world = World::new();
        let metadata = world.memory("m", METADATA_SECTORS);
        world.memory("c", BLOCK * CACHE_BLOCKS);
        world.memory("o", SECTORS);
        let line = match format {
            1 => table("0 smq 2 migration_threshold 0"),
            _ => table("1 metadata2 smq 2 migration_threshold 0"),
        };
        let (dev, _) = clocked::live(&world, &line);
        for block in 0..9 {
            assert!(write_fill(&*dev, block * 3 * BLOCK, BLOCK, 1).is_ok());
        }
        suspend(&dev);
        let good = read_bytes(&*metadata, 0, METADATA_SECTORS).0;
        let blocks = good.chunks(4096);
        let used = blocks.filter(|c| c.iter().any(|b| *b != 0)).count();
        let mut rng = SmallRng::seed_from_u64(9);
        let mut refused = 0;
        for _ in 0..200 {
            let world = World::new();
            let damaged = world.memory("m", METADATA_SECTORS);
            world.memory("c", BLOCK * CACHE_BLOCKS);
            world.memory("o", SECTORS);
            let mut image = good.clone();
            for _ in 0..rng.random_range(1..4) {
                image[rng.random_range(0..used * 4096)] ^= 1 << rng.random_range(0..8);
            }
            put(&*damaged, &image);
            let dev = world.mapped("two");
            if load(&dev, &line).is_err() || resume(&dev).is_err() {
                refused += 1;
                continue;
            }
            let _ = write_fill(&*dev, 0, BLOCK, 1);
            let _ = request(&*dev, Op::Flush, 0, 0);
            let _ = status(&dev);
            suspend(&dev);
        }
        assert!(refused > 100, "{refused}");
    }
}
