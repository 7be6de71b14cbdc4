//! `linear`: a line that lies on one device, as it is. The template for new targets.
//!
//! Arguments: `<device> <first sector>`. No status, no messages.

use std::sync::Arc;

use thinmap_block::{Extent, Io};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use crate::args::{measured, open_device, parse_u64};

/// The target type.
pub struct LinearType;

impl TargetType for LinearType {
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
        let [device, start] = args.argv else {
            return Err(TableError::invalid(NAME, "Invalid argument count"));
        };
        let start = parse_u64(start)
            .map(Sector)
            .ok_or_else(|| TableError::invalid(NAME, "Invalid device sector"))?;
        let device = open_device(cx, NAME, device, false, "Device lookup failed")?;
        Ok(Arc::new(Linear {
            begin: args.begin,
            len: args.len,
            device,
            start,
        }))
    }
}

struct Linear {
    begin: Sector,
    len: Sector,
    device: DeviceUse,
    start: Sector,
}

impl Linear {
    /// Where a sector of the mapped device lies. A line that leaves its device was refused with the table, so
    /// this wraps only for requests that the device refuses too.
    fn place(&self, sector: Sector) -> Sector {
        Sector((sector - self.begin).raw().wrapping_add(self.start.raw()))
    }
}

impl Target for Linear {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        // A flush has no place, and arrives with sector 0.
        if io.op != thinmap_block::Op::Flush {
            io.sector = self.place(io.sector);
        }
        MapOutcome::Remapped(io, &self.device.dev)
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => {}
            StatusKind::Table => out.push_str(&format!("{} {}", self.device, self.start)),
            StatusKind::Measurement => out.push_str(&format!(
                "{},device_name={},start={};",
                measured(NAME, VERSION),
                self.device,
                self.start
            )),
        }
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

const NAME: &str = "linear";
const VERSION: [u32; 3] = [1, 4, 0];
