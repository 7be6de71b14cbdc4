//! era: the record is right after random writes, at every power cut, and when its device fails. Judged by era_check and era_dump.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
#[path = "snapshot_support/power.rs"]
mod power;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use power::Machine;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, Sector};

/// Sectors in a block.
const BLOCK: u64 = 16;
const BLOCKS: u64 = 3000;
const SECTORS: u64 = BLOCK * BLOCKS;
const METADATA_SECTORS: u64 = 8192;

fn message(dev: &MappedDevice, words: &str) -> Result<Option<String>, String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &words)
        .map_err(|error| format!("{error} ({})", error.errno()))
}

fn status(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    lines.unwrap()[0].text.clone()
}

fn era_of(dev: &MappedDevice) -> u32 {
    status(dev).split(' ').nth(2).unwrap().parse().unwrap()
}

/// Waits until eras are digested and what that freed is free.
fn settled(dev: &MappedDevice) -> String {
    let mut last = status(dev);
    let mut same = 0;
    while same < 20 {
        std::thread::yield_now();
        let now = status(dev);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

/// The era of each block, as era_dump reads it; era_check must be content.
fn eras(image: &[u8]) -> BTreeMap<u64, u32> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metadata");
    std::fs::write(&file, image).unwrap();
    tool("era_check", &[], &file);
    let xml = tool("era_dump", &["--logical"], &file);
    let number = |line: &str, name: &str| -> u64 {
        let rest = line.split(&format!("{name}=\"")).nth(1).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    };
    xml.lines()
        .filter(|line| line.contains("<era "))
        .map(|line| {
            let era = u32::try_from(number(line, "era")).unwrap();
            (number(line, "block"), era)
        })
        .filter(|(_, era)| *era > 0)
        .collect()
}

fn tool(name: &str, options: &[&str], file: &Path) -> String {
    let output = Command::new(name).args(options).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}{errors}");
    text
}

fn bytes_of(dev: &MemoryDevice) -> Vec<u8> {
    read_bytes(dev, 0, dev.size().raw()).0
}

#[test]
fn the_era_of_each_block_is_that_of_its_last_write() {
    let world = World::new();
    let metadata = world.memory("7:0", METADATA_SECTORS);
    world.memory("7:1", SECTORS);
    let table = format!("0 {SECTORS} era 7:0 7:1 {BLOCK}");
    let dev = world.live("one", &table);
    let mut rng = SmallRng::seed_from_u64(3);
    let mut model = BTreeMap::new();
    for round in 0..60 {
        let era = era_of(&dev);
        for _ in 0..rng.random_range(0..40) {
            let sector = rng.random_range(0..SECTORS - 64);
            let sectors = rng.random_range(1..64);
            let op = [Op::Write, Op::Write, Op::Discard][rng.random_range(0..3)];
            assert!(request(&*dev, op, sector, sectors).is_ok());
            for block in sector / BLOCK..(sector + sectors).div_ceil(BLOCK) {
                model.insert(block, era);
            }
        }
        assert!(request(&*dev, Op::Read, 0, SECTORS / 2).is_ok());
        match round % 6 {
            0 => message(&dev, "checkpoint").map(drop).unwrap(),
            1 => message(&dev, "take_metadata_snap").map(drop).unwrap(),
            3 => message(&dev, "Drop_Metadata_Snap").map(drop).unwrap(),
            4 => {
                suspend(&dev);
                assert!(eras(&bytes_of(&metadata)) == model, "round {round}");
                resume(&dev).unwrap();
            }
            5 => {
                load(&dev, &table).unwrap();
                // Written while the other line is loaded already.
                assert!(request(&*dev, Op::Write, 0, 1).is_ok());
                model.insert(0, era);
                suspend(&dev);
                resume(&dev).unwrap();
            }
            _ => {}
        }
    }
    suspend(&dev);
    assert!(eras(&bytes_of(&metadata)) == model);
    assert!(model.len() > 500);
}

#[test]
fn blocks_that_eras_took_come_back() {
    let world = World::new();
    world.memory("7:0", METADATA_SECTORS);
    world.memory("7:1", SECTORS);
    let dev = world.live("one", &format!("0 {SECTORS} era 7:0 7:1 {BLOCK}"));
    assert!(write_fill(&*dev, 0, SECTORS, 1).is_ok());
    // Eras are digested in the background.
    let used_becomes = |wanted: &str| {
        let used = || status(&dev).split(' ').nth(1).unwrap().to_owned();
        let becomes = (0..60_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            used() == wanted
        });
        assert!(becomes, "{} used, not {wanted}", used());
    };
    message(&dev, "checkpoint").unwrap();
    used_becomes(NOTHING_TO_DIGEST);
    for _ in 0..50 {
        assert!(write_fill(&*dev, 0, SECTORS, 1).is_ok());
        message(&dev, "checkpoint").unwrap();
    }
    used_becomes(NOTHING_TO_DIGEST);
    message(&dev, "take_metadata_snap").unwrap();
    assert!(write_fill(&*dev, 0, SECTORS, 1).is_ok());
    message(&dev, "checkpoint").unwrap();
    used_becomes(WITH_A_SNAPSHOT);
    assert!(!settled(&dev).ends_with('-'));
    message(&dev, "drop_metadata_snap").unwrap();
    used_becomes(NOTHING_TO_DIGEST);
}

/// Metadata blocks of this device, all eras in the array.
const NOTHING_TO_DIGEST: &str = "11/1024";
/// The snapshot's superblock and what has changed since.
const WITH_A_SNAPSHOT: &str = "19/1024";

/// Cut anywhere: what a write has changed on the origin is in the record, with its era or a later one.
#[test]
fn no_written_block_is_missed_after_a_power_cut() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let machine = Machine::new(seed, &[METADATA_SECTORS, SECTORS], Vec::<(u64, u32)>::new());
        let world = World::new();
        world.add("m", machine.disk(0));
        world.add("o", machine.disk(1));
        let dev = world.live("one", &format!("0 {SECTORS} era m o {BLOCK}"));
        machine.cut_in(rng.random_range(0..400));
        while !machine.is_cut() {
            let era = era_of(&dev);
            for _ in 0..rng.random_range(0..20) {
                let block = rng.random_range(0..BLOCKS);
                machine.note(|notes| notes.push((block, era)));
                assert!(write_fill(&*dev, block * BLOCK, 1, rng.random_range(1..=255)).is_ok());
            }
            match rng.random_range(0..4) {
                0 => message(&dev, "checkpoint").map(drop).unwrap(),
                1 => {
                    suspend(&dev);
                    resume(&dev).unwrap();
                }
                2 => drop(message(&dev, "take_metadata_snap")),
                _ => drop(message(&dev, "drop_metadata_snap")),
            }
        }
        let (images, notes) = machine.found();
        let written: BTreeMap<u64, u32> = (0..BLOCKS)
            .filter(|block| images[1][(block * BLOCK * 512) as usize] != 0)
            .map(|block| {
                // The first write may be the one that is found.
                let era = notes.iter().find(|(b, _)| *b == block).unwrap().1;
                (block, era)
            })
            .collect();
        // The eras as they are after it was opened again, which puts the open one into the tree.
        let again = World::new();
        let metadata = again.memory("m", METADATA_SECTORS);
        again.memory("o", SECTORS);
        for (at, chunk) in images[0].chunks(4096).enumerate() {
            let mut buf = thinmap_runtime::IoBuf::alloc(chunk.len());
            buf.as_mut_slice().copy_from_slice(chunk);
            assert!(
                thinmap_block::write(&*metadata, Sector(8 * at as u64), buf)
                    .1
                    .is_ok()
            );
        }
        let dev = again.live("two", &format!("0 {SECTORS} era m o {BLOCK}"));
        suspend(&dev);
        let found = eras(&bytes_of(&metadata));
        for (block, era) in written {
            let recorded = found.get(&block).copied().unwrap_or(0);
            assert!(
                recorded >= era,
                "seed {seed}: block {block}: {recorded} < {era}"
            );
        }
    }
}

#[test]
fn a_failing_metadata_device_fails_first_writes_only() {
    for fail_in in 0..12 {
        let world = World::new();
        let double = Double::new(world.memory("x", METADATA_SECTORS));
        world.add("m", double.clone());
        let origin = world.memory("o", SECTORS);
        let dev = world.live("one", &format!("0 {SECTORS} era m o {BLOCK}"));
        assert!(write_fill(&*dev, 0, 8, 1).is_ok());
        double.fail_in.store(fail_in, Ordering::SeqCst);
        let mut block = 1;
        while write_fill(&*dev, block * BLOCK, 8, 2).is_ok() {
            block += 1;
            assert!(block < 100);
        }
        // The write that could not be noted has not been done.
        assert_eq!(read_bytes(&*origin, block * BLOCK, 1).0[0], 0);
        assert!(
            write_fill(&*dev, 0, 8, 3).is_ok(),
            "was written in this era"
        );
        assert!(request(&*dev, Op::Read, 0, 64).is_ok());
        assert_eq!(request(&*dev, Op::Write, 90 * BLOCK, 8), BlkStatus::IoErr);
        assert_eq!(status(&dev), "Error");
        assert!(message(&dev, "checkpoint").is_err());
        // Another table on the same device goes on from what was durable.
        suspend(&dev);
        load(&dev, &format!("0 {SECTORS} era m o {BLOCK}")).unwrap();
        resume(&dev).unwrap();
        assert!(write_fill(&*dev, 90 * BLOCK, 8, 3).is_ok());
        assert_ne!(status(&dev), "Error");
    }
}

#[test]
fn a_damaged_metadata_device_is_an_error_and_no_panic() {
    let world = World::new();
    let metadata: Arc<MemoryDevice> = world.memory("7:0", METADATA_SECTORS);
    world.memory("7:1", SECTORS);
    let table = format!("0 {SECTORS} era 7:0 7:1 {BLOCK}");
    let dev = world.live("one", &table);
    for _ in 0..5 {
        assert!(write_fill(&*dev, 0, SECTORS / 2, 1).is_ok());
        suspend(&dev);
        resume(&dev).unwrap();
    }
    suspend(&dev);
    let good = bytes_of(&metadata);
    let mut rng = SmallRng::seed_from_u64(9);
    let used = good
        .chunks(4096)
        .filter(|c| c.iter().any(|b| *b != 0))
        .count();
    for _ in 0..200 {
        let world = World::new();
        let damaged = world.memory("7:0", METADATA_SECTORS);
        world.memory("7:1", SECTORS);
        let mut image = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..used * 4096);
            image[at] ^= 1 << rng.random_range(0..8);
        }
        let mut buf = thinmap_runtime::IoBuf::alloc(image.len());
        buf.as_mut_slice().copy_from_slice(&image);
        assert!(thinmap_block::write(&*damaged, Sector(0), buf).1.is_ok());
        let dev = world.mapped("two");
        if load(&dev, &table).is_err() || resume(&dev).is_err() {
            continue;
        }
        let _ = request(&*dev, Op::Write, 0, 512);
        let _ = message(&dev, "checkpoint");
        let _ = status(&dev);
        suspend(&dev);
    }
}

#[test]
fn a_line_that_grows_and_shrinks_keeps_what_there_is() {
    let world = World::new();
    let metadata = world.memory("7:0", METADATA_SECTORS);
    world.memory("7:1", SECTORS);
    let dev = world.live("one", &format!("0 {} era 7:0 7:1 {BLOCK}", 100 * BLOCK));
    assert!(write_fill(&*dev, 99 * BLOCK, 8, 1).is_ok());
    for blocks in [BLOCKS, 1018, 1019, 100] {
        load(&dev, &format!("0 {} era 7:0 7:1 {BLOCK}", blocks * BLOCK)).unwrap();
        suspend(&dev);
        resume(&dev).unwrap();
        assert!(write_fill(&*dev, (blocks - 1) * BLOCK, 8, 1).is_ok());
        settled(&dev);
    }
    suspend(&dev);
    assert_eq!(
        eras(&bytes_of(&metadata))
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [99]
    );
}

/// More blocks than the array grows by in one commit.
#[test]
fn a_large_origin_is_taken_in_steps() {
    let world = World::new();
    let metadata = world.memory("m", 1 << 17);
    let blocks: u64 = (4 << 20) + 5;
    world.live("z", &format!("0 {} zero", blocks * 8));
    let dev = world.live("one", &format!("0 {} era m z 8", blocks * 8));
    let written = [0, 4 << 20, blocks - 1];
    for block in written {
        assert!(write_fill(&*dev, block * 8, 8, 1).is_ok());
    }
    suspend(&dev);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metadata");
    std::fs::write(&file, bytes_of(&metadata)).unwrap();
    tool("era_check", &[], &file);
    let xml = tool("era_invalidate", &["--written-since", "1"], &file);
    for block in written {
        assert!(
            xml.contains(&format!("<block block=\"{block}\"/>")),
            "{xml}"
        );
    }
    assert_eq!(xml.matches("block=").count(), 3, "{xml}");
}
