//! Who uses a block device: the kernel keeps that count to itself for loop devices, so it is put together from
//! mounts (of every mount namespace), swaps, devices on top, and open descriptors of other processes.
//!
//! One scan serves all devices and is kept for a few milliseconds, so that listing many devices costs one scan.
//! Not seen: a lazily unmounted file system that is still in use, and devices only mapped into memory or
//! registered with an io_uring; removal asks the kernel itself (an exclusive open) and so refuses the first of them.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use thinmap_units::DevNo;

use crate::dev_node;

/// One line of a mountinfo file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountLine {
    pub dev: DevNo,
    pub mount_point: PathBuf,
    pub fs_type: String,
    pub source: PathBuf,
}

/// All mounts of one mount namespace. Lines that are not understood are left out. Source: proc(5).
pub(crate) fn parse_mountinfo(table: &[u8]) -> Vec<MountLine> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_mount_line)
        .collect()
}

fn parse_mount_line(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|&byte| byte == b' ');
    let dev = std::str::from_utf8(words.nth(2)?).ok()?.parse().ok()?;
    let mount_point = PathBuf::from(unescape(words.nth(1)?));
    words.find(|word| *word == b"-")?;
    let fs_type = String::from_utf8_lossy(words.next()?).into_owned();
    let source = PathBuf::from(unescape(words.next()?));
    Some(MountLine {
        dev,
        mount_point,
        fs_type,
        source,
    })
}

/// Blank, tab, newline and backslash stand in these files as octal `\NNN`.
fn unescape(word: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| {
            byte == b'\\' && digits[0] <= b'3' && digits.iter().all(|d| (b'0'..=b'7').contains(d))
        });
        match octal {
            Some(digits) => {
                out.push(
                    digits
                        .iter()
                        .fold(0u8, |value, digit| (value << 3) | (digit - b'0')),
                );
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Mounts of all mount namespaces, each with a process that sees them.
pub(crate) fn all_mounts() -> Vec<(PathBuf, Vec<MountLine>)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let own = PathBuf::from("/proc/self");
    for process in std::iter::once(own).chain(processes().into_iter().map(|(_, dir)| dir)) {
        let namespace = std::fs::read_link(process.join("ns/mnt"));
        if !namespace.is_ok_and(|namespace| seen.insert(namespace)) {
            continue;
        }
        if let Ok(table) = std::fs::read(process.join("mountinfo")) {
            found.push((process, parse_mountinfo(&table)));
        }
    }
    found
}

fn processes() -> Vec<(u32, PathBuf)> {
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
    mounted: HashSet<DevNo>,
    /// Sources of mounts and swaps, by the block device they are.
    sources: HashSet<DevNo>,
    swaps: HashSet<DevNo>,
}

impl Scan {
    fn take() -> Self {
        let mut scan = Self {
            descriptors: HashMap::new(),
            mounted: HashSet::new(),
            sources: HashSet::new(),
            swaps: HashSet::new(),
        };
        let own = std::process::id();
        for (_, dir) in processes().into_iter().filter(|(pid, _)| *pid != own) {
            scan.take_descriptors(&dir.join("fd"));
        }
        for (_, mounts) in all_mounts() {
            for mount in mounts {
                scan.mounted.insert(mount.dev);
                // File systems with device numbers of their own (btrfs) only name their device.
                if mount.dev.major == 0 && mount.source.starts_with("/dev") {
                    scan.sources.extend(block_dev_no(&mount.source));
                }
            }
        }
        if let Ok(swaps) = std::fs::read("/proc/swaps") {
            for line in swaps.split(|&byte| byte == b'\n').skip(1) {
                let word = line.split(|&byte| byte == b' ').next().unwrap_or_default();
                if word.starts_with(b"/") {
                    scan.swaps.extend(block_dev_no(Path::new(&unescape(word))));
                }
            }
        }
        scan
    }

    fn take_descriptors(&mut self, dir: &Path) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // Pipes, sockets and the like have no path.
            let is_path = std::fs::read_link(&path)
                .is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/"));
            if is_path && let Some(dev) = block_dev_no(&path) {
                *self.descriptors.entry(dev).or_default() += 1;
            }
        }
    }

    fn count(&self, dev: DevNo, node: &Path) -> u32 {
        let mounted = self.mounted.contains(&dev) || self.sources.contains(&dev);
        let descriptors = self.descriptors.get(&dev).copied().unwrap_or(0);
        descriptors + u32::from(mounted) + u32::from(self.swaps.contains(&dev)) + holders(node)
    }
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
    fn mount_lines_with_escapes_and_optional_fields() {
        let table = b"36 35 7:3 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw\n\
            garbage\n37 35 0:44 / / rw - tmpfs tmpfs rw\n38 x";
        let mounts = parse_mountinfo(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].dev, DevNo::new(7, 3));
        assert_eq!(mounts[0].mount_point, Path::new("/mnt/a b"));
        assert_eq!(
            (mounts[0].fs_type.as_str(), mounts[0].source.as_path()),
            ("ext4", Path::new("/dev/loop3"))
        );
    }

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

    #[test]
    fn a_backslash_without_digits_stays() {
        assert_eq!(unescape(b"a\\b\\0409\\12"), OsString::from("a\\b 9\\12"));
    }
}
