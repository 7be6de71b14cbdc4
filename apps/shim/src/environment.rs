//! getenv: libdevmapper must not leave nodes and links to udev, which never hears of our devices.

use std::ffi::CStr;

use libc::c_char;

use crate::answer::Failure;
use crate::next::stand_before;

stand_before! {
    getenv, secure_getenv => value_of(name: *const c_char) -> *mut c_char;
}

impl Failure for *mut c_char {
    const FAILED: Self = std::ptr::null_mut();
}

const DISABLE_UDEV: &CStr = c"DM_DISABLE_UDEV";
const YES: &CStr = c"1";

unsafe fn value_of(next: impl Fn() -> *mut c_char, name: *const c_char) -> *mut c_char {
    let value = next();
    // SAFETY: getenv's name is a NUL-terminated string, of which this looks at one byte and then, if it may be the one, at all.
    let is_ours = || unsafe {
        !name.is_null() && *name as u8 == b'D' && CStr::from_ptr(name) == DISABLE_UDEV
    };
    if value.is_null() && is_ours() {
        return YES.as_ptr().cast_mut();
    }
    value
}
