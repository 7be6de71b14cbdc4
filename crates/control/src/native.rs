//! Requests that no ioctl has: about the daemon itself and where devices can be reached. JSON on the wire.
//!
//! A field may be added with a default; none is renamed or given another meaning.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::service::DmError;

/// A native request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum NativeRequest {
    /// Who is there?
    Ping,
    /// End the daemon: remove devices, take nodes, mounts and loop devices down.
    Stop {
        /// Stop although devices are open.
        #[serde(default)]
        force: bool,
    },
    /// Go on in a new process, of another binary maybe, with everything as it is.
    Upgrade {
        /// The binary, an absolute path.
        binary: PathBuf,
    },
    /// Every device and where it can be reached.
    Devices,
    /// The paths through which one device's bytes can be opened.
    OpenPath {
        /// The device's name.
        name: String,
    },
    /// From the answer on the connection carries one byte for each event of any device (what `poll` on the kernel's
    /// control node tells of) and no more requests.
    WatchEvents,
}

/// The answer to a [`NativeRequest`]; a failed request is answered with errno and text instead.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum NativeResponse {
    Pong(DaemonInfo),
    /// The daemon ends as soon as this answer is sent.
    Stopping,
    /// The daemon makes way for its successor as soon as this answer is sent.
    Upgrading,
    Devices {
        devices: Vec<DeviceExports>,
    },
    OpenPath {
        device: DeviceExports,
    },
    /// Events follow.
    Watching,
}

/// The daemon about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// thinmap's version.
    pub version: String,
    pub pid: u32,
    /// The process that holds what outlives the daemon, and started it.
    #[serde(default)]
    pub keeper: Option<u32>,
    pub run_dir: PathBuf,
    pub dev_dir: PathBuf,
}

/// Where one device can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DeviceExports {
    pub name: String,
    #[serde(default)]
    pub uuid: Option<String>,
    /// Device-mapper number.
    pub major: u32,
    pub minor: u32,
    /// Size in sectors; 0 without a live table.
    pub sectors: u64,
    /// The name in the device directory.
    #[serde(default)]
    pub node: Option<PathBuf>,
    /// The kernel's block device behind the node (loop or ublk).
    #[serde(default)]
    pub block_device: Option<PathBuf>,
    /// The FUSE file.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// NBD URI.
    #[serde(default)]
    pub nbd: Option<String>,
    /// What is missing and why, for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Keeps a client told of events until it is dropped.
pub type Watching = Box<dyn Send>;

/// The daemon's side of the native requests.
pub trait NativeService: Send + Sync {
    /// Who is there.
    fn daemon_info(&self) -> DaemonInfo;

    /// Begins the daemon's end; returns at once. EBUSY when devices are open and `force` is not set.
    fn stop(&self, force: bool) -> Result<(), DmError>;

    /// Makes way for a new process of `binary`; returns at once. EOPNOTSUPP without a keeper.
    fn upgrade(&self, binary: &Path) -> Result<(), DmError> {
        let text = format!("{}: nothing holds the devices meanwhile", binary.display());
        Err(DmError::new(rustix::io::Errno::OPNOTSUPP, text))
    }

    /// Sends a byte on `client` for each event, without waiting for the client: many that were not fetched may be told as one.
    /// `begin` is called first; no event after it is missed.
    fn watch_events(
        &self,
        client: UnixStream,
        begin: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Watching>;

    /// Every device, sorted by name.
    fn exports(&self) -> Result<Vec<DeviceExports>, DmError>;

    /// One device. ENXIO when there is none of that name.
    fn exports_of(&self, name: &str) -> Result<DeviceExports, DmError> {
        self.exports()?
            .into_iter()
            .find(|device| device.name == name)
            .ok_or_else(DmError::no_device)
    }
}
