//! ioctl: device mapper's own go to the daemon if they are made on its control node.

use std::os::fd::BorrowedFd;

use libc::{c_int, c_ulong};
use thinmap_interpose::{ThisThread, is_dm_ioctl};

use crate::answer::{fail, keeping_errno};
use crate::next::stand_before;
use crate::state::{enter, world};

stand_before! {
    ioctl => forward_or_pass(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
}

unsafe fn forward_or_pass(
    next: impl Fn() -> c_int,
    fd: c_int,
    request: c_ulong,
    argument: c_ulong,
) -> c_int {
    // The kernel looks at 32 bits of the request too.
    if fd < 0 || !is_dm_ioctl(request as u32) {
        return next();
    }
    // SAFETY: used in this call only, and a descriptor that is not open fails with EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let answer = keeping_errno(|| {
        enter(|| {
            world()
                .is_control_fd(borrowed)
                .then(|| world().ioctl(borrowed, &ThisThread::new(), request as u32, argument))
        })
    });
    match answer {
        None => next(),
        Some(Ok(())) => 0,
        Some(Err(errno)) => fail(errno),
    }
}
