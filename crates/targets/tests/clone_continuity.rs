//! A crash of the daemon alone: what was written to a clone is there for the next one, flushed or not.

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
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{KeptMemory, MappedDevice, SuspendFlags};
use thinmap_runtime::{IoBuf, Spawner};
use thinmap_units::Sector;

use support::{load, read_bytes, request, resume, write_fill};
use thin_support::Lab;
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::shelf::Shelf;

const REGIONS: u64 = 150;
const SIZE: u64 = REGIONS * 8 - 3;
const METADATA: u64 = 512;
const SOURCE_BYTE: u8 = 0xee;

struct Process {
    /// Metadata and destination.
    devices: [Arc<MemoryDevice>; 2],
    kept: Arc<Shelf>,
    time: Arc<ManualTime>,
    dev: Arc<MappedDevice>,
}

impl Process {
    fn new(images: [IoBuf; 2], kept: Shelf) -> Self {
        let time = Arc::new(ManualTime::default());
        let spawner = Arc::new(ManualSpawner(time.clone()));
        let lab = Lab::with(spawner.clone(), spawner.clock());
        let kept = Arc::new(kept);
        lab.env.shared.of::<KeptMemory>().set(kept.clone());
        let devices = [lab.memory("m", METADATA), lab.memory("d", SIZE)];
        for (device, image) in devices.iter().zip(images) {
            assert!(thinmap_block::write(&**device, Sector(0), image).1.is_ok());
        }
        let source = lab.memory("s", SIZE);
        assert!(write_fill(&*source, 0, SIZE, SOURCE_BYTE).is_ok());
        let line = format!("0 {SIZE} clone m d s 8 1 no_hydration");
        let dev = lab.live("c", &line);
        Self {
            devices,
            kept,
            time,
            dev,
        }
    }

    fn blank() -> [IoBuf; 2] {
        [METADATA, SIZE].map(|sectors| IoBuf::alloc((sectors * 512) as usize))
    }

    fn images(&self) -> [IoBuf; 2] {
        [0, 1].map(|at| {
            let device = &*self.devices[at];
            let buf = IoBuf::alloc((device.size().raw() * 512) as usize);
            let (image, status) = thinmap_block::read(device, Sector(0), buf);
            assert!(status.is_ok());
            image
        })
    }

    /// The process dies; the next one.
    fn die(self) -> Self {
        // The memory first: what is written afterwards is on the devices all the more.
        let kept = self.kept.at_death();
        let next = Self::new(self.images(), kept);
        self.dev.destroy();
        next
    }

    fn verify(&self, sectors: &[u8], what: &str) {
        let (bytes, status) = read_bytes(&*self.dev, 0, SIZE);
        assert!(status.is_ok(), "{what}: {status:?}");
        for (sector, (found, wanted)) in bytes.chunks(512).zip(sectors).enumerate() {
            assert!(
                found.iter().all(|byte| byte == wanted),
                "{what}: sector {sector}: {} for {wanted}",
                found[0]
            );
        }
    }
}

#[test]
fn what_was_written_survives_the_daemon() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut process = Process::new(Process::blank(), Shelf::default());
        let mut sectors = vec![SOURCE_BYTE; SIZE as usize];
        for step in 0..120 {
            let what = format!("seed {seed}, step {step}");
            match rng.random_range(0..20) {
                0 => {
                    process = process.die();
                    process.verify(&sectors, &what);
                }
                1 => assert!(request(&*process.dev, Op::Flush, 0, 0).is_ok()),
                2 => process.time.advance(Duration::from_secs(2)),
                3 => {
                    process.dev.suspend(SuspendFlags::default()).unwrap();
                    assert_eq!(process.kept.len(), 0, "{what}: nothing is left to keep");
                    resume(&process.dev).unwrap();
                }
                4 => {
                    // A discarded region counts as there: what is written into it then has no copy that would note it.
                    let region = rng.random_range(0..REGIONS - 1);
                    assert!(request(&*process.dev, Op::Discard, region * 8, 8).is_ok());
                    let byte = rng.random();
                    assert!(write_fill(&*process.dev, region * 8, 8, byte).is_ok());
                    sectors[region as usize * 8..][..8].fill(byte);
                }
                _ => {
                    let count = rng.random_range(1..20);
                    let sector = rng.random_range(0..SIZE - count);
                    let byte = rng.random();
                    assert!(write_fill(&*process.dev, sector, count, byte).is_ok());
                    sectors[sector as usize..(sector + count) as usize].fill(byte);
                }
            }
        }
        process = process.die();
        process.verify(&sectors, &format!("seed {seed}"));
        process.dev.destroy();
        assert_eq!(process.kept.len(), 0, "seed {seed}");
    }
}

/// A resume is noted before the clone that was live is suspended: the next daemon may have another clone under the same number.
#[test]
fn another_clone_does_not_find_the_regions_of_this_one() {
    let process = Process::new(Process::blank(), Shelf::default());
    assert!(write_fill(&*process.dev, 0, 8, 1).is_ok());
    let lab = Lab::new();
    let kept = Arc::new(process.kept.at_death());
    lab.env.shared.of::<KeptMemory>().set(kept.clone());
    for (name, device) in ["m", "d"].into_iter().zip(&process.devices) {
        lab.add(name, device.clone());
    }
    for (name, sectors) in [("other-m", METADATA), ("other-d", SIZE), ("s", SIZE)] {
        lab.memory(name, sectors);
    }
    let other = lab.live(
        "c",
        &format!("0 {SIZE} clone other-m other-d s 8 1 no_hydration"),
    );
    assert_eq!(thin_support::info(&other).split(' ').nth(3), Some("0/150"));
    load(&other, &format!("0 {SIZE} clone m d s 8 1 no_hydration")).unwrap();
    resume(&other).unwrap();
    let (bytes, status) = read_bytes(&*other, 0, 8);
    assert!(status.is_ok() && bytes.iter().all(|byte| *byte == 1));
    other.destroy();
    assert_eq!(kept.len(), 0);
    process.dev.destroy();
}
