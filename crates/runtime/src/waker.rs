//! Wakes a sleeping queue thread: an eventfd, written only when its reader may be asleep.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// The wake-up line of one thread. Shared by everybody who may wake it.
///
/// A reader that only ever polls the descriptor calls [`clear`](Self::clear) before it looks for work. One that says when it is
/// up ([`stay_up`](Self::stay_up)) and when it wants to sleep ([`may_sleep`](Self::may_sleep)) spares its wakers the
/// system call while it is up.
pub struct Waker {
    fd: OwnedFd,
    state: AtomicU8,
}

/// The reader sleeps, or polls: whoever wakes it writes.
const LISTENING: u8 = 0;
/// Written, and not yet seen.
const WRITTEN: u8 = 1;
/// The reader is up, and looks at the state before it sleeps.
const UP: u8 = 2;
/// The reader is up and must have one more turn.
const UP_AND_WOKEN: u8 = 3;

impl Waker {
    /// A new wake-up line.
    pub fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            state: AtomicU8::new(LISTENING),
        })
    }

    /// Makes the thread run once more, now or as soon as its present run ends.
    pub fn wake(&self) {
        // What the caller stored before must be seen by a thread that was woken before and is about to look.
        fence(Ordering::SeqCst);
        let update = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                LISTENING => Some(WRITTEN),
                UP => Some(UP_AND_WOKEN),
                // One wake-up serves all until the thread looks.
                _ => None,
            });
        if update == Ok(LISTENING) {
            let _ = rustix::io::write(&self.fd, &one_in_host_order());
        }
    }

    /// Called by the woken thread before it looks for work.
    pub fn clear(&self) {
        if self.state.load(Ordering::Acquire) == WRITTEN {
            self.take_count();
            self.state.store(LISTENING, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    /// Called by the thread before it looks for work: it is up until [`may_sleep`](Self::may_sleep) says otherwise.
    pub fn stay_up(&self) {
        if self.state.swap(UP, Ordering::SeqCst) == WRITTEN {
            self.take_count();
        }
        fence(Ordering::SeqCst);
    }

    /// `true`: nobody has woken the thread since it looked, it may poll the descriptor now. `false`: it must look again.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(UP, LISTENING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Waits for a write that is on its way, so that none is left to make a later poll fire for nothing.
    fn take_count(&self) {
        let mut count = [0u8; 8];
        while rustix::io::read(&self.fd, &mut count) == Err(rustix::io::Errno::AGAIN) {
            std::hint::spin_loop();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(waker: &Waker) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            waker,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&now)).expect("poll") == 1
    }

    #[test]
    fn a_thread_that_is_up_is_told_without_a_write() {
        let waker = Waker::new().expect("eventfd");
        waker.stay_up();
        waker.wake();
        waker.wake();
        assert!(!is_readable(&waker));
        assert!(!waker.may_sleep(), "it was woken");
        waker.stay_up();
        assert!(waker.may_sleep());
        waker.wake();
        waker.wake();
        assert!(is_readable(&waker));
        waker.stay_up();
        assert!(!is_readable(&waker));
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let waker = Waker::new().expect("eventfd");
        let (given, rounds) = (std::sync::atomic::AtomicU64::new(0), 20_000u64);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..rounds {
                    given.fetch_add(1, Ordering::SeqCst);
                    waker.wake();
                }
            });
            let mut seen = 0;
            while seen < rounds {
                waker.stay_up();
                let now = given.load(Ordering::SeqCst);
                if now == seen && waker.may_sleep() {
                    let mut fds = [rustix::event::PollFd::new(
                        &waker,
                        rustix::event::PollFlags::IN,
                    )];
                    // For ever, if the wake-up was lost.
                    rustix::event::poll(&mut fds, None).expect("poll");
                }
                seen = now;
            }
        });
    }
}
