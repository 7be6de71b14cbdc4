//! The device directory as libdevmapper uses it: from a path to a device's name, and a node's owner, mode and
//! read-ahead. Nodes themselves are made and taken away by the daemon.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thinmap_units::DevNo;

use super::switches::ReadAheadWish;

/// What Linux gives a block device that nobody tuned, in sectors.
pub const READ_AHEAD_DEFAULT: u32 = 256;

/// The name of the device that `path` leads to; an error is the line to print.
///
/// The last part of the path is the name if the device directory's node of that name is the same device; otherwise
/// the directory is searched for the device's number. A relative path with one slash that does not exist is tried
/// beside the device directory (`vg/lv` as `/dev/vg/lv`).
pub fn name_of_path(dev_dir: &Path, path: &str) -> Result<String, String> {
    let last = path.rsplit('/').next().unwrap_or_default();
    let not_found = |what: &str| format!("Device {what} not found");
    let identity = match identity(Path::new(path)) {
        Some(found) => {
            let same = identity(&dev_dir.join(last)).is_some_and(|node| node == found);
            if same && !last.is_empty() {
                return Ok(last.to_owned());
            }
            found
        }
        None => {
            let beside = path.len() >= 3
                && !path.starts_with('/')
                && path.bytes().filter(|byte| *byte == b'/').count() == 1;
            let tried = beside
                .then(|| identity(&dev_dir.join("..").join(path)))
                .flatten();
            tried.ok_or_else(|| not_found(path))?
        }
    };
    find_in_dir(dev_dir, identity).ok_or_else(|| not_found(last))
}

/// What makes two paths one device: the number of a device node, or the file itself where nodes are no block devices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    Device(u64),
    File(u64, u64),
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    match metadata.rdev() {
        0 => Some(Identity::File(metadata.dev(), metadata.ino())),
        rdev => Some(Identity::Device(rdev)),
    }
}

fn find_in_dir(dev_dir: &Path, wanted: Identity) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(dev_dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
        .into_iter()
        .find(|name| identity(&dev_dir.join(name)) == Some(wanted))
}

/// The number of the device that a node is.
pub fn device_number(node: &Path) -> Option<DevNo> {
    let rdev = fs::metadata(node).ok()?.rdev();
    (rdev != 0).then(|| DevNo::from_dev_t(rdev))
}

/// Makes a missing node again: the same device as `target`, or a link to it where that is a file. An error is the line to
/// print.
pub fn restore(node: &Path, target: &Path) -> Result<(), String> {
    if node.symlink_metadata().is_ok() {
        return Ok(());
    }
    let failed = |error: io::Error| {
        format!(
            "{}: mknod for {} failed: {error}",
            node.display(),
            target.display()
        )
    };
    let metadata = fs::metadata(target).map_err(failed)?;
    if metadata.rdev() == 0 {
        return std::os::unix::fs::symlink(target, node).map_err(failed);
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node,
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        metadata.rdev(),
    )
    .map_err(|errno| failed(errno.into()))
}

/// Gives a node the owner and mode that `create` was told. Failure is told, not fatal, as with libdevmapper.
pub fn set_owner_and_mode(
    node: &Path,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
) -> Result<(), String> {
    let failed =
        |what: &str, error: io::Error| format!("{}: {what} failed: {error}", node.display());
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(node, uid, gid).map_err(|error| failed("chown", error))?;
    }
    if let Some(mode) = mode {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(node, permissions).map_err(|error| failed("chmod", error))?;
    }
    Ok(())
}

/// The read-ahead of the block device behind a node, in sectors; without a node, why it cannot be opened.
///
/// COMPAT: a node that is no block device (a FUSE file, say) has what Linux gives a new one.
pub fn read_ahead_sectors(node: &Path) -> io::Result<u32> {
    fs::metadata(node)?;
    let sectors = read_ahead_file(node)
        .and_then(|file| fs::read_to_string(file).ok())
        .and_then(|text| text.trim().parse::<u32>().ok())
        .map_or(READ_AHEAD_DEFAULT, |kib| kib.saturating_mul(2));
    Ok(sectors)
}

/// Sets the read-ahead; does nothing without a block device.
pub fn set_read_ahead(node: &Path, wish: ReadAheadWish) -> Result<(), String> {
    let sectors = match wish {
        ReadAheadWish::Auto => return Ok(()),
        ReadAheadWish::None => 0,
        ReadAheadWish::Sectors { sectors, minimum } => {
            if minimum && read_ahead_sectors(node).is_ok_and(|present| present >= sectors) {
                return Ok(());
            }
            sectors
        }
    };
    let Some(file) = read_ahead_file(node) else {
        return Ok(());
    };
    fs::write(&file, (sectors / 2).to_string())
        .map_err(|error| format!("{}: {error}", file.display()))
}

fn read_ahead_file(node: &Path) -> Option<PathBuf> {
    let rdev = fs::metadata(node).ok()?.rdev();
    let file = PathBuf::from(format!(
        "/sys/dev/block/{}/queue/read_ahead_kb",
        DevNo::from_dev_t(rdev)
    ));
    (rdev != 0 && file.exists()).then_some(file)
}
