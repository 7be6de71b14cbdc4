//! A crash of the daemon alone: whatever was answered is there for the next one, flushed or not.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::{KeptMemory, MappedDevice};
use thinmap_runtime::{IoBuf, Spawner};
use thinmap_units::{BlkStatus, Sector};

use support::{Double, load, resume};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::shelf::Shelf;
use thin_support::{BLOCK, Lab, check_clean, flagged, info, message};

const META: u64 = 8192;
const DATA: u64 = 256 * BLOCK;
const VOLUME: u64 = 48 * BLOCK;
/// Of 4 KiB.
const CELLS: u64 = VOLUME / 8;

/// A process with a pool and a volume. Its clock stands still, so nothing is committed that nobody asks for.
struct Process {
    meta: Arc<MemoryDevice>,
    breaker: Arc<Double>,
    data: Arc<MemoryDevice>,
    kept: Arc<Shelf>,
    lab: Lab,
    pool: Arc<MappedDevice>,
    volume: Arc<MappedDevice>,
}

impl Process {
    fn new(images: [IoBuf; 2], kept: Shelf, is_first: bool) -> Self {
        Self::with(images, kept, is_first, "")
    }

    fn with(images: [IoBuf; 2], kept: Shelf, is_first: bool, features: &str) -> Self {
        let time = Arc::new(ManualTime::default());
        let spawner = Arc::new(ManualSpawner(time));
        let lab = Lab::with(spawner.clone(), spawner.clock());
        let kept = Arc::new(kept);
        lab.env.shared.of::<KeptMemory>().set(kept.clone());
        let (meta, data) = (lab.memory("below", META), lab.memory("data", DATA));
        let breaker = Double::new(meta.clone());
        lab.add("meta", breaker.clone());
        for (dev, image) in [&meta, &data].into_iter().zip(images) {
            assert!(thinmap_block::write(&**dev, Sector(0), image).1.is_ok());
        }
        let pool = lab.live("pool", &pool_line(features));
        if is_first {
            message(&pool, "create_thin 0").unwrap();
        }
        let volume = lab.live("t", &format!("0 {VOLUME} thin pool 0"));
        Self {
            meta,
            breaker,
            data,
            kept,
            lab,
            pool,
            volume,
        }
    }

    fn meta_image(&self) -> IoBuf {
        image(&self.meta, META)
    }

    fn data_image(&self) -> IoBuf {
        image(&self.data, DATA)
    }

    /// The process dies; the next one.
    fn die(self) -> Self {
        let next = Self::new(
            [self.meta_image(), self.data_image()],
            self.kept.at_death(),
            false,
        );
        // Its end changes nothing of what the next one has.
        self.volume.destroy();
        self.pool.destroy();
        next
    }

    fn verify(&self, cells: &[u8], what: &str) {
        for (i, expected) in cells.iter().enumerate() {
            let (bytes, status) =
                thinmap_block::read(&*self.volume, Sector(i as u64 * 8), IoBuf::alloc(4096));
            assert!(status.is_ok());
            let found = bytes.as_slice();
            assert!(
                found.iter().all(|b| b == expected),
                "{what}: cell {i} holds {}, not {expected}",
                found[0]
            );
        }
    }

    fn end(self) {
        self.volume.destroy();
        self.pool.destroy();
        drop(self.lab);
        check_clean(&self.meta);
        assert_eq!(self.kept.len(), 0, "the journal is let go");
    }
}

fn pool_line(features: &str) -> String {
    format!("0 {DATA} thin-pool meta data {BLOCK} 0 {features}")
}

fn image(dev: &Arc<MemoryDevice>, sectors: u64) -> IoBuf {
    let buf = IoBuf::alloc(usize::try_from(sectors * 512).unwrap());
    let (bytes, status) = thinmap_block::read(&**dev, Sector(0), buf);
    assert!(status.is_ok());
    bytes
}

fn zeroes(sectors: u64) -> IoBuf {
    let mut buf = IoBuf::alloc(usize::try_from(sectors * 512).unwrap());
    buf.as_mut_slice().fill(0);
    buf
}

fn first() -> Process {
    Process::new([zeroes(META), zeroes(DATA)], Shelf::default(), true)
}

fn request(process: &Process, op: Op, sector: u64, sectors: u64, byte: u8) {
    let status = flagged(
        &*process.volume,
        op,
        IoFlags::default(),
        sector,
        sectors,
        byte,
    );
    assert!(
        status.is_ok(),
        "{op:?}: {status:?}, {}",
        info(&process.pool)
    );
}

/// One random change, and what the cells hold then.
fn step(process: &Process, rng: &mut StdRng, cells: &mut [u8], snapshots: &mut u32) {
    match rng.random_range(0..100) {
        0..70 => {
            let (cell, byte) = (rng.random_range(0..CELLS), rng.random_range(1..=255));
            request(process, Op::Write, cell * 8, 8, byte);
            cells[cell as usize] = byte;
        }
        70..80 => {
            let begin = rng.random_range(0..CELLS);
            let len = rng.random_range(1..=CELLS - begin);
            request(process, Op::WriteZeroes, begin * 8, len * 8, 0);
            cells[begin as usize..(begin + len) as usize].fill(0);
        }
        80..90 => {
            *snapshots += 1;
            message(&process.pool, &format!("create_snap {snapshots} 0")).unwrap();
        }
        90..94 if *snapshots > 0 => {
            message(&process.pool, &format!("delete {snapshots}")).unwrap();
            *snapshots -= 1;
        }
        _ => request(process, Op::Flush, 0, 0, 0),
    }
}

#[test]
fn a_death_between_two_answers_loses_neither() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(40, |n| n.parse().expect("a number"));
    for seed in 0..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut process, mut snapshots) = (first(), 0);
        let mut cells = vec![0; CELLS as usize];
        for death in 0..6 {
            for _ in 0..rng.random_range(0..60) {
                step(&process, &mut rng, &mut cells, &mut snapshots);
            }
            process = process.die();
            process.verify(&cells, &format!("seed {seed}, death {death}"));
        }
        process.end();
    }
}

/// The commit was on the device, the journal not emptied yet.
#[test]
fn a_journal_whose_changes_are_committed_is_not_applied_again() {
    let process = first();
    request(&process, Op::Write, 0, 8, 1);
    request(&process, Op::Write, BLOCK, 8, 2);
    request(&process, Op::WriteZeroes, 0, BLOCK, 0);
    request(&process, Op::Write, 2 * BLOCK, 8, 3);
    let journal = process.kept.at_death();
    request(&process, Op::Flush, 0, 0, 0);
    let images = [process.meta_image(), process.data_image()];
    process.end();
    let next = Process::new(images, journal, false);
    let mut cells = vec![0; CELLS as usize];
    cells[BLOCK as usize / 8] = 2;
    cells[2 * BLOCK as usize / 8] = 3;
    next.verify(&cells, "after the commit");
    next.end();
}

/// It died while it was taking over: what it had applied was in memory only.
#[test]
fn a_death_in_the_middle_of_a_takeover_changes_nothing() {
    let process = first();
    request(&process, Op::Write, 0, 8, 1);
    let (meta, data) = (process.meta_image(), process.data_image());
    let journal = process.kept.at_death();
    process.end();
    for _ in 0..2 {
        let copy = |from: &IoBuf| {
            let mut to = IoBuf::alloc(from.len());
            to.as_mut_slice().copy_from_slice(from.as_slice());
            to
        };
        let next = Process::new([copy(&meta), copy(&data)], journal.at_death(), false);
        let mut cells = vec![0; CELLS as usize];
        cells[0] = 1;
        next.verify(&cells, "again");
        next.end();
    }
}

/// A pool that could only be read at first promises nothing less later.
#[test]
fn a_pool_that_becomes_writable_is_journalled_from_then_on() {
    let process = first();
    request(&process, Op::Write, 0, 8, 1);
    request(&process, Op::Flush, 0, 0, 0);
    let images = [process.meta_image(), process.data_image()];
    let next = Process::with(images, process.kept.at_death(), false, "1 read_only");
    process.end();
    load(&next.pool, &pool_line("")).unwrap();
    resume(&next.pool).unwrap();
    request(&next, Op::Write, BLOCK, 8, 2);
    let next = next.die();
    let mut cells = vec![0; CELLS as usize];
    (cells[0], cells[BLOCK as usize / 8]) = (1, 2);
    next.verify(&cells, "after the death");
    next.end();
}

/// A flush must tell of it once, under whichever daemon it comes.
#[test]
fn a_loss_that_no_flush_has_told_of_is_told_after_a_death() {
    let process = first();
    request(&process, Op::Flush, 0, 0, 0);
    message(&process.pool, "create_thin 1").unwrap();
    let other = process
        .lab
        .live("other", &format!("0 {VOLUME} thin pool 1"));
    request(&process, Op::Write, 0, 8, 1);
    process.breaker.fail_in.store(0, SeqCst);
    let flush = |dev: &MappedDevice| flagged(dev, Op::Flush, IoFlags::default(), 0, 0, 0);
    assert_eq!(flush(&other), BlkStatus::IoErr, "the commit fails");
    other.destroy();
    let next = process.die();
    assert!(info(&next.pool).contains("needs_check"));
    for _ in 0..2 {
        assert_eq!(flush(&next.volume), BlkStatus::IoErr, "its write is gone");
    }
    let next = next.die();
    assert_eq!(flush(&next.volume), BlkStatus::IoErr, "still the same user");
    next.volume.destroy();
    let again = next.lab.live("again", &format!("0 {VOLUME} thin pool 0"));
    assert_eq!(flush(&again), BlkStatus::Ok, "a new user starts afresh");
    again.destroy();
    let next = next.die();
    assert_eq!(flush(&next.volume), BlkStatus::Ok);
    next.volume.destroy();
    next.pool.destroy();
    assert_eq!(next.kept.len(), 0);
}

/// Memory that another pool left under the same name.
#[test]
fn a_journal_of_other_metadata_is_not_applied() {
    let process = first();
    request(&process, Op::Write, 0, 8, 1);
    let journal = process.kept.at_death();
    process.end();
    let other = Process::new([zeroes(META), zeroes(DATA)], journal, true);
    other.verify(&vec![0; CELLS as usize], "a new pool");
    assert!(other.volume.size() == Sector(VOLUME));
    other.end();
}
