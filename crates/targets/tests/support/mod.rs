//! What the tests of mapped devices share: an opener over named devices, device doubles, an I/O oracle.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod delayed;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, IoFlags, Op, QueueLimits, submit_and_wait};
use thinmap_dm::{
    DeviceError, DeviceId, DeviceName, DeviceOpener, DeviceUse, Environment, FileSystemFreezer,
    MappedDevice, OpenDevice, OpenDeviceError, Registry, SharedState, SuspendFlags, TableLine,
};
use thinmap_runtime::{IoBuf, Spawner, ThreadSpawner};
use thinmap_units::{BlkStatus, DevNo, DmName, Sector};

/// A world of named devices: `mem` ones are plain block devices `7:n`, `dm` ones mapped devices.
#[derive(Default)]
pub struct World {
    state: Mutex<WorldState>,
}

#[derive(Default)]
struct WorldState {
    plain: HashMap<String, (DevNo, Arc<dyn BlockDevice>)>,
    mapped: HashMap<String, Arc<MappedDevice>>,
    next_minor: u32,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub fn add(&self, name: &str, dev: Arc<dyn BlockDevice>) -> DevNo {
        let mut state = self.state.lock();
        let dev_no = DevNo::new(7, u32::try_from(state.plain.len()).unwrap());
        state.plain.insert(name.to_owned(), (dev_no, dev));
        dev_no
    }

    pub fn memory(&self, name: &str, sectors: u64) -> Arc<MemoryDevice> {
        let dev = Arc::new(MemoryDevice::new(Sector(sectors)));
        self.add(name, dev.clone());
        dev
    }

    pub fn environment(
        self: &Arc<Self>,
        freezer: Option<Arc<dyn FileSystemFreezer>>,
    ) -> Arc<Environment> {
        let spawner = Arc::new(ThreadSpawner::new());
        Arc::new(Environment {
            opener: self.clone(),
            clock: spawner.clock(),
            spawner,
            freezer,
            shared: SharedState::default(),
        })
    }

    pub fn mapped(self: &Arc<Self>, name: &str) -> Arc<MappedDevice> {
        self.mapped_with(name, Registry::new(thinmap_targets::ALL), None)
    }

    pub fn mapped_with(
        self: &Arc<Self>,
        name: &str,
        registry: Registry,
        freezer: Option<Arc<dyn FileSystemFreezer>>,
    ) -> Arc<MappedDevice> {
        let minor = {
            let mut state = self.state.lock();
            state.next_minor += 1;
            state.next_minor - 1
        };
        let dev = MappedDevice::new(
            self.environment(freezer),
            registry,
            DevNo::new(253, minor),
            DmName::new(name).unwrap(),
            None,
        );
        self.state
            .lock()
            .mapped
            .insert(name.to_owned(), dev.clone());
        dev
    }

    /// A mapped device with a live table.
    pub fn live(self: &Arc<Self>, name: &str, table: &str) -> Arc<MappedDevice> {
        let dev = self.mapped(name);
        load(&dev, table).unwrap();
        resume(&dev).unwrap();
        dev
    }
}

impl DeviceOpener for World {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let (plain, mapped) = {
            let state = self.state.lock();
            let plain = state.plain.get(request.spec).cloned();
            (plain, state.mapped.get(request.spec).cloned())
        };
        if let Some((dev_no, dev)) = plain {
            return Ok(DeviceUse {
                dev,
                id: DeviceId::Block(dev_no),
                name: DeviceName::Number(dev_no),
                read_only: request.read_only,
                claim: Arc::new(()),
            });
        }
        match mapped {
            Some(dev) => dev.open_for_table(request.by, request.read_only),
            None => Err(OpenDeviceError {
                reason: format!("{}: no such device", request.spec),
                errno: 19,
            }),
        }
    }
}

/// `start len target params`, one per line.
pub fn lines(table: &str) -> Vec<TableLine> {
    let line = |text: &str| {
        let mut words = text.trim().splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        TableLine {
            start: Sector(word().parse().unwrap()),
            len: Sector(word().parse().unwrap()),
            target: word(),
            params: word(),
        }
    };
    table
        .lines()
        .filter(|text| !text.trim().is_empty())
        .map(line)
        .collect()
}

pub fn load(dev: &MappedDevice, table: &str) -> Result<(), DeviceError> {
    dev.load(&lines(table), false)
}

pub fn resume(dev: &MappedDevice) -> Result<(), DeviceError> {
    dev.resume(SuspendFlags::default())
}

pub const NOFLUSH: SuspendFlags = SuspendFlags {
    noflush: true,
    lockfs: false,
};

/// One request, waited for.
pub fn request(dev: &dyn BlockDevice, op: Op, sector: u64, sectors: u64) -> BlkStatus {
    let buf = match op {
        Op::Read | Op::Write => IoBuf::alloc(usize::try_from(sectors * 512).unwrap()),
        _ => IoBuf::empty(),
    };
    submit_and_wait(
        dev,
        (op, IoFlags::default(), Sector(sector), Sector(sectors), buf),
    )
    .1
}

pub fn write_fill(dev: &dyn BlockDevice, sector: u64, sectors: u64, byte: u8) -> BlkStatus {
    let mut buf = IoBuf::alloc(usize::try_from(sectors * 512).unwrap());
    buf.as_mut_slice().fill(byte);
    thinmap_block::write(dev, Sector(sector), buf).1
}

pub fn read_bytes(dev: &dyn BlockDevice, sector: u64, sectors: u64) -> (Vec<u8>, BlkStatus) {
    let buf = IoBuf::alloc(usize::try_from(sectors * 512).unwrap());
    let (buf, status) = thinmap_block::read(dev, Sector(sector), buf);
    (buf.as_slice().to_vec(), status)
}

/// Wraps a device: counts, fails the Nth request, holds requests back, changes limits.
pub struct Double {
    pub below: Arc<dyn BlockDevice>,
    pub limits: Mutex<QueueLimits>,
    /// Requests until one fails; negative: none does.
    pub fail_in: AtomicI64,
    /// All requests fail.
    pub fail_always: std::sync::atomic::AtomicBool,
    pub fail_with: Mutex<BlkStatus>,
    pub hold: std::sync::atomic::AtomicBool,
    pub held: Mutex<Vec<Io>>,
    pub seen: Mutex<Vec<(Op, u64, u64)>>,
    pub flushes: AtomicU32,
}

impl Double {
    pub fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self {
            limits: Mutex::new(below.limits()),
            below,
            fail_in: AtomicI64::new(-1),
            fail_always: false.into(),
            fail_with: Mutex::new(BlkStatus::IoErr),
            hold: false.into(),
            held: Mutex::default(),
            seen: Mutex::default(),
            flushes: AtomicU32::new(0),
        })
    }

    pub fn release(&self) {
        self.hold.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.held.lock());
        for io in held {
            self.below.submit(io);
        }
    }
}

impl BlockDevice for Double {
    fn limits(&self) -> QueueLimits {
        *self.limits.lock()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.seen
            .lock()
            .push((io.op, io.sector.raw(), io.sectors.raw()));
        if io.op == Op::Flush {
            self.flushes.fetch_add(1, Ordering::SeqCst);
        }
        let fails = self.fail_in.load(Ordering::SeqCst) >= 0
            && self.fail_in.fetch_sub(1, Ordering::SeqCst) == 0;
        if fails || self.fail_always.load(Ordering::SeqCst) {
            let status = *self.fail_with.lock();
            io.complete(status);
            return;
        }
        if self.hold.load(Ordering::SeqCst) {
            self.held.lock().push(io);
            return;
        }
        self.below.submit(io);
    }
}
