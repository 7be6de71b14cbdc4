//! Loop devices over FUSE files: real block devices on kernels without ublk.
//!
//! The loop driver reads and writes the file with direct I/O, so there is one page cache (the block device's own)
//! and several requests in flight. A device is made bound to an empty file, so that its number is ours before
//! there is a table; activation gives it limits and a size.
//!
//! INVARIANT: no call here runs on a queue thread: the driver's ioctls read the file, which queue threads serve.

mod ioctl;
mod nodes;
mod remover;
mod stale;

pub(crate) use nodes::LoopNodes;
pub use stale::StaleReport;
pub(crate) use stale::clean_stale;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use thinmap_units::DevNo;

use crate::dev_node;

/// Whether loop devices can be made here; if not, why.
pub(crate) fn probe() -> Result<(), String> {
    let control = open_control()?;
    let number =
        ioctl::add(&control, None).map_err(|errno| format!("adding a loop device: {errno}"))?;
    match ioctl::remove(&control, number) {
        // Somebody who looked for a free one took it: it works.
        Ok(()) | Err(Errno::BUSY | Errno::NODEV) => Ok(()),
        Err(errno) => Err(format!("removing loop device {number}: {errno}")),
    }
}

/// Whether they could be made here before, and may be still.
pub(crate) fn probe_permission() -> Result<(), String> {
    open_control().map(drop)
}

fn open_control() -> Result<OwnedFd, String> {
    ioctl::open_control().map_err(|errno| match errno {
        Errno::NOENT => format!("{} does not exist (modprobe loop)", ioctl::CONTROL),
        Errno::ACCESS | Errno::PERM => {
            format!(
                "{} may not be opened by this user (root may)",
                ioctl::CONTROL
            )
        }
        other => format!("{}: {other}", ioctl::CONTROL),
    })
}

/// Path of a loop device's node.
fn node_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Directory of a loop device in sysfs.
fn sysfs_dir(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}"))
}

/// Whether a file is behind the loop device.
fn is_bound(number: u32) -> bool {
    sysfs_dir(number).join("loop").exists()
}

/// Path of the file behind the loop device, as this process would see it.
fn backing_file(number: u32) -> Option<PathBuf> {
    let path = sysfs_text(&sysfs_dir(number).join("loop/backing_file"))?;
    // What the kernel adds where it has forgotten the name.
    Some(path.strip_suffix(" (deleted)").unwrap_or(&path).into())
}

/// Makes the node where neither udev nor devtmpfs has; whether it did.
fn ensure_node(number: u32) -> Result<bool, Errno> {
    let dev = DevNo::new(LOOP_MAJOR, number);
    dev_node::ensure(&node_path(number), FileType::BlockDevice, dev)
}

fn open_node(number: u32, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        node_path(number),
        flags | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

fn sysfs_text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim_end().to_owned())
}

const LOOP_MAJOR: u32 = 7;
