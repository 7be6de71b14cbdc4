//! Wakes a sleeping queue thread: an eventfd, written only when its reader may be asleep.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// The wake-up line of one queue thread. Shared by everybody who may wake it.
pub struct Waker {
    fd: OwnedFd,
    pending: AtomicBool,
}

impl Waker {
    /// A new wake-up line.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            pending: AtomicBool::new(false),
        })
    }

    /// Makes the thread run once more, now or as soon as its present run ends.
    pub fn wake(&self) {
        // One write serves all wake-ups until the thread clears the flag before it looks for work.
        if !self.pending.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.fd, &one_in_host_order());
        }
    }

    /// Called by the woken thread before it looks for work.
    pub fn clear(&self) {
        if self.pending.load(Ordering::Acquire) {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.fd, &mut count);
            self.pending.store(false, Ordering::Release);
        }
    }

    /// The descriptor to poll for input.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[expect(
    clippy::host_endian_bytes,
    reason = "eventfd(2) takes a host-endian counter"
)]
fn one_in_host_order() -> [u8; 8] {
    1u64.to_ne_bytes()
}
