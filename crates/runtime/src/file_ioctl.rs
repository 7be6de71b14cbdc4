//! File ioctls that no safe crate wraps.

use std::os::fd::{AsRawFd, BorrowedFd};

/// FICLONERANGE inside one file: `to..to+len` shares the extents of `from..from+len` (bytes).
pub fn clone_range(fd: BorrowedFd<'_>, from: u64, to: u64, len: u64) -> std::io::Result<()> {
    let argument = FileCloneRange {
        src_fd: i64::from(fd.as_raw_fd()),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: FICLONERANGE reads a file_clone_range, which lives for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), FICLONERANGE, &raw const argument) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// `struct file_clone_range` of <linux/fs.h>.
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// _IOW(0x94, 13, struct file_clone_range)
const FICLONERANGE: libc::c_ulong = 0x4020_940d;

/// BLKDISCARD: bytes `from..from+len` of a block device hold nothing of use. Both must be whole sectors.
///
/// # Errors
/// The system's; `EOPNOTSUPP` from a device that cannot discard.
pub fn discard_block_range(fd: BorrowedFd<'_>, from: u64, len: u64) -> std::io::Result<()> {
    let range = [from, len];
    // SAFETY: BLKDISCARD reads two u64, which live for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// _IO(0x12, 119)
const BLKDISCARD: libc::c_ulong = 0x1277;
