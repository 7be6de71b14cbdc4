//! What a host file can do, asked from the system; and the blocking calls on it.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};
use thinmap_runtime::{IoBuf, RingOp};
use thinmap_units::{DevNo, Sector};

use crate::limits::{QueueLimits, SECTORS_UNLIMITED};

/// Present size; what is beyond the last whole sector is not used, as the loop driver does.
pub(super) fn size(fd: BorrowedFd<'_>, is_block: bool) -> Result<Sector, Errno> {
    let bytes = if is_block {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?
    } else {
        u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| Errno::FBIG)?
    };
    Ok(Sector::from_bytes(bytes))
}

/// Alignment that direct I/O on this descriptor needs, in bytes; 512 where the system does not say.
pub(super) fn direct_io_align(fd: BorrowedFd<'_>) -> u32 {
    let statx = rustix::fs::statx(
        fd,
        c"",
        rustix::fs::AtFlags::EMPTY_PATH,
        rustix::fs::StatxFlags::from_bits_retain(STATX_DIOALIGN),
    );
    match statx {
        Ok(s) if s.stx_mask & STATX_DIOALIGN != 0 && s.stx_dio_offset_align > 0 => {
            s.stx_dio_offset_align.max(s.stx_dio_mem_align.min(4096))
        }
        _ => 512,
    }
}

/// Whether I/O on the file never waits for a medium.
pub(super) fn is_memory_file_system(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type == TMPFS_MAGIC || s.f_type == RAMFS_MAGIC)
}

/// Whether SEEK_DATA never takes written data for a hole. Elsewhere that was a bug more than once (dirty data on ZFS), so
/// only where it is known to hold.
pub(super) fn tells_holes(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| matches!(s.f_type, TMPFS_MAGIC | EXT4_MAGIC | XFS_MAGIC))
}

/// Whether there is no data in `start..start+len` (bytes).
pub(super) fn is_hole(fd: BorrowedFd<'_>, start: u64, len: u64) -> bool {
    match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(start)) {
        Ok(data) => data >= start + len,
        // No data from there to the end.
        Err(errno) => errno == Errno::NXIO,
    }
}

/// copy_file_range inside one file; offsets and length in bytes.
pub(super) fn copy_range(fd: BorrowedFd<'_>, from: u64, to: u64, len: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < len {
        let (mut from, mut to) = (from + done, to + done);
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(fd, Some(&mut from), fd, Some(&mut to), left) {
            // The file is shorter than it was.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn limits(fd: BorrowedFd<'_>, stat: &Stat, read_only: bool) -> QueueLimits {
    let is_block = stat.st_rdev != 0
        && rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::BlockDevice;
    if !is_block {
        let block = u32::try_from(stat.st_blksize).unwrap_or(4096);
        let granularity = if rustix::fs::fstatfs(fd).is_ok() {
            block.clamp(512, 1 << 20)
        } else {
            4096
        };
        return QueueLimits {
            discard_granularity: granularity,
            max_discard: SECTORS_UNLIMITED,
            max_write_zeroes: SECTORS_UNLIMITED,
            write_cache: true,
            read_only,
            ..QueueLimits::STACKING
        };
    }
    let dev = DevNo::from_dev_t(stat.st_rdev);
    let queue = |name: &str| -> u64 {
        // A partition has no queue folder of its own: its parent's counts.
        ["", "/.."]
            .iter()
            .find_map(|up| {
                std::fs::read_to_string(format!("/sys/dev/block/{dev}{up}/queue/{name}")).ok()
            })
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let size = |name, least: u32| u32::try_from(queue(name)).map_or(least, |v| v.max(least));
    QueueLimits {
        logical_block_size: size("logical_block_size", 512),
        physical_block_size: size("physical_block_size", 512),
        io_min: size("minimum_io_size", 512),
        io_opt: size("optimal_io_size", 0),
        discard_granularity: size("discard_granularity", 0),
        max_discard: Sector::from_bytes(queue("discard_max_bytes")),
        max_write_zeroes: Sector::from_bytes(queue("write_zeroes_max_bytes")),
        write_cache: true,
        read_only,
    }
}

/// FICLONERANGE inside one file; offsets and length in bytes.
pub(super) fn clone_range(fd: BorrowedFd<'_>, from: u64, to: u64, len: u64) -> Result<(), Errno> {
    thinmap_runtime::clone_range(fd, from, to, len)
        .map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO)))
}

/// Does an operation with plain system calls, with a ring's result (bytes or negated errno).
pub(super) fn run_now(fd: BorrowedFd<'_>, op: RingOp, offset: u64, buf: &mut IoBuf) -> i32 {
    let bytes = |result: Result<usize, Errno>| match result {
        Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
        Err(errno) => -errno.raw_os_error(),
    };
    let none = |result: Result<(), Errno>| bytes(result.map(|()| 0));
    match op {
        RingOp::Read => bytes(rustix::io::pread(fd, buf.as_mut_slice(), offset)),
        RingOp::Write { dsync: false } => bytes(rustix::io::pwrite(fd, buf.as_slice(), offset)),
        RingOp::Write { dsync: true } => bytes(rustix::io::pwritev2(
            fd,
            &[std::io::IoSlice::new(buf.as_slice())],
            offset,
            ReadWriteFlags::DSYNC,
        )),
        RingOp::Flush => none(rustix::fs::fdatasync(fd)),
        RingOp::Fallocate { mode, len } => {
            let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            none(rustix::fs::fallocate(fd, flags, offset, len))
        }
    }
}

const STATX_DIOALIGN: u32 = 0x2000;
const TMPFS_MAGIC: i64 = 0x0102_1994;
const EXT4_MAGIC: i64 = 0xef53;
const XFS_MAGIC: i64 = 0x5846_5342;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
