//! `log-writes`: a line on one device whose writes are all written to another one too, in the order in which they became
//! durable.
//!
//! Arguments: `<device> <log device>`. Status: `<entries> <last sector of the log> [logging_disabled]`. Message: `mark <text>`.
//!
//! A write is logged when it has ended and a flush after it has, a FUA write when it has ended.
//!
//! COMPAT: the line's sectors are those of the device below, wherever the line begins.

mod disk;
mod log;
mod pending;

use std::sync::Arc;

use thinmap_block::{EndIo, Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MessageError, StatusFlags, StatusKind,
    TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use self::disk::HEAD_BYTES;
use self::log::{Log, LogRef};

use crate::args::open_device;

/// The target type.
pub struct LogWritesType;

impl TargetType for LogWritesType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 1, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        // COMPAT: words after these are not looked at.
        let [device, log_device, ..] = args.argv else {
            return Err(TableError::invalid(NAME, "Invalid argument count"));
        };
        let open = |spec: &str, what| open_device(cx, NAME, spec, false, what);
        let device = open(device, "Device lookup failed")?;
        let log_device = open(log_device, "Log device lookup failed")?;
        let block_bytes = device.dev.limits().logical_block_size;
        let log = Log::start(cx.env, log_device.dev.clone(), block_bytes).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(EAGAIN);
            TableError::new(NAME, format!("Couldn't alloc kthread: {error}"), errno)
        })?;
        Ok(Arc::new(LogWrites {
            len: args.len,
            discards: device.dev.limits().supports_discard(),
            device,
            log_device,
            block_bytes,
            log,
        }))
    }
}

struct LogWrites {
    len: Sector,
    device: DeviceUse,
    log_device: DeviceUse,
    /// Of an entry's head, and the unit of its numbers: the device's logical block.
    block_bytes: u32,
    /// Whether the device takes discards; they are logged in any case.
    discards: bool,
    log: LogRef,
}

impl LogWrites {
    /// Has a write or flush noted when it ends.
    fn watch(&self, io: &mut Io) {
        let batch = match io.op {
            // What ended before the flush came is durable when it ends.
            Op::Flush => self.log.begin_flush(),
            _ => io.sector.raw(),
        };
        io.push_end_io(self.log.shared(), batch);
    }
}

impl Target for LogWrites {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op == Op::Read || !self.log.is_enabled() {
            return MapOutcome::Remapped(io, &self.device.dev);
        }
        self.watch(&mut io);
        if io.op == Op::Discard && !self.discards {
            return MapOutcome::Kill(io, BlkStatus::Ok);
        }
        MapOutcome::Remapped(io, &self.device.dev)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let below = self.device.dev.limits();
        if !below.supports_discard() {
            limits.discard_granularity = self.block_bytes;
            limits.max_discard = DISCARD_SECTORS_MAX;
        }
        limits.logical_block_size = below.logical_block_size;
        limits.physical_block_size = below.physical_block_size;
        limits.io_min = below.physical_block_size;
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => out.push_str(&self.log.status()),
            StatusKind::Table => out.push_str(&format!("{} {}", self.device, self.log_device)),
            StatusKind::Measurement => {}
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let refused = |reason: String| MessageError::new(format!("{NAME}: {reason}"), EINVAL);
        let [word, text] = argv else {
            return Err(refused(format!(
                "Invalid log-writes message arguments, expect 2 arguments, got {}",
                argv.len()
            )));
        };
        if !word.eq_ignore_ascii_case("mark") {
            return Err(refused(format!(
                "Unrecognised log writes target message received: {word}"
            )));
        }
        // COMPAT: what does not fit its block, with a zero after it, is cut off.
        let room = (self.block_bytes as usize).saturating_sub(HEAD_BYTES + 1);
        let text = text.as_bytes();
        self.log.mark(&text[..text.len().min(room)]);
        Ok(None)
    }

    /// COMPAT: neither the log device's size nor its limits concern the core.
    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.device, role);
        visit(&self.log_device, DeviceRole::Other);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        self.device.dev.extents(start, len, out)
    }
}

/// A write, discard or flush has ended. COMPAT: it is logged, however it ended.
impl EndIo for log::Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        self.ended(io, tag, status);
    }
}

const NAME: &str = "log-writes";
/// `UINT_MAX >> 9`.
const DISCARD_SECTORS_MAX: Sector = Sector((u32::MAX >> 9) as u64);
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
