//! `delay`: a line that lies on one device, or on one for reads, one for writes and one for flushes, some time later.
//!
//! Arguments: `<device> <first sector> <delay> [<write device> <first sector> <delay> [<flush device> <first sector> <delay>]]`,
//! delays in milliseconds. Status: how many reads, writes and flushes wait. No messages.

mod queue;

use std::sync::Arc;
use std::time::Duration;

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use self::queue::{DelayQueue, QueueRef};
use crate::args::{open_device, parse_u64, scan_u32};

/// The target type.
pub struct DelayType;

impl TargetType for DelayType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 3, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let given = args.argv.len();
        if ![3, 6, 9].contains(&given) {
            let reason = "Requires exactly 3, 6 or 9 arguments";
            return Err(TableError::invalid(NAME, reason));
        }
        let mut classes = args
            .argv
            .chunks_exact(3)
            .map(|words| Class::parse(words, cx))
            .collect::<Result<Vec<_>, _>>()?;
        // What is not given is as what is given last.
        let last = classes[classes.len() - 1].clone();
        classes.resize(CLASSES, last);
        let queue = DelayQueue::start(cx.env).map_err(|error| {
            TableError::new(
                NAME,
                format!("Couldn't start kdelayd: {error}"),
                error.raw_os_error().unwrap_or(EAGAIN),
            )
        })?;
        Ok(Arc::new(Delay {
            begin: args.begin,
            len: args.len,
            given: given / 3,
            classes,
            queue,
        }))
    }
}

/// What kind of requests go where, and how much later.
#[derive(Clone)]
struct Class {
    device: DeviceUse,
    start: Sector,
    /// Milliseconds.
    delay: u32,
}

impl Class {
    fn parse(words: &[String], cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        let [device, start, delay] = words else {
            return Err(TableError::invalid(NAME, "Invalid argument count"));
        };
        let start = parse_u64(start).map(Sector).ok_or_else(|| {
            TableError::invalid(NAME, format!("Invalid device sector: '{start}'"))
        })?;
        let delay = scan_u32(delay)
            .ok_or_else(|| TableError::invalid(NAME, format!("Invalid delay: '{delay}'")))?;
        let device = open_device(cx, NAME, device, false, "Device lookup failed")?;
        Ok(Self {
            device,
            start,
            delay,
        })
    }

    fn words(&self) -> String {
        format!("{} {} {}", self.device, self.start, self.delay)
    }
}

struct Delay {
    begin: Sector,
    len: Sector,
    /// How many classes the table line names.
    given: usize,
    /// Reads, writes, flushes.
    classes: Vec<Class>,
    queue: QueueRef,
}

impl Target for Delay {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        let nr = match io.op {
            Op::Read => READS,
            Op::Write | Op::WriteZeroes | Op::Discard => WRITES,
            Op::Flush => FLUSHES,
        };
        let class = &self.classes[nr];
        if io.op != Op::Flush {
            io.sector = Sector(
                (io.sector - self.begin)
                    .raw()
                    .wrapping_add(class.start.raw()),
            );
        }
        if class.delay == 0 {
            return MapOutcome::Remapped(io, &class.device.dev);
        }
        let delay = Duration::from_millis(u64::from(class.delay));
        match self.queue.add(nr, io, &class.device.dev, delay) {
            Ok(()) => MapOutcome::Submitted,
            Err(io) => MapOutcome::Remapped(io, &class.device.dev),
        }
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {
                let [reads, writes, flushes] = self.queue.waiting();
                out.push_str(&format!("{reads} {writes} {flushes}"));
            }
            StatusKind::Table => {
                let words: Vec<String> = self.classes[..self.given]
                    .iter()
                    .map(Class::words)
                    .collect();
                out.push_str(&words.join(" "));
            }
            StatusKind::Measurement => {}
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        for class in &self.classes {
            let role = DeviceRole::Data {
                start: class.start,
                len: self.len,
            };
            visit(&class.device, role);
        }
    }

    fn presuspend(&self, _noflush: bool) {
        self.queue.set_delaying(false);
    }

    fn presuspend_undo(&self) {
        self.queue.set_delaying(true);
    }

    fn resume(&self) {
        self.queue.set_delaying(true);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let reads = &self.classes[READS];
        let at = Sector((start - self.begin).raw().wrapping_add(reads.start.raw()));
        reads.device.dev.extents(at, len, out)
    }
}

const NAME: &str = "delay";
const CLASSES: usize = 3;
const READS: usize = 0;
const WRITES: usize = 1;
const FLUSHES: usize = 2;
const EAGAIN: i32 = 11;
