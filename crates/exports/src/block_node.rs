//! Block devices for programs of this host: the one seam between the daemon and the ways of making one.
//!
//! The daemon asks [`open`] once for the best way this system allows and then only knows [`BlockNodes`] and
//! [`BlockNode`]: never FUSE, loop or ublk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use thinmap_block::BlockDevice;
use thinmap_units::DevNo;

use crate::fuse::{FuseFileNodes, FuseServer};
use crate::loop_device::LoopNodes;

pub use crate::loop_device::StaleReport;

/// In which way devices become visible to other programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// The kernel's user-space block driver.
    Ublk,
    /// A loop device over a FUSE file.
    Loop,
    /// A file in a FUSE mount; no block device.
    FuseFile,
    /// Not at all.
    None,
}

/// Why a node could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Other programs use it.
    #[error("{path}: open by another program, mounted, or used by another device")]
    Busy {
        /// The node.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {action}: {errno}")]
    System {
        /// What it was about.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        errno: Errno,
    },
    /// The node has been removed already.
    #[error("{path}: removed already")]
    Gone {
        /// The node.
        path: PathBuf,
    },
}

impl NodeError {
    pub(crate) fn system(path: &Path, action: &'static str, errno: Errno) -> Self {
        Self::System {
            path: path.to_owned(),
            action,
            errno,
        }
    }

    /// The errno that device mapper gives for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Busy { .. } => Errno::BUSY.raw_os_error(),
            Self::System { errno, .. } => errno.raw_os_error(),
            Self::Gone { .. } => Errno::NXIO.raw_os_error(),
        }
    }
}

/// The maker of nodes: one per daemon.
pub trait BlockNodes: Send + Sync {
    /// In which way.
    fn kind(&self) -> NodeKind;

    /// Reserves a device number for a device that has no table yet: size 0. `minor` is a wish: granted, or
    /// [`NodeError::Busy`].
    fn create(&self, minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError>;

    /// Takes everything away, by force what is still in use: its users see I/O errors. All I/O is drained before.
    fn shutdown(&self);
}

/// One device's node. Its methods block and make system calls on the node itself: never call them from a queue
/// thread, which may be the one that has to serve those calls.
pub trait BlockNode: Send + Sync {
    /// The kernel's number of the device; for ways without one, 253 and a number of our own.
    fn dev_no(&self) -> DevNo;

    /// The block device, or the FUSE file.
    fn path(&self) -> PathBuf;

    /// Puts `dev` behind the node, at the first resume with a table. `name` is for people who list devices.
    fn activate(
        &self,
        dev: Arc<dyn BlockDevice>,
        name: &str,
        read_only: bool,
    ) -> Result<(), NodeError>;

    /// Reads size, limits and read-only anew from the device and tells the kernel.
    fn refresh(&self) -> Result<(), NodeError>;

    /// Users outside this daemon: mounts, open descriptors, swap, devices on top.
    fn open_count(&self) -> u32;

    /// Takes the node away: no new openers, then what is in flight is drained, then detached. Refuses with
    /// [`NodeError::Busy`] when in use; with `force`, users see I/O errors from now on and the rest goes when they close.
    fn remove(&self, force: bool) -> Result<(), NodeError>;
}

/// What the daemon wants.
#[derive(Clone, Debug)]
pub struct NodesConfig {
    /// The daemon's private directory; the FUSE mount is `fuse` in it.
    pub run_dir: PathBuf,
    /// Queue threads.
    pub queues: usize,
    /// Whether nodes are wanted at all.
    pub enabled: bool,
}

/// Removes what an earlier daemon with the same run directory left. Call before the new one mounts; never
/// while a daemon of this run directory lives.
pub fn clean_stale(run_dir: &Path) -> StaleReport {
    let mut report = crate::loop_device::clean_stale(run_dir);
    let (deleted, still_mounted) = crate::ublk::clean_stale(run_dir);
    report.detached.extend(deleted);
    report.still_mounted.extend(still_mounted);
    report
}

/// The best way this system allows, and what an administrator should know about why it is not a better one.
pub fn open(config: &NodesConfig) -> (Arc<dyn BlockNodes>, Vec<String>) {
    let mut notes = Vec::new();
    if !config.enabled {
        return (Arc::new(NoNodes::default()), notes);
    }
    match crate::ublk::open(&config.run_dir, config.queues) {
        Ok(nodes) => return (Arc::new(nodes), notes),
        Err(missing) => tracing::debug!(reason = %missing, "ublk is not used"),
    }
    let server = match FuseServer::start(&config.run_dir.join("fuse"), config.queues) {
        Ok(server) => server,
        Err(error) => {
            notes.push(format!(
                "no block devices, only network exports: cannot mount a FUSE file system: {error}"
            ));
            return (Arc::new(NoNodes::default()), notes);
        }
    };
    match crate::loop_device::probe() {
        Ok(()) => (Arc::new(LoopNodes::new(server)), notes),
        Err(missing) => {
            notes.push(format!(
                "devices are plain files, not block devices: loop devices cannot be used: {missing}"
            ));
            (Arc::new(FuseFileNodes::new(server)), notes)
        }
    }
}

/// Device numbers of our own, for ways without a kernel device.
#[derive(Default)]
pub(crate) struct PseudoMinors {
    used: parking_lot::Mutex<std::collections::BTreeSet<u32>>,
}

impl PseudoMinors {
    pub(crate) fn take(&self, wish: Option<u32>) -> Result<u32, NodeError> {
        let mut used = self.used.lock();
        let minor = match wish {
            Some(minor) if used.contains(&minor) => {
                let path = PathBuf::from(DevNo::new(PSEUDO_MAJOR, minor).to_string());
                return Err(NodeError::Busy { path });
            }
            Some(minor) => minor,
            None => {
                let first_gap = used.iter().zip(0u32..).find(|(used, n)| *used != n);
                first_gap.map_or(used.len() as u32, |(_, gap)| gap)
            }
        };
        used.insert(minor);
        Ok(minor)
    }

    pub(crate) fn give_back(&self, minor: u32) {
        self.used.lock().remove(&minor);
    }
}

/// COMPAT: the major number device mapper usually gets on Linux systems.
pub(crate) const PSEUDO_MAJOR: u32 = 253;

/// Devices exist, but only network exports reach them.
#[derive(Default)]
struct NoNodes {
    minors: Arc<PseudoMinors>,
}

impl BlockNodes for NoNodes {
    fn kind(&self) -> NodeKind {
        NodeKind::None
    }

    fn create(&self, minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError> {
        let minors = self.minors.clone();
        Ok(Arc::new(NoNode {
            minor: minors.take(minor)?,
            minors,
            removed: AtomicU32::new(0),
        }))
    }

    fn shutdown(&self) {}
}

struct NoNode {
    minor: u32,
    minors: Arc<PseudoMinors>,
    removed: AtomicU32,
}

impl BlockNode for NoNode {
    fn dev_no(&self) -> DevNo {
        DevNo::new(PSEUDO_MAJOR, self.minor)
    }

    fn path(&self) -> PathBuf {
        PathBuf::new()
    }

    fn activate(&self, _: Arc<dyn BlockDevice>, _: &str, _: bool) -> Result<(), NodeError> {
        Ok(())
    }

    fn refresh(&self) -> Result<(), NodeError> {
        Ok(())
    }

    fn open_count(&self) -> u32 {
        0
    }

    fn remove(&self, _force: bool) -> Result<(), NodeError> {
        if self.removed.swap(1, Ordering::AcqRel) == 0 {
            self.minors.give_back(self.minor);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pseudo_numbers_fill_gaps_and_honour_wishes() {
        let nodes = NoNodes::default();
        let minor_of = |node: &Arc<dyn BlockNode>| node.dev_no().minor;
        let a = nodes.create(None).expect("a");
        let b = nodes.create(Some(5)).expect("b");
        let c = nodes.create(None).expect("c");
        assert_eq!((minor_of(&a), minor_of(&b), minor_of(&c)), (0, 5, 1));
        assert!(matches!(nodes.create(Some(5)), Err(NodeError::Busy { .. })));
        a.remove(false).expect("remove");
        assert_eq!(minor_of(&nodes.create(None).expect("again")), 0);
    }
}
