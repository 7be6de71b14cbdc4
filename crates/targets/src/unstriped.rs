//! `unstriped`: one stripe of a striped device, as a line of its own.
//!
//! Arguments: `<stripes> <chunk sectors> <stripe> <device> <first sector>`. No status, no messages.

use std::sync::Arc;

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use crate::args::{parse_u32, parse_u64};

/// The target type.
pub struct UnstripedType;

impl TargetType for UnstripedType {
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
        let wrong = |reason: String| TableError::invalid(NAME, reason);
        let [count, chunk, stripe, device, start] = args.argv else {
            return Err(wrong("Invalid number of arguments".to_owned()));
        };
        let count = parse_u32(count)
            .filter(|count| *count > 0)
            .ok_or_else(|| wrong(format!("Invalid stripe count: '{count}'")))?;
        let chunk = parse_u32(chunk)
            .filter(|chunk| *chunk > 0)
            .ok_or_else(|| wrong(format!("Invalid chunk_size: '{chunk}'")))?;
        let stripe =
            parse_u32(stripe).ok_or_else(|| wrong(format!("Invalid stripe number: '{stripe}'")))?;
        // COMPAT: one too many is let through, and so is any number for one stripe.
        if stripe > count && count > 1 {
            let reason = "Please provide stripe between [0, # of stripes]";
            return Err(wrong(reason.to_owned()));
        }
        let device = cx
            .open(NAME, device, false)
            .map_err(|error| wrong(format!("Couldn't get striped device: {}", error.reason)))?;
        let start = parse_u64(start)
            .map(Sector)
            .ok_or_else(|| wrong(format!("Invalid striped device offset: '{start}'")))?;
        if !args.len.raw().is_multiple_of(u64::from(chunk)) {
            return Err(wrong(
                "Target length not divisible by chunk size".to_owned(),
            ));
        }
        Ok(Arc::new(Unstriped {
            begin: args.begin,
            len: args.len,
            count,
            chunk,
            stripe,
            device,
            start,
        }))
    }
}

struct Unstriped {
    begin: Sector,
    len: Sector,
    count: u32,
    /// Sectors.
    chunk: u32,
    stripe: u32,
    device: DeviceUse,
    start: Sector,
}

impl Unstriped {
    fn place(&self, sector: Sector) -> Sector {
        let sector = sector - self.begin;
        let chunk = u64::from(self.chunk);
        let rows = sector.raw() / chunk;
        // Wraps only where the device below ends long before.
        let others = u64::from(self.count - 1).wrapping_mul(chunk);
        let place = sector
            .raw()
            .wrapping_add(others.wrapping_mul(rows))
            .wrapping_add(u64::from(self.stripe) * chunk)
            .wrapping_add(self.start.raw());
        Sector(place)
    }
}

impl Target for Unstriped {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush {
            io.sector = self.place(io.sector);
        }
        MapOutcome::Remapped(io, &self.device.dev)
    }

    fn split_at(&self, _: Op) -> Option<Sector> {
        Some(Sector(u64::from(self.chunk)))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_discard = Sector::ZERO;
        limits.discard_granularity = 0;
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        if kind == StatusKind::Table {
            out.push_str(&format!(
                "{} {} {} {} {}",
                self.count, self.chunk, self.stripe, self.device, self.start
            ));
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: self.start,
            len: self.len,
        };
        visit(&self.device, role);
    }

    /// One chunk's worth at a time.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let chunk = u64::from(self.chunk);
        let left = chunk - (start - self.begin).raw() % chunk;
        let place = self.place(start);
        self.device.dev.extents(place, len.min(Sector(left)), out)
    }
}

const NAME: &str = "unstriped";
