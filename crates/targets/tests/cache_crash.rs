//! cache: a daemon that dies, failures beside commits and a power cut, and metadata that lie.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
#[path = "snapshot_support/power.rs"]
mod power;
mod support;
mod writecache_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clocked::{ManualSpawner, ManualTime};
use power::Machine;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_dm::{Environment, KeptMemory, MappedDevice, MemoryKeeper, Registry, SharedState};
use thinmap_persistent_data::{BlockKind, seal};
use thinmap_runtime::{SharedMemory, Spawner};
use thinmap_units::{BlkStatus, DevNo, DmName, Sector};
use writecache_support::{pattern, status_text, suspend, write_at};

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

fn patterns(sector: u64, sectors: u64, seed: u8) -> Vec<u8> {
    let all = sector..sector + sectors;
    all.flat_map(|s| pattern(s, seed)).collect()
}

fn put(dev: &dyn BlockDevice, image: &[u8]) {
    assert!(write_at(dev, 0, image).is_ok());
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

/// Somebody starts a next daemon; a cache needs no memory of it.
struct Keeper;

impl MemoryKeeper for Keeper {
    fn open(&self, name: &str, _: usize) -> std::io::Result<SharedMemory> {
        Err(std::io::Error::other(name.to_owned()))
    }

    fn open_secret(&self, name: &str, _: usize) -> std::io::Result<SharedMemory> {
        Err(std::io::Error::other(name.to_owned()))
    }

    fn forget(&self, _: &str) {}
}

/// As [`clocked::live`], under a keeper.
fn kept(world: &Arc<World>, table: &str) -> (Arc<MappedDevice>, Arc<ManualTime>) {
    let time = Arc::new(ManualTime::default());
    let spawner = Arc::new(ManualSpawner(time.clone()));
    let env = Arc::new(Environment {
        opener: world.clone(),
        clock: spawner.clock(),
        spawner,
        freezer: None,
        shared: SharedState::default(),
    });
    env.shared.of::<KeptMemory>().set(Arc::new(Keeper));
    let registry = Registry::new(thinmap_targets::ALL);
    let name = DmName::new("kept").unwrap();
    let dev = MappedDevice::new(env, registry, DevNo::new(253, 98), name, None);
    load(&dev, table).unwrap();
    resume(&dev).unwrap();
    (dev, time)
}

/// A crash of the daemon alone, at any moment: the page cache above believes in all that was answered, flushed or not.
#[test]
fn what_was_answered_is_there_for_the_next_daemon() {
    const LINES: [&str; 4] = [
        "0 smq 2 migration_threshold 100000",
        "1 metadata2 smq 0",
        "1 writethrough smq 0",
        "0 smq 2 migration_threshold 0",
    ];
    let sizes = [METADATA_SECTORS, BLOCK * CACHE_BLOCKS, SECTORS];
    for seed in 0..60_u64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model = patterns(0, SECTORS, 0);
        let mut images = sizes.map(|size| vec![0; (size * 512) as usize]);
        images[2].clone_from(&model);
        for life in 0..4 {
            let world = World::new();
            let disks = ["m", "c", "o"].map(|name| {
                let which = ["m", "c", "o"].iter().position(|n| *n == name).unwrap();
                let disk = world.memory(name, sizes[which]);
                put(&*disk, &images[which]);
                disk
            });
            let line = LINES[rng.random_range(0..LINES.len())];
            let (dev, time) = kept(&world, &table(line));
            assert!(read_bytes(&*dev, 0, SECTORS).0 == model, "{seed} {life}");
            for _ in 0..rng.random_range(1..80) {
                let (sector, sectors) = place(&mut rng);
                match rng.random_range(0..8) {
                    0 => time.advance(SECOND),
                    1..3 => drop(read_bytes(&*dev, sector, sectors)),
                    _ => {
                        let data = patterns(sector, sectors, rng.random());
                        assert!(write_at(&*dev, sector, &data).is_ok());
                        let range = sector as usize * 512..(sector + sectors) as usize * 512;
                        model[range].copy_from_slice(&data);
                    }
                }
            }
            // Metadata first: what the others say of later does them no harm.
            for (image, (disk, size)) in images.iter_mut().zip(disks.iter().zip(sizes)) {
                *image = read_bytes(&**disk, 0, size).0;
            }
        }
    }
}

/// Numbers that no metadata of ours have, with the right checksums.
#[test]
fn metadata_with_impossible_numbers_are_refused() {
    const LARGE: u64 = 1 << 17;
    let line = |block: u64| {
        format!(
            "0 {} cache m c o {block} 0 smq 2 migration_threshold 0",
            block * 2
        )
    };
    for (block, what) in [(BLOCK, "discards"), (LARGE, "mapping")] {
        let world = World::new();
        let metadata = world.memory("m", METADATA_SECTORS);
        world.memory("c", block * 2);
        world.memory("o", block * 2);
        let (dev, _) = clocked::live(&world, &line(block));
        assert!(write_fill(&*dev, block, block, 9).is_ok());
        assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        suspend(&dev);
        let mut image = read_bytes(&*metadata, 0, METADATA_SECTORS).0;
        for (number, bytes) in (0..).zip(image.chunks_exact_mut(4096)) {
            let kind = match (what, number) {
                ("discards", 0) => {
                    // Not shut down in order, so that they would not count.
                    bytes[4] = 0;
                    bytes[224..232].fill(0xff);
                    BlockKind::CacheSuperblock
                }
                ("mapping", 1..) => {
                    let one = (1_u64 << 16 | 1).to_le_bytes();
                    let dirty = (1_u64 << 16 | 3).to_le_bytes();
                    let place = bytes
                        .chunks_exact_mut(8)
                        .find(|w| **w == one || **w == dirty);
                    let Some(place) = place else { continue };
                    // Times the size of a block, it is past 64 bits.
                    place[2..].fill(0xff);
                    BlockKind::Array
                }
                _ => continue,
            };
            let bytes: &mut [u8; 4096] = bytes.try_into().unwrap();
            seal(kind, number, bytes);
        }
        put(&*metadata, &image);
        load(&dev, &line(block)).unwrap();
        let error = resume(&dev).unwrap_err().to_string();
        let expected = match what {
            "discards" => "fewer discard bits than blocks",
            _ => "which no device can have",
        };
        assert!(error.contains(expected), "{what}: {error}");
    }
}

/// Many requests at once on disks that end them in any order, commits of two threads, now and then a failing disk, and a power cut: a flush
/// that ended well covers what had ended when it came.
#[test]
fn requests_beside_commits_and_failures_and_a_power_cut() {
    const LINES: [&str; 4] = [
        "0 smq 2 migration_threshold 100000",
        "1 metadata2 smq 0",
        "0 smq 2 migration_threshold 0",
        "1 writethrough smq 0",
    ];
    let seeds = std::env::var("THINMAP_SEEDS").map_or(60, |n| n.parse().unwrap());
    let sizes = [METADATA_SECTORS, BLOCK * CACHE_BLOCKS, SECTORS];
    for seed in 0..seeds {
        let mut rng = SmallRng::seed_from_u64(seed);
        let line = table(LINES[seed as usize % 4]);
        let allowed: Vec<Vec<u8>> = vec![vec![0]; SECTORS as usize];
        let machine = Machine::new(seed, &sizes, allowed);
        put(&*machine.disk(2), &patterns(0, SECTORS, 0));
        assert!(request(&*machine.disk(2), Op::Flush, 0, 0).is_ok());
        let world = World::new();
        let doubles = [0, 1, 2].map(|which| Double::new(machine.disk(which)));
        world.add("m", doubles[0].clone());
        world.add("c", Delayed::new(doubles[1].clone(), seed));
        world.add("o", Delayed::new(doubles[2].clone(), seed + 1));
        let (dev, time) = clocked::live(&world, &line);
        machine.cut_in(rng.random_range(0..3000));
        if seed % 3 == 0 {
            let double = &doubles[rng.random_range(0..3)];
            double
                .fail_in
                .store(rng.random_range(0..200), Ordering::SeqCst);
        }
        let mut well = true;
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let _ = status_text(&dev);
                }
            });
            for _ in 0..300 {
                if machine.is_cut() {
                    break;
                }
                let version = rng.random_range(1..=255_u8);
                let mut places = Vec::new();
                let mut next = rng.random_range(0..BLOCK * 4);
                while next < SECTORS {
                    let whole = next % BLOCK == 0 && rng.random();
                    let sectors = if whole { BLOCK } else { rng.random_range(1..8) };
                    let sectors = sectors.min(SECTORS - next);
                    places.push((next, sectors));
                    next += sectors + rng.random_range(0..BLOCK * 3);
                    if rng.random() {
                        next = next.next_multiple_of(BLOCK);
                    }
                }
                let mut before = Vec::new();
                machine.note(|notes| {
                    before = notes.iter().map(|sector| sector.len()).collect();
                    for (sector, sectors) in &places {
                        let range = *sector as usize..(sector + sectors) as usize;
                        notes[range].iter_mut().for_each(|s| s.push(version));
                    }
                });
                let sent = Written::default();
                let sent = Arc::new(sent);
                for (sector, sectors) in &places {
                    sent.write(&*dev, *sector, &patterns(*sector, *sectors, version));
                }
                let flushed = rng.random::<bool>() && request(&*dev, Op::Flush, 0, 0).is_ok();
                well &= sent.wait(places.len());
                // Once a write has failed, what it left is the old or the new for ever.
                machine.note(|notes| {
                    for (sector, before) in notes.iter_mut().zip(&before) {
                        if flushed && well {
                            sector.drain(..before - 1);
                        }
                    }
                });
                if rng.random_range(0..4) == 0 {
                    time.advance(SECOND);
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let (mut images, allowed) = machine.found();
        // What `cache_check --clear-needs-check-flag` does.
        let superblock: &mut [u8; 4096] = (&mut images[0][..4096]).try_into().unwrap();
        superblock[4] &= !2;
        seal(BlockKind::CacheSuperblock, 0, superblock);
        let again = World::new();
        for (image, (name, size)) in images.iter().zip(["m", "c", "o"].into_iter().zip(sizes)) {
            put(&*again.memory(name, size), image);
        }
        let (dev, _) = clocked::live(&again, &table("0 smq 2 migration_threshold 0"));
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

/// Writes under way that may fail.
#[derive(Default)]
struct Written {
    ended: parking_lot::Mutex<(usize, bool)>,
    changed: parking_lot::Condvar,
}

impl Written {
    fn write(self: &Arc<Self>, dev: &dyn BlockDevice, sector: u64, bytes: &[u8]) {
        let mut buf = thinmap_runtime::IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        dev.submit(Io::write(Sector(sector), buf, self.clone(), 0));
    }

    /// Whether all that many ended well.
    fn wait(&self, count: usize) -> bool {
        let mut ended = self.ended.lock();
        while ended.0 < count {
            self.changed.wait(&mut ended);
        }
        !ended.1
    }
}

impl EndIo for Written {
    fn end_io(self: Arc<Self>, _: Io, _: u64, status: BlkStatus) {
        let mut ended = self.ended.lock();
        ended.0 += 1;
        ended.1 |= !status.is_ok();
        self.changed.notify_all();
    }
}
