//! Requests that wait for their time.
//!
//! INVARIANT: nothing is taken in once the queue was told to stop or not to delay, so that a suspend, which waits for
//! requests, waits no longer than the devices below take.
//!
//! Memory: a request brings its own; how many there can be is up to those who send them (queue depths).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, Io};
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, ActorHandle, Clock, NextTurn};
use thinmap_units::BlkStatus;

use super::CLASSES;

/// See the module.
pub(super) struct DelayQueue {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    handle: OnceLock<ActorHandle>,
}

struct State {
    /// By when they go on, those of one time in the order in which they came.
    waiting: BTreeMap<(Duration, u64), Delayed>,
    came: u64,
    counts: [u32; CLASSES],
    delaying: bool,
    stop: bool,
}

struct Delayed {
    class: usize,
    io: Io,
    to: Arc<dyn BlockDevice>,
}

/// The line's hold on its queue: dropping it ends the actor, and waits for that, so that the devices are let go of.
pub(super) struct QueueRef(Arc<DelayQueue>);

impl std::ops::Deref for QueueRef {
    type Target = DelayQueue;

    fn deref(&self) -> &DelayQueue {
        &self.0
    }
}

impl Drop for QueueRef {
    fn drop(&mut self) {
        self.0.state.lock().stop = true;
        self.0.set_delaying(false);
        if let Some(handle) = self.0.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl DelayQueue {
    /// A queue whose actor runs.
    pub fn start(env: &Environment) -> std::io::Result<QueueRef> {
        let queue = Arc::new(Self {
            clock: env.clock.clone(),
            state: Mutex::new(State {
                waiting: BTreeMap::new(),
                came: 0,
                counts: [0; CLASSES],
                delaying: true,
                stop: false,
            }),
            handle: OnceLock::new(),
        });
        let actor = Arc::new(DelayActor(queue.clone()));
        let handle = env.spawner.spawn("thinmap-delay", actor)?;
        let _ = queue.handle.set(handle);
        Ok(QueueRef(queue))
    }

    /// Sends a request on to a device after `delay`; gives it back when it need not wait.
    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    pub fn add(
        &self,
        class: usize,
        io: Io,
        to: &Arc<dyn BlockDevice>,
        delay: Duration,
    ) -> Result<(), Io> {
        let due = self.clock.now() + delay;
        let mut state = self.state.lock();
        if !state.delaying {
            return Err(io);
        }
        let is_next = state
            .waiting
            .first_key_value()
            .is_none_or(|((first, _), _)| due < *first);
        let key = (due, state.came);
        state.came += 1;
        state.counts[class] += 1;
        let to = to.clone();
        state.waiting.insert(key, Delayed { class, io, to });
        drop(state);
        if is_next && let Some(handle) = self.handle.get() {
            handle.wake();
        }
        Ok(())
    }

    /// How many wait, by class.
    pub fn waiting(&self) -> [u32; CLASSES] {
        self.state.lock().counts
    }

    /// Whether requests wait from now on. When not, those that do go on at once.
    pub fn set_delaying(&self, delaying: bool) {
        self.state.lock().delaying = delaying;
        if !delaying {
            self.send(self.take(Duration::MAX));
        }
    }

    /// Those whose time has come.
    fn take(&self, now: Duration) -> Vec<Delayed> {
        let mut state = self.state.lock();
        let later = match now {
            Duration::MAX => BTreeMap::new(),
            now => state.waiting.split_off(&(now, u64::MAX)),
        };
        let due: Vec<Delayed> = std::mem::replace(&mut state.waiting, later)
            .into_values()
            .collect();
        for delayed in &due {
            state.counts[delayed.class] -= 1;
        }
        due
    }

    fn send(&self, due: Vec<Delayed>) {
        for Delayed { io, to, .. } in due {
            to.submit(io);
        }
    }
}

struct DelayActor(Arc<DelayQueue>);

impl Actor for DelayActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let due = self.0.take(now);
        self.0.send(due);
        let state = self.0.state.lock();
        match state.waiting.first_key_value() {
            Some(((due, _), _)) => NextTurn::At(*due),
            None if state.stop => NextTurn::Stop,
            None => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        self.0.state.lock().delaying = false;
        let waiting = self.0.take(Duration::MAX);
        for delayed in waiting {
            delayed.io.complete(BlkStatus::IoErr);
        }
        tracing::error!("delay: the worker ended by a panic: requests are delayed no more");
    }
}
