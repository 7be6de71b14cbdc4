//! `zero`: reads as zeroes, forgets what is written. No arguments, no status, no messages.

use std::sync::Arc;

use thinmap_block::{Extent, Io, Op, QueueLimits, SECTORS_UNLIMITED};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

/// The target type.
pub struct ZeroType;

impl TargetType for ZeroType {
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
        _: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        if !args.argv.is_empty() {
            return Err(TableError::invalid(NAME, "No arguments required"));
        }
        Ok(Arc::new(Zero))
    }
}

struct Zero;

impl Target for Zero {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op == Op::Read {
            io.buf.as_mut_slice().fill(0);
        }
        MapOutcome::Kill(io, BlkStatus::Ok)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.discard_granularity = 512;
        limits.max_discard = SECTORS_UNLIMITED;
        limits.max_write_zeroes = SECTORS_UNLIMITED;
    }

    fn status(&self, _: StatusKind, _: StatusFlags, _: &mut String) {}

    fn visit_devices(&self, _: &mut dyn FnMut(&DeviceUse, DeviceRole)) {}

    fn extents(&self, _: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        out.push(Extent {
            sectors: len,
            allocated: false,
            zeroes: true,
        });
        Ok(())
    }
}

const NAME: &str = "zero";
