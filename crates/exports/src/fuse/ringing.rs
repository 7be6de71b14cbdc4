//! How a mount comes to be served over io_uring: wanted, agreed on in the handshake, then entries from every queue thread.
//!
//! Once it is agreed on, the kernel holds all requests back until every queue has entries: so the start waits for that, and
//! begins again without it when something fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::channel::Channel;

/// The state of it, of one mount.
pub(super) struct Ringing {
    /// The kernel's number of queues, when it is wanted.
    kernel_queues: Option<usize>,
    agreed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    channels: Vec<Arc<Channel>>,
    answered: bool,
    registered: usize,
    failure: Option<std::io::Error>,
}

impl Ringing {
    pub(super) fn new(kernel_queues: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            kernel_queues,
            agreed: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.kernel_queues.is_some()
    }

    /// Told of each queue thread's channel before the threads start.
    pub(super) fn add_channel(&self, channel: &Arc<Channel>) {
        if self.is_wanted() {
            self.state.lock().channels.push(channel.clone());
        }
    }

    /// The handshake has been answered.
    pub(super) fn answered(&self, agreed: bool) {
        self.agreed.store(agreed, Ordering::SeqCst);
        let mut state = self.state.lock();
        state.answered = true;
        if agreed {
            state
                .channels
                .iter()
                .for_each(|channel| channel.waker().wake());
        }
        self.changed.notify_all();
    }

    /// The kernel's queues, once a thread is to register its share of them.
    pub(super) fn to_register(&self) -> Option<usize> {
        self.kernel_queues
            .filter(|_| self.agreed.load(Ordering::SeqCst))
    }

    /// A thread has registered its share, or failed to.
    pub(super) fn registered(&self, result: std::io::Result<()>) {
        let mut state = self.state.lock();
        match result {
            Ok(()) => state.registered += 1,
            Err(error) => state.failure = Some(error),
        }
        self.changed.notify_all();
    }

    /// Waits until requests flow: whether over io_uring.
    pub(super) fn wait(&self) -> std::io::Result<bool> {
        if !self.is_wanted() {
            return Ok(false);
        }
        let mut state = self.state.lock();
        let result = loop {
            if let Some(error) = state.failure.take() {
                break Err(error);
            }
            let agreed = self.agreed.load(Ordering::SeqCst);
            if state.answered && (!agreed || state.registered == state.channels.len()) {
                break Ok(agreed);
            }
            if self
                .changed
                .wait_for(&mut state, START_TIME_MAX)
                .timed_out()
            {
                break Err(std::io::ErrorKind::TimedOut.into());
            }
        };
        state.channels.clear();
        result
    }
}

const START_TIME_MAX: Duration = Duration::from_secs(10);
