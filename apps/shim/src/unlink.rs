//! Removing a node by path: not the one that the daemon has just renamed.

use libc::{c_char, c_int};

use crate::answer::keeping_errno;
use crate::next::stand_before;
use crate::state::{absolute, enter, world};

stand_before! {
    unlink => unlink_path(path: *const c_char) -> c_int;
}

unsafe fn unlink_path(next: impl Fn() -> c_int, path: *const c_char) -> c_int {
    // SAFETY: the caller's path, as unlink asks for it.
    let kept = unsafe { absolute(path) }
        .and_then(|path| keeping_errno(|| enter(|| Some(world().keeps_node(path)))));
    if kept == Some(true) { 0 } else { next() }
}
