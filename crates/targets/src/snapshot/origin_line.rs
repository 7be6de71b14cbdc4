//! `snapshot-origin`: a device whose writes wait until its snapshots have the old content.
//!
//! Argument: `<device>`. No status, no messages.

use std::sync::Arc;

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use super::origin::{Origin, Origins};
use crate::args::open_device;

/// The target type.
pub struct SnapshotOriginType;

impl TargetType for SnapshotOriginType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 9, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let [device] = args.argv else {
            let reason = "origin: incorrect number of arguments";
            return Err(TableError::invalid(NAME, reason));
        };
        let device = open_device(cx, NAME, device, false, "Cannot get target device")?;
        Ok(Arc::new(SnapshotOrigin {
            len: args.len,
            origin: cx.env.shared.of::<Origins>().of(device.id),
            device,
        }))
    }
}

struct SnapshotOrigin {
    len: Sector,
    device: DeviceUse,
    origin: Arc<Origin>,
}

impl Target for SnapshotOrigin {
    /// COMPAT: sectors are the device's own, wherever in its table the line begins.
    fn map(&self, io: Io) -> MapOutcome<'_> {
        if io.op != Op::Write {
            return MapOutcome::Remapped(io, &self.device.dev);
        }
        match self.origin.write(io, &self.device.dev) {
            Some(io) => MapOutcome::Remapped(io, &self.device.dev),
            None => MapOutcome::Submitted,
        }
    }

    /// Whatever changes the content comes as a write.
    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_discard = Sector::ZERO;
        limits.discard_granularity = 0;
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        if kind == StatusKind::Table {
            out.push_str(&self.device.to_string());
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.device, role);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        self.device.dev.extents(start, len, out)
    }
}

const NAME: &str = "snapshot-origin";
