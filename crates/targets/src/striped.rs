//! `striped`: chunks dealt out to several devices in turn (RAID 0).
//!
//! Arguments: `<stripes> <chunk sectors> (<device> <first sector>){stripes}`. Status: `<stripes> <device>... 1
//! <A or D per stripe>`; a stripe that failed a request is `D`(ead), and the first failures of each raise an event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thinmap_block::{EndIo, Extent, Io, Op, QueueLimits};
use thinmap_dm::kit::FanOut;
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError,
    TableEvent, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use crate::args::{measured, parse_u32, parse_u64};

/// The target type.
pub struct StripedType;

impl TargetType for StripedType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let wrong = |reason: &str| TableError::invalid(NAME, reason);
        let [count, chunk, places @ ..] = args.argv else {
            return Err(wrong("Not enough arguments"));
        };
        let count = parse_u32(count)
            .filter(|count| *count > 0)
            .ok_or_else(|| wrong("Invalid stripe count"))?;
        let chunk = parse_u32(chunk)
            .filter(|chunk| *chunk > 0)
            .ok_or_else(|| wrong("Invalid chunk_size"))?;
        let len = args.len.raw();
        if !len.is_multiple_of(u64::from(count)) {
            return Err(wrong("Target length not divisible by number of stripes"));
        }
        let width = len / u64::from(count);
        if !width.is_multiple_of(u64::from(chunk)) {
            return Err(wrong("Target length not divisible by chunk size"));
        }
        if places.len() as u64 != 2 * u64::from(count) {
            return Err(wrong("Not enough destinations specified"));
        }
        let stripes = places
            .chunks_exact(2)
            .map(|place| open_stripe(place, cx))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Striped {
            begin: args.begin,
            width: Sector(width),
            chunk: u64::from(chunk),
            health: Arc::new(Health {
                failures: stripes.iter().map(|_| AtomicU32::new(0)).collect(),
                event: cx.event.clone(),
            }),
            stripes,
        }))
    }
}

fn open_stripe(place: &[String], cx: &ConstructCx<'_>) -> Result<Stripe, TableError> {
    let refuse = |why: String, errno| TableError::new(NAME, why, errno);
    let [device, start] = place else {
        return Err(refuse(BAD_PLACE.to_owned(), EINVAL));
    };
    let start = parse_u64(start)
        .ok_or_else(|| refuse(format!("{BAD_PLACE}: '{start}' is no sector"), EINVAL))?;
    let device = cx
        .open(NAME, device, false)
        .map_err(|error| refuse(format!("{BAD_PLACE}: {}", error.reason), error.errno))?;
    Ok(Stripe {
        device,
        start: Sector(start),
    })
}

struct Striped {
    begin: Sector,
    /// Length of each stripe.
    width: Sector,
    /// Sectors.
    chunk: u64,
    stripes: Vec<Stripe>,
    health: Arc<Health>,
}

struct Stripe {
    device: DeviceUse,
    start: Sector,
}

/// Failures by stripe.
struct Health {
    failures: Vec<AtomicU32>,
    event: Arc<TableEvent>,
}

impl Striped {
    /// Which stripe a sector of the mapped device is on, and where in it.
    fn place(&self, sector: Sector) -> (usize, u64) {
        let offset = (sector - self.begin).raw();
        let count = self.stripes.len() as u64;
        let (chunk, into) = (offset / self.chunk, offset % self.chunk);
        // The remainder is below the count of stripes, which is in memory.
        let stripe = (chunk % count) as usize;
        (stripe, chunk / count * self.chunk + into)
    }

    /// How much of the line before `sector` is on `stripe`: the part of a range on a stripe is
    /// what lies between these of its ends.
    fn before(&self, sector: Sector, stripe: usize) -> u64 {
        let offset = (sector - self.begin).raw();
        let row = self.chunk * self.stripes.len() as u64;
        let (rows, into) = (offset / row, offset % row);
        let in_row = into.saturating_sub(self.chunk * stripe as u64);
        rows * self.chunk + in_row.min(self.chunk)
    }

    /// Sends a request that carries no data to all stripes that it touches, one part each.
    fn spread(&self, io: Io) -> MapOutcome<'_> {
        let (sector, end) = (io.sector, io.end());
        let part_on = |index: usize| {
            let (from, to) = (self.before(sector, index), self.before(end, index));
            (from < to).then_some((from, Sector(to - from)))
        };
        let parts = (0..self.stripes.len()).filter(|i| part_on(*i).is_some());
        let fan = FanOut::new(io, parts.count());
        for (index, stripe) in self.stripes.iter().enumerate() {
            if let Some((from, len)) = part_on(index) {
                let mut part = fan.part(Sector(stripe.start.raw().wrapping_add(from)), len);
                part.push_end_io(self.health.clone(), index as u64);
                stripe.device.dev.submit(part);
            }
        }
        MapOutcome::Submitted
    }

    fn flush(&self, io: Io) -> MapOutcome<'_> {
        let fan = FanOut::new(io, self.stripes.len());
        for (index, stripe) in self.stripes.iter().enumerate() {
            let mut part = fan.flush();
            part.push_end_io(self.health.clone(), index as u64);
            stripe.device.dev.submit(part);
        }
        MapOutcome::Submitted
    }
}

impl Target for Striped {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        match io.op {
            Op::Flush => self.flush(io),
            Op::Discard | Op::WriteZeroes => self.spread(io),
            Op::Read | Op::Write => {
                let (index, offset) = self.place(io.sector);
                let stripe = &self.stripes[index];
                io.sector = Sector(stripe.start.raw().wrapping_add(offset));
                io.push_end_io(self.health.clone(), index as u64);
                MapOutcome::Remapped(io, &stripe.device.dev)
            }
        }
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        match op {
            Op::Read | Op::Write => Some(Sector(self.chunk)),
            // One part per stripe, however many chunks long.
            Op::Discard | Op::WriteZeroes | Op::Flush => None,
        }
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let chunk_bytes = self.chunk.checked_mul(512);
        let row_bytes = chunk_bytes.and_then(|b| b.checked_mul(self.stripes.len() as u64));
        // COMPAT: sizes that do not fit are left alone.
        if let (Some(Ok(min)), Some(Ok(opt))) =
            (chunk_bytes.map(u32::try_from), row_bytes.map(u32::try_from))
        {
            limits.io_min = min;
            limits.io_opt = opt;
        }
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {
                out.push_str(&format!("{} ", self.stripes.len()));
                for stripe in &self.stripes {
                    out.push_str(&format!("{} ", stripe.device));
                }
                out.push_str("1 ");
                out.extend(self.health.letters());
            }
            StatusKind::Table => {
                out.push_str(&format!("{} {}", self.stripes.len(), self.chunk));
                for stripe in &self.stripes {
                    out.push_str(&format!(" {} {}", stripe.device, stripe.start));
                }
            }
            StatusKind::Measurement => {
                out.push_str(&format!(
                    "{},stripes={},chunk_size={}",
                    measured(NAME, VERSION),
                    self.stripes.len(),
                    self.chunk
                ));
                let letters = self.health.letters();
                for (nr, (stripe, letter)) in self.stripes.iter().zip(letters).enumerate() {
                    out.push_str(&format!(
                        ",stripe_{nr}_device_name={},stripe_{nr}_physical_start={},stripe_{nr}_status={letter}",
                        stripe.device, stripe.start
                    ));
                }
                out.push(';');
            }
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        for stripe in &self.stripes {
            let role = DeviceRole::Data {
                start: stripe.start,
                len: self.width,
            };
            visit(&stripe.device, role);
        }
    }

    /// One chunk's worth at a time: what its device says of it.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let (index, offset) = self.place(start);
        let stripe = &self.stripes[index];
        let left = self.chunk - (start - self.begin).raw() % self.chunk;
        let at = Sector(stripe.start.raw().wrapping_add(offset));
        stripe.device.dev.extents(at, len.min(Sector(left)), out)
    }
}

impl Health {
    fn letters(&self) -> impl Iterator<Item = char> + '_ {
        self.failures
            .iter()
            .map(|count| match count.load(Ordering::Relaxed) {
                0 => 'A',
                _ => 'D',
            })
    }
}

impl EndIo for Health {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let failed = !matches!(
            status,
            BlkStatus::Ok | BlkStatus::NotSupp | BlkStatus::Requeue
        );
        if failed && let Some(count) = self.failures.get(tag as usize) {
            let failures = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if failures < EVENTS_UNTIL_FAILURES {
                self.event.trigger();
            }
        }
        io.complete(status);
    }
}

const NAME: &str = "striped";
const VERSION: [u32; 3] = [1, 6, 0];
const BAD_PLACE: &str = "Couldn't parse stripe destination";
/// After so many failures of one stripe no more events tell of it.
const EVENTS_UNTIL_FAILURES: u32 = 15;
const EINVAL: i32 = 22;
