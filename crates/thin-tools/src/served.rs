//! Devices that a daemon of thinmap's serves.
//!
//! The kernel knows such a device as a loop device or a FUSE file that nobody need have opened: the tables that use it, a
//! thin pool's for one, are the daemon's. An exclusive open succeeds beside them, so the daemon is asked.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::loops::{DEPTH_MAX, backing_path};
use crate::mounts::Mounts;

/// A device that a daemon of thinmap's serves, or may.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedDevice {
    /// The block device's number, major and minor; `None` for a FUSE file.
    pub number: Option<(u32, u32)>,
    /// The FUSE file, `<run directory>/fuse/<name>`; `None` when it cannot be told which: the mount is another
    /// mount namespace's, or the block device is no loop device.
    pub file: Option<PathBuf>,
}

impl ServedDevice {
    /// What `path` leads to, also through loop devices; `None` when it is certainly nothing of thinmap's.
    pub fn at(path: &Path) -> Option<Self> {
        let stat = std::fs::metadata(path).ok()?;
        let mounts = Mounts::read();
        if stat.is_file() {
            let file = path.canonicalize().ok()?;
            let (number, file) = (None, Some(file));
            return file
                .as_deref()
                .is_some_and(|file| mounts.is_thinmap(file))
                .then_some(Self { number, file });
        }
        let mut stat = stat;
        for _ in 0..DEPTH_MAX {
            if !stat.file_type().is_block_device() {
                return None;
            }
            let number = Some((
                rustix::fs::major(stat.rdev()),
                rustix::fs::minor(stat.rdev()),
            ));
            let Some(file) = backing_path(stat.rdev()) else {
                return is_ublk(stat.rdev()).then_some(Self { number, file: None });
            };
            if mounts.is_thinmap(&file) {
                let file = Some(file);
                return Some(Self { number, file });
            }
            if mounts.is_served(&file, &[]) {
                return None;
            }
            match std::fs::metadata(&file) {
                Ok(below) => stat = below,
                // So a file of a mount looks that is not in this namespace's table.
                Err(_) => return Some(Self { number, file: None }),
            }
        }
        None
    }
}

fn is_ublk(number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    uevent.is_ok_and(|text| text.lines().any(|line| line.starts_with("DEVNAME=ublkb")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_files_and_other_devices_are_nobodys() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(ServedDevice::at(file.path()), None);
        assert_eq!(ServedDevice::at(Path::new("/dev/null")), None);
        assert_eq!(ServedDevice::at(Path::new("/nobody")), None);
    }
}
