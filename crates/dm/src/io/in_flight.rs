//! Counts requests that are on their way, for a suspend to wait for them.
//!
//! Counters are spread over cache lines so that queue threads do not fight for one. A request is counted up
//! by the thread that brings it and down by the one that ends it, so single counters may be negative; only the sum
//! means something, and only once the gate is closed: then a sum of zero says that none is left. (A request seen
//! leaving was counted before the gate closed; one that bounces off the gate goes up and down on one counter.)

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thinmap_runtime::{Waiting, simulate};

#[derive(Default)]
pub(super) struct InFlight {
    counters: [Counter; COUNTERS],
    waiting: AtomicBool,
    lock: Mutex<()>,
    left: Condvar,
}

#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicI64);

impl InFlight {
    /// Counts a request. Sequentially consistent with the gate: either we see it closed, or its closer sees us.
    pub(super) fn enter(&self) {
        self.mine().fetch_add(1, Ordering::SeqCst);
    }

    /// Counts it out.
    pub(super) fn leave(&self) {
        self.mine().fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) {
            let _guard = self.lock.lock();
            self.left.notify_all();
        }
    }

    /// Waits for the sum to be zero; `false` when `stop` said so first. The gate is closed.
    pub(super) fn wait_idle(&self, stop: &dyn Fn() -> bool) -> bool {
        self.waiting.store(true, Ordering::SeqCst);
        while self.sum() != 0 && !stop() && simulate(Waiting::ForActors) {}
        let mut guard = self.lock.lock();
        let idle = loop {
            if self.sum() == 0 {
                break true;
            }
            if stop() {
                break false;
            }
            self.left.wait_for(&mut guard, STOP_POLL);
        };
        self.waiting.store(false, Ordering::SeqCst);
        idle
    }

    fn sum(&self) -> i64 {
        self.counters
            .iter()
            .map(|counter| counter.0.load(Ordering::SeqCst))
            .sum()
    }

    fn mine(&self) -> &AtomicI64 {
        &self.counters[SLOT.get() % COUNTERS].0
    }
}

thread_local! {
    static SLOT: Cell<usize> = Cell::new(NEXT_SLOT.fetch_add(1, Ordering::Relaxed));
}

static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);
const COUNTERS: usize = 8;
const STOP_POLL: Duration = Duration::from_millis(100);
