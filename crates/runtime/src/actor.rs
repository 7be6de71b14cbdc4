//! Actors: state machines that run when woken or when their time comes, one turn at a time.
//!
//! The real spawner gives each actor a thread; a simulator runs them all on one, in an order drawn
//! from its seed. An actor's turn may block on metadata I/O but must end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, RealClock};
use crate::pulse::{Pulse, PulseKind};

/// When an actor wants to run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextTurn {
    /// Only when woken.
    WhenWoken,
    /// When woken, and at this time of the clock at the latest.
    At(Duration),
    /// Never: the actor is done.
    Stop,
}

/// Something that works through its own inbox.
pub trait Actor: Send + Sync + 'static {
    /// Works through what is there. Never called twice at once.
    fn turn(&self, now: Duration) -> NextTurn;

    /// The last turn panicked; no further one will come. Must leave the actor's users with errors
    /// instead of waiting.
    fn panicked(&self);
}

/// What wakes an actor.
pub trait Wake: Send + Sync {
    /// Makes the actor have a turn after this call. Cheap, never blocks.
    fn wake(&self);
    /// Waits until the actor has stopped ([`NextTurn::Stop`] or a panic) and is let go of: what only it held is dropped. A
    /// simulator runs it to its end.
    fn join(&self);
}

/// A handle on a spawned actor.
#[derive(Clone)]
pub struct ActorHandle(Arc<dyn Wake>);

impl ActorHandle {
    /// Wraps a spawner's own waker.
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self(wake)
    }

    /// Makes the actor have a turn.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Waits for the actor's end; wake it first with its own "stop" in its inbox.
    pub fn join(&self) {
        self.0.join();
    }
}

/// Where actors come to life.
pub trait Spawner: Send + Sync {
    /// Starts an actor; it has its first turn at once. `name` shows in thread lists.
    fn spawn(&self, name: &str, actor: Arc<dyn Actor>) -> std::io::Result<ActorHandle>;
    /// The clock that `turn` is told.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// One thread per actor.
pub struct ThreadSpawner {
    clock: Arc<dyn Clock>,
}

impl ThreadSpawner {
    /// A spawner on the machine's clock.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(RealClock::new()),
        }
    }
}

impl Default for ThreadSpawner {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner for ThreadSpawner {
    fn spawn(&self, name: &str, actor: Arc<dyn Actor>) -> std::io::Result<ActorHandle> {
        let shared = Arc::new(ThreadActor::default());
        let (thread_shared, clock) = (shared.clone(), self.clock.clone());
        // The thread's name is cut to 15 bytes by the kernel.
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(actor, &thread_shared, &*clock))?;
        Ok(ActorHandle::new(shared))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

#[derive(Default)]
struct ThreadActor {
    state: Mutex<ThreadState>,
    changed: Condvar,
}

#[derive(Default)]
struct ThreadState {
    woken: bool,
    stopped: bool,
}

impl Wake for ThreadActor {
    fn wake(&self) {
        let mut state = self.state.lock();
        if !state.woken {
            state.woken = true;
            self.changed.notify_all();
        }
    }

    fn join(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            self.changed.wait(&mut state);
        }
    }
}

fn run(actor: Arc<dyn Actor>, shared: &ThreadActor, clock: &dyn Clock) {
    let pulse = Pulse::begin(PulseKind::Working);
    loop {
        pulse.works();
        match catch_unwind(AssertUnwindSafe(|| actor.turn(clock.now()))) {
            Ok(NextTurn::Stop) => break,
            Ok(next) => {
                pulse.waits();
                sleep(shared, clock, next);
            }
            Err(_) => {
                actor.panicked();
                break;
            }
        }
    }
    // Who joins may want the devices that the actor held. A panic here must not leave it waiting.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(actor)));
    shared.state.lock().stopped = true;
    shared.changed.notify_all();
}

fn sleep(shared: &ThreadActor, clock: &dyn Clock, next: NextTurn) {
    let mut state = shared.state.lock();
    while !state.woken {
        match next {
            NextTurn::At(time) => {
                let now = clock.now();
                if now >= time {
                    break;
                }
                shared.changed.wait_for(&mut state, time - now);
            }
            NextTurn::WhenWoken | NextTurn::Stop => shared.changed.wait(&mut state),
        }
    }
    state.woken = false;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Counter {
        turns: AtomicU32,
        stop_at: u32,
        panics: AtomicU32,
        panic_at: u32,
    }

    impl Actor for Counter {
        fn turn(&self, now: Duration) -> NextTurn {
            let turn = self.turns.fetch_add(1, Ordering::SeqCst) + 1;
            assert_ne!(turn, self.panic_at, "wanted by the test");
            if turn == self.stop_at {
                NextTurn::Stop
            } else {
                NextTurn::At(now)
            }
        }

        fn panicked(&self) {
            self.panics.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter(stop_at: u32, panic_at: u32) -> Arc<Counter> {
        Arc::new(Counter {
            turns: 0.into(),
            stop_at,
            panics: 0.into(),
            panic_at,
        })
    }

    #[test]
    fn an_actor_runs_until_it_stops() {
        let actor = counter(5, 0);
        let handle = ThreadSpawner::new()
            .spawn("counter", actor.clone())
            .expect("thread");
        handle.join();
        assert_eq!(actor.turns.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn who_has_joined_finds_what_the_actor_held_let_go_of() {
        for _ in 0..2000 {
            let actor = counter(1, 0);
            let held = Arc::downgrade(&actor);
            ThreadSpawner::new()
                .spawn("counter", actor)
                .expect("thread")
                .join();
            assert!(held.upgrade().is_none());
        }
    }

    #[test]
    fn a_panic_is_told_and_ends_the_actor() {
        let actor = counter(5, 2);
        let handle = ThreadSpawner::new()
            .spawn("counter", actor.clone())
            .expect("thread");
        handle.join();
        assert_eq!(actor.turns.load(Ordering::SeqCst), 2);
        assert_eq!(actor.panics.load(Ordering::SeqCst), 1);
    }
}
