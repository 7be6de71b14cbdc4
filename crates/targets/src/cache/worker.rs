//! The worker: commits, ends what waits for commits, and starts migrations.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::Io;
use thinmap_dm::Environment;
use thinmap_persistent_data::{ErrorKind, MetadataError, Result};
use thinmap_runtime::{Actor, NextTurn, Waiting, simulate};
use thinmap_units::BlkStatus;

use super::metadata::{Leaving, Metadata};
use super::policy::PolicyKind;
use super::shared::{Change, Health, Shared, Then};
use crate::flush::flush;

/// What changed is durable after this time at the latest; also the policy's clock.
const PERIOD: Duration = Duration::from_secs(1);

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
        self.0.stop_migrations();
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
        let actor = CacheActor {
            shared: shared.clone(),
            progress: Mutex::default(),
        };
        let handle = env.spawner.spawn("thinmap-cache", Arc::new(actor))?;
        let _ = shared.handle.set(handle);
        Ok(Self(shared))
    }
}

impl Shared {
    /// Makes mapping changes durable, and lets what waits for that go on. Waits: for the worker and control threads.
    pub fn commit(self: &Arc<Self>) -> Result<()> {
        let mut metadata = self.metadata.lock();
        let (changes, flushes, completions) = {
            let mut state = self.state.lock();
            let changes = std::mem::take(&mut state.changes);
            state.committing = !changes.is_empty();
            let flushes = std::mem::take(&mut state.flushes);
            (changes, flushes, std::mem::take(&mut state.completions))
        };
        let had_changes = !changes.is_empty();
        let committed = match had_changes {
            true => self.write_changes(&mut metadata, &changes),
            false => Ok(()),
        };
        if let Err(error) = &committed {
            self.failed(&mut metadata, error);
        }
        let well = {
            let mut state = self.state.lock();
            state.committing = false;
            state.lost |= committed.is_err();
            if committed.is_ok() {
                for oblock in changes.iter().filter_map(|change| change.oblock) {
                    state.fresh.remove(&oblock);
                }
            }
            !state.lost
        };
        // Only now: the next commit, of another thread, must not be taken for this one, nor miss that this one failed.
        drop(metadata);
        for change in changes {
            self.follow(change, well);
        }
        let status = if well {
            BlkStatus::Ok
        } else {
            BlkStatus::IoErr
        };
        completions.into_iter().for_each(|io| io.complete(status));
        for io in flushes {
            match well && !had_changes {
                // The devices were flushed after it had come, if there was anything to commit.
                true => self.flush_devices(io),
                false => io.complete(status),
            }
        }
        committed
    }

    fn write_changes(&self, metadata: &mut Metadata, changes: &[Change]) -> Result<()> {
        // CRASH: data first. A mapping that is found must lead to them, and where one has gone the origin must have them.
        self.flush_both()?;
        for change in changes {
            metadata.map(change.cblock, change.oblock)?;
        }
        metadata.commit(false)
    }

    fn flush_both(&self) -> Result<()> {
        for (dev, what) in [(&self.cache, "cache device"), (&self.origin, "origin")] {
            flush(&**dev, what)?;
        }
        Ok(())
    }

    fn failed(&self, metadata: &mut Metadata, error: &MetadataError) {
        tracing::error!(%error, "cache: a metadata operation failed: back to the last commit");
        let health = match metadata.abort() {
            Ok(()) => Health::ReadOnly,
            Err(error) => {
                tracing::error!(%error, "cache: failed to abort metadata transaction");
                Health::Fail
            }
        };
        self.set_health(health);
    }

    /// What comes after a change was committed, or was not.
    fn follow(self: &Arc<Self>, change: Change, well: bool) {
        match change.then {
            Then::Nothing => {}
            Then::Left(work) => {
                let mut state = self.state.lock();
                if well {
                    state.counts.demotions = state.counts.demotions.wrapping_add(1);
                    self.set_dirty(&mut state, work.cblock, false);
                }
                state.policy.done(work, well);
                drop(state);
                self.ended(work.oblock);
            }
            Then::Send(oblock, io) => {
                if well {
                    self.state.lock().policy.invalidate(change.cblock);
                    self.send_past(io, oblock);
                } else {
                    io.complete(BlkStatus::IoErr);
                }
                self.unlock(oblock);
            }
        }
    }

    /// Ends migrations, and waits until none is under way.
    pub fn stop_migrations(&self) {
        // Under the lock, so that none begins after it was looked whether there is any.
        self.state.lock().running = false;
        while self.state.lock().migrations > 0 && simulate(Waiting::ForActors) {}
        let mut state = self.state.lock();
        while state.migrations > 0 && !state.dead {
            self.idle.wait(&mut state);
        }
    }

    /// Writes what a clean shutdown leaves. Nothing is under way.
    pub fn leave(self: &Arc<Self>, policy: PolicyKind) -> Result<()> {
        self.commit()?;
        let mut metadata = self.metadata.lock();
        let (dirty, discards, hints, counts) = {
            let state = self.state.lock();
            if !state.can_commit() {
                return Err(read_only());
            }
            let hints = state.policy.hints();
            let bits = (state.dirty.clone(), state.discards.clone());
            (bits.0, bits.1, hints, state.counts)
        };
        let left = metadata.leave(&Leaving {
            dirty: &dirty,
            discards: &discards,
            discard_block: self.shape.discard_block,
            policy: policy.disk(),
            hints: &hints,
            counts: counts.kept(),
        });
        // CRASH: what is called clean must be on the origin, the rest in the cache.
        let left = left
            .and_then(|()| self.flush_both())
            .and_then(|()| metadata.commit(true));
        if let Err(error) = &left {
            self.failed(&mut metadata, error);
        }
        left
    }

    fn tick(&self, now: Duration, seen: &mut u64) {
        let mut state = self.state.lock();
        let idle = state.in_flight == 0 && *seen == state.requests;
        state.idle_at = idle.then_some(state.requests);
        *seen = state.requests;
        state.policy.tick(now);
    }
}

pub(super) fn read_only() -> MetadataError {
    let what = "the metadata are read-only after a failure";
    MetadataError::new(ErrorKind::ReadOnly, what)
}

struct CacheActor {
    shared: Arc<Shared>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    ticked: Duration,
    /// Requests that there were at the last tick.
    seen: u64,
}

impl Actor for CacheActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut progress = self.progress.lock();
        if now >= progress.ticked + PERIOD {
            progress.ticked = now;
            self.shared.tick(now, &mut progress.seen);
            // A failure is told, and seen by all that follows.
            let _ = self.shared.commit();
        }
        self.shared.migrate();
        while self.shared.state.lock().is_urgent() {
            let _ = self.shared.commit();
            self.shared.migrate();
        }
        let running = self.shared.state.lock().running;
        match self.shared.stop.load(SeqCst) {
            true => NextTurn::Stop,
            false if running => NextTurn::At(progress.ticked + PERIOD),
            false => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        let waiting: Vec<Io> = {
            let mut state = self.shared.state.lock();
            state.dead = true;
            let mut waiting = std::mem::take(&mut state.flushes);
            waiting.append(&mut state.completions);
            waiting.append(&mut state.traffic.take_waiting());
            for change in std::mem::take(&mut state.changes) {
                if let Then::Send(_, io) = change.then {
                    waiting.push(io);
                }
            }
            state.lost = true;
            waiting
        };
        self.shared.set_health(Health::Fail);
        self.shared.idle.notify_all();
        for io in waiting {
            io.complete(BlkStatus::IoErr);
        }
        tracing::error!(
            "cache: the worker ended by a panic: nothing comes into the cache or leaves it"
        );
    }
}
