//! A pool and its volumes as mapped devices over doubles, in one process environment.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod manual;
pub mod shelf;
pub mod sparse;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{
    DeviceError, DeviceId, DeviceName, DeviceOpener, DeviceUse, Environment, MappedDevice,
    OpenDevice, OpenDeviceError, Registry, SharedState, StatusKind, SuspendFlags, WhichTable,
};
use thinmap_runtime::{Clock, IoBuf, Spawner, ThreadSpawner};
use thinmap_thin_metadata::{Block4k, MetadataDevice, check};
use thinmap_units::{BlkStatus, DevNo, DmName, MetaBlock, Sector};

use crate::support::{lines, load, resume};

/// Named devices: plain ones `7:n`, mapped ones `253:n`.
#[derive(Default)]
struct Shelf {
    plain: Mutex<HashMap<String, (DevNo, Arc<dyn BlockDevice>)>>,
    mapped: Mutex<HashMap<String, Arc<MappedDevice>>>,
}

impl DeviceOpener for Shelf {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        if let Some((dev_no, dev)) = self.plain.lock().get(request.spec).cloned() {
            return Ok(DeviceUse {
                dev,
                id: DeviceId::Block(dev_no),
                name: DeviceName::Number(dev_no),
                read_only: request.read_only,
                claim: Arc::new(()),
            });
        }
        let mapped = self.mapped.lock().get(request.spec).cloned();
        match mapped {
            Some(dev) => dev.open_for_table(request.by, request.read_only),
            None => Err(OpenDeviceError {
                reason: format!("{}: no such device", request.spec),
                errno: 19,
            }),
        }
    }
}

pub struct Lab {
    shelf: Arc<Shelf>,
    pub env: Arc<Environment>,
}

impl Lab {
    pub fn new() -> Self {
        let spawner = Arc::new(ThreadSpawner::new());
        Self::with(spawner.clone(), spawner.clock())
    }

    pub fn with(spawner: Arc<dyn Spawner>, clock: Arc<dyn Clock>) -> Self {
        let shelf = Arc::new(Shelf::default());
        let env = Arc::new(Environment {
            opener: shelf.clone(),
            clock,
            spawner,
            freezer: None,
            shared: SharedState::default(),
        });
        Self { shelf, env }
    }

    pub fn add(&self, name: &str, dev: Arc<dyn BlockDevice>) {
        let mut plain = self.shelf.plain.lock();
        let minor = u32::try_from(plain.len()).unwrap();
        plain.insert(name.to_owned(), (DevNo::new(7, minor), dev));
    }

    pub fn memory(&self, name: &str, sectors: u64) -> Arc<MemoryDevice> {
        let dev = Arc::new(MemoryDevice::new(Sector(sectors)));
        self.add(name, dev.clone());
        dev
    }

    pub fn device(&self, name: &str) -> Arc<MappedDevice> {
        let mut mapped = self.shelf.mapped.lock();
        let minor = u32::try_from(mapped.len()).unwrap();
        let dev = MappedDevice::new(
            self.env.clone(),
            Registry::new(thinmap_targets::ALL),
            DevNo::new(253, minor),
            DmName::new(name).unwrap(),
            None,
        );
        mapped.insert(name.to_owned(), dev.clone());
        dev
    }

    /// A mapped device with a live table.
    pub fn live(&self, name: &str, table: &str) -> Arc<MappedDevice> {
        let dev = self.device(name);
        load(&dev, table).unwrap();
        resume(&dev).unwrap();
        dev
    }

    /// What loading a table on a new device says.
    pub fn try_load(&self, table: &str) -> Result<(), DeviceError> {
        let dev = self.device("refused");
        let loaded = dev.load(&lines(table), false);
        dev.destroy();
        loaded
    }
}

/// A pool `pool` of `blocks` data blocks of 64 KiB on `meta` (4 MiB) and `data`, both in memory.
pub struct PoolLab {
    pub lab: Lab,
    pub meta: Arc<MemoryDevice>,
    pub data: Arc<MemoryDevice>,
    pub pool: Arc<MappedDevice>,
}

pub const BLOCK: u64 = 128;

impl PoolLab {
    pub fn new(blocks: u64, features: &str) -> Self {
        let lab = Lab::new();
        let meta = lab.memory("meta", 8192);
        let data = lab.memory("data", blocks * BLOCK);
        let table = format!(
            "0 {} thin-pool meta data {BLOCK} 0 {features}",
            blocks * BLOCK
        );
        let pool = lab.live("pool", &table);
        Self {
            lab,
            meta,
            data,
            pool,
        }
    }

    pub fn message(&self, text: &str) -> Result<(), DeviceError> {
        message(&self.pool, text)
    }

    /// Creates volume `id` and a device `t<id>` of `blocks` blocks on it.
    pub fn volume(&self, id: u32, blocks: u64) -> Arc<MappedDevice> {
        self.message(&format!("create_thin {id}")).unwrap();
        self.open(id, blocks)
    }

    pub fn open(&self, id: u32, blocks: u64) -> Arc<MappedDevice> {
        let table = format!("0 {} thin pool {id}", blocks * BLOCK);
        self.lab.live(&format!("t{id}"), &table)
    }

    pub fn status(&self) -> String {
        info(&self.pool)
    }

    /// Ends the pool and finds nothing wrong with what it leaves.
    pub fn close_and_check(self) {
        self.pool.destroy();
        check_clean(&self.meta);
    }
}

pub fn message(pool: &MappedDevice, text: &str) -> Result<(), DeviceError> {
    let argv: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    pool.message(Sector(0), &argv).map(|_| ())
}

pub fn info(dev: &MappedDevice) -> String {
    line(dev, StatusKind::Info)
}

pub fn line(dev: &MappedDevice, kind: StatusKind) -> String {
    let status = dev.table_status(kind, WhichTable::Live, false).unwrap();
    status[0].text.clone()
}

/// Used data blocks, from the pool's status.
pub fn used(status: &str) -> u64 {
    let field = status.split(' ').nth(2).unwrap();
    field.split('/').next().unwrap().parse().unwrap()
}

pub fn check_clean(meta: &Arc<MemoryDevice>) {
    let findings = check(Arc::new(Image(meta.clone()))).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

/// A memory device as the metadata engine sees it.
pub struct Image(pub Arc<MemoryDevice>);

impl MetadataDevice for Image {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.0.size().raw() / 8)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> std::io::Result<()> {
        let (bytes, status) =
            thinmap_block::read(&*self.0, Sector(block.raw() * 8), IoBuf::alloc(4096));
        assert!(status.is_ok());
        buf.0.copy_from_slice(bytes.as_slice());
        Ok(())
    }

    fn write(&self, _: &[(MetaBlock, &Block4k)]) -> std::io::Result<()> {
        unreachable!("only looked at")
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn flagged(
    dev: &dyn BlockDevice,
    op: Op,
    flags: IoFlags,
    sector: u64,
    sectors: u64,
    byte: u8,
) -> BlkStatus {
    let buf = match op {
        Op::Read | Op::Write => {
            let mut buf = IoBuf::alloc(usize::try_from(sectors * 512).unwrap());
            buf.as_mut_slice().fill(byte);
            buf
        }
        _ => IoBuf::empty(),
    };
    submit_and_wait(dev, (op, flags, Sector(sector), Sector(sectors), buf)).1
}

pub const SUSPEND: SuspendFlags = SuspendFlags {
    noflush: false,
    lockfs: false,
};

/// Waits until `done`; a test that waits for ever is a failed one.
pub fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never: {what}");
}
