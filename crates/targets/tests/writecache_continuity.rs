//! A crash of the daemon alone: whatever was answered is there for the next one, flushed or not.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;
mod writecache_support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Double, load, read_bytes, request, resume};
use thin_support::Lab;
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::shelf::Shelf;
use thinmap_block::Op;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::KeptMemory;
use thinmap_runtime::Spawner;
use thinmap_units::Sector;
use writecache_support::{eventually, message, pattern, status, suspend, write_at};

const SIZE: u64 = 480;
const CACHE: u64 = 168;
const TABLE: &str = "0 480 writecache s o c 4096 2 pause_writeback 0";

/// A process whose clock stands still: nothing is committed that nobody asks for.
fn process(images: &[Vec<u8>; 2], shelf: &Arc<Shelf>) -> (Lab, [Arc<Double>; 2]) {
    let time = Arc::new(ManualTime::default());
    let spawner = Arc::new(ManualSpawner(time));
    let lab = Lab::with(spawner.clone(), spawner.clock());
    lab.env.shared.of::<KeptMemory>().set(shelf.clone());
    let disks = [("o", &images[0]), ("c", &images[1])].map(|(name, image)| {
        let disk = Double::new(Arc::new(MemoryDevice::new(Sector(
            image.len() as u64 / 512,
        ))));
        assert!(write_at(&*disk.below, 0, image).is_ok());
        lab.add(name, disk.clone());
        disk
    });
    (lab, disks)
}

#[test]
fn what_was_answered_is_there_after_a_crash_of_the_daemon() {
    let mut taken_over = 0;
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model: Vec<u8> = (0..SIZE).flat_map(|at| pattern(at, 0)).collect();
        let mut images = [model.clone(), vec![0; CACHE as usize * 512]];
        let mut shelf = Arc::new(Shelf::default());
        for _ in 0..4 {
            let (lab, disks) = process(&images, &shelf);
            let dev = lab.live("w", TABLE);
            assert!(read_bytes(&*dev, 0, SIZE).0 == model, "seed {seed}");
            for _ in 0..rng.random_range(0..60) {
                match rng.random_range(0..30) {
                    0 => assert!(request(&*dev, Op::Flush, 0, 0).is_ok()),
                    1 => {
                        suspend(&dev);
                        if rng.random() {
                            load(&dev, TABLE).unwrap();
                        }
                        resume(&dev).unwrap();
                    }
                    2 => drop(message(&dev, "flush").unwrap()),
                    _ => {
                        let sector = rng.random_range(0..SIZE / 8) * 8;
                        let sectors = (rng.random_range(1..4) * 8).min(SIZE - sector);
                        let byte = rng.random_range(1..=255);
                        let data: Vec<u8> = (sector..sector + sectors)
                            .flat_map(|at| pattern(at, byte))
                            .collect();
                        assert!(write_at(&*dev, sector, &data).is_ok());
                        model[sector as usize * 512..][..data.len()].copy_from_slice(&data);
                    }
                }
            }
            taken_over += u32::from(status(&dev)[6] > 0);
            // The page cache outlives the process, its memory does not. Nothing that the worker does from here on has happened.
            disks.iter().for_each(|disk| disk.hold.store(true, SeqCst));
            let next = Arc::new(shelf.at_death());
            images = [(&disks[0], SIZE), (&disks[1], CACHE)]
                .map(|(disk, sectors)| read_bytes(&*disk.below, 0, sectors).0);
            disks.iter().for_each(|disk| disk.release());
            dev.destroy();
            drop((dev, lab));
            shelf = next;
        }
    }
    assert!(taken_over > 20);
}

#[test]
fn an_orderly_end_leaves_nothing_with_the_keeper() {
    let shelf = Arc::new(Shelf::default());
    let images = [vec![0; SIZE as usize * 512], vec![0; CACHE as usize * 512]];
    let (lab, _) = process(&images, &shelf);
    let dev = lab.live("w", TABLE);
    assert!(write_at(&*dev, 0, &pattern(0, 1).repeat(8)).is_ok());
    assert_eq!(shelf.len(), 1);
    // A table in place of another keeps what that kept.
    load(&dev, TABLE).unwrap();
    resume(&dev).unwrap();
    assert_eq!(shelf.len(), 1);
    suspend(&dev);
    dev.destroy();
    drop(dev);
    // The worker's thread is the last who has it.
    eventually("it is gone", || shelf.len() == 0);
}

/// Another line of its table stands on what is busy: the daemon tries again, and the journal is as it was.
#[test]
fn a_table_that_cannot_be_loaded_at_first_finds_its_journal_later() {
    let shelf = Arc::new(Shelf::default());
    let images = [vec![0; SIZE as usize * 512], vec![0; CACHE as usize * 512]];
    let (lab, disks) = process(&images, &shelf);
    let dev = lab.live("w", TABLE);
    let data: Vec<u8> = (0..8).flat_map(|at| pattern(at, 7)).collect();
    assert!(write_at(&*dev, 0, &data).is_ok());
    let left = Arc::new(shelf.at_death());
    let images = [(&disks[0], SIZE), (&disks[1], CACHE)]
        .map(|(disk, sectors)| read_bytes(&*disk.below, 0, sectors).0);
    dev.destroy();
    let (lab, _disks) = process(&images, &left);
    let dev = lab.device("w");
    for _ in 0..2 {
        let refused = load(&dev, &format!("{TABLE}\n480 8 linear busy 0")).unwrap_err();
        assert!(refused.to_string().contains("busy"), "{refused}");
    }
    load(&dev, TABLE).unwrap();
    resume(&dev).unwrap();
    assert!(read_bytes(&*dev, 0, 8).0 == data);
    suspend(&dev);
    dev.destroy();
}

/// With one request at a time, nothing but its own cause sends a write on that waits for a block.
#[test]
fn a_write_that_waits_for_a_block_is_not_forgotten() {
    let images = [vec![0; SIZE as usize * 512], vec![0; CACHE as usize * 512]];
    let (lab, _disks) = process(&images, &Arc::new(Shelf::default()));
    let dev = lab.live("w", TABLE);
    let (sender, done) = std::sync::mpsc::channel();
    let writer = dev.clone();
    let thread = std::thread::spawn(move || {
        let mut rng = SmallRng::seed_from_u64(1);
        let data = vec![1; 3 * 4096];
        for _ in 0..1_000_000 {
            let sector = rng.random_range(0..SIZE / 8 - 2) * 8;
            let blocks = rng.random_range(1..4);
            assert!(write_at(&*writer, sector, &data[..blocks * 4096]).is_ok());
        }
        sender.send(()).unwrap();
    });
    let waited = done.recv_timeout(std::time::Duration::from_secs(200));
    assert!(waited.is_ok(), "a write never ends: {:?}", status(&dev));
    thread.join().unwrap();
    suspend(&dev);
    dev.destroy();
}
