//! An origin and its snapshots as mapped devices: what is read through them, how they end, devices that fail.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod power;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, EndIo, Io, QueueLimits};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use crate::support::{load, read_bytes, resume};

/// Sectors of a cell, which is written as a whole and holds its version in each sector.
pub const CELL: u64 = 8;

pub fn cell_bytes(version: u32) -> IoBuf {
    let mut buf = IoBuf::alloc((CELL * 512) as usize);
    for sector in buf.as_mut_slice().chunks_mut(512) {
        sector[..4].copy_from_slice(&version.to_le_bytes());
    }
    buf
}

pub fn write_cell(dev: &dyn BlockDevice, cell: u64, version: u32) -> BlkStatus {
    thinmap_block::write(dev, Sector(cell * CELL), cell_bytes(version)).1
}

/// The version that all sectors of a cell hold, or how it could not be read.
pub fn read_cell(dev: &dyn BlockDevice, cell: u64) -> Result<u32, BlkStatus> {
    let versions = read_sectors(dev, cell)?;
    let same = versions.iter().all(|version| *version == versions[0]);
    assert!(same, "cell {cell} is a mixture");
    Ok(versions[0])
}

/// The version that each sector of a cell holds: a power cut may leave a write half done.
pub fn read_sectors(dev: &dyn BlockDevice, cell: u64) -> Result<Vec<u32>, BlkStatus> {
    let (bytes, status) = read_bytes(dev, cell * CELL, CELL);
    if !status.is_ok() {
        return Err(status);
    }
    let version = |sector: &[u8]| u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
    Ok(bytes.chunks(512).map(version).collect())
}

/// Makes cell i hold version i + 1.
pub fn fill_cells(dev: &dyn BlockDevice, cells: u64) {
    for cell in 0..cells {
        assert!(write_cell(dev, cell, cell as u32 + 1).is_ok());
    }
}

pub fn line(dev: &MappedDevice, kind: StatusKind, which: WhichTable) -> String {
    dev.table_status(kind, which, false).unwrap()[0]
        .text
        .clone()
}

pub fn info(dev: &MappedDevice) -> String {
    line(dev, StatusKind::Info, WhichTable::Live)
}

pub fn table(dev: &MappedDevice) -> String {
    line(dev, StatusKind::Table, WhichTable::Live)
}

/// Suspends, loads, resumes: what a program does to change a table.
pub fn replace(dev: &MappedDevice, table: &str) {
    load(dev, table).unwrap();
    dev.suspend(SuspendFlags::default()).unwrap();
    resume(dev).unwrap();
}

/// Waits until a merge has nothing left: allocated and metadata sectors are the same.
pub fn wait_merged(dev: &MappedDevice) {
    for _ in 0..20_000 {
        let info = info(dev);
        let Some((used, rest)) = info.split_once('/') else {
            panic!("{info}");
        };
        if rest.split(' ').nth(1) == Some(used) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("the merge does not end: {}", info(dev));
}

/// Waits for a status, which a worker sets.
pub fn wait_info(dev: &MappedDevice, wanted: &str) {
    for _ in 0..20_000 {
        if info(dev) == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} instead of {wanted}", info(dev));
}

pub fn image(dev: &MemoryDevice) -> Vec<u8> {
    let (bytes, status) = read_bytes(dev, 0, dev.size().raw());
    assert!(status.is_ok());
    bytes
}

/// Fails requests from some one on.
pub struct Failing {
    below: Arc<dyn BlockDevice>,
    /// Requests until then; negative: never.
    left: AtomicI64,
    /// All of them, not only that one.
    for_good: bool,
    failed: AtomicBool,
    /// What fails is done all the same.
    does: AtomicBool,
}

/// Makes a failure of what was done.
struct DoneInVain;

impl EndIo for DoneInVain {
    fn end_io(self: Arc<Self>, io: Io, _: u64, _: BlkStatus) {
        io.complete(BlkStatus::IoErr);
    }
}

impl Failing {
    pub fn new(below: Arc<dyn BlockDevice>, left: i64, for_good: bool) -> Arc<Self> {
        Arc::new(Self {
            below,
            left: AtomicI64::new(left),
            for_good,
            failed: AtomicBool::new(false),
            does: AtomicBool::new(false),
        })
    }

    /// Requests that fail have been done from now on, or not.
    pub fn does_what_fails(&self, does: bool) {
        self.does.store(does, Ordering::SeqCst);
    }

    /// Lets that many more requests through.
    pub fn fail_in(&self, left: i64) {
        self.left.store(left, Ordering::SeqCst);
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    fn fails(&self) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        if left < 0 {
            return false;
        }
        if left == 0 && self.for_good {
            return true;
        }
        self.left.fetch_sub(1, Ordering::SeqCst) == 0
    }
}

impl BlockDevice for Failing {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, mut io: Io) {
        if self.fails() {
            self.failed.store(true, Ordering::SeqCst);
            if !self.does.load(Ordering::SeqCst) {
                return io.complete(BlkStatus::IoErr);
            }
            io.push_end_io(Arc::new(DoneInVain), 0);
        }
        self.below.submit(io);
    }
}
