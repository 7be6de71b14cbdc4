//! Opening by path: the control node and the texts that speak of device mapper.

use std::ffi::CStr;
use std::os::fd::IntoRawFd;

use libc::{DIR, FILE, c_char, c_int, mode_t};
use rustix::fs::OFlags;
use rustix::io::Errno;
use thinmap_interpose::Face;

use crate::answer::{Failure, errno, fail, keeping_errno, open_face, set_errno};
use crate::next::stand_before;
use crate::state::{absolute, enter, world};

stand_before! {
    open, open64 => open_path(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat, openat64 => open_path_at(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    // What fortified programs call.
    __open_2, __open64_2 => open_path_checked(path: *const c_char, flags: c_int) -> c_int;
    __openat_2, __openat64_2 => open_path_at_checked(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fopen, fopen64 => open_stream(path: *const c_char, mode: *const c_char) -> *mut FILE;
    // libc's own opens by another name inside.
    opendir => open_directory(path: *const c_char) -> *mut DIR;
}

unsafe fn open_path(
    next: impl Fn() -> c_int,
    path: *const c_char,
    flags: c_int,
    _mode: mode_t,
) -> c_int {
    // SAFETY: the caller's path, as open asks for it.
    unsafe { open_or_pass(next, path, flags) }
}

unsafe fn open_path_checked(next: impl Fn() -> c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { open_or_pass(next, path, flags) }
}

unsafe fn open_path_at(
    next: impl Fn() -> c_int,
    _dir: c_int,
    path: *const c_char,
    flags: c_int,
    _mode: mode_t,
) -> c_int {
    // SAFETY: as above; the directory counts for relative paths only, which are not ours.
    unsafe { open_or_pass(next, path, flags) }
}

unsafe fn open_path_at_checked(
    next: impl Fn() -> c_int,
    _dir: c_int,
    path: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: as above.
    unsafe { open_or_pass(next, path, flags) }
}

/// # Safety
/// `path` is null or a NUL-terminated string.
unsafe fn open_or_pass(next: impl Fn() -> c_int, path: *const c_char, flags: c_int) -> c_int {
    let flags = OFlags::from_bits_retain(flags as u32);
    // SAFETY: promised by the caller.
    unsafe { face_or_pass(next, path, |face| Ok(open_face(face, flags)?.into_raw_fd())) }
}

unsafe fn open_stream(
    next: impl Fn() -> *mut FILE,
    path: *const c_char,
    mode: *const c_char,
) -> *mut FILE {
    let open_stream = |face: &Face| {
        // SAFETY: the caller's mode, as fopen asks for it.
        let flags = flags_of_mode(unsafe { CStr::from_ptr(mode) }.to_bytes());
        let fd = open_face(face, flags)?.into_raw_fd();
        // SAFETY: a descriptor of our own, and the caller's mode, as fopen asks for it.
        let stream = unsafe { libc::fdopen(fd, mode) };
        if stream.is_null() {
            // SAFETY: nobody else has it.
            unsafe { libc::close(fd) };
            return Err(Errno::from_raw_os_error(errno()));
        }
        Ok(stream)
    };
    // SAFETY: the caller's path, as fopen asks for it.
    unsafe { face_or_pass(next, path, open_stream) }
}

unsafe fn open_directory(next: impl Fn() -> *mut DIR, path: *const c_char) -> *mut DIR {
    let open_directory = |face: &Face| {
        let fd = open_face(face, OFlags::DIRECTORY | OFlags::CLOEXEC)?.into_raw_fd();
        // SAFETY: a descriptor of our own.
        let directory = unsafe { libc::fdopendir(fd) };
        if directory.is_null() {
            // SAFETY: nobody else has it.
            unsafe { libc::close(fd) };
            return Err(Errno::from_raw_os_error(errno()));
        }
        Ok(directory)
    };
    // SAFETY: the caller's path, as opendir asks for it.
    unsafe { face_or_pass(next, path, open_directory) }
}

/// What of fopen's mode concerns how the file is opened and does not come with `fdopen`.
fn flags_of_mode(mode: &[u8]) -> OFlags {
    // A character set may follow the comma.
    let letters = mode.split(|byte| *byte == b',').next().unwrap_or_default();
    let has = |letter| letters.contains(&letter);
    let mut flags = OFlags::empty();
    flags.set(OFlags::CLOEXEC, has(b'e'));
    let creates = letters.first() != Some(&b'r');
    flags.set(OFlags::CREATE | OFlags::EXCL, creates && has(b'x'));
    flags
}

/// # Safety
/// `path` is null or a NUL-terminated string.
unsafe fn face_or_pass<T: Failure>(
    next: impl Fn() -> T,
    path: *const c_char,
    open: impl Fn(&Face) -> Result<T, Errno>,
) -> T {
    // SAFETY: promised by the caller.
    let Some(path) = (unsafe { absolute(path) }) else {
        return next();
    };
    let opened = |face: Option<Face>| face.map(|face| open(&face));
    if let Some(result) = keeping_errno(|| enter(|| opened(world().face(path)))) {
        return result.unwrap_or_else(fail);
    }
    let before = errno();
    let passed = next();
    if !passed.has_failed() || errno() != Errno::NOENT.raw_os_error() {
        return passed;
    }
    match keeping_errno(|| enter(|| opened(world().face_of_missing(path)))) {
        Some(Ok(opened)) => {
            set_errno(before);
            opened
        }
        Some(Err(errno)) => fail(errno),
        None => passed,
    }
}
