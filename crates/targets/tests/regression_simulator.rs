//! What the simulator has found, each as the shortest test that shows it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, QueueLimits};
use thinmap_dm::MappedDevice;
use thinmap_runtime::{Actor, ActorHandle, Clock, IoBuf, NextTurn, Spawner, ThreadSpawner};
use thinmap_units::{BlkStatus, Sector};

use support::{load, read_bytes, request, resume, write_fill};
use thin_support::{BLOCK, Lab, PoolLab, SUSPEND, check_clean, flagged, info, message, until};

const NO_UNMAP: IoFlags = IoFlags {
    fua: false,
    no_unmap: true,
};

/// Requests in the order in which they came, of several devices.
type Log = Arc<Mutex<Vec<(&'static str, Op)>>>;

struct Logged {
    name: &'static str,
    log: Log,
    below: MemoryDevice,
}

impl BlockDevice for Logged {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.log.lock().push((self.name, io.op));
        self.below.submit(io);
    }
}

/// A pool whose devices tell what they are asked for, and its volume 0.
fn logged_pool() -> (Lab, Log, Arc<MappedDevice>, Arc<MappedDevice>) {
    let (lab, log) = (Lab::new(), Log::default());
    for (name, sectors) in [("meta", 8192), ("data", 64 * BLOCK)] {
        let below = MemoryDevice::new(Sector(sectors));
        let log = log.clone();
        lab.add(name, Arc::new(Logged { name, log, below }));
    }
    let pool = lab.live("pool", "0 8192 thin-pool meta data 128 0");
    message(&pool, "create_thin 0").unwrap();
    let volume = lab.live("t", "0 8192 thin pool 0");
    (lab, log, pool, volume)
}

fn end(devices: [Arc<MappedDevice>; 2]) {
    devices.iter().for_each(|dev| dev.destroy());
}

/// The pool's suspend waited for the write-zeroes, which waited for the pool to be resumed: growing a full pool hung.
#[test]
fn a_pool_grows_while_a_write_zeroes_waits_for_space() {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    lab.memory("data", 16 * BLOCK);
    let table = |blocks: u64| format!("0 {} thin-pool meta data {BLOCK} 0", blocks * BLOCK);
    let pool = lab.live("pool", &table(4));
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", &format!("0 {} thin pool 0", 8 * BLOCK));
    let zeroing = {
        let t = t.clone();
        std::thread::spawn(move || flagged(&*t, Op::WriteZeroes, NO_UNMAP, 0, 8 * BLOCK, 0))
    };
    until("out of space", || info(&pool).contains("out_of_data_space"));
    let growing = {
        let (pool, table) = (pool.clone(), table(16));
        std::thread::spawn(move || load(&pool, &table).and_then(|()| resume(&pool)))
    };
    until("grown", || growing.is_finished());
    growing.join().unwrap().unwrap();
    until("zeroed", || zeroing.is_finished());
    assert!(zeroing.join().unwrap().is_ok());
    end([t, pool]);
    check_clean(&meta);
}

/// After a power cut before the commit the block is mapped again, and read as what the discard had left.
#[test]
fn a_write_zeroes_is_committed_before_its_discard_is_passed_down() {
    let (_lab, log, pool, t) = logged_pool();
    assert!(write_fill(&*t, 0, BLOCK, 7).is_ok());
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    log.lock().clear();
    assert!(request(&*t, Op::WriteZeroes, 0, BLOCK).is_ok());
    let done = log.lock().clone();
    let first = |what| done.iter().position(|one| *one == what);
    let discard = first(("data", Op::Discard)).expect("passed down");
    let commit = first(("meta", Op::Flush)).expect("committed");
    assert!(commit < discard, "{done:?}");
    end([t, pool]);
}

/// A clean stop left writes in the data device's cache when there was no metadata to commit.
#[test]
fn a_suspended_pool_has_flushed_its_data_device() {
    let (_lab, log, pool, t) = logged_pool();
    assert!(write_fill(&*t, 0, BLOCK, 7).is_ok());
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    assert!(write_fill(&*t, 0, 8, 8).is_ok());
    log.lock().clear();
    pool.suspend(SUSPEND).unwrap();
    assert!(log.lock().contains(&("data", Op::Flush)));
    end([t, pool]);
}

/// A volume that holds nothing was taken for one that was never promised anything.
#[test]
fn zeroes_promised_to_an_emptied_volume_hold_after_a_restart() {
    let features = "2 skip_block_zeroing no_discard_passdown";
    let one = PoolLab::new(16, features);
    let t = one.volume(0, 4);
    assert!(write_fill(&*t, 0, BLOCK, 7).is_ok());
    assert!(request(&*t, Op::WriteZeroes, 0, BLOCK).is_ok());
    end([t, one.pool]);
    let table = format!("0 {} thin-pool meta data {BLOCK} 0 {features}", 16 * BLOCK);
    let pool = one.lab.live("again", &table);
    let t = one.lab.live("t", &format!("0 {} thin again 0", 4 * BLOCK));
    assert!(write_fill(&*t, 0, 8, 1).is_ok());
    let (bytes, status) = read_bytes(&*t, 8, BLOCK - 8);
    assert!(status.is_ok() && bytes.iter().all(|byte| *byte == 0));
    end([t, pool]);
}

/// A write-zeroes of a part of an unmapped block is done by leaving it unmapped, too: a later write to the rest of the block brought
/// the old data of another volume up where zeroes had been asked for.
#[test]
fn zeroes_promised_to_a_part_of_an_unmapped_block_hold() {
    let one = PoolLab::new(2, "2 skip_block_zeroing no_discard_passdown");
    // All the pool's blocks have held something.
    let old = one.volume(0, 2);
    assert!(write_fill(&*old, 0, 2 * BLOCK, 7).is_ok());
    old.destroy();
    message(&one.pool, "delete 0").unwrap();
    let t = one.volume(1, 2);
    assert!(request(&*t, Op::WriteZeroes, 8, 8).is_ok());
    // From the middle of one block to the middle of the next: two edges and no whole block.
    assert!(request(&*t, Op::WriteZeroes, BLOCK - 8, 16).is_ok());
    assert!(write_fill(&*t, 16, 8, 1).is_ok());
    assert!(write_fill(&*t, BLOCK + 8, 8, 1).is_ok());
    for (first, sectors) in [(8, 8), (BLOCK - 8, 16)] {
        let (bytes, status) = read_bytes(&*t, first, sectors);
        assert!(
            status.is_ok() && bytes.iter().all(|byte| *byte == 0),
            "{first}"
        );
    }
    end([t, one.pool]);
}

/// A metadata device whose flushes can be held up, and fail.
struct Gate {
    below: MemoryDevice,
    held: Mutex<bool>,
    changed: Condvar,
    /// A flush is being held up.
    reached: AtomicBool,
    /// So many flushes fail.
    failures: AtomicU32,
}

impl Gate {
    fn new(sectors: u64) -> Arc<Self> {
        Arc::new(Self {
            below: MemoryDevice::new(Sector(sectors)),
            held: Mutex::new(false),
            changed: Condvar::new(),
            reached: AtomicBool::new(false),
            failures: AtomicU32::new(0),
        })
    }

    fn hold(&self, hold: bool) {
        *self.held.lock() = hold;
        self.changed.notify_all();
    }

    fn fail_next_flush(&self) {
        self.failures.store(1, SeqCst);
    }
}

impl BlockDevice for Gate {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        if io.op == Op::Flush {
            let mut held = self.held.lock();
            while *held {
                self.reached.store(true, SeqCst);
                self.changed.wait(&mut held);
            }
            drop(held);
            if self.failures.swap(0, SeqCst) > 0 {
                return io.complete(BlkStatus::IoErr);
            }
        }
        self.below.submit(io);
    }
}

/// How a request ended, once it has.
#[derive(Default)]
struct Ended(Mutex<Option<BlkStatus>>);

impl EndIo for Ended {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, status: BlkStatus) {
        *self.0.lock() = Some(status);
    }
}

fn submit_write(dev: &MappedDevice, sector: u64, sectors: u64) -> Arc<Ended> {
    let ended = Arc::new(Ended::default());
    let buf = IoBuf::alloc(sectors as usize * 512);
    let (sector, sectors) = (Sector(sector), Sector(sectors));
    dev.submit(Io::new(Op::Write, sector, sectors, buf, ended.clone(), 0));
    ended
}

/// Where metadata is scarce an insertion is one step with its commit. A second write to the block saw the mapping before it was
/// durable and was answered well; then the commit failed, and a flush succeeded although the write was gone.
#[test]
fn nobody_writes_by_a_mapping_whose_own_commit_may_still_fail() {
    let (lab, meta) = (Lab::new(), Gate::new(24 * 8));
    lab.add("meta", meta.clone());
    lab.memory("data", 16 * BLOCK);
    let table = format!("0 {} thin-pool meta data {BLOCK} 0", 16 * BLOCK);
    let pool = lab.live("pool", &format!("{table} 1 skip_block_zeroing"));
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", &format!("0 {} thin pool 0", 8 * BLOCK));
    meta.hold(true);
    let first = submit_write(&t, 0, 8);
    until("the commit is under way", || meta.reached.load(SeqCst));
    // The data device answers at once: by the mapping this one would have ended when `submit_write` returns.
    let second = submit_write(&t, 8, 8);
    assert_eq!(
        *second.0.lock(),
        None,
        "answered before the mapping is durable"
    );
    meta.fail_next_flush();
    meta.hold(false);
    until("both have ended", || {
        first.0.lock().is_some() && second.0.lock().is_some()
    });
    assert_eq!(*first.0.lock(), Some(BlkStatus::IoErr));
    assert_eq!(*second.0.lock(), Some(BlkStatus::IoErr));
    end([t, pool]);
}

/// Changes that were given up while nobody had the volume open were forgotten: whoever opened it next was told that all is durable.
#[test]
fn changes_lost_while_a_volume_is_closed_are_told_of_once() {
    let (lab, meta) = (Lab::new(), Gate::new(8192));
    lab.add("meta", meta.clone());
    lab.memory("data", 16 * BLOCK);
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data {BLOCK} 0", 16 * BLOCK),
    );
    message(&pool, "create_thin 0").unwrap();
    let open = || lab.live("t", &format!("0 {} thin pool 0", 8 * BLOCK));
    let t = open();
    // Held up, so that it cannot be committed before the volume is closed and the fault is there.
    meta.hold(true);
    assert!(write_fill(&*t, 0, BLOCK, 7).is_ok());
    t.destroy();
    meta.fail_next_flush();
    meta.hold(false);
    // Commits, if the worker has not done so by itself.
    let _ = message(&pool, "create_thin 1");
    assert!(info(&pool).contains(" ro "), "{}", info(&pool));
    let t = open();
    assert!(!request(&*t, Op::Flush, 0, 0).is_ok());
    assert!(!request(&*t, Op::Flush, 0, 0).is_ok());
    t.destroy();
    let t = open();
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    end([t, pool]);
}

/// Actors on threads that tell when they want their next turn.
struct Watched {
    below: ThreadSpawner,
    next: Arc<Mutex<NextTurn>>,
}

struct WatchedActor {
    below: Arc<dyn Actor>,
    next: Arc<Mutex<NextTurn>>,
}

impl Actor for WatchedActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let next = self.below.turn(now);
        *self.next.lock() = next;
        next
    }

    fn panicked(&self) {
        self.below.panicked();
    }
}

impl Spawner for Watched {
    fn spawn(&self, name: &str, below: Arc<dyn Actor>) -> std::io::Result<ActorHandle> {
        let next = self.next.clone();
        self.below
            .spawn(name, Arc::new(WatchedActor { below, next }))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.below.clock()
    }
}

/// The worker of a read-only pool woke up every second, for ever, to commit what it may not commit; and flushes failed from then on.
#[test]
fn a_read_only_pool_has_nothing_to_commit() {
    let next = Arc::new(Mutex::new(NextTurn::Stop));
    let spawner = Arc::new(Watched {
        below: ThreadSpawner::new(),
        next: next.clone(),
    });
    let lab = Lab::with(spawner.clone(), spawner.clock());
    lab.memory("meta", 8192);
    lab.memory("data", 16 * BLOCK);
    let table = format!("0 {} thin-pool meta data {BLOCK} 0", 16 * BLOCK);
    let pool = lab.live("pool", &table);
    message(&pool, "create_thin 0").unwrap();
    load(&pool, &format!("{table} 1 read_only")).unwrap();
    resume(&pool).unwrap();
    let t = lab.live("t", &format!("0 {} thin pool 0", 8 * BLOCK));
    let fua = IoFlags {
        fua: true,
        no_unmap: false,
    };
    assert!(flagged(&*t, Op::WriteZeroes, fua, 0, 8, 0).is_ok());
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    until("idle", || *next.lock() == NextTurn::WhenWoken);
    end([t, pool]);
}
