//! Actors and time of a simulated process: whose turn it is the simulation says, and the clock stands still until it moves it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_runtime::{Actor, ActorHandle, Clock, NextTurn, Spawner, Waiting, Wake, simulate};

/// Time that moves when told.
#[derive(Default)]
pub struct SimClock(AtomicU64);

impl SimClock {
    /// Moves on; never back.
    pub fn advance_to(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_max(nanos, SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(SeqCst))
    }
}

/// See the module.
pub struct SimExecutor {
    clock: Arc<SimClock>,
    actors: Mutex<Vec<Arc<Slot>>>,
}

struct Slot {
    name: String,
    actor: Mutex<Option<Arc<dyn Actor>>>,
    state: Mutex<SlotState>,
}

#[derive(Clone, Copy)]
struct SlotState {
    woken: bool,
    running: bool,
    next: NextTurn,
    panicked: bool,
}

impl SimExecutor {
    /// Without actors, at time zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::default(),
            actors: Mutex::default(),
        })
    }

    /// The time.
    pub fn sim_clock(&self) -> &SimClock {
        &self.clock
    }

    /// What it shows.
    pub fn clock_now(&self) -> Duration {
        self.clock.now()
    }

    /// Positions of the actors that want a turn now and whose names `may` lets through.
    pub fn runnable(&self, may: impl Fn(&str) -> bool) -> Vec<usize> {
        let now = self.clock.now();
        let wants = |slot: &Slot| {
            let state = slot.state.lock();
            let due = matches!(state.next, NextTurn::At(at) if at <= now);
            !state.running && state.next != NextTurn::Stop && (state.woken || due)
        };
        let actors = self.actors.lock();
        let named = actors.iter().enumerate();
        named
            .filter(|(_, slot)| wants(slot) && may(&slot.name))
            .map(|(i, _)| i)
            .collect()
    }

    /// The next time at which an actor wants a turn that does not have one and whose name `may` lets through.
    pub fn next_turn(&self, may: impl Fn(&str) -> bool) -> Option<Duration> {
        let at = |slot: &Arc<Slot>| {
            let state = slot.state.lock();
            match state.next {
                NextTurn::At(at) if !state.running && may(&slot.name) => Some(at),
                _ => None,
            }
        };
        self.actors.lock().iter().filter_map(at).min()
    }

    /// Gives the actor at this position a turn.
    pub fn run(&self, index: usize) {
        let Some(slot) = self.actors.lock().get(index).cloned() else {
            return;
        };
        let Some(actor) = slot.actor.lock().clone() else {
            return;
        };
        {
            let mut state = slot.state.lock();
            state.running = true;
            state.woken = false;
        }
        let now = self.clock.now();
        let turn = catch_unwind(AssertUnwindSafe(|| actor.turn(now)));
        let (next, panicked) = match turn {
            Ok(next) => (next, false),
            Err(_) => {
                actor.panicked();
                (NextTurn::Stop, true)
            }
        };
        if next == NextTurn::Stop {
            *slot.actor.lock() = None;
        }
        let mut state = slot.state.lock();
        *state = SlotState {
            running: false,
            next,
            panicked,
            ..*state
        };
    }

    /// The name of an actor whose turn has panicked.
    pub fn panicked(&self) -> Option<String> {
        let actors = self.actors.lock();
        let slot = actors.iter().find(|slot| slot.state.lock().panicked);
        slot.map(|slot| slot.name.clone())
    }

    /// Forgets all actors, as the end of a process does.
    pub fn forget_all(&self) {
        let actors = std::mem::take(&mut *self.actors.lock());
        for slot in actors {
            slot.state.lock().next = NextTurn::Stop;
            *slot.actor.lock() = None;
        }
    }
}

impl Spawner for SimExecutor {
    fn spawn(&self, name: &str, actor: Arc<dyn Actor>) -> std::io::Result<ActorHandle> {
        let slot = Arc::new(Slot {
            name: name.to_owned(),
            actor: Mutex::new(Some(actor)),
            state: Mutex::new(SlotState {
                woken: true,
                running: false,
                next: NextTurn::WhenWoken,
                panicked: false,
            }),
        });
        self.actors.lock().push(slot.clone());
        Ok(ActorHandle::new(Arc::new(SimWake(Arc::downgrade(&slot)))))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }
}

/// Weak: the actor's owner holds this, and the slot holds the actor.
struct SimWake(Weak<Slot>);

impl Wake for SimWake {
    fn wake(&self) {
        if let Some(slot) = self.0.upgrade() {
            slot.state.lock().woken = true;
        }
    }

    fn join(&self) {
        let stopped = || {
            let slot = self.0.upgrade();
            slot.is_none_or(|slot| slot.state.lock().next == NextTurn::Stop)
        };
        while !stopped() && simulate(Waiting::ForActors) {}
    }
}
