//! The typed layer: what a device-mapper command asks and what it is answered.
//!
//! The daemon implements [`DmService`]; [`crate::dispatch`] turns ioctl buffers into these calls.
//! Nothing here knows of bytes. Errnos are the kernel's.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, DmUuid, Sector, TableLine};

/// A command failed: the kernel's errno, and the text that the kernel would have logged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text} (errno {errno})")]
pub struct DmError {
    /// A positive Linux errno.
    pub errno: i32,
    /// What an administrator should read: the kernel's log line, or something clearer. May be
    /// empty, may hold several lines.
    pub text: String,
}

impl DmError {
    /// An error with a text.
    pub fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self {
            errno: errno.raw_os_error(),
            text: text.into(),
        }
    }

    /// No such device (ENXIO), which the kernel does not log.
    pub fn no_device() -> Self {
        Self::new(Errno::NXIO, "")
    }
}

/// How a command names its device. Exactly one way per command, as the kernel asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSelector {
    Name(DmName),
    Uuid(DmUuid),
    Dev(DevNo),
}

impl std::fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Uuid(uuid) => write!(f, "UUID {uuid}"),
            Self::Dev(dev) => write!(f, "{dev}"),
        }
    }
}

/// A mapped device's state. Both tables are described; the codec picks the one that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    pub name: DmName,
    pub uuid: Option<DmUuid>,
    pub dev: DevNo,
    /// Openers of the device, mapped devices stacked on it included.
    pub open_count: u32,
    pub event_nr: u32,
    pub suspended: bool,
    pub internally_suspended: bool,
    /// Removal waits for the last user to close.
    pub deferred_remove: bool,
    /// Of a command that changes the device: the kernel would have sent a uevent about it.
    pub uevent: bool,
    /// `None` when no table was ever resumed.
    pub live: Option<TableInfo>,
    /// `None` when no table is loaded and waiting for resume.
    pub inactive: Option<TableInfo>,
}

/// A device that was told to go, as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    pub name: DmName,
    pub uuid: Option<DmUuid>,
    /// It had an inactive table.
    pub inactive: bool,
    /// It is still there, and goes with its last user.
    pub waits: bool,
    /// A kernel would have told udev.
    pub uevent: bool,
}

/// What [`DeviceInfo`] tells of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableInfo {
    pub target_count: u32,
    pub read_only: bool,
}

/// One device in a list of all. The kernel sorts by name (bytewise); so must the service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceListEntry {
    pub name: DmName,
    pub uuid: Option<DmUuid>,
    pub dev: DevNo,
    pub event_nr: u32,
}

/// How to suspend (also the suspension that a resume with a new table implies).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuspendOptions {
    /// Freeze the file system mounted on the device first.
    pub lock_fs: bool,
    /// Do not flush in-flight I/O out; targets may hand it back for requeueing.
    pub no_flush: bool,
}

/// What a status command asks of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusQuery {
    pub kind: StatusKind,
    /// The inactive table instead of the live one.
    pub inactive: bool,
    /// Do not commit metadata first (thin-pool).
    pub no_flush: bool,
}

/// Which text of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusKind {
    /// The status line.
    Info,
    /// The arguments, as a table line.
    Table,
    /// The measurement line (IMA); most targets have none, and the text is empty.
    Measurement,
}

/// Device state and one line per target; `lines` is `None` when the asked table does not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceStatus {
    pub info: DeviceInfo,
    /// `params` holds the status text or the arguments.
    pub lines: Option<Vec<TableLine>>,
}

/// Device state and the devices its table uses; `devices` is `None` when the asked table does not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceDeps {
    pub info: DeviceInfo,
    pub devices: Option<Vec<DevNo>>,
}

/// A registered target type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetVersion {
    /// At most 15 bytes.
    pub name: String,
    pub version: [u32; 3],
}

/// Legacy disk geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors_per_track: u8,
    /// First sector (the kernel refuses one beyond the device's size, EINVAL).
    pub start: Sector,
}

/// Tells a blocked [`DmService::wait_event`] that its client is gone or that the daemon stops.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Mutex<CancelState>>);

type Wake = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct CancelState {
    cancelled: bool,
    wake: Option<Wake>,
}

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the wait must end with EINTR.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Has `wake` called once, from another thread, when the token is cancelled; at once if it
    /// already is. Replaces an earlier `wake`. It must only wake the waiter (notify a condition
    /// variable, with the waiter's lock held while notifying) and return.
    pub fn on_cancel(&self, wake: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.cancelled {
            drop(state);
            wake();
        } else {
            state.wake = Some(Box::new(wake));
        }
    }

    /// Cancels; later calls do nothing.
    pub fn cancel(&self) {
        let wake = {
            let mut state = self.lock();
            state.cancelled = true;
            state.wake.take()
        };
        if let Some(wake) = wake {
            wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CancelState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Device mapper, as the kernel's ioctl interface shows it. One method per command; the methods may be
/// called from many threads at once. An unknown device is ENXIO everywhere.
pub trait DmService: Send + Sync {
    /// Removes every device that is not open; with `deferred`, marks the open ones for removal.
    fn remove_all(&self, deferred: bool) -> Result<(), DmError>;

    /// Every device, sorted by name.
    fn list_devices(&self) -> Result<Vec<DeviceListEntry>, DmError>;

    /// A new device without a table. EBUSY when name or uuid is taken, ENXIO when the minor is taken or beyond 20 bits.
    fn create(
        &self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        minor: Option<u32>,
    ) -> Result<DeviceInfo, DmError>;

    /// Removes a device. EBUSY when it is open, unless `deferred`: then it goes with the last close.
    fn remove(&self, device: &DeviceSelector, deferred: bool) -> Result<Removal, DmError>;

    /// Takes back a deferred removal. EBUSY when the device is already going.
    fn cancel_deferred_remove(&self, device: &DeviceSelector) -> Result<DeviceInfo, DmError>;

    /// Gives a device a new name. EBUSY when `new_name` is taken.
    fn rename(&self, device: &DmName, new_name: &DmName) -> Result<DeviceInfo, DmError>;

    /// Gives a device its uuid. EBUSY when it is taken, EINVAL when the device already has one.
    fn set_uuid(&self, device: &DmName, uuid: &DmUuid) -> Result<DeviceInfo, DmError>;

    /// Suspends; does nothing on a suspended device. Without a live table this succeeds too.
    fn suspend(
        &self,
        device: &DeviceSelector,
        options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError>;

    /// Makes the inactive table, if any, the live one, and lets I/O through.
    fn resume(
        &self,
        device: &DeviceSelector,
        options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError>;

    /// The device's state.
    fn status(&self, device: &DeviceSelector) -> Result<DeviceInfo, DmError>;

    /// Blocks until the device's event number differs from `event_nr`, then tells the device's status. EINTR
    /// when `cancel` is cancelled. ENXIO when the device goes meanwhile.
    fn wait_event(
        &self,
        device: &DeviceSelector,
        event_nr: u32,
        query: StatusQuery,
        cancel: &CancelToken,
    ) -> Result<DeviceStatus, DmError>;

    /// Makes the lines the device's inactive table, in place of an earlier inactive one.
    fn table_load(
        &self,
        device: &DeviceSelector,
        lines: Vec<TableLine>,
        read_only: bool,
    ) -> Result<DeviceInfo, DmError>;

    /// Drops the inactive table.
    fn table_clear(&self, device: &DeviceSelector) -> Result<DeviceInfo, DmError>;

    /// The devices that the table uses.
    fn table_deps(&self, device: &DeviceSelector, inactive: bool) -> Result<DeviceDeps, DmError>;

    /// The table's lines or status lines.
    fn table_status(
        &self,
        device: &DeviceSelector,
        query: StatusQuery,
    ) -> Result<DeviceStatus, DmError>;

    /// The registered target types, in the order they registered.
    fn target_versions(&self) -> Result<Vec<TargetVersion>, DmError>;

    /// Sends a message to the target at `sector` of the live table. `args` is never empty. The text, when there is one, goes
    /// back to the sender. EINVAL for a sector outside the table; without a live table the message goes nowhere and
    /// succeeds, as in the kernel.
    fn message(
        &self,
        device: &DeviceSelector,
        sector: Sector,
        args: &[String],
    ) -> Result<(DeviceInfo, Option<String>), DmError>;

    /// Sets the legacy geometry.
    fn set_geometry(&self, device: &DeviceSelector, geometry: Geometry) -> Result<(), DmError>;
}
