//! Mapped devices whose time the test moves, and requests that are not waited for.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

#[path = "../thin_support/manual.rs"]
mod manual;

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op};
use thinmap_dm::{Environment, MappedDevice, Registry, SharedState};
use thinmap_runtime::{IoBuf, Spawner};
use thinmap_units::{BlkStatus, DevNo, DmName, Sector};

pub use manual::{ManualSpawner, ManualTime};

use crate::support::{World, load, resume};

/// A mapped device on a clock of its own, with a live table.
pub fn live(world: &Arc<World>, table: &str) -> (Arc<MappedDevice>, Arc<ManualTime>) {
    let time = Arc::new(ManualTime::default());
    let spawner = Arc::new(ManualSpawner(time.clone()));
    let env = Arc::new(Environment {
        opener: world.clone(),
        clock: spawner.clock(),
        spawner,
        freezer: None,
        shared: SharedState::default(),
    });
    let registry = Registry::new(thinmap_targets::ALL);
    let name = DmName::new("clocked").unwrap();
    let dev = MappedDevice::new(env, registry, DevNo::new(253, 99), name, None);
    load(&dev, table).unwrap();
    resume(&dev).unwrap();
    (dev, time)
}

/// Requests under way, and how they ended.
#[derive(Default)]
pub struct Ends {
    ended: Mutex<Vec<(u64, BlkStatus, Vec<u8>)>>,
    changed: Condvar,
}

impl Ends {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Sends a request that is called `tag`. `byte` fills a write.
    pub fn send(
        self: &Arc<Self>,
        dev: &dyn BlockDevice,
        tag: u64,
        op: Op,
        (sector, sectors): (u64, u64),
        byte: u8,
    ) {
        self.send_with(dev, tag, (op, IoFlags::default()), (sector, sectors), byte);
    }

    pub fn send_with(
        self: &Arc<Self>,
        dev: &dyn BlockDevice,
        tag: u64,
        (op, flags): (Op, IoFlags),
        (sector, sectors): (u64, u64),
        byte: u8,
    ) {
        let mut buf = match op {
            Op::Read | Op::Write => IoBuf::alloc(usize::try_from(sectors * 512).unwrap()),
            _ => IoBuf::empty(),
        };
        buf.as_mut_slice().fill(byte);
        let mut io = Io::new(op, Sector(sector), Sector(sectors), buf, self.clone(), tag);
        io.flags = flags;
        dev.submit(io);
    }

    /// The tags of those that have ended well, in that order.
    pub fn ended(&self) -> Vec<u64> {
        let ended = self.ended.lock();
        assert!(ended.iter().all(|(_, s, _)| s.is_ok()), "{ended:?}");
        ended.iter().map(|(tag, ..)| *tag).collect()
    }

    /// Waits until so many have ended.
    pub fn wait(&self, count: usize) -> Vec<(u64, BlkStatus, Vec<u8>)> {
        let mut ended = self.ended.lock();
        while ended.len() < count {
            self.changed.wait(&mut ended);
        }
        ended.clone()
    }
}

impl EndIo for Ends {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let data = io.buf.as_slice().to_vec();
        self.ended.lock().push((tag, status, data));
        self.changed.notify_all();
    }
}
