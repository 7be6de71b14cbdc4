//! Power cuts and failing devices under writecache: what was flushed is there, what was not is old or new, sector by sector, and nothing is
//! another sector's.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

#[path = "snapshot_support/power.rs"]
mod power;
mod support;
mod writecache_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use power::Machine;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, submit_and_wait};
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};
use writecache_support::{message, pattern, status, suspend, write_at};

const BLOCKS: u64 = 60;
const SIZE: u64 = BLOCKS * 8;
/// Twenty blocks and their metadata.
const CACHE: u64 = 168;

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(150, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

fn table(seed: u64, block: u64) -> String {
    let options = [
        "0",
        "4 high_watermark 30 low_watermark 10",
        "2 writeback_jobs 2",
        "2 autocommit_blocks 3",
        "1 cleaner",
        "4 autocommit_blocks 1 high_watermark 100",
    ][seed as usize % 6];
    let (count, words) = options.split_once(' ').unwrap_or((options, ""));
    let count: u32 = count.parse().unwrap();
    let words = format!("{words} pause_writeback 0");
    format!(
        "0 {SIZE} writecache s o c {} {} {}",
        block * 512,
        count + 2,
        words.trim_start()
    )
}

fn data(sector: u64, sectors: u64, seed: u8) -> Vec<u8> {
    (sector..sector + sectors)
        .flat_map(|at| pattern(at, seed))
        .collect()
}

fn durable_write(dev: &dyn BlockDevice, sector: u64, bytes: &[u8]) -> BlkStatus {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.as_mut_slice().copy_from_slice(bytes);
    let flags = IoFlags {
        fua: true,
        no_unmap: false,
    };
    let sectors = Sector(bytes.len() as u64 / 512);
    submit_and_wait(dev, (Op::Write, flags, Sector(sector), sectors, buf)).1
}

/// What may be found in each sector: zero is the origin's first content.
type Notes = Vec<Vec<u8>>;

fn live_on(machine: &Machine<Notes>, dev: &MappedDevice, block: u64, rng: &mut SmallRng) {
    let sector = rng.random_range(0..SIZE / block) * block;
    let sectors = (rng.random_range(1..6) * block).min(SIZE - sector);
    let range = sector as usize..(sector + sectors) as usize;
    match rng.random_range(0..40) {
        0 => {
            suspend(dev);
            resume(dev).unwrap();
        }
        1 => drop(message(dev, "flush").unwrap()),
        2 => {
            message(dev, "flush_on_suspend").unwrap();
            suspend(dev);
            resume(dev).unwrap();
        }
        3..10 => {
            assert!(request(dev, Op::Flush, 0, 0).is_ok());
            // Only now, and only when the cut did not come before the flush had ended.
            machine.note(|notes| notes.iter_mut().for_each(keep_last));
        }
        10..14 => {
            let seed = rng.random_range(1..=255);
            machine.note(|notes| notes[range.clone()].iter_mut().for_each(|s| s.push(seed)));
            assert!(durable_write(dev, sector, &data(sector, sectors, seed)).is_ok());
            machine.note(|notes| notes[range].iter_mut().for_each(keep_last));
        }
        _ => {
            let seed = rng.random_range(1..=255);
            machine.note(|notes| notes[range].iter_mut().for_each(|s| s.push(seed)));
            assert!(write_at(dev, sector, &data(sector, sectors, seed)).is_ok());
        }
    }
}

fn keep_last(sector: &mut Vec<u8>) {
    let last = *sector.last().unwrap();
    *sector = vec![last];
}

fn check(seed: u64, dev: &dyn BlockDevice, allowed: &Notes) {
    let (found, end) = read_bytes(dev, 0, SIZE);
    assert!(end.is_ok());
    for (sector, bytes) in found.chunks(512).enumerate() {
        let version = bytes[100];
        assert!(
            allowed[sector].contains(&version) && bytes == pattern(sector as u64, version),
            "seed {seed}: sector {sector} has {version} of sector {}, not among {:?}",
            bytes[0],
            allowed[sector]
        );
    }
}

fn put(dev: &dyn BlockDevice, image: &[u8]) {
    assert!(write_at(dev, 0, image).is_ok());
}

/// Disks as they were found, and a line on them.
fn again(
    seed: u64,
    images: &[Vec<u8>],
    allowed: Notes,
    table: &str,
) -> (Arc<Machine<Notes>>, Arc<World>, Arc<MappedDevice>) {
    let machine = Machine::new(seed, &[SIZE, CACHE], allowed.clone());
    let world = World::new();
    for (disk, (name, image)) in ["o", "c"].into_iter().zip(images).enumerate() {
        put(&*machine.disk(disk), image);
        assert!(request(&*machine.disk(disk), Op::Flush, 0, 0).is_ok());
        world.add(name, machine.disk(disk));
    }
    let dev = world.live("one", table);
    check(seed, &*dev, &allowed);
    // What was found stays.
    let (found, _) = read_bytes(&*dev, 0, SIZE);
    machine.note(|notes| {
        for (sector, bytes) in notes.iter_mut().zip(found.chunks(512)) {
            *sector = vec![bytes[100]];
        }
    });
    (machine, world, dev)
}

#[test]
fn what_was_flushed_is_there_after_a_power_cut_at_any_request() {
    for seed in 0..seeds() {
        let block = [8, 8, 1][seed as usize % 3];
        let mut rng = SmallRng::seed_from_u64(seed);
        let table = table(seed, block);
        let mut images = vec![data(0, SIZE, 0), vec![0; CACHE as usize * 512]];
        let mut allowed = vec![vec![0]; SIZE as usize];
        // Several cuts: what one has left must not come back after the next.
        for _ in 0..3 {
            let (machine, _world, dev) = again(seed, &images, allowed, &table);
            machine.cut_in(rng.random_range(0..300));
            while !machine.is_cut() {
                live_on(&machine, &dev, block, &mut rng);
            }
            (images, allowed) = machine.found();
        }
        let (machine, _world, dev) = again(seed, &images, allowed, &table);
        assert_eq!(status(&dev)[0], 0, "seed {seed}");
        let before = read_bytes(&*dev, 0, SIZE).0;
        message(&dev, "flush").unwrap();
        let origin = machine.disk(0);
        assert!(read_bytes(&*origin, 0, SIZE).0 == before, "seed {seed}");
    }
}

/// Many requests at once, on disks that end them in any order: a flush covers what had ended when it came.
#[test]
fn requests_beside_each_other_and_a_power_cut() {
    for seed in 0..seeds() / 3 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let table = table(seed, 8);
        let machine = Machine::new(seed, &[SIZE, CACHE], vec![vec![0]; SIZE as usize]);
        put(&*machine.disk(0), &data(0, SIZE, 0));
        assert!(request(&*machine.disk(0), Op::Flush, 0, 0).is_ok());
        let world = World::new();
        world.add("o", Delayed::new(machine.disk(0), seed));
        world.add("c", Delayed::new(machine.disk(1), seed));
        let dev = world.live("one", &table);
        machine.cut_in(rng.random_range(0..600));
        while !machine.is_cut() {
            let mut blocks: Vec<u64> = (0..BLOCKS).collect();
            blocks.shuffle(&mut rng);
            blocks.truncate(rng.random_range(1..20));
            let version = rng.random_range(1..=255);
            let mut before = Vec::new();
            machine.note(|notes| {
                before = notes.iter().map(|sector| *sector.last().unwrap()).collect();
                for block in &blocks {
                    notes[*block as usize * 8..][..8]
                        .iter_mut()
                        .for_each(|s| s.push(version));
                }
            });
            let sent = Sent::new();
            let mut flushes = 0;
            for (at, block) in blocks.iter().enumerate() {
                sent.write(&*dev, block * 8, &data(block * 8, 8, version));
                if rng.random_range(0..8) == 0 || at == 0 && rng.random() {
                    sent.flush(&*dev);
                    flushes += 1;
                }
            }
            sent.wait(blocks.len() + flushes);
            if flushes > 0 {
                machine.note(|notes| {
                    for (sector, before) in notes.iter_mut().zip(&before) {
                        let durable = sector
                            .iter()
                            .rposition(|version| version == before)
                            .unwrap();
                        sector.drain(..durable.min(sector.len() - 1));
                    }
                });
            }
        }
        let (images, allowed) = machine.found();
        again(seed, &images, allowed, &table);
    }
}

/// Requests under way.
#[derive(Default)]
struct Sent {
    ended: parking_lot::Mutex<usize>,
    changed: parking_lot::Condvar,
}

impl Sent {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn write(self: &Arc<Self>, dev: &dyn BlockDevice, sector: u64, bytes: &[u8]) {
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        dev.submit(Io::write(Sector(sector), buf, self.clone(), 0));
    }

    fn flush(self: &Arc<Self>, dev: &dyn BlockDevice) {
        dev.submit(Io::flush(self.clone(), 0));
    }

    fn wait(&self, count: usize) {
        let mut ended = self.ended.lock();
        while *ended < count {
            self.changed.wait(&mut ended);
        }
    }
}

impl EndIo for Sent {
    fn end_io(self: Arc<Self>, _: Io, _: u64, status: BlkStatus) {
        assert!(status.is_ok());
        *self.ended.lock() += 1;
        self.changed.notify_all();
    }
}

/// Fails the Nth request of a device, and after that one or all: what ended well is there, reads go on, nothing hangs.
#[test]
fn each_failing_request_fails_what_needs_it_only() {
    let (mut failed, mut lived) = (0, 0);
    for (which, fail_in) in [("o", 0), ("c", 0)]
        .into_iter()
        .flat_map(|(which, _)| (0..70).map(move |n| (which, n)))
    {
        let world = World::new();
        let origin = Arc::new(MemoryDevice::new(Sector(SIZE)));
        put(&*origin, &data(0, SIZE, 0));
        let cache = Arc::new(MemoryDevice::new(Sector(CACHE)));
        let [o, c] = [origin.clone(), cache.clone()].map(|dev| Double::new(dev));
        world.add("o", o.clone());
        world.add("c", c.clone());
        let dev = world.live("one", &table(1, 8));
        let double = if which == "o" { &o } else { &c };
        double.fail_in.store(fail_in, Ordering::SeqCst);
        let mut allowed: Notes = vec![vec![0]; SIZE as usize];
        let mut rng = SmallRng::seed_from_u64(fail_in as u64);
        for _ in 0..120 {
            let sector = rng.random_range(0..BLOCKS) * 8;
            let range = sector as usize..sector as usize + 8;
            match rng.random_range(0..6) {
                0 => drop(request(&*dev, Op::Flush, 0, 0)),
                1 => {
                    let (found, end) = read_bytes(&*dev, sector, 8);
                    for (at, bytes) in range.zip(found.chunks(512)).filter(|_| end.is_ok()) {
                        assert!(allowed[at].contains(&bytes[100]), "{which} {fail_in}: {at}");
                        assert_eq!(bytes, pattern(at as u64, bytes[100]));
                    }
                }
                _ => {
                    let seed = rng.random_range(1..=255);
                    let well = write_at(&*dev, sector, &data(sector, 8, seed)).is_ok();
                    for versions in &mut allowed[range] {
                        versions.push(seed);
                        if well {
                            keep_last(versions);
                        }
                    }
                }
            }
        }
        suspend(&dev);
        let has_failed = status(&dev)[0] == 1;
        *(if has_failed { &mut failed } else { &mut lived }) += 1;
        resume(&dev).unwrap();
        if has_failed {
            assert!(!write_at(&*dev, 0, &data(0, 8, 1)).is_ok());
            assert!(!request(&*dev, Op::Flush, 0, 0).is_ok());
            assert!(!request(&*dev, Op::Discard, 0, 8).is_ok());
            assert!(message(&dev, "flush").is_err());
            // A table that is loaded anew forgets it.
            load(&dev, &table(1, 8)).unwrap();
            resume(&dev).unwrap();
            assert!(message(&dev, "flush").is_ok());
        } else {
            check(fail_in as u64, &*dev, &allowed);
        }
        dev.destroy();
    }
    assert!(failed > 20 && lived > 20, "{failed} failed, {lived} lived");
}

#[test]
fn a_cache_that_cannot_be_read_fails_the_line_when_it_is_resumed() {
    let world = World::new();
    let origin = world.memory("o", SIZE);
    put(&*origin, &data(0, SIZE, 0));
    let cache = Double::new(world.memory("x", CACHE));
    world.add("c", cache.clone());
    let dev = world.live("one", &table(0, 8));
    assert!(write_at(&*dev, 8, &data(8, 8, 7)).is_ok());
    suspend(&dev);
    cache.fail_in.store(0, Ordering::SeqCst);
    resume(&dev).unwrap();
    assert_eq!(status(&dev)[0], 1);
    assert!(!write_at(&*dev, 0, &data(0, 8, 1)).is_ok());
    // Nobody knows what the origin does not have.
    for sector in [0, 8] {
        assert_eq!(read_bytes(&*dev, sector, 8).1, BlkStatus::IoErr, "{sector}");
    }
    // What only the cache has is there again with the next table.
    suspend(&dev);
    load(&dev, &table(0, 8)).unwrap();
    resume(&dev).unwrap();
    assert_eq!(read_bytes(&*dev, 8, 8).0, data(8, 8, 7));
    cache.fail_in.store(0, Ordering::SeqCst);
    let error = load(&dev, &table(0, 8)).unwrap_err().to_string();
    assert!(error.contains("Unable to read first block"), "{error}");
}

#[test]
fn a_line_that_failed_reads_what_was_written_also_after_a_suspend() {
    let world = World::new();
    world.memory("o", SIZE);
    let cache = Double::new(world.memory("x", CACHE));
    world.add("c", cache.clone());
    let dev = world.live("one", &table(0, 8));
    assert!(write_at(&*dev, 8, &data(8, 8, 7)).is_ok());
    cache.fail_in.store(0, Ordering::SeqCst);
    assert!(!request(&*dev, Op::Flush, 0, 0).is_ok());
    suspend(&dev);
    resume(&dev).unwrap();
    assert_eq!(read_bytes(&*dev, 8, 8).0, data(8, 8, 7));
}

/// A device whose making was cut off is as good as new.
#[test]
fn a_cache_that_was_half_made_is_made_again() {
    let mut refused = 0;
    for fails in 0..8 {
        let world = World::new();
        world.memory("o", SIZE);
        let cache = Double::new(world.memory("x", CACHE));
        world.add("c", cache.clone());
        cache.fail_in.store(fails, Ordering::SeqCst);
        let first = world.mapped("first");
        refused += i32::from(load(&first, &table(0, 8)).is_err());
        first.destroy();
        cache.fail_in.store(-1, Ordering::SeqCst);
        let second = world.live("second", &table(0, 8));
        assert!(write_at(&*second, 8, &data(8, 8, 7)).is_ok(), "{fails}");
        assert!(request(&*second, Op::Flush, 0, 0).is_ok(), "{fails}");
        second.destroy();
    }
    assert!(refused > 2, "{refused}");
}

/// The first write to a block fails: the sector is as it was, and the block is free again.
#[test]
fn a_first_write_that_fails_leaves_what_was_there() {
    let world = World::new();
    put(&*world.memory("o", SIZE), &data(0, SIZE, 0));
    let cache = Double::new(world.memory("x", CACHE));
    world.add("c", cache.clone());
    let dev = world.live("one", &table(0, 8));
    assert!(write_at(&*dev, 8, &data(8, 8, 7)).is_ok());
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    cache.fail_in.store(0, Ordering::SeqCst);
    assert!(!write_at(&*dev, 16, &data(16, 16, 9)).is_ok());
    assert_eq!(
        read_bytes(&*dev, 0, 40).0,
        [data(0, 8, 0), data(8, 8, 7), data(16, 24, 0)].concat()
    );
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    writecache_support::eventually("it is free", || status(&dev)[2] == 19);
    assert_eq!(status(&dev)[0], 0);
}

/// Fails some first requests on data, and few on metadata.
struct Flaky {
    below: Arc<dyn BlockDevice>,
    rng: parking_lot::Mutex<SmallRng>,
    /// Where data begin, in sectors.
    data: u64,
}

impl BlockDevice for Flaky {
    fn limits(&self) -> thinmap_block::QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        let one_of = if io.sector.raw() >= self.data { 8 } else { 40 };
        if io.op == Op::Write && self.rng.lock().random_range(0..one_of) == 0 {
            return io.complete(BlkStatus::IoErr);
        }
        self.below.submit(io);
    }
}

/// Writes to the cache that fail while commits are under way, and a power cut: no sector has what belongs to another one.
#[test]
fn writes_that_fail_beside_commits_leave_nothing_of_others() {
    for seed in 0..seeds() {
        let mut rng = SmallRng::seed_from_u64(seed);
        let table = table(seed, 8);
        let machine = Machine::new(seed, &[SIZE, CACHE], vec![vec![0]; SIZE as usize]);
        put(&*machine.disk(0), &data(0, SIZE, 0));
        assert!(request(&*machine.disk(0), Op::Flush, 0, 0).is_ok());
        let world = World::new();
        world.add("o", Delayed::new(machine.disk(0), seed));
        // Made on a disk that is well.
        world.add("c", machine.disk(1));
        drop(world.live("maker", &table));
        let flaky = Flaky {
            below: machine.disk(1),
            rng: parking_lot::Mutex::new(SmallRng::seed_from_u64(seed)),
            data: 8,
        };
        let world = World::new();
        world.add("o", Delayed::new(machine.disk(0), seed));
        world.add("c", Delayed::new(Arc::new(flaky), seed));
        let dev = world.live("one", &table);
        machine.cut_in(rng.random_range(0..400));
        while !machine.is_cut() && status(&dev)[0] == 0 {
            let mut blocks: Vec<u64> = (0..BLOCKS).collect();
            blocks.shuffle(&mut rng);
            blocks.truncate(rng.random_range(1..20));
            let version = rng.random_range(1..=255);
            machine.note(|notes| {
                for block in &blocks {
                    let sectors = &mut notes[*block as usize * 8..][..8];
                    sectors.iter_mut().for_each(|s| s.push(version));
                }
            });
            let sent = Arc::new(Tried::default());
            for block in &blocks {
                sent.write(&*dev, block * 8, &data(block * 8, 8, version));
                if rng.random_range(0..4) == 0 {
                    let _ = request(&*dev, Op::Flush, 0, 0);
                }
            }
            sent.0.wait(blocks.len());
            let allowed = {
                let mut allowed = Notes::new();
                machine.note(|notes| allowed.clone_from(notes));
                allowed
            };
            check(seed, &*dev, &allowed);
        }
        let (images, allowed) = machine.found();
        again(seed, &images, allowed, &table);
    }
}

/// Requests under way that may fail.
#[derive(Default)]
struct Tried(Sent);

impl Tried {
    fn write(self: &Arc<Self>, dev: &dyn BlockDevice, sector: u64, bytes: &[u8]) {
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        dev.submit(Io::write(Sector(sector), buf, self.clone(), 0));
    }
}

impl EndIo for Tried {
    fn end_io(self: Arc<Self>, _: Io, _: u64, _: BlkStatus) {
        *self.0.ended.lock() += 1;
        self.0.changed.notify_all();
    }
}
