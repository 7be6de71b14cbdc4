//! ublk, the kernel's user-space block driver: block devices without a second block layer in between.
//!
//! A daemon has a few queue threads (`server`, `queue`); each serves one queue of every device, talks to the driver
//! through a ring of its own, and turns requests into [`thinmap_block::Io`] (`request`). Control threads make and
//! remove devices (`device`, `nodes`). The kernel's side is behind a seam (`driver`), so that all of this is tested
//! where the kernel has no such driver.
//!
//! COMPAT: needs Linux 6.16, where a device can be resized; older drivers are left alone.
//!
//! INVARIANT: no control command runs on a queue thread: stopping waits for requests that queue threads serve.

mod abi;
mod device;
mod driver;
mod lane;
mod nodes;
mod params;
mod queue;
mod request;
mod server;
mod stale;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use abi::{ControlCommand, FEATURE_UPDATE_SIZE, control};
use device::{Core, FEATURES_NEEDED};
use driver::{Driver, Kernel};
use server::Server;

pub(crate) use nodes::UblkNodes;
pub(crate) use stale::clean_stale;

/// What keeps ublk from being used.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The driver is not there.
    #[error(
        "{CONTROL} does not exist: the kernel has no ublk driver, or it is not loaded (modprobe ublk_drv)"
    )]
    NoDriver,
    /// This user may not use it.
    #[error("{CONTROL} may not be opened by this user (root may)")]
    NotAllowed,
    /// The driver is too old.
    #[error("the kernel's ublk driver cannot {what}: it is older than Linux 6.16")]
    TooOld {
        /// What it cannot do.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{CONTROL}: {action}: {errno}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        errno: Errno,
    },
    /// The queue threads cannot run.
    #[error("ublk: io_uring cannot be used: {0}")]
    NoRing(std::io::Error),
}

/// Why ublk cannot be used here; `None` when it can.
pub fn why_not() -> Option<Missing> {
    let driver = match open_driver() {
        Ok(driver) => driver,
        Err(missing) => return Some(missing),
    };
    features(&driver).err()
}

/// Nodes of a daemon with this run directory, when this system can have them.
pub(crate) fn open(run_dir: &Path, queues: usize) -> Result<UblkNodes, Missing> {
    open_on(Arc::new(open_driver()?), run_dir, queues)
}

fn open_on(driver: Arc<dyn Driver>, run_dir: &Path, queues: usize) -> Result<UblkNodes, Missing> {
    let features = features(&*driver)?;
    let server = Server::start(&driver, queues).map_err(Missing::NoRing)?;
    Ok(UblkNodes::new(Core {
        driver,
        server,
        features,
        mark: stale::mark(run_dir),
        starting: Default::default(),
    }))
}

fn open_driver() -> Result<Kernel, Missing> {
    Kernel::open().map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => Missing::NoDriver,
        Errno::ACCESS | Errno::PERM => Missing::NotAllowed,
        errno => Missing::System {
            action: "open",
            errno,
        },
    })
}

/// The driver's features, when they are enough.
fn features(driver: &dyn Driver) -> Result<u64, Missing> {
    let mut features = 0u64;
    let command = ControlCommand::new(u32::MAX, 0);
    match driver.control(control::FEATURES, command, features.as_mut_bytes()) {
        Ok(_) => {}
        // The question itself is newer than the driver.
        Err(Errno::NOTSUP | Errno::INVAL | Errno::NODEV) => {
            return Err(Missing::TooOld {
                what: "tell its features",
            });
        }
        Err(errno) => {
            return Err(Missing::System {
                action: "ask for features",
                errno,
            });
        }
    }
    match FEATURES_NEEDED & !features {
        0 => Ok(features),
        FEATURE_UPDATE_SIZE => Err(Missing::TooOld {
            what: "resize a device",
        }),
        _ => Err(Missing::TooOld {
            what: "let data be copied by the server",
        }),
    }
}

fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

fn char_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

const CONTROL: &str = "/dev/ublk-control";
