//! Actors on threads whose time stands still until the test moves it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thinmap_runtime::{Actor, ActorHandle, Clock, NextTurn, Spawner, Wake};

#[derive(Default)]
pub struct ManualTime {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    now: Duration,
    /// Raised by wake-ups and by time's moves.
    stirs: u64,
}

pub struct ManualSpawner(pub Arc<ManualTime>);

impl ManualTime {
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock();
        state.now += by;
        state.stirs += 1;
        self.changed.notify_all();
    }
}

impl Clock for ManualTime {
    fn now(&self) -> Duration {
        self.state.lock().now
    }
}

struct Thread {
    time: Arc<ManualTime>,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Thread {
    fn wake(&self) {
        self.time.state.lock().stirs += 1;
        self.time.changed.notify_all();
    }

    fn join(&self) {
        let mut stopped = self.stopped.lock();
        while !*stopped {
            self.changed.wait(&mut stopped);
        }
    }
}

impl Spawner for ManualSpawner {
    fn spawn(&self, _name: &str, actor: Arc<dyn Actor>) -> std::io::Result<ActorHandle> {
        let thread = Arc::new(Thread {
            time: self.0.clone(),
            stopped: Mutex::new(false),
            changed: Condvar::new(),
        });
        let of_thread = thread.clone();
        std::thread::spawn(move || {
            let time = &of_thread.time;
            loop {
                let stirs = time.state.lock().stirs;
                let now = time.now();
                let turn = catch_unwind(AssertUnwindSafe(|| actor.turn(now)));
                let next = match turn {
                    Ok(NextTurn::Stop) => break,
                    Ok(next) => next,
                    Err(_) => {
                        actor.panicked();
                        break;
                    }
                };
                let mut state = time.state.lock();
                while state.stirs == stirs && !matches!(next, NextTurn::At(t) if t <= state.now) {
                    // What the worker polls for (requests in flight) does not move with this clock.
                    let timeout = Duration::from_millis(2);
                    if time.changed.wait_for(&mut state, timeout).timed_out() {
                        break;
                    }
                }
            }
            *of_thread.stopped.lock() = true;
            of_thread.changed.notify_all();
        });
        Ok(ActorHandle::new(thread))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clone()
    }
}
