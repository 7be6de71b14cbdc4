//! A crash of the daemon alone: what was answered is there for the next one, flushed or not, and has its tag.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thinmap_block::Op;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::{KeptMemory, MappedDevice, SuspendFlags};
use thinmap_runtime::{IoBuf, Spawner};
use thinmap_units::Sector;

use support::{read_bytes, request, resume, write_fill};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::shelf::Shelf;
use thin_support::{Lab, info};

const DEVICE: u64 = 4096;
const CELLS: u64 = 128;
const SIZE: u64 = CELLS * 8;

struct Process {
    below: Arc<MemoryDevice>,
    kept: Arc<Shelf>,
    time: Arc<ManualTime>,
    line: String,
    dev: Arc<MappedDevice>,
}

impl Process {
    fn new(image: IoBuf, kept: Shelf, line: &str) -> Self {
        let time = Arc::new(ManualTime::default());
        let spawner = Arc::new(ManualSpawner(time.clone()));
        let lab = Lab::with(spawner.clone(), spawner.clock());
        let kept = Arc::new(kept);
        lab.env.shared.of::<KeptMemory>().set(kept.clone());
        let below = lab.memory("a", DEVICE);
        assert!(thinmap_block::write(&*below, Sector(0), image).1.is_ok());
        let dev = lab.live("i", line);
        Self {
            below,
            kept,
            time,
            line: line.to_owned(),
            dev,
        }
    }

    /// The process dies; the next one.
    fn die(self) -> Self {
        // The memory first: what is written afterwards is on the device all the more.
        let kept = self.kept.at_death();
        let (image, status) = thinmap_block::read(
            &*self.below,
            Sector(0),
            IoBuf::alloc((DEVICE * 512) as usize),
        );
        assert!(status.is_ok());
        let next = Self::new(image, kept, &self.line);
        self.dev.destroy();
        next
    }

    fn verify(&self, cells: &[u8], what: &str) {
        for (cell, byte) in cells.iter().enumerate() {
            let (bytes, status) = read_bytes(&*self.dev, cell as u64 * 8, 8);
            assert!(status.is_ok(), "{what}: cell {cell}: {status:?}");
            assert!(bytes.iter().all(|b| b == byte), "{what}: cell {cell}");
        }
    }
}

fn live_and_die(options: &str) {
    let line = format!("0 {SIZE} integrity a 0 - {options}");
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let what = format!("seed {seed}, {options}");
        let blank = IoBuf::alloc((DEVICE * 512) as usize);
        let mut process = Process::new(blank, Shelf::default(), &line);
        let mut cells = vec![1; CELLS as usize];
        assert!(write_fill(&*process.dev, 0, SIZE, 1).is_ok());
        for _ in 0..120 {
            match rng.random_range(0..20) {
                0 => process = process.die(),
                1 => assert!(request(&*process.dev, Op::Flush, 0, 0).is_ok()),
                2 => process.time.advance(Duration::from_secs(11)),
                3 => {
                    process.dev.suspend(SuspendFlags::default()).unwrap();
                    assert_eq!(process.kept.len(), 0, "{what}: nothing is left to keep");
                    resume(&process.dev).unwrap();
                }
                _ => {
                    let count = rng.random_range(1..8);
                    let cell = rng.random_range(0..CELLS - count);
                    let byte = rng.random();
                    let dev = &*process.dev;
                    assert!(write_fill(dev, cell * 8, count * 8, byte).is_ok());
                    cells[cell as usize..(cell + count) as usize].fill(byte);
                }
            }
        }
        process = process.die();
        process.verify(&cells, &what);
        assert!(info(&process.dev).starts_with("0 "), "{what}");
        process.dev.destroy();
        assert_eq!(process.kept.len(), 0, "{what}");
    }
}

#[test]
fn what_was_put_into_the_journal_survives_the_daemon() {
    live_and_die("J 2 internal_hash:sha256 journal_sectors:264");
    live_and_die("J 3 internal_hash:crc32c journal_sectors:800 block_size:4096");
}

#[test]
fn tags_that_were_in_memory_are_made_anew() {
    live_and_die("D 1 internal_hash:crc32c");
    live_and_die("D 4 internal_hash:sha1 buffer_sectors:1 interleave_sectors:64 fix_padding");
}

#[test]
fn a_bitmap_says_what_to_make_anew() {
    live_and_die("B 3 internal_hash:crc32c sectors_per_bit:64 bitmap_flush_interval:100");
}

/// A resume is noted before the line that was live is suspended: the next daemon may have another line under the same number.
#[test]
fn another_line_does_not_write_what_this_one_left() {
    let table = format!("0 {SIZE} integrity a 0 - J 1 internal_hash:crc32c");
    let process = Process::new(
        IoBuf::alloc(DEVICE as usize * 512),
        Shelf::default(),
        &table,
    );
    assert!(write_fill(&*process.dev, 0, 8, 1).is_ok());
    let lab = Lab::new();
    let kept = Arc::new(process.kept.at_death());
    lab.env.shared.of::<KeptMemory>().set(kept.clone());
    lab.add("a", process.below.clone());
    let b = lab.memory("b", DEVICE);
    lab.live("i", &table.replace(" a ", " b ")).destroy();
    let (bytes, status) = read_bytes(&*b, 0, DEVICE);
    let is_written = |sector: &[u8]| sector.iter().all(|byte| *byte == 1);
    assert!(status.is_ok() && !bytes.chunks(512).any(is_written));
    // What it left waits for its own.
    let own = lab.live("own", &table);
    let (bytes, status) = read_bytes(&*own, 0, 8);
    assert!(status.is_ok() && bytes.iter().all(|byte| *byte == 1));
    own.destroy();
    process.dev.destroy();
}
