//! clone: data is right at every moment of the copying, at every power cut, and when devices fail.
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

use clocked::Ends;
use power::Machine;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, Sector};

const REGION: u64 = 8;
const REGIONS: u64 = 500;
/// The last region is short.
const SECTORS: u64 = REGION * REGIONS - 3;
const METADATA_SECTORS: u64 = 4096;

fn status(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    lines.unwrap()[0].text.clone()
}

fn message(dev: &MappedDevice, words: &str) -> Result<Option<String>, String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &words).map_err(|e| e.to_string())
}

fn hydrated(dev: &MappedDevice) -> u64 {
    let text = status(dev);
    let word = text.split(' ').nth(3).unwrap();
    word.split('/').next().unwrap().parse().unwrap()
}

fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

/// Each sector begins with its number and a seed.
fn pattern(sector: u64, seed: u8) -> [u8; 512] {
    let mut bytes = [seed; 512];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn put(dev: &dyn BlockDevice, image: &[u8]) {
    for (at, chunk) in image.chunks(4096).enumerate() {
        let mut buf = thinmap_runtime::IoBuf::alloc(chunk.len());
        buf.as_mut_slice().copy_from_slice(chunk);
        assert!(
            thinmap_block::write(dev, Sector(8 * at as u64), buf)
                .1
                .is_ok()
        );
    }
}

fn source_image() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| pattern(sector, 1)).collect()
}

fn write_at(dev: &dyn BlockDevice, sector: u64, data: &[u8]) -> BlkStatus {
    let mut buf = thinmap_runtime::IoBuf::alloc(data.len());
    buf.as_mut_slice().copy_from_slice(data);
    thinmap_block::write(dev, Sector(sector), buf).1
}

/// Devices that complete in any order, writes and reads of any length beside the copying.
#[test]
fn data_is_right_while_regions_come() {
    for (seed, line) in [
        (1, ""),
        (2, " 0 4 hydration_threshold 16 hydration_batch_size 4"),
        (3, " 1 no_hydration"),
        (
            4,
            " 1 no_discard_passdown 4 hydration_batch_size 7 hydration_threshold 3",
        ),
    ] {
        let world = World::new();
        world.memory("m", METADATA_SECTORS);
        let source = world.memory("x", SECTORS);
        let mut model = source_image();
        put(&*source, &model);
        world.add("s", Delayed::new(source.clone(), seed));
        world.add(
            "d",
            Delayed::new(Arc::new(MemoryDevice::new(Sector(SECTORS))), seed),
        );
        let table = format!("0 {SECTORS} clone m d s {REGION}{line}");
        let dev = world.live("one", &table);
        let mut rng = SmallRng::seed_from_u64(seed);
        for round in 0..600_u32 {
            let sector = rng.random_range(0..SECTORS - 1);
            let sectors = rng.random_range(1..40).min(SECTORS - sector);
            let range = sector as usize * 512..(sector + sectors) as usize * 512;
            if rng.random() {
                let data: Vec<u8> = (sector..sector + sectors)
                    .flat_map(|s| pattern(s, rng.random()))
                    .collect();
                assert!(write_at(&*dev, sector, &data).is_ok());
                model[range].copy_from_slice(&data);
            } else {
                let (data, end) = read_bytes(&*dev, sector, sectors);
                assert!(
                    end.is_ok() && data == model[range],
                    "{seed} {round} {sector}+{sectors}"
                );
            }
            if round % 150 == 149 {
                suspend(&dev);
                if round % 300 == 299 {
                    load(&dev, &table).unwrap();
                }
                resume(&dev).unwrap();
            }
        }
        message(&dev, "enable_hydration").unwrap();
        message(&dev, "hydration_threshold 32").unwrap();
        while hydrated(&dev) < REGIONS {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        put(&*source, &vec![0; model.len()]);
        assert!(
            read_bytes(&*dev, 0, SECTORS).0 == model,
            "nothing is left in the source"
        );
    }
}

#[test]
fn many_writes_to_one_region_at_once_all_arrive() {
    let world = World::new();
    world.memory("m", METADATA_SECTORS);
    world.memory("s", 1024);
    let dest = Arc::new(MemoryDevice::new(Sector(1024)));
    world.add("d", Delayed::new(dest.clone(), 5));
    let dev = world.live("one", "0 1024 clone m d s 512 1 no_hydration");
    let ends = Ends::new();
    let fua = IoFlags {
        fua: true,
        no_unmap: false,
    };
    for tag in 0..100_u64 {
        let flags = if tag % 7 == 0 {
            fua
        } else {
            IoFlags::default()
        };
        ends.send_with(&*dev, tag, (Op::Write, flags), (tag * 4, 4), tag as u8);
    }
    ends.wait(100);
    ends.ended();
    for tag in 0..100_u64 {
        let (data, _) = read_bytes(&*dest, tag * 4, 4);
        assert!(data.iter().all(|byte| u64::from(*byte) == tag), "{tag}");
    }
    assert_eq!(hydrated(&dev), 1);
}

/// Cut anywhere: what was flushed is there, in whatever region; what was not is old or new, sector by sector.
#[test]
fn what_was_flushed_is_there_after_a_power_cut() {
    for seed in 0..80 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // What may be found in each sector.
        let allowed: Vec<Vec<u8>> = vec![vec![1]; SECTORS as usize];
        let machine = Machine::new(seed, &[METADATA_SECTORS, SECTORS], allowed);
        let world = World::new();
        world.add("m", machine.disk(0));
        world.add("d", machine.disk(1));
        let source = world.memory("s", SECTORS);
        put(&*source, &source_image());
        let line = ["", " 1 no_hydration", " 0 2 hydration_threshold 8"][seed as usize % 3];
        let table = format!("0 {SECTORS} clone m d s {REGION}{line}");
        let dev = world.live("one", &table);
        machine.cut_in(rng.random_range(0..500));
        while !machine.is_cut() {
            for _ in 0..rng.random_range(1..20) {
                let sector = rng.random_range(0..SECTORS - 20);
                let sectors = rng.random_range(1..20);
                let byte = rng.random();
                let data: Vec<u8> = (sector..sector + sectors)
                    .flat_map(|s| pattern(s, byte))
                    .collect();
                machine.note(|notes| {
                    let range = sector as usize..(sector + sectors) as usize;
                    notes[range].iter_mut().for_each(|s| s.push(byte));
                });
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
            if rng.random_range(0..8) == 0 {
                suspend(&dev);
                resume(&dev).unwrap();
            }
        }
        let (images, allowed) = machine.found();
        let again = World::new();
        put(&*again.memory("m", METADATA_SECTORS), &images[0]);
        put(&*again.memory("d", SECTORS), &images[1]);
        again.add("s", source);
        let dev = again.live("two", &table);
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
    }
}

#[test]
fn a_failing_metadata_device_makes_it_read_only_and_loses_nothing() {
    for fail_in in 0..8 {
        let world = World::new();
        let double = Double::new(world.memory("x", METADATA_SECTORS));
        world.add("m", double.clone());
        world.memory("d", SECTORS);
        put(&*world.memory("s", SECTORS), &source_image());
        let table = format!("0 {SECTORS} clone m d s {REGION} 1 no_hydration");
        let dev = world.live("one", &table);
        assert!(write_fill(&*dev, 3, 1, 9).is_ok());
        double.fail_in.store(fail_in, Ordering::SeqCst);
        let mut region = 1;
        while request(&*dev, Op::Flush, 0, 0).is_ok() {
            assert!(write_fill(&*dev, region * REGION + 3, 1, 9).is_ok());
            region += 1;
            assert!(region < 100);
        }
        assert!(status(&dev).ends_with(" ro"), "{}", status(&dev));
        assert_eq!(read_bytes(&*dev, (region - 1) * REGION + 3, 1).0[9], 9);
        assert!(write_fill(&*dev, 3, 1, 8).is_ok(), "is there already");
        assert_eq!(write_fill(&*dev, 300 * REGION, 1, 8), BlkStatus::IoErr);
        assert_eq!(read_bytes(&*dev, 301, 1).0, pattern(301, 1));
        assert!(request(&*dev, Op::Discard, 400 * REGION, REGION).is_ok());
        suspend(&dev);
        load(&dev, &table).unwrap();
        resume(&dev).unwrap();
        assert!(status(&dev).ends_with(" rw"));
        assert!(write_fill(&*dev, 300 * REGION, 1, 8).is_ok());
    }
}

#[test]
fn a_failing_source_fails_what_needs_it_only() {
    let world = World::new();
    world.memory("m", METADATA_SECTORS);
    world.memory("d", SECTORS);
    let double = Double::new(world.memory("x", SECTORS));
    world.add("s", double.clone());
    let dev = world.live(
        "one",
        &format!("0 {SECTORS} clone m d s {REGION} 1 no_hydration"),
    );
    double.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(write_fill(&*dev, 1, 1, 9), BlkStatus::IoErr);
    assert_eq!(hydrated(&dev), 0);
    assert!(write_fill(&*dev, 1, 1, 9).is_ok(), "the next one works");
    double.fail_in.store(0, Ordering::SeqCst);
    assert!(
        write_fill(&*dev, REGION, REGION, 9).is_ok(),
        "needs nothing of it"
    );
    assert_eq!(hydrated(&dev), 2);
    assert!(request(&*dev, Op::Discard, 2 * REGION - 1, 3 * REGION).is_ok());
    assert_eq!(hydrated(&dev), 4, "regions that are discarded whole");
}

#[test]
fn damaged_metadata_are_an_error_and_no_panic() {
    let world = World::new();
    let metadata: Arc<MemoryDevice> = world.memory("m", METADATA_SECTORS);
    world.memory("d", SECTORS);
    world.memory("s", SECTORS);
    let table = format!("0 {SECTORS} clone m d s {REGION}");
    let dev = world.live("one", &table);
    while hydrated(&dev) < REGIONS / 2 {
        std::thread::yield_now();
    }
    suspend(&dev);
    let good = read_bytes(&*metadata, 0, METADATA_SECTORS).0;
    let used = good
        .chunks(4096)
        .filter(|c| c.iter().any(|b| *b != 0))
        .count();
    let mut rng = SmallRng::seed_from_u64(9);
    for _ in 0..200 {
        let world = World::new();
        let damaged = world.memory("m", METADATA_SECTORS);
        world.memory("d", SECTORS);
        world.memory("s", SECTORS);
        let mut image = good.clone();
        for _ in 0..rng.random_range(1..4) {
            image[rng.random_range(0..used * 4096)] ^= 1 << rng.random_range(0..8);
        }
        put(&*damaged, &image);
        let dev = world.mapped("two");
        if load(&dev, &table).is_err() || resume(&dev).is_err() {
            continue;
        }
        let _ = request(&*dev, Op::Write, 0, 512);
        let _ = status(&dev);
        suspend(&dev);
    }
}
