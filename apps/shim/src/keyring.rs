//! request_key, which libcryptsetup and libkeyutils make by libc's `syscall`.

use libc::c_long;
use rustix::io::Errno;
use thinmap_interpose::{ThisThread, asks_for_logon_keys};

use crate::answer::{fail, keeping_errno};
use crate::next::stand_before;

stand_before! {
    syscall => ask_or_pass(nr: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
}

// One word for each register of a system call, and its number.
#[allow(clippy::too_many_arguments)]
unsafe fn ask_or_pass(
    next: impl Fn() -> c_long,
    nr: c_long,
    kind: c_long,
    description: c_long,
    _: c_long,
    _: c_long,
    _: c_long,
    _: c_long,
) -> c_long {
    if nr != libc::SYS_request_key {
        return next();
    }
    let asks = || {
        let [kind, description] = [kind, description].map(c_long::cast_unsigned);
        asks_for_logon_keys(&ThisThread::new(), kind, description)
    };
    if keeping_errno(asks) {
        return fail(Errno::NOSYS);
    }
    next()
}
