//! What a libc function gives back: its own way of failing, and files that hold a text.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use thinmap_interpose::Face;

use crate::state::world;

/// A libc function's result that can say "failed, see errno".
pub trait Failure: PartialEq + Sized {
    const FAILED: Self;

    /// Whether this result says so.
    fn has_failed(&self) -> bool {
        *self == Self::FAILED
    }
}

impl Failure for libc::c_int {
    const FAILED: Self = -1;
}

impl Failure for libc::c_long {
    const FAILED: Self = -1;
}

impl Failure for *mut libc::FILE {
    const FAILED: Self = std::ptr::null_mut();
}

impl Failure for *mut libc::DIR {
    const FAILED: Self = std::ptr::null_mut();
}

/// Fails as libc does.
pub fn fail<T: Failure>(errno: Errno) -> T {
    set_errno(errno.raw_os_error());
    T::FAILED
}

/// The calling thread's errno.
pub fn errno() -> libc::c_int {
    // SAFETY: the address of this thread's errno is valid while the thread lives.
    unsafe { *libc::__errno_location() }
}

/// Sets it: a call that succeeds must leave it alone, whatever it tried before.
pub fn set_errno(value: libc::c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Runs `work` and leaves errno as it was.
pub fn keeping_errno<T>(work: impl FnOnce() -> T) -> T {
    let before = errno();
    let result = work();
    set_errno(before);
    result
}

/// Opens what a face shows.
pub fn open_face(face: &Face, flags: OFlags) -> Result<OwnedFd, Errno> {
    let fd = face.open(world(), flags)?;
    if !flags.contains(OFlags::CLOEXEC) {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    }
    Ok(fd)
}
