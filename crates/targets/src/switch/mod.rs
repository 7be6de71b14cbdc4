//! `switch`: regions of a line, each on one of several devices, as messages say.
//!
//! Arguments: `<paths> <region sectors> 0 (<device> <first sector>){paths}`. No status. Message: `set_region_mappings
//! [<region>]:<path> ... R<cycle>,<count> ...`, numbers hexadecimal.

mod message;
mod regions;

use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::kit::FanOut;
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MessageError, StatusFlags, StatusKind,
    TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use self::regions::Regions;
use crate::args::{open_device, parse_u32, scan_u32};

/// The target type.
pub struct SwitchType;

impl TargetType for SwitchType {
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
        let wrong = |reason: &str| TableError::invalid(NAME, reason);
        let mut words = args.argv.iter();
        let mut number = |range: std::ops::RangeInclusive<u32>, reason| {
            let word = words.next().map_or("", String::as_str);
            let number = scan_u32(word).filter(|number| range.contains(number));
            number.ok_or_else(|| wrong(reason))
        };
        let count = number(1..=PATHS_MAX, "Invalid number of paths")?;
        let region = number(1..=u32::MAX, "Invalid region size")?;
        number(0..=0, "Invalid number of optional args")?;
        let places = words.as_slice();
        if places.len() as u64 != 2 * u64::from(count) {
            return Err(wrong("Incorrect number of path arguments"));
        }
        let paths = places
            .chunks_exact(2)
            .map(|place| Path::parse(place, cx))
            .collect::<Result<Vec<_>, _>>()?;
        let nr_regions = args.len.raw().div_ceil(u64::from(region));
        let regions = Regions::in_turn(nr_regions, count)
            .ok_or_else(|| TableError::new(NAME, "Cannot allocate region table", ENOMEM))?;
        Ok(Arc::new(Switch {
            begin: args.begin,
            len: args.len,
            region,
            paths,
            regions,
            messages: Mutex::new(()),
        }))
    }
}

struct Path {
    device: DeviceUse,
    start: Sector,
}

impl Path {
    fn parse(place: &[String], cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        let [device, start] = place else {
            return Err(TableError::invalid(
                NAME,
                "Incorrect number of path arguments",
            ));
        };
        let device = open_device(cx, NAME, device, false, "Device lookup failed")?;
        let start = offset(start).map(Sector).ok_or_else(|| {
            TableError::invalid(NAME, format!("Invalid device starting offset: '{start}'"))
        })?;
        Ok(Self { device, start })
    }
}

/// A number as `kstrtoull(.., 10, ..)` takes it.
fn offset(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let digits = digits.strip_suffix('\n').unwrap_or(digits);
    match parse_u32(word) {
        Some(number) => Some(u64::from(number)),
        None => crate::args::parse_u64(digits),
    }
}

struct Switch {
    begin: Sector,
    len: Sector,
    /// Sectors.
    region: u32,
    paths: Vec<Path>,
    regions: Regions,
    /// Held by a message while it changes `regions`: they come one at a time.
    messages: Mutex<()>,
}

impl Switch {
    /// The path of a sector of the mapped device, and where on it.
    fn place(&self, sector: Sector) -> (&Path, Sector) {
        let offset = (sector - self.begin).raw();
        let number = self.regions.path(offset / u64::from(self.region));
        let path = self.paths.get(number as usize).unwrap_or(&self.paths[0]);
        (path, Sector(offset.wrapping_add(path.start.raw())))
    }

    /// Every path may have taken writes, and each is another way to its device.
    fn flush(&self, io: Io) -> MapOutcome<'_> {
        let fan = FanOut::new(io, self.paths.len());
        for path in &self.paths {
            path.device.dev.submit(fan.flush());
        }
        MapOutcome::Submitted
    }
}

impl Target for Switch {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op == Op::Flush {
            return self.flush(io);
        }
        let (path, sector) = self.place(io.sector);
        io.sector = sector;
        MapOutcome::Remapped(io, &path.device.dev)
    }

    /// COMPAT: a discard goes whole down the path of its first region: all paths lead to one array.
    fn split_at(&self, op: Op) -> Option<Sector> {
        matches!(op, Op::Read | Op::Write).then_some(Sector(u64::from(self.region)))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        if kind != StatusKind::Table {
            return;
        }
        out.push_str(&format!("{} {} 0", self.paths.len(), self.region));
        for path in &self.paths {
            out.push_str(&format!(" {} {}", path.device, path.start));
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let refused = |reason| MessageError::new(format!("{NAME}: {reason}"), EINVAL);
        match argv.split_first() {
            Some((word, rest)) if word.eq_ignore_ascii_case("set_region_mappings") => {
                let _one_at_a_time = self.messages.lock();
                let count = u32::try_from(self.paths.len()).unwrap_or(u32::MAX);
                message::set_region_mappings(&self.regions, count, rest).map_err(refused)?;
                Ok(None)
            }
            _ => Err(refused("Unrecognised message received.".to_owned())),
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        for path in &self.paths {
            let role = DeviceRole::Data {
                start: path.start,
                len: self.len,
            };
            visit(&path.device, role);
        }
    }

    /// One region's worth at a time.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let region = u64::from(self.region);
        let left = region - (start - self.begin).raw() % region;
        let (path, sector) = self.place(start);
        path.device.dev.extents(sector, len.min(Sector(left)), out)
    }
}

const NAME: &str = "switch";
/// As many as the kernel's allocation for them can hold.
const PATHS_MAX: u32 = 262_140;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
