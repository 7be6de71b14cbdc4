//! Line `mirror` as device mapper sees it.
//!
//! Arguments: see [`super::args`]. Status: `<legs> <device>... <in sync>/<regions> 1 <a letter per leg> <log's status>`. No messages.

use std::sync::Arc;

use thinmap_block::{Extent, Io, Op};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, StatusFlags, StatusKind, TableError, Target,
    TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use super::NAME;
use super::args::{self, LogPlace, log_wrong, wrong};
use super::disk_log::DiskLog;
use super::legs::{Leg, Legs};
use super::log::Log;
use super::set::{MirrorSet, NewSet, SetRef};
use super::worker::Ask;
use crate::args::{measured, open_device, parse_u64};

/// The target type `mirror`.
pub struct MirrorType;

impl TargetType for MirrorType {
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
        let (log_args, rest) = args::parse_log(args.argv, args.len)?;
        let device = match log_args.place {
            LogPlace::Core => None,
            LogPlace::Disk(spec) => {
                let opened = cx.open(NAME, spec, false);
                Some(opened.map_err(|error| log_wrong(&error.reason))?)
            }
        };
        let no_memory = || log_wrong("couldn't allocate the bits of so many regions");
        let log = Log::new(&log_args, args.len, device, cx.event.clone()).ok_or_else(no_memory)?;
        let disk_log = match &log.device {
            None => None,
            Some(device) => {
                let opened = DiskLog::new(device.dev.clone(), log.regions);
                Some(opened.map_err(|reason| log_wrong(&format!("{device}: {reason}")))?)
            }
        };
        let (places, rest) = args::parse_legs(rest)?;
        let list = places
            .chunks_exact(2)
            .map(|place| open_leg(place, cx))
            .collect::<Result<Vec<_>, _>>()?;
        let features = args::parse_features(rest)?;
        let new = NewSet {
            begin: args.begin,
            len: args.len,
            features,
            legs: Legs::new(list, features.handle_errors, cx.event.clone()),
            log,
            disk_log,
            event: cx.event.clone(),
        };
        let thread = format!("mirror-{}", cx.dev_no.minor);
        let set = MirrorSet::start(new, &*cx.env.spawner, &thread).map_err(|error| {
            let reason = format!("couldn't start the mirror's worker: {error}");
            TableError::new(NAME, reason, error.raw_os_error().unwrap_or(ENOMEM))
        })?;
        Ok(Arc::new(MirrorLine(set)))
    }
}

fn open_leg(place: &[String], cx: &ConstructCx<'_>) -> Result<Leg, TableError> {
    let [device, start] = place else {
        return Err(wrong("Too few mirror arguments"));
    };
    let start = parse_u64(start).ok_or_else(|| wrong("Invalid offset"))?;
    let device = open_device(cx, NAME, device, false, "Device lookup failure")?;
    Ok(Leg::new(device, Sector(start)))
}

struct MirrorLine(SetRef);

impl MirrorLine {
    fn set(&self) -> &Arc<MirrorSet> {
        &self.0.0
    }

    fn info(&self) -> String {
        let set = self.set();
        let mut text = format!("{} ", set.legs.list.len());
        for leg in &set.legs.list {
            text += &format!("{} ", leg.device);
        }
        text += &format!("{}/{} 1 ", set.log.in_sync_count(), set.log.regions);
        text.extend(set.legs.letters());
        text + " " + &set.log.status()
    }

    fn table(&self) -> String {
        let set = self.set();
        let mut text = set.log.table_words() + &set.legs.list.len().to_string();
        for leg in &set.legs.list {
            text += &format!(" {} {}", leg.device, leg.start);
        }
        text + set.features.table_words()
    }

    fn measurement(&self) -> String {
        let set = self.set();
        let mut text = measured(NAME, VERSION) + &format!(",nr_mirrors={}", set.legs.list.len());
        for (nr, (leg, letter)) in set.legs.list.iter().zip(set.legs.letters()).enumerate() {
            let device = &leg.device;
            text += &format!(",mirror_device_{nr}={device},mirror_device_{nr}_status={letter}");
        }
        let letter = |is: bool| if is { 'y' } else { 'n' };
        text + &format!(
            ",handle_errors={},keep_log={},log_type_status=;",
            letter(set.features.handle_errors),
            letter(set.features.keep_log)
        )
    }
}

impl Target for MirrorLine {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        let set = self.set();
        match io.op {
            Op::Read => set.map_read(io),
            Op::Write | Op::Discard | Op::WriteZeroes => set.map_write(io),
            Op::Flush if set.waits_for_log() => {
                set.failed(io);
                MapOutcome::Submitted
            }
            Op::Flush => {
                set.write_legs(io);
                MapOutcome::Submitted
            }
        }
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        (op != Op::Flush).then_some(self.set().log.region)
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        out.push_str(&match kind {
            StatusKind::Info => self.info(),
            StatusKind::Table => self.table(),
            StatusKind::Measurement => self.measurement(),
        });
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let set = self.set();
        if let Some(device) = &set.log.device {
            visit(device, DeviceRole::Other);
        }
        for leg in &set.legs.list {
            let role = DeviceRole::Data {
                start: leg.start,
                len: set.len,
            };
            visit(&leg.device, role);
        }
    }

    fn presuspend(&self, noflush: bool) {
        self.set().begin_suspend(noflush);
        self.set().ask(Ask::StopRecovery);
    }

    fn presuspend_undo(&self) {
        self.set().end_suspend();
        self.set().ask(Ask::StartRecovery);
    }

    fn postsuspend(&self) {
        self.set().ask(Ask::WriteLog);
    }

    fn resume(&self) {
        self.set().end_suspend();
        self.set().ask(Ask::Resume);
    }

    /// What the leg says that is right everywhere.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let leg = self.set().legs.default_leg();
        let place = leg.place(self.set().offset(start));
        leg.dev().extents(place, len, out)
    }
}

const VERSION: [u32; 3] = [1, 14, 0];
const ENOMEM: i32 = 12;
