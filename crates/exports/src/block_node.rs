//! Block devices for programs of this host: the one seam between the daemon and the ways of making one.
//!
//! The daemon asks [`open`] once for the best way this system allows and then only knows [`BlockNodes`] and
//! [`BlockNode`]: never FUSE, loop or ublk.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use thinmap_block::BlockDevice;
use thinmap_units::DevNo;

use crate::fuse::{FuseFileNodes, FuseServer};
use crate::loop_device::LoopNodes;

pub use crate::fuse::DESCRIPTOR_NAME;
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
    /// Somebody else has detached the kernel's device.
    #[error(
        "{path}: somebody has detached this loop device (losetup -d?): remove the mapped device and make it anew"
    )]
    TakenAway {
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
            Self::Gone { .. } | Self::TakenAway { .. } => Errno::NXIO.raw_os_error(),
        }
    }
}

/// What outlives the process that serves nodes.
pub trait DescriptorKeeper: Send + Sync {
    /// Holds a copy of a descriptor under a name, from the moment this returns, however the process ends.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> std::io::Result<()>;
}

/// How nodes outlive their process.
pub struct Continuity {
    /// Holds the descriptors.
    pub keeper: Arc<dyn DescriptorKeeper>,
    /// What it held under names beginning with [`DESCRIPTOR_NAME`] when this process began; empty for the first.
    pub held: Vec<OwnedFd>,
    /// How many processes there were before this one.
    pub generation: u32,
}

/// What a successor must know of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedNode {
    /// The device's minor number.
    pub minor: u32,
    /// The number of its FUSE file, 0 without one.
    pub file: u64,
    /// Its node under `/dev` was made by us.
    pub made_node: bool,
}

/// The maker of nodes: one per daemon.
pub trait BlockNodes: Send + Sync {
    /// In which way.
    fn kind(&self) -> NodeKind;

    /// Reserves a device number for a device that has no table yet: size 0. `minor` is a wish: granted, or
    /// [`NodeError::Busy`].
    fn create(&self, minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError>;

    /// The node that an earlier process had, with nothing behind it yet; `None` when it had begun to remove it.
    fn adopt(&self, saved: SavedNode) -> Result<Option<Arc<dyn BlockNode>>, NodeError> {
        let _ = saved;
        Ok(None)
    }

    /// Begins to serve: after [`open_kept`], when all nodes are adopted and [attached](BlockNode::attach).
    fn serve(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Removes what an earlier process was making or removing when it died. Call it when serving.
    fn clean_orphans(&self) {}

    /// Stops serving and leaves everything as it is, for a successor; waits so long for what is in flight.
    fn leave(&self, patience: Duration) {
        let _ = patience;
    }

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

    /// What a successor must know.
    fn saved(&self) -> SavedNode {
        SavedNode {
            minor: self.dev_no().minor,
            file: 0,
            made_node: false,
        }
    }

    /// Puts `dev` behind a node that was [adopted](BlockNodes::adopt), without a word to the kernel, which is not served yet;
    /// [`BlockNode::refresh`] follows when it is.
    fn attach(&self, dev: Arc<dyn BlockDevice>, read_only: bool) {
        let _ = (dev, read_only);
    }

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

    /// Whether somebody outside this daemon uses it now and goes on with it. May take a tenth of a second.
    fn is_in_use(&self) -> bool {
        self.open_count() > 0
    }

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

/// As [`open`], for nodes that outlive the process: never ublk, whose devices end with their server as it is built here. Call
/// [`BlockNodes::serve`] when everything is adopted.
pub fn open_kept(
    config: &NodesConfig,
    continuity: Continuity,
) -> (Arc<dyn BlockNodes>, Vec<String>) {
    let mut notes = Vec::new();
    if !config.enabled {
        return (Arc::new(NoNodes::default()), notes);
    }
    let dir = config.run_dir.join("fuse");
    let is_first = continuity.held.is_empty();
    let server = match FuseServer::start_kept(&dir, config.queues, continuity) {
        Ok(server) => server,
        Err(error) => {
            notes.push(format!(
                "no block devices, only network exports: cannot mount a FUSE file system: {error}"
            ));
            return (Arc::new(NoNodes::default()), notes);
        }
    };
    // Trying takes a moment, and everybody waits.
    let probed = match is_first {
        true => crate::loop_device::probe(),
        false => crate::loop_device::probe_permission(),
    };
    match probed {
        Ok(()) => (Arc::new(LoopNodes::new(server)), notes),
        Err(missing) => {
            notes.push(format!(
                "devices are plain files, not block devices: loop devices cannot be used: {missing}"
            ));
            (Arc::new(FuseFileNodes::new(server)), notes)
        }
    }
}

/// Ends the mount below a run directory for good: all I/O on devices that stand on it fails. What is left of them goes by
/// [`clean_stale`].
pub fn abort(run_dir: &Path) {
    let dir = crate::fuse::canonical(&run_dir.join("fuse"));
    for dev in crate::fuse::mounts_at(&dir) {
        if let Err(error) = crate::fuse::abort_connection(dev.minor, run_dir) {
            tracing::error!(%error, "the FUSE connection cannot be aborted: I/O waits until the last process that has it open is gone");
        }
    }
}

/// Answers the requests that threads of a dead server wait for themselves, with an error that nobody will see; `fuse` is one of
/// the descriptors that outlived it. All other requests stay for its successor.
pub fn answer_for_dead(fuse: &OwnedFd, threads: &[u32]) {
    if let Err(error) = crate::fuse::answer_for_dead(fuse, threads) {
        tracing::error!(%error, "threads of the dead daemon wait for its answers");
    }
}

/// What processes that hand a session on to each other agree on: the form of [`SavedNode`], the size of requests, what the
/// handshake of the mount said. One that finds another version must not take over.
pub const SESSION_VERSION: u32 = 1;

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

    fn adopt(&self, saved: SavedNode) -> Result<Option<Arc<dyn BlockNode>>, NodeError> {
        self.create(Some(saved.minor)).map(Some)
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
