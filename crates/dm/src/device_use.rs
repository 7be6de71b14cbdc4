//! Devices that tables stand on: how a target asks for one and what it gets.

use std::path::PathBuf;
use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_units::DevNo;

/// What makes two openings the same device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DeviceId {
    /// A block device, ours or the host's.
    Block(DevNo),
    /// A plain file: its file system's `st_dev` and its inode.
    File {
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        ino: u64,
    },
}

/// How table and status lines name a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceName {
    /// `major:minor`, as the kernel prints.
    Number(DevNo),
    /// A plain file has no number: its absolute path.
    Path(PathBuf),
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(dev) => dev.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// An opened device; dropping the last clone closes it and gives up the claim on it.
#[derive(Clone)]
pub struct DeviceUse {
    /// Where requests go.
    pub dev: Arc<dyn BlockDevice>,
    /// Which device it is.
    pub id: DeviceId,
    /// How to print it.
    pub name: DeviceName,
    /// Opened for reading only.
    pub read_only: bool,
    /// Held for its drop: the opener's claim (open counts, exclusive opens).
    pub claim: Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Display for DeviceUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.fmt(f)
    }
}

/// What an opener is asked for.
#[derive(Clone, Copy, Debug)]
pub struct OpenDevice<'a> {
    /// As the table names it: a path, or `major:minor`.
    pub spec: &'a str,
    /// Open for reading only.
    pub read_only: bool,
    /// The mapped device whose table asks; a table may not stand on its own device, directly or not.
    pub by: DevNo,
}

/// Why a device could not be opened; names the device.
#[derive(Debug, thiserror::Error, Clone)]
#[error("{reason}")]
pub struct OpenDeviceError {
    /// What is wrong.
    pub reason: String,
    /// The errno the caller gets.
    pub errno: i32,
}

/// Finds and opens the devices that tables name. Devices of the daemon itself are resolved inside it.
pub trait DeviceOpener: Send + Sync {
    /// Opens a device for a table.
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError>;
}
