//! Looking at a path without opening it: where the kernel has nothing there may be something of ours.

use libc::{c_char, c_int, c_uint};
use rustix::fs::Access;
use rustix::io::Errno;
use thinmap_interpose::{Face, NodeKind};

use crate::answer::{errno, fail, keeping_errno, set_errno};
use crate::next::stand_before;
use crate::state::{absolute, enter, world};

stand_before! {
    stat, lstat, stat64, lstat64 => stat_path(path: *const c_char, into: *mut libc::stat64) -> c_int;
    fstatat, fstatat64 =>
        stat_path_at(dir: c_int, path: *const c_char, into: *mut libc::stat64, flags: c_int) -> c_int;
    statx => statx_path(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, into: *mut libc::statx) -> c_int;
    access, euidaccess, eaccess => access_path(path: *const c_char, mode: c_int) -> c_int;
    faccessat => access_path_at(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
    // What programs built with a glibc before 2.33 call.
    __xstat, __lxstat, __xstat64, __lxstat64 =>
        stat_path_versioned(version: c_int, path: *const c_char, into: *mut libc::stat64) -> c_int;
}

// Both families take the same structure on every machine that this is built for.
const _: () = assert!(size_of::<libc::stat>() == size_of::<libc::stat64>());

unsafe fn stat_path(
    next: impl Fn() -> c_int,
    path: *const c_char,
    into: *mut libc::stat64,
) -> c_int {
    // SAFETY: the caller's path and structure, as stat asks for them.
    unsafe { look(next, path, |face| into.write(stat_of(face))) }
}

unsafe fn stat_path_at(
    next: impl Fn() -> c_int,
    _dir: c_int,
    path: *const c_char,
    into: *mut libc::stat64,
    _flags: c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe { stat_path(next, path, into) }
}

unsafe fn stat_path_versioned(
    next: impl Fn() -> c_int,
    _version: c_int,
    path: *const c_char,
    into: *mut libc::stat64,
) -> c_int {
    // SAFETY: as above.
    unsafe { stat_path(next, path, into) }
}

unsafe fn statx_path(
    next: impl Fn() -> c_int,
    _dir: c_int,
    path: *const c_char,
    _flags: c_int,
    _mask: c_uint,
    into: *mut libc::statx,
) -> c_int {
    // SAFETY: as above.
    unsafe { look(next, path, |face| into.write(statx_of(face))) }
}

unsafe fn access_path(next: impl Fn() -> c_int, path: *const c_char, mode: c_int) -> c_int {
    let mode = Access::from_bits_retain(mode as u32);
    let mut denied = false;
    // SAFETY: the caller's path, as access asks for it.
    let found = unsafe { look(next, path, |face| denied = !face.grants(mode)) };
    if denied { fail(Errno::ACCESS) } else { found }
}

unsafe fn access_path_at(
    next: impl Fn() -> c_int,
    _dir: c_int,
    path: *const c_char,
    mode: c_int,
    _flags: c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe { access_path(next, path, mode) }
}

/// Asks the kernel first; what it does not have and we do is described by `describe`.
///
/// # Safety
/// `path` is null or a NUL-terminated string.
unsafe fn look(
    next: impl Fn() -> c_int,
    path: *const c_char,
    describe: impl FnOnce(&Face),
) -> c_int {
    let before = errno();
    let passed = next();
    if passed == 0 || errno() != Errno::NOENT.raw_os_error() {
        return passed;
    }
    // SAFETY: promised by the caller.
    let Some(path) = (unsafe { absolute(path) }) else {
        return passed;
    };
    match keeping_errno(|| enter(|| world().face_of_missing(path))) {
        Some(face) => {
            describe(&face);
            set_errno(before);
            0
        }
        None => passed,
    }
}

fn stat_of(face: &Face) -> libc::stat64 {
    // SAFETY: a structure of integers, for which zeroes are a value.
    let mut stat: libc::stat64 = unsafe { std::mem::zeroed() };
    let NodeKind { mode, major, minor } = face.node_kind();
    stat.st_mode = mode;
    stat.st_nlink = 1;
    stat.st_rdev = libc::makedev(major, minor);
    stat.st_blksize = 4096;
    stat
}

fn statx_of(face: &Face) -> libc::statx {
    // SAFETY: as above.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let NodeKind { mode, major, minor } = face.node_kind();
    stat.stx_mask = libc::STATX_BASIC_STATS;
    stat.stx_mode = mode as u16;
    stat.stx_nlink = 1;
    stat.stx_rdev_major = major;
    stat.stx_rdev_minor = minor;
    stat.stx_blksize = 4096;
    stat
}
