//! Suspends, table swaps and removals under load: no request is lost, doubled, or on a device that its table left.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, EndIo, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MappedDevice, Registry, StatusFlags,
    StatusKind, SuspendFlags, TableError, Target, TargetArgs, TargetFeatures, TargetInfo,
    TargetType,
};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

/// Keeps `depth` requests going per thread and counts each one's ends.
struct Load {
    dev: Arc<MappedDevice>,
    ends: Mutex<HashMap<u64, u32>>,
    submitted: AtomicU64,
    failed: AtomicU32,
    left: Mutex<u64>,
    idle: Condvar,
    stop: AtomicBool,
}

impl Load {
    fn new(dev: &Arc<MappedDevice>) -> Arc<Self> {
        Arc::new(Self {
            dev: dev.clone(),
            ends: Mutex::default(),
            submitted: AtomicU64::new(0),
            failed: AtomicU32::new(0),
            left: Mutex::new(0),
            idle: Condvar::new(),
            stop: AtomicBool::new(false),
        })
    }

    fn run(self: &Arc<Self>, thread: u64) {
        let mut number = 0u64;
        while !self.stop.load(Ordering::SeqCst) {
            let tag = thread << 32 | number;
            number += 1;
            *self.left.lock() += 1;
            self.submitted.fetch_add(1, Ordering::SeqCst);
            let sector = Sector(number * 7 % 120);
            let io = match number % 5 {
                0 => Io::flush(self.clone(), tag),
                1 => Io::new(
                    Op::Discard,
                    sector,
                    Sector(8),
                    IoBuf::empty(),
                    self.clone(),
                    tag,
                ),
                2 => Io::read(sector, IoBuf::alloc(4096), self.clone(), tag),
                _ => Io::write(sector, IoBuf::alloc(512 * 6), self.clone(), tag),
            };
            self.dev.submit(io);
            let mut left = self.left.lock();
            while *left > 64 {
                self.idle.wait(&mut left);
            }
        }
    }

    fn check(&self) {
        let mut left = self.left.lock();
        while *left > 0 {
            self.idle.wait(&mut left);
        }
        let ends = self.ends.lock();
        assert_eq!(ends.len() as u64, self.submitted.load(Ordering::SeqCst));
        assert!(ends.values().all(|count| *count == 1), "ended twice");
    }
}

impl EndIo for Load {
    fn end_io(self: Arc<Self>, _: Io, tag: u64, status: BlkStatus) {
        *self.ends.lock().entry(tag).or_default() += 1;
        if !status.is_ok() {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
        *self.left.lock() -= 1;
        self.idle.notify_all();
    }
}

/// Runs `act` while three threads submit.
fn under_load(dev: &Arc<MappedDevice>, act: impl FnOnce(&Load)) -> Arc<Load> {
    let load = Load::new(dev);
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let load = load.clone();
            thread::spawn(move || load.run(number))
        })
        .collect();
    act(&load);
    load.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().unwrap();
    }
    load.check();
    load
}

fn wait_for_more(load: &Load, more: u64) {
    let from = load.submitted.load(Ordering::SeqCst);
    while load.submitted.load(Ordering::SeqCst) < from + more {
        thread::yield_now();
    }
}

/// A device below that must be silent when it is not in use.
fn watched(world: &Arc<World>, name: &str) -> Arc<Double> {
    let memory = Arc::new(MemoryDevice::new(Sector(4096)));
    let double = Double::new(Delayed::new(memory, 3));
    world.add(name, double.clone());
    double
}

#[test]
fn suspend_under_load_loses_and_doubles_nothing() {
    let world = World::new();
    let below = watched(&world, "a");
    let dev = world.live("one", "0 64 linear a 0\n64 64 striped 2 4 a 64 a 128");
    let load = under_load(&dev, |load| {
        for round in 0..60 {
            wait_for_more(load, 40);
            let flags = if round % 2 == 0 {
                NOFLUSH
            } else {
                SuspendFlags::default()
            };
            dev.suspend(flags).unwrap();
            let quiet = below.seen.lock().len();
            thread::yield_now();
            assert_eq!(
                below.seen.lock().len(),
                quiet,
                "suspended, yet requests arrive"
            );
            resume(&dev).unwrap();
        }
    });
    assert_eq!(load.failed.load(Ordering::SeqCst), 0);
}

#[test]
fn table_swap_under_load_leaves_the_old_devices_alone() {
    let world = World::new();
    let doubles = [watched(&world, "a"), watched(&world, "b")];
    let tables = ["0 128 linear a 0", "0 128 striped 2 8 b 0 b 64"];
    let dev = world.live("one", tables[0]);
    let load = under_load(&dev, |load| {
        for round in 1..60 {
            wait_for_more(load, 40);
            go_live(&dev, tables[round % 2]);
            let old = &doubles[(round + 1) % 2];
            let quiet = old.seen.lock().len();
            wait_for_more(load, 10);
            assert_eq!(
                old.seen.lock().len(),
                quiet,
                "requests on a device that was left"
            );
        }
    });
    assert_eq!(load.failed.load(Ordering::SeqCst), 0);
    assert!(doubles.iter().all(|d| !d.seen.lock().is_empty()));
}

fn go_live(dev: &MappedDevice, table: &str) {
    load(dev, table).unwrap();
    resume(dev).unwrap();
}

#[test]
fn destroy_under_load_ends_every_request() {
    let world = World::new();
    watched(&world, "a");
    let dev = world.live("one", "0 128 linear a 0");
    let load = under_load(&dev, |load| {
        wait_for_more(load, 200);
        dev.destroy();
        wait_for_more(load, 50);
    });
    assert!(load.failed.load(Ordering::SeqCst) >= 50);
}

/// A target that keeps requests, and gives them back when a noflush suspend begins.
struct KeeperType;
struct Keeper {
    device: DeviceUse,
    state: Mutex<KeeperState>,
}

#[derive(Default)]
struct KeeperState {
    kept: Vec<Io>,
    giving_back: bool,
    pass: bool,
}

impl TargetType for KeeperType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: "keeper",
            version: [1, 0, 0],
            features: TargetFeatures {
                immutable: true,
                ..TargetFeatures::default()
            },
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let pass = args.argv.len() > 1;
        Ok(Arc::new(Keeper {
            device: cx.open("keeper", &args.argv[0], false)?,
            state: Mutex::new(KeeperState {
                pass,
                ..KeeperState::default()
            }),
        }))
    }
}

impl Target for Keeper {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        let mut state = self.state.lock();
        if state.pass {
            drop(state);
            return MapOutcome::Remapped(io, &self.device.dev);
        }
        if state.giving_back {
            return MapOutcome::Requeue(io);
        }
        // Whoever gives back may have changed the place already.
        io.sector = Sector(1 << 40);
        state.kept.push(io);
        MapOutcome::Submitted
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_discard = Sector(64);
    }

    fn status(&self, _: StatusKind, _: StatusFlags, _: &mut String) {}

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        visit(&self.device, DeviceRole::Other);
    }

    fn presuspend(&self, noflush: bool) {
        let kept = {
            let mut state = self.state.lock();
            state.giving_back = noflush;
            std::mem::take(&mut state.kept)
        };
        let status = if noflush {
            BlkStatus::Requeue
        } else {
            BlkStatus::NoSpc
        };
        for io in kept {
            io.complete(status);
        }
    }
}

static WITH_KEEPER: &[&dyn TargetType] = &[
    &KeeperType,
    &thinmap_targets::LinearType,
    &thinmap_targets::ErrorType,
];

#[test]
fn a_noflush_suspend_takes_requests_back_and_maps_them_to_the_new_table() {
    let world = World::new();
    let below = watched(&world, "a");
    let dev = world.mapped_with("one", Registry::new(WITH_KEEPER), None);
    go_live(&dev, "0 64 keeper a\n64 64 keeper a");
    let load = under_load(&dev, |load| {
        // The keeper lets none end, so the load stops by itself a little later.
        while load.submitted.load(Ordering::SeqCst) < 50 {
            thread::yield_now();
        }
        dev.suspend(NOFLUSH).unwrap();
        go_live(&dev, "0 64 keeper a pass\n64 64 keeper a pass");
        wait_for_more(load, 60);
    });
    assert_eq!(load.failed.load(Ordering::SeqCst), 0);
    let beyond = below.seen.lock().iter().any(|(_, sector, _)| *sector > 128);
    assert!(!beyond, "a request came back with another place");
}

#[test]
fn requeue_outside_a_noflush_suspend_is_an_error() {
    let world = World::new();
    watched(&world, "a");
    let dev = world.mapped_with("one", Registry::new(WITH_KEEPER), None);
    go_live(&dev, "0 64 keeper a");
    let load = Load::new(&dev);
    *load.left.lock() += 1;
    load.submitted.fetch_add(1, Ordering::SeqCst);
    dev.submit(Io::read(Sector(0), IoBuf::alloc(512), load.clone(), 1));
    dev.suspend(SuspendFlags::default()).unwrap();
    load.check();
    assert_eq!(load.failed.load(Ordering::SeqCst), 1);
}

#[test]
fn an_immutable_target_gives_way_only_to_itself_or_a_wildcard() {
    let world = World::new();
    watched(&world, "a");
    let dev = world.mapped_with("one", Registry::new(WITH_KEEPER), None);
    go_live(&dev, "0 64 keeper a");
    let error = load(&dev, "0 64 linear a 0").unwrap_err();
    assert_eq!(
        (error.errno(), error.to_string().as_str()),
        (22, "table: can't replace immutable target type keeper")
    );
    let error = load(&dev, "0 64 keeper a\n64 8 linear a 0").unwrap_err();
    assert_eq!(
        error.to_string(),
        "linear: immutable target type cannot be mixed with other target types"
    );
    load(&dev, "0 64 keeper a pass").unwrap();
    go_live(&dev, "0 64 error");
    go_live(&dev, "0 64 linear a 0");
}

/// Ends requests at once, so that what is measured is the way there and back.
struct Instantly;

impl BlockDevice for Instantly {
    fn limits(&self) -> QueueLimits {
        QueueLimits::STACKING
    }

    fn size(&self) -> Sector {
        Sector(1 << 30)
    }

    fn submit(&self, io: Io) {
        io.complete(BlkStatus::Ok);
    }
}

struct Reuse(Mutex<Option<IoBuf>>);

impl EndIo for Reuse {
    fn end_io(self: Arc<Self>, mut io: Io, _: u64, _: BlkStatus) {
        *self.0.lock() = Some(std::mem::replace(&mut io.buf, IoBuf::empty()));
    }
}

#[test]
fn the_cost_of_a_linear_remap_is_printed() {
    const ROUNDS: u32 = 200_000;
    let world = World::new();
    world.add("a", Arc::new(Instantly));
    let dev = world.live("one", "0 1048576 linear a 8");
    let reuse = Arc::new(Reuse(Mutex::new(Some(IoBuf::alloc(4096)))));
    let run = |target: &dyn BlockDevice| {
        let start = Instant::now();
        for round in 0..ROUNDS {
            let buf = reuse.0.lock().take().unwrap();
            let sector = Sector(u64::from(round) * 8 % 1_000_000);
            target.submit(Io::read(sector, buf, reuse.clone(), 0));
        }
        start.elapsed().as_nanos() / u128::from(ROUNDS)
    };
    let (bare, mapped) = (run(&Instantly), run(&*dev));
    println!("bare device {bare} ns, through linear {mapped} ns per request");
    assert!(reuse.0.lock().is_some());
}
