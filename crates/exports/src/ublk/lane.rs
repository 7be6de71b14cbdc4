//! What other threads share with one queue thread: what it is asked for, what has ended, how much is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use thinmap_runtime::Waker;

use super::driver::CharDevice;
use super::request::Behind;

/// A request of a control thread: serve one queue of a device.
pub(super) struct Attach {
    pub device: Arc<dyn CharDevice>,
    pub queue: u16,
    pub depth: u16,
    pub behind: Arc<Behind>,
    pub attached: Arc<Attached>,
}

/// The inbox of one queue thread.
pub(super) struct Lane {
    waker: Arc<Waker>,
    inbox: Mutex<Inbox>,
    bytes_in_flight: AtomicUsize,
    closing: AtomicBool,
}

/// Taken by the queue thread at each turn.
#[derive(Default)]
pub(super) struct Inbox {
    pub attach: Vec<Attach>,
    /// Slot, tag, result of requests that have ended.
    pub ended: Vec<(u32, u16, i32)>,
}

impl Lane {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            waker: Arc::new(Waker::new()?),
            inbox: Mutex::default(),
            bytes_in_flight: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    pub(super) fn attach(&self, attach: Attach) {
        self.inbox.lock().attach.push(attach);
        self.waker.wake();
    }

    pub(super) fn ended(&self, slot: u32, tag: u16, result: i32) {
        self.inbox.lock().ended.push((slot, tag, result));
        self.waker.wake();
    }

    /// Exchanges the inbox for an empty one.
    pub(super) fn swap(&self, with: &mut Inbox) {
        std::mem::swap(&mut *self.inbox.lock(), with);
    }

    pub(super) fn begin(&self, bytes: usize) {
        self.bytes_in_flight.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn end(&self, bytes: usize) {
        self.bytes_in_flight.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Whether requests should wait for memory; each end of one wakes the thread anyway.
    pub(super) fn is_full(&self) -> bool {
        self.bytes_in_flight.load(Ordering::Acquire) >= BYTES_IN_FLIGHT_MAX
    }

    /// The thread ends when it serves no queue any more.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// What a control thread waits for, of one queue.
#[derive(Default)]
pub(super) struct Attached {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether all tags have been fetched; the first word counts.
    serving: Option<Result<(), Errno>>,
    /// All commands have come back; descriptors and character device are let go.
    ended: bool,
}

impl Attached {
    pub(super) fn serving(&self, answer: Result<(), Errno>) {
        self.state.lock().serving.get_or_insert(answer);
        self.changed.notify_all();
    }

    pub(super) fn ended(&self) {
        let mut state = self.state.lock();
        state.serving.get_or_insert(Err(Errno::NODEV));
        state.ended = true;
        self.changed.notify_all();
    }

    /// Waits until the queue serves, or why it does not.
    pub(super) fn wait_serving(&self) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let in_time =
            self.changed
                .wait_while_for(&mut state, |state| state.serving.is_none(), ANSWER_MAX);
        if in_time.timed_out() {
            return Err(Errno::TIMEDOUT);
        }
        state.serving.unwrap_or(Err(Errno::NODEV))
    }

    /// Waits until the queue has let the device go; `false` when that takes far longer than it should.
    pub(super) fn wait_ended(&self) -> bool {
        let mut state = self.state.lock();
        let in_time = self
            .changed
            .wait_while_for(&mut state, |state| !state.ended, ANSWER_MAX);
        !in_time.timed_out()
    }
}

/// A thread leaves what has come in the kernel's queues there while its requests hold this much memory.
const BYTES_IN_FLIGHT_MAX: usize = 256 << 20;
/// The driver gives commands back before it answers the stop command, and a queue thread never blocks: longer
/// than this only when something is broken.
const ANSWER_MAX: Duration = Duration::from_secs(30);
