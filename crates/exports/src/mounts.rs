//! Mounts of all mount namespaces, and what they lie on.
//!
//! A mount's source is text that whoever mounts chooses, and any user may mount in a user namespace of their own: only
//! the kernel's device numbers say what a file system lies on. One that has none of its block device is btrfs, whose
//! devices are in sysfs.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thinmap_units::DevNo;

use crate::openers::processes;

/// One line of a mountinfo file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountLine {
    /// No other mount has it as long as this one is there.
    pub id: u64,
    pub dev: DevNo,
    pub mount_point: PathBuf,
    pub fs_type: String,
    /// Proves nothing.
    pub source: PathBuf,
}

/// All mounts of one mount namespace. Lines that are not understood are left out. Source: proc(5).
pub(crate) fn parse(table: &[u8]) -> Vec<MountLine> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let dev = std::str::from_utf8(words.nth(1)?).ok()?.parse().ok()?;
    let mount_point = PathBuf::from(unescape(words.nth(1)?));
    words.find(|word| *word == b"-")?;
    let fs_type = String::from_utf8_lossy(words.next()?).into_owned();
    let source = PathBuf::from(unescape(words.next()?));
    Some(MountLine {
        id,
        dev,
        mount_point,
        fs_type,
        source,
    })
}

/// Blank, tab, newline and backslash stand in these files as octal `\NNN`.
pub(crate) fn unescape(word: &[u8]) -> OsString {
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
pub(crate) fn all() -> Vec<(PathBuf, Vec<MountLine>)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let own = PathBuf::from(OWN);
    for process in std::iter::once(own).chain(processes().into_iter().map(|(_, dir)| dir)) {
        let namespace = std::fs::read_link(process.join("ns/mnt"));
        if !namespace.is_ok_and(|namespace| seen.insert(namespace)) {
            continue;
        }
        if let Ok(table) = std::fs::read(process.join("mountinfo")) {
            found.push((process, parse(&table)));
        }
    }
    found
}

/// Whether the mounts that a process sees are ours or a container's of ours, and not those of some user's own namespace: what paths
/// lead to there is that user's choice. File systems on block devices cannot be mounted in one of those.
pub(crate) fn is_ours(process: &Path) -> bool {
    if process == Path::new(OWN) {
        return true;
    }
    let same = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(process.join("ns/mnt"), flags, Mode::empty())?;
        let owner = rustix::fs::fstat(&owner_of(&namespace)?)?;
        let ours = rustix::fs::stat(Path::new(OWN).join("ns/user"))?;
        Ok::<_, std::io::Error>((owner.st_dev, owner.st_ino) == (ours.st_dev, ours.st_ino))
    };
    // One whose owner may not be known belongs to somebody above us: not ours.
    same().unwrap_or(false)
}

/// The user namespace that a namespace belongs to.
fn owner_of(namespace: &OwnedFd) -> std::io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// All devices of mounted btrfs file systems, each with its file system's id.
pub(crate) fn btrfs_devices() -> Vec<(String, DevNo)> {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for fs in entries(PathBuf::from("/sys/fs/btrfs")) {
        for device in entries(fs.path().join("devices")) {
            let number = std::fs::read_to_string(device.path().join("dev")).unwrap_or_default();
            if let Ok(dev) = number.trim().parse() {
                found.push((fs.file_name().to_string_lossy().into_owned(), dev));
            }
        }
    }
    found
}

const OWN: &str = "/proc/self";

/// `_IO(0xb7, 0x1)`, <linux/nsfs.h>.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_with_escapes_and_optional_fields() {
        let table = b"36 35 7:3 / /mnt/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw\n\
            garbage\n37 35 0:44 / / rw - tmpfs tmpfs rw\n38 x";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].id, mounts[0].dev), (36, DevNo::new(7, 3)));
        assert_eq!(mounts[0].mount_point, Path::new("/mnt/a b"));
        assert_eq!(
            (mounts[0].fs_type.as_str(), mounts[0].source.as_path()),
            ("ext4", Path::new("/dev/loop3"))
        );
    }

    #[test]
    fn a_backslash_without_digits_stays() {
        assert_eq!(unescape(b"a\\b\\0409\\12"), OsString::from("a\\b 9\\12"));
    }
}
