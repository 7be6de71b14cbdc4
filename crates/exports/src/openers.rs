//! Who uses a block device: the kernel keeps that count to itself for loop devices, so it is put together from
//! mounts (of every mount namespace), swaps, devices on top, and open descriptors of other processes.
//!
//! One scan serves all devices and is kept for a few milliseconds, so that listing many devices costs one scan.
//! Not seen: a lazily unmounted file system that is still in use, and devices only mapped into memory or
//! registered with an io_uring; removal asks the kernel itself (an exclusive open) and so refuses the first of them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use thinmap_units::DevNo;

use crate::{dev_node, mounts};

/// All processes, with their directories.
pub(crate) fn processes() -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pid = |name: &OsStr| name.to_str().and_then(|name| name.parse().ok());
    entries
        .flatten()
        .filter_map(|e| Some((pid(&e.file_name())?, e.path())))
        .collect()
}

/// Users of `dev` as of a few milliseconds ago.
pub(crate) fn count(dev: DevNo, node: &Path) -> u32 {
    let mut last = LAST.lock();
    match &*last {
        Some((at, scan)) if at.elapsed() < KEEP => scan.count(dev, node),
        _ => {
            let scan = Scan::take();
            let count = scan.count(dev, node);
            *last = Some((Instant::now(), scan));
            count
        }
    }
}

/// Users of `dev` as of now.
pub(crate) fn count_now(dev: DevNo, node: &Path) -> u32 {
    let scan = Scan::take();
    let count = scan.count(dev, node);
    *LAST.lock() = Some((Instant::now(), scan));
    count
}

/// Whether somebody uses `dev` and goes on with it for more than a moment.
///
/// Programs that look at every block device there is (blkid, lvm2, udev's helpers) open a device for less than a few milliseconds:
/// whoever removes a device should not have to try again for their sake.
pub(crate) fn is_in_use(dev: DevNo, node: &Path) -> bool {
    // Whoever has claimed the device (mount, swap) shows in the second, in whatever namespace.
    lasts(|| count_now(dev, node) > 0 || dev_node::is_claimed(node))
}

fn lasts(used: impl Fn() -> bool) -> bool {
    let mut looks = 1;
    while used() {
        if looks == LOOKS {
            return true;
        }
        looks += 1;
        std::thread::sleep(BETWEEN_LOOKS);
    }
    false
}

/// Open descriptors of other processes on files of these file systems, by inode number.
pub(crate) fn count_files(devs: &[DevNo]) -> HashMap<u64, u32> {
    let mut counts = HashMap::new();
    let own = std::process::id();
    for (_, dir) in processes().into_iter().filter(|(pid, _)| *pid != own) {
        for entry in std::fs::read_dir(dir.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let flags = StatxFlags::TYPE | StatxFlags::INO;
            let stat = rustix::fs::statx(CWD, entry.path(), AtFlags::STATX_DONT_SYNC, flags);
            if let Ok(stat) = stat
                && devs.contains(&DevNo::new(stat.stx_dev_major, stat.stx_dev_minor))
            {
                *counts.entry(stat.stx_ino).or_default() += 1;
            }
        }
    }
    counts
}

/// The system's users of block devices at one moment.
struct Scan {
    descriptors: HashMap<DevNo, u32>,
    /// Devices under mounts, by what the kernel says of them: anybody may write a device's name into a mount's source.
    mounted: HashSet<DevNo>,
    swaps: HashSet<DevNo>,
}

impl Scan {
    fn take() -> Self {
        let mut scan = Self {
            descriptors: HashMap::new(),
            mounted: HashSet::new(),
            swaps: HashSet::new(),
        };
        let own = std::process::id();
        for (_, dir) in processes().into_iter().filter(|(pid, _)| *pid != own) {
            scan.take_descriptors(&dir);
        }
        for (_, mounts) in mounts::all() {
            scan.mounted.extend(mounts.iter().map(|mount| mount.dev));
        }
        let btrfs = mounts::btrfs_devices().into_iter();
        scan.mounted.extend(btrfs.map(|(_, dev)| dev));
        if let Ok(swaps) = std::fs::read("/proc/swaps") {
            for line in swaps.split(|&byte| byte == b'\n').skip(1) {
                let word = line.split(|&byte| byte == b' ').next().unwrap_or_default();
                if word.starts_with(b"/") {
                    scan.swaps
                        .extend(block_dev_no(Path::new(&mounts::unescape(word))));
                }
            }
        }
        scan
    }

    fn take_descriptors(&mut self, process: &Path) {
        let Ok(entries) = std::fs::read_dir(process.join("fd")) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // Pipes, sockets and the like have no path.
            let is_path = std::fs::read_link(&path)
                .is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/"));
            if is_path
                && let Some(dev) = block_dev_no(&path)
                && is_open(&process.join("fdinfo").join(entry.file_name()))
            {
                *self.descriptors.entry(dev).or_default() += 1;
            }
        }
    }

    fn count(&self, dev: DevNo, node: &Path) -> u32 {
        let descriptors = self.descriptors.get(&dev).copied().unwrap_or(0);
        descriptors
            + u32::from(self.mounted.contains(&dev))
            + u32::from(self.swaps.contains(&dev))
            + holders(node)
    }
}

/// Whether a descriptor has its device open: one with `O_PATH`, which needs no permission, only names it. Source: proc(5).
fn is_open(info: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(info) else {
        // Closed since it was found.
        return false;
    };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_none_or(|flags| flags & libc::O_PATH == 0)
}

/// Devices on top, as the kernel notes them.
fn holders(node: &Path) -> u32 {
    let Some(name) = node.file_name() else {
        return 0;
    };
    let dir = Path::new("/sys/block").join(name).join("holders");
    std::fs::read_dir(dir).map_or(0, |entries| {
        u32::try_from(entries.count()).unwrap_or(u32::MAX)
    })
}

/// The number of the block device at `path`. Asks no file server for anything: it could be ourselves.
fn block_dev_no(path: &Path) -> Option<DevNo> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_block = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice;
    is_block.then(|| DevNo::new(stat.stx_rdev_major, stat.stx_rdev_minor))
}

static LAST: Mutex<Option<(Instant, Scan)>> = Mutex::new(None);
const KEEP: Duration = Duration::from_millis(10);
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_passes_by_is_not_waited_for_long() {
        let looks = std::cell::Cell::new(0);
        let used_for = |n| {
            looks.set(0);
            lasts(|| looks.replace(looks.get() + 1) < n)
        };
        assert!(!used_for(0));
        assert!(!used_for(LOOKS - 1));
        assert!(used_for(LOOKS));
        assert_eq!(looks.get(), LOOKS);
    }
}
