//! Devices that a daemon of thinmap's serves.
//!
//! The kernel knows such a device as a loop device or a FUSE file that nobody need have opened: the tables that use it, a
//! thin pool's for one, are the daemon's. An exclusive open succeeds beside them, so the daemon is asked.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thinmap_units::DevNo;

use crate::loops::{DEPTH_MAX, backing_path, sysfs};
use crate::mounts::Mounts;

/// A device that a daemon of thinmap's serves, or may.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedDevice {
    /// The block device's number; `None` for a FUSE file.
    pub number: Option<DevNo>,
    /// The FUSE file, `<run directory>/fuse/<name>`; `None` when it cannot be told which: the mount is another
    /// mount namespace's, or the block device is no loop device.
    pub file: Option<PathBuf>,
}

impl ServedDevice {
    /// What `path` leads to, also through loop devices; `None` when it is certainly nothing of thinmap's.
    pub fn at(path: &Path) -> Option<Self> {
        let mut stat = std::fs::metadata(path).ok()?;
        let mounts = Mounts::read();
        if stat.is_file() {
            let file = path.canonicalize().ok()?;
            return mounts.is_thinmap(&file).then_some(Self {
                number: None,
                file: Some(file),
            });
        }
        for _ in 0..DEPTH_MAX {
            if !stat.file_type().is_block_device() {
                return None;
            }
            let device = DevNo::from_dev_t(stat.rdev());
            let number = Some(device);
            let Some(file) = backing_path(device) else {
                return is_ublk(device).then_some(Self { number, file: None });
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

fn is_ublk(device: DevNo) -> bool {
    let uevent = std::fs::read_to_string(sysfs(device).join("uevent"));
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
