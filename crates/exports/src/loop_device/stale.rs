//! What a killed daemon left: loop devices over files of a dead FUSE mount, and that mount.
//!
//! Only what lies on the mount at `<run_dir>/fuse/` is touched. A path alone does not say so: loop devices are the same
//! everywhere, and in another mount namespace (another container) a daemon that lives may have the same path. The dead mount
//! is detached last: the loop devices' backing paths name it as long as it is there.

use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use thinmap_units::DevNo;

use super::remover::{remove as remove_number, wait_until};
use super::{backing_file, ioctl, node_path, open_node};
use crate::{fuse, mounts};

/// What was found and done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StaleReport {
    /// Block devices taken away, at once or at their last close.
    pub detached: Vec<PathBuf>,
    /// Mount points of file systems that still lie on such a device: every access to them fails until unmounted.
    pub still_mounted: Vec<PathBuf>,
    /// Whether a dead mount was taken away.
    pub unmounted: bool,
}

/// Removes the loop devices and the mount that an earlier daemon with the same run directory left.
pub(crate) fn clean_stale(run_dir: &Path) -> StaleReport {
    // Mount tables and sysfs hold the path without symbolic links.
    let dir = std::fs::canonicalize(run_dir)
        .unwrap_or_else(|_| run_dir.to_owned())
        .join("fuse");
    let mut report = StaleReport::default();
    let mounts = fuse::mounts_at(&dir);
    for dev in &mounts {
        // Somebody else may hold the connection's descriptor: nothing may hang on it.
        let abort = format!("/sys/fs/fuse/connections/{}/abort", dev.minor);
        let _ = std::fs::write(abort, "1");
    }
    let left = loops_over(&dir).into_iter();
    for number in left.filter(|number| lies_on(*number, &mounts)) {
        report.detached.push(node_path(number));
        report.still_mounted.extend(mounts_on(number));
        detach(number, &dir);
    }
    for _ in &mounts {
        match fuse::unmount_lazily(&dir) {
            Ok(()) => report.unmounted = true,
            Err(error) => tracing::error!(dir = %dir.display(), error, "a dead FUSE mount stays"),
        }
    }
    for device in &report.detached {
        tracing::warn!(device = %device.display(), "detached a loop device of an earlier daemon");
    }
    for mount in &report.still_mounted {
        tracing::error!(mount_point = %mount.display(),
            "still mounted on a device of an earlier daemon: unmount it, every access fails");
    }
    report
}

/// Removes loop devices over files of the mount at `dir`, which is served, but those in `known`: an earlier process was making
/// or removing them when it died.
pub(super) fn clean_orphans(dir: &Path, known: &[u32]) {
    let dir = fuse::canonical(dir);
    let mounts = fuse::mounts_at(&dir);
    let orphans = loops_over(&dir).into_iter();
    for number in orphans.filter(|n| !known.contains(n) && lies_on(*n, &mounts)) {
        tracing::warn!(device = %node_path(number).display(), "removing a device that was being made or removed");
        detach(number, &dir);
    }
}

fn loops_over(dir: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("loop")?
                .parse()
                .ok()
        })
        .filter(|number| is_over(*number, dir))
        .collect();
    numbers.sort_unstable();
    numbers
}

fn is_over(number: u32, dir: &Path) -> bool {
    backing_file(number).is_some_and(|path| path.parent() == Some(dir))
}

/// Whether the file behind the loop device, which has the right path, lies on one of these mounts, whose servers are dead.
fn lies_on(number: u32, mounts: &[DevNo]) -> bool {
    if mounts.is_empty() {
        return false;
    }
    let made_node = super::ensure_node(number).unwrap_or(false);
    let device = open_node(number, OFlags::RDONLY).and_then(|fd| ioctl::backing_device(&fd));
    if made_node {
        let _ = std::fs::remove_file(node_path(number));
    }
    // The driver asks the file's server, and only a dead one gives no answer.
    device.map_or(true, |device| mounts.contains(&device))
}

fn mounts_on(number: u32) -> Vec<PathBuf> {
    let dev = DevNo::new(super::LOOP_MAJOR, number);
    let all = mounts::all().into_iter().flat_map(|(_, mounts)| mounts);
    let mut found: Vec<_> = all
        .filter(|mount| {
            // btrfs has no device number of its device.
            let by_name = mount.fs_type == "btrfs" && mount.source == node_path(number);
            mount.dev == dev || by_name
        })
        .map(|mount| mount.mount_point)
        .collect();
    found.dedup();
    found
}

fn detach(number: u32, dir: &Path) {
    let made_node = super::ensure_node(number).unwrap_or(false);
    let cleared = open_node(number, OFlags::RDONLY).and_then(|fd| {
        // It may have gone since it was found, and its number be somebody else's; not while it is open.
        match is_over(number, dir) {
            true => ioctl::clear(&fd),
            false => Err(Errno::NXIO),
        }
    });
    if let Err(errno) = cleared
        && errno != Errno::NXIO
    {
        tracing::error!(device = %node_path(number).display(), %errno, "cannot detach");
    }
    // Ours by construction: each was added for its file. One that is still open stays, unbound at its last close.
    if wait_until(|| !is_over(number, dir)) {
        remove_number(number, made_node);
    }
}
