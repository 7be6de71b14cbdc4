//! Device nodes in /dev that belong to the kernel: made where nobody else makes them, asked who claims them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use thinmap_units::DevNo;

/// Makes the node where neither udev nor devtmpfs has; whether it did.
pub(crate) fn ensure(path: &Path, kind: FileType, number: DevNo) -> Result<bool, Errno> {
    if path.exists() {
        return Ok(false);
    }
    let mode = Mode::from_raw_mode(0o600);
    match rustix::fs::mknodat(CWD, path, kind, mode, number.to_dev_t()) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether somebody has claimed the block device for himself (mount, swap), in whatever namespace.
pub(crate) fn is_claimed(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    matches!(
        rustix::fs::open(path, flags, Mode::empty()),
        Err(Errno::BUSY)
    )
}

/// Lets the block device refuse writers, or not.
pub(crate) fn set_read_only(device: &OwnedFd, read_only: bool) -> Result<(), Errno> {
    let mut value = libc::c_int::from(read_only);
    // SAFETY: BLKROSET reads one int.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROSET, &raw mut value) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// <linux/fs.h>
const BLKROSET: libc::c_ulong = 0x125d;
