//! Arrays over members that can be broken, and what is asked of them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, Sector};

use crate::support::{World, load, read_bytes, resume};

/// Sectors of a metadata device.
pub const META: u64 = 512;

/// A device that fails when told.
pub struct Member {
    pub below: Arc<dyn BlockDevice>,
    /// All requests fail.
    pub broken: AtomicBool,
    /// Reads that touch this sector fail, until it is written; negative: none.
    pub bad_sector: AtomicI64,
    /// The next write of this sector fails; negative: none.
    pub bad_write: AtomicI64,
    /// Requests until one fails, once; negative: none does.
    pub fail_in: AtomicI64,
    /// From that one on, all do.
    pub for_good: AtomicBool,
    pub reads: AtomicI64,
    pub writes: AtomicI64,
}

impl Member {
    pub fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self {
            below,
            broken: AtomicBool::new(false),
            bad_sector: AtomicI64::new(-1),
            bad_write: AtomicI64::new(-1),
            fail_in: AtomicI64::new(-1),
            for_good: AtomicBool::new(false),
            reads: AtomicI64::new(0),
            writes: AtomicI64::new(0),
        })
    }

    fn fails(&self, io: &Io) -> bool {
        if self.broken.load(SeqCst) {
            return true;
        }
        if self.fail_in.load(SeqCst) >= 0 && self.fail_in.fetch_sub(1, SeqCst) == 0 {
            if self.for_good.load(SeqCst) {
                self.broken.store(true, SeqCst);
            }
            return true;
        }
        let range = io.sector.raw() as i64..io.end().raw() as i64;
        if io.is_write() && range.contains(&self.bad_write.load(SeqCst)) {
            self.bad_write.store(-1, SeqCst);
            return true;
        }
        let bad = self.bad_sector.load(SeqCst);
        let touches = bad >= 0 && (io.sector.raw()..io.end().raw()).contains(&(bad as u64));
        if touches && io.is_write() {
            self.bad_sector.store(-1, SeqCst);
        }
        touches && io.op == Op::Read
    }
}

impl BlockDevice for Member {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        match io.op {
            Op::Read => self.reads.fetch_add(1, SeqCst),
            _ => self.writes.fetch_add(1, SeqCst),
        };
        if self.fails(&io) {
            io.complete(BlkStatus::IoErr);
        } else {
            self.below.submit(io);
        }
    }
}

/// A world with members `m0 d0`, `m1 d1` and so on.
pub struct RaidLab {
    pub world: Arc<World>,
    pub metas: Vec<Arc<Member>>,
    pub data: Vec<Arc<Member>>,
    pub disks: Vec<Arc<MemoryDevice>>,
}

impl RaidLab {
    pub fn new(members: usize, sectors: u64) -> Self {
        let mut lab = Self {
            world: World::new(),
            metas: Vec::new(),
            data: Vec::new(),
            disks: Vec::new(),
        };
        for _ in 0..members {
            lab.add(sectors);
        }
        lab
    }

    /// One more member; its number.
    pub fn add(&mut self, sectors: u64) -> usize {
        let number = self.data.len();
        let meta = Member::new(Arc::new(MemoryDevice::new(Sector(META))));
        let disk = Arc::new(MemoryDevice::new(Sector(sectors)));
        let data = Member::new(disk.clone());
        self.world.add(&format!("m{number}"), meta.clone());
        self.world.add(&format!("d{number}"), data.clone());
        self.metas.push(meta);
        self.data.push(data);
        self.disks.push(disk);
        number
    }

    /// `n m0 d0 m1 d1 ...`.
    pub fn members(&self, numbers: &[usize]) -> String {
        let pairs = numbers.iter().map(|n| format!(" m{n} d{n}"));
        format!("{}{}", numbers.len(), pairs.collect::<String>())
    }

    /// An array with a live table.
    pub fn array(&self, len: u64, line: &str) -> Arc<MappedDevice> {
        self.world.live("r", &format!("0 {len} raid {line}"))
    }

    /// Breaks data and metadata device of a member.
    pub fn break_member(&self, number: usize, broken: bool) {
        self.metas[number].broken.store(broken, SeqCst);
        self.data[number].broken.store(broken, SeqCst);
    }
}

pub fn text(dev: &MappedDevice, kind: StatusKind, which: WhichTable) -> String {
    dev.table_status(kind, which, false).unwrap()[0]
        .text
        .clone()
}

pub fn info(dev: &MappedDevice) -> String {
    text(dev, StatusKind::Info, WhichTable::Live)
}

pub fn table(dev: &MappedDevice) -> String {
    text(dev, StatusKind::Table, WhichTable::Live)
}

/// Health, ratio, action, mismatches.
pub fn words(dev: &MappedDevice) -> [String; 4] {
    let info = info(dev);
    let words: Vec<&str> = info.split(' ').collect();
    [words[2], words[3], words[4], words[5]].map(str::to_owned)
}

pub fn health(dev: &MappedDevice) -> String {
    words(dev)[0].clone()
}

/// Waits for a sync to end.
pub fn wait_idle(dev: &MappedDevice) {
    wait(dev, |words| words[2] == "idle");
}

pub fn wait(dev: &MappedDevice, wanted: impl Fn(&[String; 4]) -> bool) {
    for _ in 0..30_000 {
        if wanted(&words(dev)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("this does not change: {}", info(dev));
}

pub fn message(dev: &MappedDevice, word: &str) -> Result<(), i32> {
    dev.message(Sector(0), &[word.to_owned()])
        .map(|_| ())
        .map_err(|error| error.errno())
}

/// Checks, waits, and says how many sectors differ.
pub fn check(dev: &MappedDevice) -> u64 {
    wait_idle(dev);
    message(dev, "check").unwrap();
    wait_idle(dev);
    words(dev)[3].parse().unwrap()
}

/// Suspends, loads, resumes.
pub fn replace(dev: &MappedDevice, table: &str) {
    load(dev, table).unwrap();
    dev.suspend(SuspendFlags::default()).unwrap();
    resume(dev).unwrap();
}

/// The whole of a device.
pub fn content(dev: &dyn BlockDevice) -> Vec<u8> {
    let (bytes, status) = read_bytes(dev, 0, dev.size().raw());
    assert!(status.is_ok());
    bytes
}
