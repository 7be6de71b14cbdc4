//! Threads that ask devices what is allocated: one for each device with a question under way, so that a device that
//! does not answer keeps nobody but its own clients waiting.
//!
//! INVARIANT: a device is in `ready` when questions for it wait and no thread is at it, and then once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::extents::ExtentsQuery;

/// The threads of one server, or of a test.
#[derive(Default)]
pub struct Askers {
    state: Mutex<State>,
    work: Condvar,
    gone: Condvar,
}

#[derive(Default)]
struct State {
    /// Of devices with questions that wait or are under way.
    devices: HashMap<usize, Waiting>,
    ready: VecDeque<usize>,
    threads: usize,
    idle: usize,
    ended: bool,
}

/// Questions for one device.
#[derive(Default)]
struct Waiting {
    queries: VecDeque<ExtentsQuery>,
    /// With so many it is time to look for those that nobody waits for any more.
    crowd: usize,
}

impl Waiting {
    fn push(&mut self, query: ExtentsQuery) {
        if self.queries.len() >= self.crowd {
            self.queries.retain(|query| !query.answer.is_given());
            self.crowd = CROWD.max(2 * self.queries.len());
        }
        self.queries.push_back(query);
    }
}

impl Askers {
    /// Has a question answered, sooner or later. Does not wait.
    pub fn ask(self: &Arc<Self>, query: ExtentsQuery) {
        let mut state = self.state.lock();
        // An address is as good as a name: what it is given to next waits with those that are left of it.
        let device = Arc::as_ptr(&query.device).cast::<()>() as usize;
        if let Some(waiting) = state.devices.get_mut(&device) {
            return waiting.push(query);
        }
        state.devices.entry(device).or_default().push(query);
        state.ready.push_back(device);
        if state.ready.len() <= state.idle || state.threads >= THREADS_MAX {
            self.work.notify_one();
            return;
        }
        let askers = self.clone();
        let thread = std::thread::Builder::new()
            .name("nbd-extents".to_owned())
            .spawn(move || askers.run());
        match thread {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => {
                tracing::error!(%error, "NBD: no thread for block status");
                state.ready.clear();
                let left = std::mem::take(&mut state.devices);
                drop(state);
                for query in left.into_values().flat_map(|waiting| waiting.queries) {
                    query.fail();
                }
            }
            // One of those that run comes to it.
            Err(error) => tracing::warn!(%error, "NBD: no more threads for block status"),
        }
    }

    /// The threads end; those that a device keeps are left to it after a moment. Nothing is asked any more.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.work.notify_all();
        let until = Instant::now() + END_PATIENCE;
        while state.threads > 0 {
            if self.gone.wait_until(&mut state, until).timed_out() {
                tracing::warn!(
                    threads = state.threads,
                    "NBD: devices that do not answer what is allocated"
                );
                return;
            }
        }
    }

    fn run(&self) {
        let mut extents = Vec::new();
        let mut state = self.state.lock();
        loop {
            if let Some(device) = state.ready.pop_front() {
                let waiting = state.devices.get_mut(&device);
                if let Some(query) = waiting.and_then(|waiting| waiting.queries.pop_front()) {
                    MutexGuard::unlocked(&mut state, || query.answer(&mut extents));
                }
                let left = state.devices.get(&device);
                if left.is_some_and(|waiting| !waiting.queries.is_empty()) {
                    state.ready.push_back(device);
                } else {
                    state.devices.remove(&device);
                }
                continue;
            }
            if state.ended {
                break;
            }
            // The next question of the same client mostly comes at once.
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.ready.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.gone.notify_all();
    }
}

/// More devices than clients could ask at once.
const THREADS_MAX: usize = 256;
const CROWD: usize = 256;
const IDLE: Duration = Duration::from_secs(1);
const END_PATIENCE: Duration = Duration::from_secs(1);
