//! A mapped device: a name, a live table that takes requests, an inactive one that waits for resume.
//!
//! The daemon makes and controls it; exports and other tables submit to it ([`BlockDevice`]). Control calls may come from many
//! threads at once; see `docs/internals/locking.md` for the order of the locks.
//!
//! INVARIANT: the live table changes only while the gate is closed and no request is in flight.

use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, Extent, Io, QueueLimits};
use thinmap_units::{BlkStatus, DevNo, DmName, DmUuid, Sector, TableLine};

use crate::claims::{Openings, reaches};
use crate::device_use::DeviceId;
use crate::environment::Environment;
use crate::error::{MessageError, ResumeError, TableError};
use crate::event::TableEvent;
use crate::io::IoCore;
use crate::registry::Registry;
use crate::table::{LiveTable, Table, retire};
use crate::target::{ConstructCx, StatusFlags, StatusKind};

/// One device of device mapper.
pub struct MappedDevice {
    env: Arc<Environment>,
    registry: Registry,
    dev_no: DevNo,
    labels: Mutex<Labels>,
    pub(crate) core: Arc<IoCore>,
    /// Serialises loads, suspends and resumes. Held while a suspend waits for requests.
    pub(crate) control: Mutex<Control>,
    /// Held around calls of targets' control methods but `status`, never while waiting for requests: messages work
    /// while a suspend hangs.
    pub(crate) target_calls: Mutex<()>,
    /// Shortly held; never while a target is called or dropped.
    pub(crate) staged: Mutex<Staged>,
    event: Arc<TableEvent>,
    openings: Openings,
}

struct Labels {
    name: DmName,
    uuid: Option<DmUuid>,
}

#[derive(Default)]
pub(crate) struct Control {
    pub(crate) frozen: bool,
}

/// What facts are told from, and the inactive table.
#[derive(Default)]
pub(crate) struct Staged {
    pub(crate) inactive: Option<Arc<Table>>,
    /// A table was loaded once: later ones meet their devices' limits at resume only.
    loaded_once: bool,
    pub(crate) suspended: bool,
    pub(crate) frozen: bool,
    pub(crate) destroyed: bool,
}

/// Which of a device's two tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhichTable {
    /// The one that takes requests.
    Live,
    /// The one that waits for resume.
    Inactive,
}

/// A table in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFacts {
    /// Lines.
    pub target_count: u32,
    /// Loaded read-only.
    pub read_only: bool,
    /// Length of the device with it.
    pub size: Sector,
}

/// A device in short.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceFacts {
    /// The name.
    pub name: DmName,
    /// The uuid, if it has one.
    pub uuid: Option<DmUuid>,
    /// The number.
    pub dev_no: DevNo,
    /// Requests wait for a resume.
    pub suspended: bool,
    /// A table was loaded once, whatever became of it.
    pub loaded_once: bool,
    /// `None` before the first resume.
    pub live: Option<TableFacts>,
    /// `None` when nothing waits for resume.
    pub inactive: Option<TableFacts>,
    /// Events so far.
    pub event_nr: u32,
    /// Openings inside the daemon ([`MappedDevice::open`]); outside ones come on top.
    pub open_count: u32,
}

/// One line of `dmsetup status` or `dmsetup table`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetStatus {
    /// First sector.
    pub start: Sector,
    /// Length.
    pub len: Sector,
    /// The target type's name.
    pub target: &'static str,
    /// What the target says.
    pub text: String,
}

/// Why a control call failed.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The table is wrong.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A target refused to go live.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// A target refused a message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The mounted file system could not be frozen.
    #[error("{dev}: the file system on it cannot be frozen (errno {errno})")]
    Freeze {
        /// The device.
        dev: DevNo,
        /// Why, by the system's word.
        errno: i32,
    },
    /// Whoever asked for a suspend went away before it was done; the device goes on.
    #[error("{dev}: suspend was interrupted")]
    Interrupted {
        /// The device.
        dev: DevNo,
    },
    /// There is no table to resume or to talk to.
    #[error("{dev}: no live table")]
    NoTable {
        /// The device.
        dev: DevNo,
        /// The kernel's errno, which depends on the command.
        errno: i32,
    },
    /// Somebody has it open.
    #[error("{dev}: device is in use")]
    Busy {
        /// The device.
        dev: DevNo,
    },
    /// It is going or gone.
    #[error("{dev}: device is being removed")]
    Removed {
        /// The device.
        dev: DevNo,
    },
    /// It has a uuid, which is for life.
    #[error("{dev}: uuid is already set")]
    UuidSet {
        /// The device.
        dev: DevNo,
    },
}

impl DeviceError {
    /// The errno that the kernel gives.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Table(error) => error.errno,
            Self::Resume(error) => error.errno,
            Self::Message(error) => error.errno,
            Self::Freeze { errno, .. } | Self::NoTable { errno, .. } => *errno,
            Self::Interrupted { .. } => EINTR,
            Self::UuidSet { .. } => EINVAL,
            Self::Busy { .. } => EBUSY,
            Self::Removed { .. } => ENXIO,
        }
    }
}

impl MappedDevice {
    /// A device without a table. `dev_no` and name must be free: the daemon sees to that.
    pub fn new(
        env: Arc<Environment>,
        registry: Registry,
        dev_no: DevNo,
        name: DmName,
        uuid: Option<DmUuid>,
    ) -> Arc<Self> {
        let event = Arc::new(TableEvent::new(env.shared.of()));
        Arc::new(Self {
            env,
            registry,
            dev_no,
            labels: Mutex::new(Labels { name, uuid }),
            core: Arc::new(IoCore::new(dev_no)),
            control: Mutex::default(),
            target_calls: Mutex::new(()),
            staged: Mutex::default(),
            event,
            openings: Openings::default(),
        })
    }

    /// The number, for life.
    pub fn dev_no(&self) -> DevNo {
        self.dev_no
    }

    /// The present name.
    pub fn name(&self) -> DmName {
        self.labels.lock().name.clone()
    }

    /// The uuid, if it was ever given one.
    pub fn uuid(&self) -> Option<DmUuid> {
        self.labels.lock().uuid.clone()
    }

    /// Renames. That the name is free is the daemon's business. Wakes those who wait for events, as in the kernel.
    pub fn set_name(&self, name: DmName) {
        self.labels.lock().name = name;
        if self.core.live().is_some() {
            self.event.trigger();
        }
    }

    /// Gives the device its uuid, once.
    pub fn set_uuid(&self, uuid: DmUuid) -> Result<(), DeviceError> {
        let mut labels = self.labels.lock();
        if labels.uuid.is_some() {
            return Err(DeviceError::UuidSet { dev: self.dev_no });
        }
        labels.uuid = Some(uuid);
        drop(labels);
        if self.core.live().is_some() {
            self.event.trigger();
        }
        Ok(())
    }

    /// Constructs a table from `lines` and makes it the inactive one, in place of an earlier one.
    pub fn load(&self, lines: &[TableLine], read_only: bool) -> Result<(), DeviceError> {
        let _control = self.control.lock();
        self.not_destroyed()?;
        let mut cx = ConstructCx {
            env: &self.env,
            dev_no: self.dev_no,
            read_only,
            event: &self.event,
        };
        let table = Table::load(self.registry, lines, &mut cx)?;
        self.check_immutable(&table)?;
        if !self.staged.lock().loaded_once {
            // COMPAT: the first load meets the limits here, later ones only when they are resumed.
            LiveTable::new(Arc::new(table)).map(|live| live.table)
        } else {
            Ok(Arc::new(table))
        }
        .map_err(DeviceError::from)
        .and_then(|table| self.stage(table))?;
        self.staged.lock().loaded_once = true;
        Ok(())
    }

    fn check_immutable(&self, table: &Table) -> Result<(), TableError> {
        let live = self.core.live();
        let Some(immutable) = live.as_ref().and_then(|live| live.table.immutable_type) else {
            return Ok(());
        };
        if table.immutable_type == Some(immutable) || table.has_wildcard() {
            return Ok(());
        }
        let reason = format!("can't replace immutable target type {immutable}");
        Err(TableError::invalid("table", reason))
    }

    fn stage(&self, table: Arc<Table>) -> Result<(), DeviceError> {
        let old = {
            // One check and one publication at a time in the whole process: of two devices that are being loaded over
            // each other, the second sees the first.
            let _order = LOOP_CHECK.lock();
            if reaches(&table, self.dev_no) {
                let reason = format!("{} would stand on itself", self.dev_no);
                return Err(TableError::new("table", reason, ELOOP).into());
            }
            self.staged.lock().inactive.replace(table)
        };
        old.into_iter().for_each(retire);
        Ok(())
    }

    /// Drops the inactive table, if there is one.
    pub fn clear(&self) {
        let _control = self.control.lock();
        let old = self.staged.lock().inactive.take();
        old.into_iter().for_each(retire);
    }

    /// One line per target; `None` when there is no such table.
    pub fn table_status(
        &self,
        kind: StatusKind,
        which: WhichTable,
        noflush: bool,
    ) -> Option<Vec<TargetStatus>> {
        self.tell(kind, which, (noflush, false))
    }

    /// The table as the next process takes it after a crash of this one: with no secret in it. `None` when there is none.
    pub fn table_for_successor(&self, which: WhichTable) -> Option<Vec<TargetStatus>> {
        self.tell(StatusKind::Table, which, (true, true))
    }

    fn tell(
        &self,
        kind: StatusKind,
        which: WhichTable,
        (noflush, for_successor): (bool, bool),
    ) -> Option<Vec<TargetStatus>> {
        // No lock: as in the kernel, a device that hangs in a resume can be looked at.
        let table = self.table(which)?;
        let flags = StatusFlags {
            noflush,
            suspended: self.is_suspended(),
            for_successor,
        };
        let status = |line: &crate::table::Line| {
            let mut text = String::new();
            line.target.status(kind, flags, &mut text);
            TargetStatus {
                start: line.begin,
                len: line.len,
                target: line.info.name,
                text,
            }
        };
        Some(table.lines.iter().map(status).collect())
    }

    /// Sends a message, words split already, to the live table's target at `sector`.
    pub fn message(&self, sector: Sector, argv: &[String]) -> Result<Option<String>, DeviceError> {
        let refuse = |reason: &str| Err(MessageError::new(reason, EINVAL).into());
        let Some(first) = argv.first() else {
            return refuse("Empty message received.");
        };
        if first.starts_with('@') {
            return refuse(&format!("Unsupported message sent to DM core: {first}"));
        }
        let _calls = self.target_calls.lock();
        // COMPAT: a message to a device without a table is taken and lost.
        let Some(table) = self.table(WhichTable::Live) else {
            return Ok(None);
        };
        match table.line_at(sector) {
            Some(line) => Ok(line.target.message(argv)?),
            None => refuse("Target message sector outside device."),
        }
    }

    /// Numbers of the devices that a table stands on, each once; plain files have none. `None` when there is no such
    /// table.
    pub fn deps(&self, which: WhichTable) -> Option<Vec<DevNo>> {
        self.table(which).map(|table| table.deps())
    }

    /// `st_dev` and inode of the plain files that a table stands on, in the order of its lines.
    pub fn backing_files(&self, which: WhichTable) -> Vec<(u64, u64)> {
        let mut files = Vec::new();
        if let Some(table) = self.table(which) {
            table.visit_devices(&mut |device| {
                if let DeviceId::File { dev, ino } = device.id {
                    files.push((dev, ino));
                }
            });
        }
        files
    }

    /// The device in short.
    pub fn info(&self) -> DeviceFacts {
        let facts = |table: &Table| TableFacts {
            target_count: u32::try_from(table.lines.len()).unwrap_or(u32::MAX),
            read_only: table.read_only,
            size: table.size(),
        };
        let (name, uuid) = {
            let labels = self.labels.lock();
            (labels.name.clone(), labels.uuid.clone())
        };
        let staged = self.staged.lock();
        DeviceFacts {
            name,
            uuid,
            dev_no: self.dev_no,
            suspended: staged.suspended,
            loaded_once: staged.loaded_once,
            live: self.core.live().map(|live| facts(&live.table)),
            inactive: staged.inactive.as_deref().map(facts),
            event_nr: self.event.number(),
            open_count: self.openings.count(),
        }
    }

    /// Sleeps until the event number differs from `seen`, the device goes, or `stop` (asked twice a second). The
    /// number then.
    pub fn wait_event(&self, seen: u32, stop: &dyn Fn() -> bool) -> u32 {
        self.event.wait(seen, stop)
    }

    /// The event counter.
    pub fn event(&self) -> &Arc<TableEvent> {
        &self.event
    }

    /// Whether requests wait for a resume.
    pub fn is_suspended(&self) -> bool {
        self.staged.lock().suspended
    }

    /// Whether the file system on it was frozen by the suspend.
    pub fn is_frozen(&self) -> bool {
        self.staged.lock().frozen
    }

    /// Whether [`MappedDevice::destroy`] was called.
    pub fn is_destroyed(&self) -> bool {
        self.staged.lock().destroyed
    }

    pub(crate) fn env(&self) -> &Arc<Environment> {
        &self.env
    }

    pub(crate) fn openings(&self) -> &Openings {
        &self.openings
    }

    pub(crate) fn not_destroyed(&self) -> Result<(), DeviceError> {
        if self.is_destroyed() {
            return Err(DeviceError::Removed { dev: self.dev_no });
        }
        Ok(())
    }

    fn table(&self, which: WhichTable) -> Option<Arc<Table>> {
        match which {
            WhichTable::Live => self.core.live().map(|live| live.table.clone()),
            WhichTable::Inactive => self.staged.lock().inactive.clone(),
        }
    }

    /// Both tables.
    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        [WhichTable::Live, WhichTable::Inactive]
            .into_iter()
            .filter_map(|which| self.table(which))
            .collect()
    }
}

impl BlockDevice for MappedDevice {
    fn limits(&self) -> QueueLimits {
        match self.core.live() {
            Some(live) => live.limits,
            None => QueueLimits {
                max_discard: Sector::ZERO,
                max_write_zeroes: Sector::ZERO,
                ..QueueLimits::STACKING
            },
        }
    }

    fn size(&self) -> Sector {
        self.core.size()
    }

    fn submit(&self, io: Io) {
        self.core.submit(io);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let live = self.core.live().ok_or(BlkStatus::IoErr)?;
        let line = live.table.line_at(start).ok_or(BlkStatus::IoErr)?;
        line.target.extents(start, len.min(line.end() - start), out)
    }
}

/// See [`MappedDevice::stage`].
static LOOP_CHECK: Mutex<()> = Mutex::new(());

const EINTR: i32 = 4;
const ENXIO: i32 = 6;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ELOOP: i32 = 40;
