//! `error`: fails every request. Takes any arguments, for it may stand in for any other target.
//!
//! No status, no messages.

use std::sync::Arc;

use thinmap_block::{Io, QueueLimits, SECTORS_UNLIMITED};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::BlkStatus;

/// The target type.
pub struct ErrorType;

impl TargetType for ErrorType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: "error",
            version: [1, 5, 0],
            features: TargetFeatures {
                wildcard: true,
                ..TargetFeatures::default()
            },
        }
    }

    // COMPAT: arguments are not looked at.
    fn construct(
        &self,
        _: &TargetArgs<'_>,
        _: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        Ok(Arc::new(Failing))
    }
}

struct Failing;

impl Target for Failing {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        MapOutcome::Kill(io, BlkStatus::IoErr)
    }

    /// Discards arrive, and fail: an `error` line must not take them away from the other lines of its table.
    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.discard_granularity = 512;
        limits.max_discard = SECTORS_UNLIMITED;
        limits.max_write_zeroes = SECTORS_UNLIMITED;
    }

    fn status(&self, _: StatusKind, _: StatusFlags, _: &mut String) {}

    fn visit_devices(&self, _: &mut dyn FnMut(&DeviceUse, DeviceRole)) {}

    /// Nothing can be said of it: as good as data that cannot be read.
    fn extents(
        &self,
        _: thinmap_units::Sector,
        _: thinmap_units::Sector,
        _: &mut Vec<thinmap_block::Extent>,
    ) -> Result<(), BlkStatus> {
        Err(BlkStatus::IoErr)
    }
}
