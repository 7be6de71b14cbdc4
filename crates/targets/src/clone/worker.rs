//! The worker: commits, ends what waits for commits, and keeps copying in the background.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_dm::Environment;
use thinmap_persistent_data::{MetadataError, Result};
use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::BlkStatus;

use super::shared::Shared;
use crate::flush::flush;

/// What changed is durable after this time at the latest, and copying begins again when the guest paused.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// The line's hold on its worker: dropping it ends that, and waits for it.
pub(super) struct SharedRef(Arc<Shared>);

impl std::ops::Deref for SharedRef {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for SharedRef {
    fn drop(&mut self) {
        self.0.stop_hydration();
        self.0.stop.store(true, SeqCst);
        if let Some(handle) = self.0.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl SharedRef {
    pub fn start(env: &Environment, shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let actor = CloneActor {
            shared: shared.clone(),
            state: Mutex::default(),
        };
        let handle = env.spawner.spawn("thinmap-clone", Arc::new(actor))?;
        let _ = shared.handle.set(handle);
        Ok(Self(shared))
    }
}

impl Shared {
    /// Makes it durable which regions have come. Waits: for the worker and control threads.
    pub fn commit(&self) -> Result<()> {
        let mut metadata = self.metadata.lock();
        let Some(regions) = self.regions.get() else {
            return Ok(());
        };
        let dirty = self.state.lock().dirty.clone();
        if dirty.is_empty() {
            return Ok(());
        }
        let stored = match self.read_only.load(SeqCst) {
            true => Err(read_only()),
            false => {
                // CRASH: the bits as they are before the destination is flushed: what came later may not be durable on it.
                let words: Vec<(u64, u64)> =
                    dirty.iter().map(|at| (*at, regions.word(*at))).collect();
                flush(&*self.dest, "destination")
                    .and_then(|()| metadata.store(&words))
                    .map(|()| words)
            }
        };
        drop(metadata);
        match stored {
            Ok(words) => {
                let mut state = self.state.lock();
                if let Some(kept) = &state.kept {
                    words
                        .iter()
                        .for_each(|(at, word)| kept.committed(*at, *word));
                }
                for (at, word) in words {
                    // Bits that came meanwhile are for the next commit.
                    if regions.word(at) == word {
                        state.dirty.remove(&at);
                    }
                }
                drop(state);
                if regions.is_done() {
                    self.event.trigger();
                }
                Ok(())
            }
            Err(error) => {
                if !self.read_only.swap(true, SeqCst) {
                    tracing::error!(%error, "clone: switching to read-only mode");
                    self.event.trigger();
                }
                Err(error)
            }
        }
    }

    /// Commits for those who wait for it, and ends them. Whether there was anybody.
    fn serve(&self) -> bool {
        let (flushes, completions) = {
            let mut state = self.state.lock();
            let flushes = std::mem::take(&mut state.flushes);
            (flushes, std::mem::take(&mut state.completions))
        };
        if flushes.is_empty() && completions.is_empty() {
            return false;
        }
        let committed = self.commit();
        for io in completions {
            io.complete(if committed.is_ok() {
                BlkStatus::Ok
            } else {
                BlkStatus::IoErr
            });
        }
        for io in flushes {
            match committed {
                Ok(()) => self.dest.submit(io),
                Err(_) => io.complete(BlkStatus::IoErr),
            }
        }
        true
    }
}

fn read_only() -> MetadataError {
    MetadataError::new(
        thinmap_persistent_data::ErrorKind::ReadOnly,
        "the metadata are read-only after a failure: load the table again",
    )
}

struct CloneActor {
    shared: Arc<Shared>,
    state: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Where copying in the background goes on.
    next: u64,
    committed: Duration,
    /// A copy has failed: when the next one may begin.
    retry: Option<Duration>,
}

impl Actor for CloneActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut progress = self.state.lock();
        let mut served = false;
        while self.shared.serve() {
            served = true;
        }
        if served {
            progress.committed = now;
        } else if now >= progress.committed + COMMIT_PERIOD {
            // A failure is told, and seen by all that follows.
            let _ = self.shared.commit();
            progress.committed = now;
        }
        // A device that is gone is not tried over and over.
        if self.shared.has_failed.load(SeqCst)
            && *progress.retry.get_or_insert(now + COMMIT_PERIOD) <= now
        {
            self.shared.has_failed.store(false, SeqCst);
            progress.retry = None;
        }
        progress.next = self.shared.hydrate(progress.next);
        match (
            self.shared.stop.load(SeqCst),
            self.shared.running.load(SeqCst),
        ) {
            (true, _) => NextTurn::Stop,
            (false, true) => NextTurn::At(progress.committed + COMMIT_PERIOD),
            (false, false) => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        let waiting = {
            let mut state = self.shared.state.lock();
            state.dead = true;
            let mut waiting = std::mem::take(&mut state.flushes);
            waiting.append(&mut state.completions);
            waiting
        };
        self.shared.read_only.store(true, SeqCst);
        for io in waiting {
            io.complete(BlkStatus::IoErr);
        }
        tracing::error!("clone: the worker ended by a panic: the metadata are read-only");
    }
}
