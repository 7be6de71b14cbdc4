//! Lines `raid` as device mapper sees them. Arguments: see [`super::args`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use arc_swap::ArcSwapOption;
use thinmap_block::{Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, Environment, MapOutcome, MessageError, ResumeError,
    StatusFlags, StatusKind, TableError, TableEvent, Target, TargetArgs, TargetFeatures,
    TargetInfo, TargetType,
};
use thinmap_units::{BlkStatus, Sector};

use super::args::{self, Args, NAME};
use super::array::ArrayRef;
use super::assemble::{Assembled, Found, assemble};
use super::metadata::find;
use super::raid_type;
use super::setup::{self, Setup};
use super::sync::Order;
use crate::args::open_device;

/// The target type `raid`.
pub struct RaidType;

/// Of the kernel's target.
pub(super) const VERSION: [u32; 3] = [1, 15, 1];

impl TargetType for RaidType {
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
        let mut journal = |spec: &str| open_journal(spec, cx);
        let parsed = args::parse(args.argv, args.len, &mut journal)?;
        let devices = open_members(&parsed, cx)?;
        let copies = parsed.copies;
        let count = parsed.devices.len();
        let member_len = raid_type::member_len(parsed.raid_type, count, copies, args.len)
            .ok_or_else(|| wrong("Target length not divisible by number of data devices"))?;
        let too_small = |(_, data): &(_, Option<DeviceUse>)| {
            data.as_ref()
                .is_some_and(|data| data.dev.size() < member_len)
        };
        if devices.iter().any(too_small) {
            return Err(wrong("Component device(s) too small"));
        }
        let assembled = assemble(&parsed, &look_at(&devices)?, member_len)?;
        let mut line = RaidLine {
            begin: args.begin,
            len: args.len,
            args: parsed,
            devices,
            member_len,
            read_only: cx.read_only,
            name: cx.dev_no.minor.to_string(),
            env: cx.env.clone(),
            event: cx.event.clone(),
            preview: assembled,
            array: ArcSwapOption::empty(),
            was_resumed: AtomicBool::new(false),
            data_members: 0,
        };
        line.data_members = line.setup(&line.preview).check()?.data_members();
        Ok(Arc::new(line))
    }
}

fn wrong(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

/// A device of a line: what is said when it cannot be had.
fn open(spec: &str, what: &str, cx: &ConstructCx<'_>) -> Result<DeviceUse, TableError> {
    open_device(cx, NAME, spec, false, what)
}

/// COMPAT: a journal is not supported; its device is looked at first, as there.
fn open_journal(spec: &str, cx: &ConstructCx<'_>) -> Result<(), TableError> {
    let device = open(spec, "raid4/5/6 journal device lookup failure", cx)?;
    if device.dev.size() < JOURNAL_SECTORS_MIN {
        return Err(TableError::new(
            NAME,
            "No space for raid4/5/6 journal",
            ENOSPC,
        ));
    }
    Err(wrong("raid4/5/6 journal device is not supported"))
}

type Pair = (Option<DeviceUse>, Option<DeviceUse>);

/// Metadata and data device of each member.
fn open_members(parsed: &Args, cx: &ConstructCx<'_>) -> Result<Vec<Pair>, TableError> {
    let mut devices = Vec::with_capacity(parsed.devices.len());
    for (index, (meta, data)) in parsed.devices.iter().enumerate() {
        let meta = match meta.as_str() {
            "-" => None,
            spec => Some(open(spec, "RAID metadata device lookup failure", cx)?),
        };
        let data = match data.as_str() {
            "-" if parsed.options.rebuild.contains(&index) => {
                return Err(wrong("Drive designated for rebuild not specified"));
            }
            "-" if meta.is_some() => {
                return Err(wrong("No data device supplied with metadata device"));
            }
            "-" => None,
            spec => Some(open(spec, "RAID device lookup failure", cx)?),
        };
        devices.push((meta, data));
    }
    Ok(devices)
}

fn look_at(devices: &[Pair]) -> Result<Vec<Found>, TableError> {
    let mut found = Vec::with_capacity(devices.len());
    for (meta, data) in devices {
        if let Some(meta) = meta
            && meta.dev.limits().logical_block_size > BLOCK_BYTES_MAX
        {
            return Err(wrong(
                "superblock size of a logical block is no longer valid",
            ));
        }
        found.push(find(data.is_some(), meta.as_ref().map(|meta| &*meta.dev)));
    }
    if found.iter().all(|member| !member.has_data) {
        return Err(wrong("Invalid rdev size"));
    }
    Ok(found)
}

/// A line.
pub(super) struct RaidLine {
    begin: Sector,
    len: Sector,
    pub args: Args,
    pub devices: Vec<Pair>,
    pub member_len: Sector,
    read_only: bool,
    name: String,
    env: Arc<Environment>,
    event: Arc<TableEvent>,
    /// What the superblocks said when the table was loaded: shown until the array is there.
    pub preview: Assembled,
    /// Since the first resume.
    pub array: ArcSwapOption<ArrayRef>,
    was_resumed: AtomicBool,
    /// Members' worth of data in a row of chunks.
    data_members: u32,
}

impl RaidLine {
    fn setup<'a>(&'a self, assembled: &'a Assembled) -> Setup<'a> {
        Setup {
            args: &self.args,
            devices: &self.devices,
            assembled,
            member_len: self.member_len,
            array_len: self.len,
            read_only: self.read_only,
            event: &self.event,
            clock: &self.env.clock,
        }
    }

    /// Puts the array together as its superblocks are now: since the table was loaded an earlier one may have changed them.
    fn start(&self) -> Result<Arc<ArrayRef>, TableError> {
        let assembled = assemble(&self.args, &look_at(&self.devices)?, self.member_len)?;
        self.setup(&assembled).start(&*self.env.spawner, &self.name)
    }
}

impl Target for RaidLine {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        let array = self.array.load();
        let Some(array) = array.as_ref().map(|held| &held.0) else {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        };
        if io.op != Op::Flush {
            io.sector -= self.begin;
            // Behind the last whole row of chunks there is nothing.
            if io.end() > setup::usable_len(&self.args, self.member_len, self.len) {
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
        }
        array.submit(io);
        MapOutcome::Submitted
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        if op == Op::Flush {
            return None;
        }
        let array = self.array.load();
        let level = array.as_ref().and_then(|held| held.0.level.split_at(op));
        Some(level.unwrap_or(self.args.region))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let chunk = self.args.chunk.bytes();
        let row = chunk.saturating_mul(u64::from(self.data_members));
        if let (Ok(min), Ok(opt)) = (u32::try_from(chunk), u32::try_from(row))
            && chunk > 0
        {
            limits.io_min = limits.io_min.max(min);
            limits.io_opt = opt;
        }
        if !self.args.raid_type.is_raid0() {
            limits.max_write_zeroes = Sector::ZERO;
        }
        if self.args.raid_type.is_parity() {
            limits.max_discard = Sector::ZERO;
            limits.discard_granularity = 0;
        }
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => self.info(out),
            StatusKind::Table => self.table(out),
            StatusKind::Measurement => self.measurement(out),
        }
    }

    /// `check`, `repair`, `resync`, `recover`, `idle`, `frozen`.
    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let word = argv.first().map(|word| word.to_ascii_lowercase());
        let word = word.unwrap_or_default();
        let array = self.array.load();
        let Some(array) = array.as_ref().map(|held| &held.0) else {
            return Err(MessageError::new("the array does not run yet", EINVAL));
        };
        if self.args.raid_type.is_raid0() {
            return Err(MessageError::new("raid0 has nothing to sync", EINVAL));
        }
        let order = match word.as_str() {
            "frozen" => Order::Frozen,
            "idle" => Order::Idle,
            "resync" | "recover" => Order::Needed,
            "check" => Order::Check,
            "repair" => Order::Repair,
            _ => return Err(MessageError::unsupported(&word)),
        };
        if !array.order(order) {
            return Err(MessageError::new("a sync is under way", EBUSY));
        }
        Ok(None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.member_len,
        };
        for (meta, data) in &self.devices {
            if let Some(meta) = meta {
                visit(meta, DeviceRole::Other);
            }
            if let Some(data) = data {
                visit(data, role);
            }
        }
    }

    fn presuspend(&self, _: bool) {
        if let Some(held) = &*self.array.load() {
            held.0.pause();
        }
    }

    fn presuspend_undo(&self) {
        if let Some(held) = &*self.array.load() {
            held.0.go_on();
        }
    }

    fn postsuspend(&self) {
        if let Some(held) = &*self.array.load() {
            held.0.settle();
        }
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        if self.array.load().is_some() {
            return Ok(());
        }
        let array = self
            .start()
            .map_err(|error| ResumeError::new(NAME, error.reason, error.errno))?;
        self.array.store(Some(array));
        Ok(())
    }

    fn resume(&self) {
        if let Some(held) = &*self.array.load() {
            if self.was_resumed.swap(true, SeqCst) {
                held.0.revive();
            }
            held.0.go_on();
        }
    }
}

/// As long as a journal must be: 4 MiB.
const JOURNAL_SECTORS_MIN: Sector = Sector(4 * 2048);
/// A superblock is one logical block, and no longer than a page.
const BLOCK_BYTES_MAX: u32 = 4096;

const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
