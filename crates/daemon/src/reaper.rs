//! Deferred removals: an actor that looks now and then whether the last user has gone.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use thinmap_runtime::{Actor, ActorHandle, NextTurn, Spawner};

use crate::daemon::Daemon;

/// Removes devices whose removal waits for their last user. Nobody tells when a block device is closed, so it looks.
#[derive(Default)]
pub(crate) struct Reaper {
    daemon: OnceLock<Weak<Daemon>>,
}

impl Reaper {
    /// Starts one, for a daemon that is still to be made.
    pub(crate) fn start(spawner: &dyn Spawner) -> std::io::Result<(Arc<Self>, ActorHandle)> {
        let reaper = Arc::new(Self::default());
        let handle = spawner.spawn("thinmap-reaper", reaper.clone())?;
        Ok((reaper, handle))
    }

    /// The daemon is there.
    pub(crate) fn serve(&self, daemon: &Arc<Daemon>) {
        let _ = self.daemon.set(Arc::downgrade(daemon));
    }
}

impl Actor for Reaper {
    fn turn(&self, now: Duration) -> NextTurn {
        let Some(daemon) = self.daemon.get().and_then(Weak::upgrade) else {
            return NextTurn::WhenWoken;
        };
        if daemon.reap() {
            NextTurn::At(now + REAP_EVERY)
        } else {
            NextTurn::WhenWoken
        }
    }

    fn panicked(&self) {
        tracing::error!("deferred removals have stopped; everything else goes on");
    }
}

const REAP_EVERY: Duration = Duration::from_millis(200);
