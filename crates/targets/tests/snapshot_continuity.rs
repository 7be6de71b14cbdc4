//! A crash of the daemon alone: a transient snapshot is what it was for the next one, or invalid.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{KeptMemory, MappedDevice, SuspendFlags, WhichTable};
use thinmap_runtime::{IoBuf, Spawner};
use thinmap_units::Sector;

use support::{load, read_bytes, request, resume, write_fill};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::shelf::Shelf;
use thin_support::{Lab, info};

const CHUNK: u64 = 8;
const SIZE: u64 = 100 * CHUNK;
const ORIGIN: &str = "0 800 snapshot-origin o";
const SNAPSHOT: &str = "0 800 snapshot o c N 8";

struct Process {
    /// Origin and COW device.
    devices: [Arc<MemoryDevice>; 2],
    kept: Arc<Shelf>,
    origin: Arc<MappedDevice>,
    snapshot: Arc<MappedDevice>,
}

impl Process {
    fn new(images: [Vec<u8>; 2], kept: Shelf) -> Self {
        let time = Arc::new(ManualTime::default());
        let spawner = Arc::new(ManualSpawner(time));
        let lab = Lab::with(spawner.clone(), spawner.clock());
        let kept = Arc::new(kept);
        lab.env.shared.of::<KeptMemory>().set(kept.clone());
        let devices = [("o", &images[0]), ("c", &images[1])].map(|(name, image)| {
            let device = lab.memory(name, image.len() as u64 / 512);
            let mut buf = IoBuf::alloc(image.len());
            buf.as_mut_slice().copy_from_slice(image);
            assert!(thinmap_block::write(&*device, Sector(0), buf).1.is_ok());
            device
        });
        let origin = lab.live("origin", ORIGIN);
        let snapshot = lab.live("snapshot", SNAPSHOT);
        Self {
            devices,
            kept,
            origin,
            snapshot,
        }
    }

    fn new_one(cow_chunks: u64) -> Self {
        let images = [SIZE, cow_chunks * CHUNK].map(|sectors| vec![9; sectors as usize * 512]);
        Self::new(images, Shelf::default())
    }

    /// The process dies; the next one.
    fn die(self) -> Self {
        let kept = self.kept.at_death();
        let images = [0, 1].map(|at| {
            let device = &*self.devices[at];
            read_bytes(device, 0, device.size().raw()).0
        });
        let next = Self::new(images, kept);
        self.end();
        next
    }

    fn end(self) {
        self.snapshot.destroy();
        self.origin.destroy();
        assert_eq!(self.kept.len(), 0, "nothing is left to keep");
    }

    fn verify(&self, origin: &[u8], snapshot: &[u8], what: &str) {
        for (dev, wanted) in [(&self.origin, origin), (&self.snapshot, snapshot)] {
            let (bytes, status) = read_bytes(&**dev, 0, SIZE);
            assert!(status.is_ok(), "{what}: {status:?}");
            let found = bytes.chunks(512).zip(wanted);
            for (sector, (found, wanted)) in found.enumerate() {
                let same = found.iter().all(|byte| byte == wanted);
                assert!(same, "{what}: {}: sector {sector}", dev.name());
            }
        }
    }
}

#[test]
fn exceptions_survive_the_daemon() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut process = Process::new_one(SIZE / CHUNK);
        let [mut origin, mut snapshot] = [vec![9; SIZE as usize], vec![9; SIZE as usize]];
        for step in 0..60 {
            let what = format!("seed {seed}, step {step}");
            let count = rng.random_range(1..20);
            let sector = rng.random_range(0..SIZE - count);
            let range = sector as usize..(sector + count) as usize;
            let byte = rng.random();
            match rng.random_range(0..12) {
                0 => {
                    process = process.die();
                    process.verify(&origin, &snapshot, &what);
                }
                1 => assert!(request(&*process.snapshot, Op::Flush, 0, 0).is_ok()),
                // The snapshot moves to another table, and is kept all the same.
                2 => {
                    process.snapshot.suspend(SuspendFlags::default()).unwrap();
                    load(&process.snapshot, SNAPSHOT).unwrap();
                    resume(&process.snapshot).unwrap();
                }
                3..7 => {
                    assert!(write_fill(&*process.snapshot, sector, count, byte).is_ok());
                    snapshot[range].fill(byte);
                }
                _ => {
                    assert!(write_fill(&*process.origin, sector, count, byte).is_ok());
                    origin[range].fill(byte);
                }
            }
        }
        process = process.die();
        process.verify(&origin, &snapshot, &format!("seed {seed}"));
        process.end();
    }
}

#[test]
fn one_that_was_invalid_is_invalid() {
    let process = Process::new_one(3);
    for chunk in 0..4 {
        assert!(write_fill(&*process.origin, chunk * CHUNK, CHUNK, 1).is_ok());
    }
    assert_eq!(info(&process.snapshot), "Invalid");
    let process = process.die();
    assert_eq!(info(&process.snapshot), "Invalid");
    assert!(!read_bytes(&*process.snapshot, 0, CHUNK).1.is_ok());
    process.end();
}

/// The COW device has another size when the next daemon comes: where its exceptions lie is not known.
#[test]
fn one_of_which_nothing_is_known_is_invalid() {
    let process = Process::new_one(10);
    assert!(write_fill(&*process.origin, 0, CHUNK, 1).is_ok());
    let kept = process.kept.at_death();
    let images = [SIZE, 11 * CHUNK].map(|sectors| vec![9; sectors as usize * 512]);
    let next = Process::new(images, kept);
    assert_eq!(info(&next.snapshot), "Invalid");
    next.snapshot.destroy();
    next.origin.destroy();
    process.end();
}

/// Another line of its table stands on what is busy: the daemon tries again.
#[test]
fn a_table_that_cannot_be_loaded_at_first_finds_its_exceptions_later() {
    let process = Process::new_one(10);
    assert!(write_fill(&*process.origin, 0, CHUNK, 1).is_ok());
    assert!(write_fill(&*process.snapshot, CHUNK, CHUNK, 2).is_ok());
    let lab = Lab::new();
    let kept = Arc::new(process.kept.at_death());
    lab.env.shared.of::<KeptMemory>().set(kept.clone());
    for (name, device) in ["o", "c"].into_iter().zip(&process.devices) {
        lab.add(name, device.clone());
    }
    let snapshot = lab.device("snapshot");
    let with_busy = format!("{SNAPSHOT}\n800 8 linear busy 0");
    for _ in 0..2 {
        let refused = load(&snapshot, &with_busy).unwrap_err().to_string();
        assert!(refused.contains("busy: no such device"), "{refused}");
    }
    load(&snapshot, SNAPSHOT).unwrap();
    resume(&snapshot).unwrap();
    let (bytes, status) = read_bytes(&*snapshot, 0, 2 * CHUNK);
    assert!(status.is_ok());
    assert!(bytes[..4096].iter().all(|byte| *byte == 9));
    assert!(bytes[4096..].iter().all(|byte| *byte == 2));
    snapshot.destroy();
    assert_eq!(kept.len(), 0);
    process.end();
}

/// A resume is noted before it is done: the line that was to take the snapshot over makes it anew then, of whichever kind it was
/// loaded with.
#[test]
fn a_line_that_was_to_take_the_snapshot_over_finds_its_exceptions() {
    for kind in ["N 8", "P 16"] {
        let process = Process::new_one(10);
        assert!(write_fill(&*process.snapshot, 0, CHUNK, 2).is_ok());
        load(&process.snapshot, &format!("0 800 snapshot o c {kind}")).unwrap();
        let noted = |which| {
            let lines = process.snapshot.table_for_successor(which).unwrap();
            lines[0].text.clone()
        };
        assert_eq!(noted(WhichTable::Inactive), noted(WhichTable::Live));
        process.snapshot.suspend(SuspendFlags::default()).unwrap();
        resume(&process.snapshot).unwrap();
        assert_eq!(noted(WhichTable::Live), "7:0 7:1 N 8");
        let process = process.die();
        let (bytes, status) = read_bytes(&*process.snapshot, 0, CHUNK);
        assert!(status.is_ok() && bytes.iter().all(|byte| *byte == 2));
        process.end();
    }
}

/// A snapshot of another origin on the same COW device does not take the memory of the one that is live.
#[test]
fn a_second_snapshot_on_the_cow_device_takes_nothing_from_the_first() {
    let lab = Lab::new();
    let kept = Arc::new(Shelf::default());
    lab.env.shared.of::<KeptMemory>().set(kept.clone());
    for name in ["o", "o2", "c"] {
        lab.memory(name, SIZE);
    }
    let snapshot = lab.live("snapshot", SNAPSHOT);
    load(&snapshot, "0 800 snapshot o2 c N 8").unwrap();
    assert_eq!(kept.len(), 1);
    snapshot.clear();
    assert_eq!(kept.len(), 1, "the live one's is there");
    snapshot.destroy();
    assert_eq!(kept.len(), 0);
}

/// The last process has left nothing (its keeper had no room, or it kept none yet): a snapshot that shows its origin would be wrong.
#[test]
fn one_whose_memory_is_gone_comes_back_invalid() {
    let lab = Lab::new();
    let kept = Arc::new(Shelf::default());
    let memory = lab.env.shared.of::<KeptMemory>();
    memory.set(kept.clone());
    for name in ["o", "c"] {
        lab.memory(name, SIZE);
    }
    memory.set_bringing_back(true);
    let snapshot = lab.live("snapshot", SNAPSHOT);
    memory.set_bringing_back(false);
    assert_eq!(info(&snapshot), "Invalid");
    snapshot.destroy();
    let snapshot = lab.live("anew", SNAPSHOT);
    assert_ne!(info(&snapshot), "Invalid");
    snapshot.destroy();
}
