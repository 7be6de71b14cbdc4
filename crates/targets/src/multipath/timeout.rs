//! `queue_if_no_path_timeout_secs`: how long requests may wait for a path before they fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, ActorHandle, Clock, NextTurn};

use super::routing::Routing;

/// The module's parameter: seconds, 0 (as at first) for ever. Shared state of the environment; devices take it when their tables are
/// loaded.
#[derive(Default)]
pub struct NoPathTimeout(AtomicU64);

impl NoPathTimeout {
    /// Sets it for tables that are loaded from now on.
    pub fn set_seconds(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

/// One device's timer.
pub(super) struct Timeout {
    period: Duration,
    clock: Arc<dyn Clock>,
    routing: OnceLock<Weak<Routing>>,
    handle: OnceLock<ActorHandle>,
    deadline: Mutex<Option<Duration>>,
    stop: AtomicBool,
}

impl Timeout {
    /// A timer, if the parameter asks for one.
    pub(super) fn new(env: &Environment) -> Option<Arc<Self>> {
        let seconds = env.shared.of::<NoPathTimeout>().0.load(Ordering::Relaxed);
        (seconds > 0).then(|| {
            Arc::new(Self {
                period: Duration::from_secs(seconds),
                clock: env.clock.clone(),
                routing: OnceLock::new(),
                handle: OnceLock::new(),
                deadline: Mutex::new(None),
                stop: AtomicBool::new(false),
            })
        })
    }

    /// Starts it for `routing`, which holds it.
    pub(super) fn start(
        self: &Arc<Self>,
        routing: &Arc<Routing>,
        env: &Environment,
    ) -> std::io::Result<()> {
        let _ = self.routing.set(Arc::downgrade(routing));
        let actor = Arc::new(Ticker(self.clone()));
        let handle = env
            .spawner
            .spawn(&format!("multipath{}", routing.dev_no.minor), actor)?;
        let _ = self.handle.set(handle);
        Ok(())
    }

    /// The time runs from now on.
    pub(super) fn arm(&self) {
        *self.deadline.lock() = Some(self.clock.now() + self.period);
        self.wake();
    }

    pub(super) fn disarm(&self) {
        *self.deadline.lock() = None;
    }

    /// Ends it, and waits for that.
    pub(super) fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(handle) = self.handle.get() {
            handle.wake();
            handle.join();
        }
    }

    fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }
}

struct Ticker(Arc<Timeout>);

impl Actor for Ticker {
    fn turn(&self, now: Duration) -> NextTurn {
        if self.0.stop.load(Ordering::SeqCst) {
            return NextTurn::Stop;
        }
        {
            let mut deadline = self.0.deadline.lock();
            match *deadline {
                None => return NextTurn::WhenWoken,
                Some(time) if now < time => return NextTurn::At(time),
                Some(_) => *deadline = None,
            }
        }
        if let Some(routing) = self.0.routing.get().and_then(Weak::upgrade) {
            tracing::warn!(dev = %routing.dev_no, "multipath: queue_if_no_path timeout, failing queued IO");
            routing.set_queue_if_no_path(false);
        }
        NextTurn::WhenWoken
    }

    fn panicked(&self) {
        tracing::error!(
            "multipath: the timer for requests without a path panicked: they wait for ever"
        );
    }
}
