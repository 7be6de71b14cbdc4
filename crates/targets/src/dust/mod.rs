//! `dust`: a line on one device that fails reads of blocks which were named bad, until they are written.
//!
//! Arguments: `<device> <first sector> <block bytes>`. Status: `<device> <bypass|fail_read_on_bad_block> <verbose|quiet>`.
//! Messages: see `docs/targets/dust.md`.
//!
//! COMPAT: blocks are those of the device below, counted from its start and not from the line's.

mod bad_blocks;
mod message;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MessageError, StatusFlags, StatusKind,
    TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use self::bad_blocks::{BadBlocks, Write};
use crate::args::{parse_u32, parse_u64};

/// The target type.
pub struct DustType;

impl TargetType for DustType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 0, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let wrong = |reason: String| TableError::invalid(NAME, reason);
        let [device, start, bytes] = args.argv else {
            return Err(wrong("Invalid argument count".to_owned()));
        };
        let block_bytes = parse_u32(bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| wrong(format!("Invalid block size parameter: '{bytes}'")))?;
        if block_bytes < 512 {
            return Err(wrong("Block size must be at least 512".to_owned()));
        }
        if !block_bytes.is_power_of_two() {
            return Err(wrong("Block size must be a power of 2".to_owned()));
        }
        if u64::from(block_bytes >> 9) > args.len.raw().min(BLOCK_SECTORS_MAX) {
            return Err(wrong("Block size is too large".to_owned()));
        }
        let start = parse_u64(start)
            .map(Sector)
            .ok_or_else(|| wrong(format!("Invalid device offset sector: '{start}'")))?;
        let device = cx
            .open(NAME, device, false)
            .map_err(|error| wrong(format!("Device lookup failed: {}", error.reason)))?;
        Ok(Arc::new(Dust {
            begin: args.begin,
            len: args.len,
            device,
            start,
            block_bytes,
            fail_reads: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            bad: Mutex::default(),
        }))
    }
}

struct Dust {
    begin: Sector,
    len: Sector,
    device: DeviceUse,
    start: Sector,
    /// A power of two.
    block_bytes: u32,
    /// Whether bad blocks are bad: off until `enable`.
    fail_reads: AtomicBool,
    quiet: AtomicBool,
    bad: Mutex<BadBlocks>,
}

impl Dust {
    fn block_sectors(&self) -> u64 {
        u64::from(self.block_bytes >> 9)
    }

    fn place(&self, sector: Sector) -> Sector {
        Sector((sector - self.begin).raw().wrapping_add(self.start.raw()))
    }

    /// Whether a request to this block of the device below fails.
    fn fails(&self, op: Op, block: u64) -> bool {
        match op {
            Op::Read => self.bad.lock().contains(block),
            Op::Flush | Op::Write | Op::Discard | Op::WriteZeroes => {
                let outcome = self.bad.lock().write(block);
                if outcome == Write::Heals && !self.quiet.load(Relaxed) {
                    tracing::info!(block, "dust: block removed from badblocklist by write");
                }
                outcome == Write::Fails
            }
        }
    }
}

impl Target for Dust {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op == Op::Flush {
            return MapOutcome::Remapped(io, &self.device.dev);
        }
        io.sector = self.place(io.sector);
        let block = io.sector.raw() / self.block_sectors();
        if self.fail_reads.load(Relaxed) && self.fails(io.op, block) {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        MapOutcome::Remapped(io, &self.device.dev)
    }

    /// COMPAT: a discard is not cut: it counts as a write of its first block.
    fn split_at(&self, op: Op) -> Option<Sector> {
        matches!(op, Op::Read | Op::Write).then_some(Sector(self.block_sectors()))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {
                let mode = match self.fail_reads.load(Relaxed) {
                    true => "fail_read_on_bad_block",
                    false => "bypass",
                };
                let log = match self.quiet.load(Relaxed) {
                    true => "quiet",
                    false => "verbose",
                };
                out.push_str(&format!("{} {mode} {log}", self.device));
            }
            StatusKind::Table => out.push_str(&format!(
                "{} {} {}",
                self.device, self.start, self.block_bytes
            )),
            StatusKind::Measurement => {}
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        self.obey(argv)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: self.start,
            len: self.len,
        };
        visit(&self.device, role);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        self.device.dev.extents(self.place(start), len, out)
    }
}

const NAME: &str = "dust";
/// 1 GiB.
const BLOCK_SECTORS_MAX: u64 = 2_097_152;
