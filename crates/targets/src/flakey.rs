//! `flakey`: a line on one device that works for some seconds, then fails for some, and so on.
//!
//! Arguments: `<device> <first sector> <up seconds> <down seconds> [<count> <feature>...]`; features `drop_writes`, `error_writes`,
//! `corrupt_bio_byte <nth> <r|w> <value> <flags>`. No status, no messages.

use std::sync::Arc;
use std::time::Duration;

use thinmap_block::{EndIo, Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_runtime::Clock;
use thinmap_units::{BlkStatus, Sector};

use self::features::{Corruption, Features, Writes};
use crate::args::{open_device, parse_u64, scan_u32};

mod features;

/// The target type.
pub struct FlakeyType;

impl TargetType for FlakeyType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 5, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let wrong = |reason: String| TableError::invalid(NAME, reason);
        let [device, start, up, down, features @ ..] = args.argv else {
            return Err(wrong("Invalid argument count".to_owned()));
        };
        let start = parse_u64(start)
            .map(Sector)
            .ok_or_else(|| wrong(format!("Invalid device sector: '{start}'")))?;
        let up = scan_u32(up).ok_or_else(|| wrong(format!("Invalid up interval: '{up}'")))?;
        let down =
            scan_u32(down).ok_or_else(|| wrong(format!("Invalid down interval: '{down}'")))?;
        match up.checked_add(down) {
            Some(0) => return Err(wrong("Total (up + down) interval is zero".to_owned())),
            None => return Err(wrong("Interval overflow".to_owned())),
            Some(_) => {}
        }
        let features = Features::parse(features)?;
        let device = open_device(cx, NAME, device, false, "Device lookup failed")?;
        Ok(Arc::new(Flakey {
            begin: args.begin,
            len: args.len,
            device,
            start,
            up,
            down,
            corruption: features.corruption.map(Arc::new),
            writes: features.writes,
            since: cx.env.clock.now(),
            clock: cx.env.clock.clone(),
        }))
    }
}

struct Flakey {
    begin: Sector,
    len: Sector,
    device: DeviceUse,
    start: Sector,
    /// Seconds.
    up: u32,
    /// Seconds.
    down: u32,
    writes: Writes,
    corruption: Option<Arc<Corruption>>,
    /// When it was constructed: the intervals are counted from then.
    since: Duration,
    clock: Arc<dyn Clock>,
}

impl Flakey {
    fn is_down(&self) -> bool {
        let elapsed = self.clock.now().saturating_sub(self.since).as_secs();
        let round = u64::from(self.up) + u64::from(self.down);
        elapsed % round >= u64::from(self.up)
    }

    fn place(&self, sector: Sector) -> Sector {
        Sector((sector - self.begin).raw().wrapping_add(self.start.raw()))
    }

    fn pass(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush {
            io.sector = self.place(io.sector);
        }
        MapOutcome::Remapped(io, &self.device.dev)
    }

    /// A read while down: it fails unless a feature says what fails instead.
    fn read(&self, mut io: Io) -> MapOutcome<'_> {
        match &self.corruption {
            Some(corruption) => {
                if corruption.is_meant(&io) {
                    io.push_end_io(corruption.clone(), 0);
                }
                self.pass(io)
            }
            None if self.writes == Writes::Fail => MapOutcome::Kill(io, BlkStatus::IoErr),
            None => self.pass(io),
        }
    }

    /// A write, discard or flush while down.
    fn write(&self, mut io: Io) -> MapOutcome<'_> {
        match (self.writes, &self.corruption) {
            (Writes::Drop, _) => MapOutcome::Kill(io, BlkStatus::Ok),
            (Writes::Error, _) => MapOutcome::Kill(io, BlkStatus::IoErr),
            (Writes::Fail, Some(corruption)) => {
                if corruption.is_meant(&io)
                    && let Some(original) = corruption.spoil(&mut io)
                {
                    io.push_end_io(corruption.clone(), u64::from(original));
                }
                self.pass(io)
            }
            (Writes::Fail, None) => MapOutcome::Kill(io, BlkStatus::IoErr),
        }
    }
}

impl Target for Flakey {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        if !self.is_down() {
            return self.pass(io);
        }
        match io.op {
            Op::Read => self.read(io),
            _ => self.write(io),
        }
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        if kind != StatusKind::Table {
            return;
        }
        let (words, count) = match self.writes {
            Writes::Fail => ("", 0),
            Writes::Drop => ("drop_writes ", 1),
            Writes::Error => ("error_writes ", 1),
        };
        let corruption = self.corruption.as_deref();
        let count = count + corruption.map_or(0, |_| features::CORRUPTION_WORDS);
        // COMPAT: with a blank at the end.
        out.push_str(&format!(
            "{} {} {} {} {count} {words}{}",
            self.device,
            self.start,
            self.up,
            self.down,
            corruption.map_or(String::new(), Corruption::words)
        ));
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

/// A request that is corrupted has ended: what was read is changed now, what was written is put right again for its sender.
impl EndIo for Corruption {
    fn end_io(self: Arc<Self>, mut io: Io, original: u64, status: BlkStatus) {
        if io.op == Op::Read {
            if status.is_ok() {
                self.spoil(&mut io);
            }
        } else if let Ok(original) = u8::try_from(original) {
            self.put(&mut io, original);
        }
        io.complete(status);
    }
}

const NAME: &str = "flakey";
