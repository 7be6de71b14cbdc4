//! Pools filled to the brim: nothing that was flushed is lost, nothing has to be checked, and there is a way back.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{DeviceError, MappedDevice};
use thinmap_units::{BlkStatus, Sector};

use support::{Double, load, read_bytes, request, resume, write_fill};
use thin_support::sparse::Sparse;
use thin_support::{BLOCK, Lab, SUSPEND, check_clean, info, message, until, used};

/// Blocks of each volume: more than the smallest metadata devices can map, and more than two bitmaps of the data device.
const VOLUME_BLOCKS: u64 = 40_000;

/// A pool on memory that is sparse for data and small for metadata.
struct Pool {
    lab: Lab,
    meta: Arc<MemoryDevice>,
    data_double: Arc<Double>,
    data_blocks: u64,
    pool: Arc<MappedDevice>,
}

impl Pool {
    fn new(meta_blocks: u64, data_blocks: u64) -> Self {
        let lab = Lab::new();
        let meta = lab.memory("meta", 8 * meta_blocks);
        // Far larger than the table says, so that it can grow.
        let data_double = Double::new(Sparse::new(1 << 40));
        lab.add("data", data_double.clone());
        let pool = lab.live("pool", &table(data_blocks));
        Self {
            lab,
            meta,
            data_double,
            data_blocks,
            pool,
        }
    }

    fn message(&self, text: &str) -> Result<(), DeviceError> {
        message(&self.pool, text)
    }

    fn open(&self, id: u32) -> Arc<MappedDevice> {
        let sectors = VOLUME_BLOCKS * BLOCK;
        let table = format!("0 {sectors} thin pool {id}");
        self.lab.live(&format!("t{id}"), &table)
    }

    fn status(&self) -> String {
        info(&self.pool)
    }

    fn end(self) {
        self.pool.destroy();
        check_clean(&self.meta);
    }
}

fn table(data_blocks: u64) -> String {
    let sectors = data_blocks * BLOCK;
    format!("0 {sectors} thin-pool meta data {BLOCK} 0 1 error_if_no_space")
}

/// A volume's device and what must be, and may be, in its blocks.
struct Volume {
    dev: Arc<MappedDevice>,
    /// Block to what a flush has covered.
    flushed: HashMap<u64, u8>,
    /// What was written well since, in order.
    written: Vec<(u64, u8)>,
    /// What was not: it may be there all the same.
    failed: Vec<(u64, u8)>,
    flushes: u64,
}

impl Volume {
    fn new(dev: Arc<MappedDevice>) -> Self {
        Self {
            dev,
            flushed: HashMap::new(),
            written: Vec::new(),
            failed: Vec::new(),
            flushes: 0,
        }
    }

    fn write(&mut self, block: u64, byte: u8) -> BlkStatus {
        let status = write_fill(&*self.dev, block * BLOCK + 8, 1, byte);
        match status.is_ok() {
            true => self.written.push((block, byte)),
            false => self.failed.push((block, byte)),
        }
        status
    }

    fn flush(&mut self) -> BlkStatus {
        let status = request(&*self.dev, Op::Flush, 0, 0);
        if status.is_ok() {
            self.flushes += 1;
            self.flushed.extend(self.written.drain(..));
        }
        status
    }

    fn write_and_flush(&mut self, block: u64, byte: u8) -> (BlkStatus, BlkStatus) {
        (self.write(block, byte), self.flush())
    }

    #[track_caller]
    fn verify(&self, what: &str) {
        for (block, byte) in &self.flushed {
            let (bytes, status) = read_bytes(&*self.dev, block * BLOCK + 8, 1);
            assert!(status.is_ok(), "{what}: block {block}: {status:?}");
            let allowed = |b: u8| {
                b == *byte
                    || self
                        .written
                        .iter()
                        .chain(&self.failed)
                        .any(|(at, later)| at == block && *later == b)
            };
            let got = bytes[0];
            assert!(
                allowed(got) && bytes.iter().all(|b| *b == got),
                "{what}: block {block} holds {got}, not {byte}"
            );
        }
    }
}

/// Small writes at random places of three volumes, with flushes, snapshots, discards and deletions, until the metadata of
/// `meta_blocks` is full, and on; then everything that must work there, and the way back.
fn fill_metadata(meta_blocks: u64, seed: u64) {
    let what = format!("{meta_blocks} metadata blocks, seed {seed}");
    // The smallest devices have no room for several volumes, nor for several bitmaps.
    let data_blocks = if meta_blocks < 64 {
        16_000
    } else {
        3 * VOLUME_BLOCKS
    };
    let p = Pool::new(meta_blocks, data_blocks);
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut volumes = Vec::new();
    for id in 0..3.min(meta_blocks as u32 / 12) {
        p.message(&format!("create_thin {id}")).unwrap();
        volumes.push(Volume::new(p.open(id)));
    }
    let snapshots = write_until_refused(&p, &mut volumes, &mut rng, &what);
    the_way_back(p, &mut volumes, snapshots, &what);
}

/// Gives the snapshots that are left.
fn write_until_refused(
    p: &Pool,
    volumes: &mut [Volume],
    rng: &mut SmallRng,
    what: &str,
) -> Vec<u32> {
    let (mut refused, mut snapshots, mut next) = (0, Vec::new(), 100);
    let mut writes = 0;
    while refused < 40 {
        writes += 1;
        assert!(writes < 400_000, "{what}: never full");
        let n = rng.random_range(0..volumes.len());
        let block = match rng.random_range(0..4) {
            0 => rng.random_range(0..VOLUME_BLOCKS),
            _ => rng.random_range(0..64) * 613 % VOLUME_BLOCKS + rng.random_range(0..600),
        } % VOLUME_BLOCKS;
        let byte = rng.random_range(1..=255);
        let status = if rng.random_range(0..8) == 0 {
            let (written, flushed) = volumes[n].write_and_flush(block, byte);
            assert!(flushed.is_ok(), "{what}: a flush failed: {}", p.status());
            written
        } else {
            volumes[n].write(block, byte)
        };
        assert!(
            status.is_ok() || status == BlkStatus::IoErr,
            "{what}: {status:?}"
        );
        refused += u32::from(!status.is_ok());
        if rng.random_range(0..300) == 0 {
            next += 1;
            if p.message(&format!("create_snap {next} {n}")).is_ok() {
                snapshots.push(next);
            }
        }
        if snapshots.len() > 3 {
            let id = snapshots.remove(0);
            p.message(&format!("delete {id}")).unwrap();
        }
        if writes % 1000 == 0 {
            assert!(
                !p.status().contains("needs_check"),
                "{what}: {}",
                p.status()
            );
        }
    }
    snapshots
}

/// Everything that must work on full metadata, and growth.
fn the_way_back(p: Pool, volumes: &mut [Volume], snapshots: Vec<u32>, what: &str) {
    full_but_well(&p, volumes, what);
    // All that frees works.
    for id in snapshots {
        p.message(&format!("delete {id}"))
            .unwrap_or_else(|e| panic!("{what}: delete {id}: {e}"));
    }
    let (first, rest) = volumes.split_first_mut().unwrap();
    assert!(
        request(&*first.dev, Op::Discard, 0, VOLUME_BLOCKS * BLOCK).is_ok(),
        "{what}"
    );
    first.flushed.clear();
    first.written.clear();
    assert!(p.status().contains(" rw "), "{what}: {}", p.status());
    assert!(first.write_and_flush(5, 5).0.is_ok(), "{what}");
    rest.iter().for_each(|v| v.verify(what));
    // Full again, then grown.
    for at in 0..VOLUME_BLOCKS {
        if !first.write(at * 331 % VOLUME_BLOCKS, 9).is_ok() {
            break;
        }
    }
    p.meta.grow(p.meta.size() + Sector(8 * 400));
    p.pool.suspend(SUSPEND).unwrap();
    resume(&p.pool).unwrap();
    assert!(p.status().contains(" rw "), "{what}: {}", p.status());
    for v in volumes {
        v.verify(what);
        assert!(v.write_and_flush(77, 7).0.is_ok(), "{what}");
        v.dev.destroy();
    }
    p.end();
}

/// At the brim: flushes work, what is there can be read and written in place, no check is asked for.
fn full_but_well(p: &Pool, volumes: &mut [Volume], what: &str) {
    let status = p.status();
    assert!(!status.contains("needs_check"), "{what}: {status}");
    for v in volumes.iter_mut() {
        assert!(v.flush().is_ok(), "{what}: {status}");
        v.verify(what);
    }
}

#[test]
fn metadata_of_every_small_size_is_filled_by_small_writes() {
    // From 96 KiB on; up to 2 MiB in `slow_`.
    let sizes = [24, 25, 28, 32, 40, 64, 99, 100, 119, 120];
    for (seed, meta_blocks) in (0..).zip(sizes) {
        fill_metadata(meta_blocks, seed);
    }
}

#[test]
fn slow_metadata_of_many_small_sizes_is_filled_by_small_writes() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(0, |n| n.parse().expect("a number"));
    for seed in 0..seeds {
        fill_metadata(24 + seed * 37 % 489, seed);
    }
}

/// Writers on volumes of their own, each with its own flushes, beside snapshots that come and go.
fn fill_under_load(p: &Pool, volumes: &mut [Volume], enough: u32) {
    std::thread::scope(|scope| {
        let writers: Vec<_> = volumes
            .iter_mut()
            .enumerate()
            .map(|(n, v)| scope.spawn(move || load_one(v, n as u64, enough)))
            .collect();
        let mut id = 1000;
        while !writers.iter().all(|w| w.is_finished()) {
            id += 1;
            let _ = p.message(&format!("create_snap {id} {}", id % 3));
            if p.message(&format!("delete {}", id - 2)).is_err() {
                std::thread::yield_now();
            }
            assert!(!p.status().contains("needs_check"), "{}", p.status());
        }
        for writer in writers {
            writer.join().unwrap();
        }
        for id in id - 3..=id {
            let _ = p.message(&format!("delete {id}"));
        }
    });
}

fn load_one(v: &mut Volume, seed: u64, enough: u32) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut refused = 0;
    while refused < enough {
        let block = rng.random_range(0..VOLUME_BLOCKS);
        let byte = rng.random_range(1..=255);
        let status = match rng.random_range(0..8) {
            0 => {
                let (written, flushed) = v.write_and_flush(block, byte);
                assert!(flushed.is_ok(), "no flush fails for want of space");
                written
            }
            _ => v.write(block, byte),
        };
        refused += u32::from(!status.is_ok());
    }
}

#[test]
fn data_then_metadata_are_filled_under_load_and_grown() {
    let p = Pool::new(128, 3000);
    let mut volumes = Vec::new();
    for id in 0..3 {
        p.message(&format!("create_thin {id}")).unwrap();
        volumes.push(Volume::new(p.open(id)));
    }
    fill_under_load(&p, &mut volumes, 20);
    full_but_well(&p, &mut volumes, "full for data");
    load(&p.pool, &table(3 * p.data_blocks)).unwrap();
    resume(&p.pool).unwrap();
    fill_under_load(&p, &mut volumes, 20);
    full_but_well(&p, &mut volumes, "full for metadata");
    p.meta.grow(Sector(8 * 600));
    load(&p.pool, &table(4 * p.data_blocks)).unwrap();
    resume(&p.pool).unwrap();
    assert!(p.status().contains(" rw "), "{}", p.status());
    for v in &mut volumes {
        v.verify("grown");
        assert!(v.write_and_flush(77, 7).0.is_ok());
        assert!(v.flushes > 0);
        v.dev.destroy();
    }
    p.end();
}

/// To out of metadata space by volumes, each of which takes a block.
fn fill_with_volumes(p: &Pool) {
    let refused = (1000..).find(|id| p.message(&format!("create_thin {id}")).is_err());
    assert!(refused.unwrap() < 3000);
    assert!(p.status().contains(" ro "), "{}", p.status());
}

#[test]
fn a_block_that_could_not_be_filled_when_metadata_was_full_is_not_lost() {
    let p = Pool::new(64, 1000);
    p.message("create_thin 0").unwrap();
    let t = p.open(0);
    p.data_double.hold.store(true, Ordering::SeqCst);
    let t2 = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 0, BLOCK, 1));
    until("the data is on its way", || {
        !p.data_double.held.lock().is_empty()
    });
    // No flush of the data device must be held up.
    p.data_double.hold.store(false, Ordering::SeqCst);
    fill_with_volumes(&p);
    p.data_double.fail_in.store(-1, Ordering::SeqCst);
    p.data_double.release();
    assert_eq!(writer.join().unwrap(), BlkStatus::IoErr);
    assert_eq!(used(&p.status()), 0, "it has gone back");
    p.meta.grow(Sector(8 * 200));
    p.pool.suspend(SUSPEND).unwrap();
    resume(&p.pool).unwrap();
    assert!(write_fill(&*t, 0, BLOCK, 1).is_ok());
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    assert_eq!(used(&p.status()), 1);
    t.destroy();
    p.end();
}

#[test]
fn a_data_device_that_grows_beyond_what_full_metadata_can_count_is_refused_and_nothing_else() {
    let p = Pool::new(32, 16_000);
    fill_with_volumes(&p);
    // Some fifty bitmaps.
    let far = 50 * 16_320;
    p.pool.suspend(SUSPEND).unwrap();
    load(&p.pool, &table(far)).unwrap();
    let error = resume(&p.pool).expect_err("no room for its bitmaps");
    assert_eq!(error.errno(), 28, "{error}");
    assert!(
        error.to_string().contains("metadata device is full"),
        "{error}"
    );
    // With metadata that has grown too, the same table is accepted.
    p.meta.grow(Sector(8 * 200));
    load(&p.pool, &table(far)).unwrap();
    resume(&p.pool).unwrap();
    let status = p.status();
    assert!(
        status.contains(" rw ") && status.contains(&format!("/{far} ")),
        "{status}"
    );
    p.end();
}

#[test]
fn the_metadata_low_water_mark_raises_one_event_and_follows_growth() {
    let p = Pool::new(64, 1000);
    let before = p.pool.event().number();
    // The mark counts the reserve as free; the status does not.
    let (mut id, mut free) = (0, 64);
    while free + 6 >= 16 {
        assert_eq!(p.pool.event().number(), before, "free {free}");
        p.message(&format!("create_thin {id}")).unwrap();
        id += 1;
        free = free_metadata(&p.status());
    }
    assert_eq!(p.pool.event().number(), before + 1);
    p.message(&format!("create_thin {id}")).unwrap();
    assert_eq!(p.pool.event().number(), before + 1, "once");
    // The mark of the grown device is 64, not 16.
    p.meta.grow(Sector(8 * 256));
    p.pool.suspend(SUSPEND).unwrap();
    resume(&p.pool).unwrap();
    let grown = p.pool.event().number();
    while free_metadata(&p.status()) + 25 >= 64 {
        assert_eq!(p.pool.event().number(), grown);
        id += 1;
        p.message(&format!("create_thin {id}")).unwrap();
    }
    assert_eq!(p.pool.event().number(), grown + 1);
    p.end();
}

fn free_metadata(status: &str) -> u64 {
    let (used, total) = status.split(' ').nth(1).unwrap().split_once('/').unwrap();
    total.parse::<u64>().unwrap() - used.parse::<u64>().unwrap()
}
