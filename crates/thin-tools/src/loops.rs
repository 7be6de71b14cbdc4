//! Loop devices, and the files that they stand on. Nobody is asked who may not answer: see [`Mounts`].

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thinmap_units::DevNo;

use crate::mounts::Mounts;

/// Loop devices on loop devices that are followed.
pub(crate) const DEPTH_MAX: usize = 8;
/// What the kernel adds where it has forgotten the name.
const DELETED: &str = " (deleted)";

/// The file that a block device stands on, by the kernel's name for it; `None` when it is no loop device in use.
pub(crate) fn backing_path(device: DevNo) -> Option<PathBuf> {
    path_in(&sysfs(device))
}

/// What the kernel says of a block device.
pub(crate) fn sysfs(device: DevNo) -> PathBuf {
    Path::new("/sys/dev/block").join(device.to_string())
}

fn path_in(sysfs: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(sysfs.join("loop/backing_file")).ok()?;
    let path = text.trim_end_matches('\n');
    Some(path.strip_suffix(DELETED).unwrap_or(path).into())
}

/// The loop device that stands on the file: another way to change it that no lock tells of.
pub(crate) fn loop_device_on(stat: &Metadata) -> Option<String> {
    let devices = std::fs::read_dir("/sys/block").ok()?;
    let mounts = Mounts::read();
    for device in devices.flatten() {
        let Some(path) = path_in(&device.path()) else {
            continue;
        };
        // A file of another file system is none of this one, so its server need not be asked.
        let Some(other) = mounts.stat(&path, &[stat.dev()]) else {
            continue;
        };
        if (other.dev(), other.ino()) == (stat.dev(), stat.ino()) {
            let name = device.file_name();
            return Some(format!("the loop device /dev/{}", name.to_string_lossy()));
        }
    }
    None
}

/// The file at the end of the loop devices that begin with this block device; `None` when there is none, or only a
/// server could tell.
pub(crate) fn file_under(mut device: DevNo) -> Option<PathBuf> {
    let mounts = Mounts::read();
    for _ in 0..DEPTH_MAX {
        let path = backing_path(device)?;
        let stat = mounts.stat(&path, &[])?;
        if !stat.file_type().is_block_device() {
            return Some(path);
        }
        device = DevNo::from_dev_t(stat.rdev());
    }
    None
}
