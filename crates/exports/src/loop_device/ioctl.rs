//! The loop driver's ioctls. Source: the kernel's user ABI, <linux/loop.h>.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thinmap_units::DevNo;

#[repr(C)]
#[derive(Clone, Copy)]
struct Info64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info64>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

impl Info64 {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

pub(super) fn open_control() -> Result<OwnedFd, Errno> {
    rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// What the device says of its file, in 63 bytes: programs (btrfs's) take devices that say the same for one. The end of a long path is
/// what tells one file from another.
fn name_of(path: &Path) -> [u8; 64] {
    let mut name = [0; 64];
    let bytes = path.as_os_str().as_bytes();
    let last = &bytes[bytes.len().saturating_sub(name.len() - 1)..];
    name[..last.len()].copy_from_slice(last);
    name
}

/// Adds a device with the wished number (EEXIST when there is one), or the lowest that no device has; its number.
pub(super) fn add(control: &OwnedFd, wish: Option<u32>) -> Result<u32, Errno> {
    let number = with_number(control, CTL_ADD, wish.map_or(-1, i64::from))?;
    u32::try_from(number).map_err(|_| Errno::INVAL)
}

/// Removes an unbound device that nobody has open.
pub(super) fn remove(control: &OwnedFd, number: u32) -> Result<(), Errno> {
    with_number(control, CTL_REMOVE, number.into()).map(drop)
}

/// Binds `file` with direct I/O and no partition scan.
pub(super) fn configure(
    device: &OwnedFd,
    (file, path): (&OwnedFd, &Path),
    block_size: u32,
) -> Result<(), Errno> {
    let mut config = Config {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size,
        info: Info64 {
            flags: FLAG_DIRECT_IO,
            file_name: name_of(path),
            ..Info64::ZERO
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which `Config` is, and keeps no pointer to it.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw mut config) }).map(drop)
}

/// Takes back a "detach when closed" that [`clear`] left.
pub(super) fn keep_when_closed(device: &OwnedFd) -> Result<(), Errno> {
    let mut info = status(device)?;
    info.flags &= !FLAG_AUTOCLEAR;
    set_status(device, &mut info)
}

/// The file system that the file behind it lies on.
pub(super) fn backing_device(device: &OwnedFd) -> Result<DevNo, Errno> {
    Ok(DevNo::from_kernel(status(device)?.device))
}

fn status(device: &OwnedFd) -> Result<Info64, Errno> {
    let mut info = Info64::ZERO;
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, which `Info64` is.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS64, &raw mut info) })?;
    Ok(info)
}

fn set_status(device: &OwnedFd, info: &mut Info64) -> Result<(), Errno> {
    // SAFETY: LOOP_SET_STATUS64 reads one `struct loop_info64`, which `Info64` is.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), SET_STATUS64, &raw mut *info) }).map(drop)
}

/// Detaches the file: at once when only we have the device open, else at its last close.
pub(super) fn clear(device: &OwnedFd) -> Result<(), Errno> {
    with_number(device, CLR_FD, 0).map(drop)
}

/// Takes the file's present size.
pub(super) fn set_capacity(device: &OwnedFd) -> Result<(), Errno> {
    with_number(device, SET_CAPACITY, 0).map(drop)
}

/// Sets the logical block size in bytes; the driver reads all its limits anew when it differs from the present one.
pub(super) fn set_block_size(device: &OwnedFd, bytes: u32) -> Result<(), Errno> {
    with_number(device, SET_BLOCK_SIZE, bytes.into()).map(drop)
}

pub(super) fn set_direct_io(device: &OwnedFd) -> Result<(), Errno> {
    with_number(device, SET_DIRECT_IO, 1).map(drop)
}

fn with_number(fd: &OwnedFd, request: libc::c_ulong, value: i64) -> Result<i32, Errno> {
    // SAFETY: these requests take a plain number, no memory.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as libc::c_long) })
}

fn checked(result: libc::c_int) -> Result<i32, Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error));
    }
    Ok(result)
}

pub(super) const CONTROL: &str = "/dev/loop-control";
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;
const CLR_FD: libc::c_ulong = 0x4c01;
const SET_STATUS64: libc::c_ulong = 0x4c04;
const GET_STATUS64: libc::c_ulong = 0x4c05;
const SET_CAPACITY: libc::c_ulong = 0x4c07;
const SET_DIRECT_IO: libc::c_ulong = 0x4c08;
const SET_BLOCK_SIZE: libc::c_ulong = 0x4c09;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const CTL_ADD: libc::c_ulong = 0x4c80;
const CTL_REMOVE: libc::c_ulong = 0x4c81;
