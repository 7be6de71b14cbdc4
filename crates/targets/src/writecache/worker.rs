//! The worker: it commits, discards, and has blocks written back.
//!
//! Its turn may wait for devices; never for a request of the guest's other than those that are under way on the cache device.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::sync::{Arc, atomic::AtomicBool};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::{Io, flush};
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, NextTurn, Waiting, simulate};
use thinmap_units::BlkStatus;

use super::disk::CLEARED;
use super::shared::Shared;
use super::writeback::Copied;

/// Of a turn.
const STEPS_MAX: usize = 64;
/// Entries cleared at once.
const CLEAR_MAX: usize = 16_384;

/// What waits for the worker.
#[derive(Default)]
pub(super) struct Inbox {
    pub flushes: Vec<Io>,
    /// Writes that were done and are to be durable.
    pub durable: Vec<Io>,
    pub discards: Vec<Io>,
    pub copied: Vec<Copied>,
    /// First blocks and counts of first writes that failed.
    pub lost: Vec<(u32, u32)>,
    pub asked: Vec<Asked>,
    /// The worker has panicked.
    pub is_dead: bool,
}

impl Inbox {
    fn take(&mut self) -> Self {
        let is_dead = self.is_dead;
        let mut taken = std::mem::take(self);
        self.is_dead = std::mem::replace(&mut taken.is_dead, is_dead);
        taken
    }

    fn is_empty(&self) -> bool {
        self.flushes.is_empty()
            && self.durable.is_empty()
            && self.discards.is_empty()
            && self.copied.is_empty()
            && self.lost.is_empty()
            && self.asked.is_empty()
    }

    fn into_requests(self) -> impl Iterator<Item = Io> {
        let requests = [self.flushes, self.durable, self.discards];
        requests.into_iter().flatten()
    }
}

/// Something that a control thread waits for.
pub(super) struct Asked {
    pub ask: Ask,
    /// Told, or dropped, when it is done.
    pub sender: Sender<()>,
}

/// What may be asked of the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// Commit, and let no block be on its way to the origin.
    Commit,
    /// The same, after all that was written until now is there.
    WriteBack,
}

/// What the worker keeps from turn to turn.
#[derive(Default)]
pub(super) struct Progress {
    /// Sequence numbers below which everything is to be written back, and who waits for that.
    pub asked: Vec<(Option<u64>, Sender<()>)>,
    /// When to look for blocks to write back again.
    pub again_at: Option<Duration>,
    /// The count at which requests that waited were sent on.
    stirs: u64,
}

/// The line's hold on its worker: dropping it ends that, and waits for it.
pub(super) struct SharedRef {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
}

impl std::ops::Deref for SharedRef {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for SharedRef {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(handle) = self.shared.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl SharedRef {
    pub fn start(env: &Environment, shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let stop = Arc::new(AtomicBool::new(false));
        let actor = WritecacheActor {
            shared: shared.clone(),
            stop: stop.clone(),
            progress: Mutex::default(),
        };
        let handle = env.spawner.spawn("thinmap-wcache", Arc::new(actor))?;
        let _ = shared.handle.set(handle);
        Ok(Self { shared, stop })
    }
}

struct WritecacheActor {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    progress: Mutex<Progress>,
}

impl Actor for WritecacheActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut progress = self.progress.lock();
        for _ in 0..STEPS_MAX {
            // Copies that are under way end first: they read blocks of ours.
            if self.stop.load(SeqCst) && self.shared.state.lock().copies == 0 {
                return NextTurn::Stop;
            }
            if !self.shared.step(&mut progress, now) {
                let commit_at = self.shared.state.lock().commit_at;
                let times = [commit_at, progress.again_at].into_iter().flatten();
                return times.min().map_or(NextTurn::WhenWoken, NextTurn::At);
            }
        }
        NextTurn::At(now)
    }

    fn panicked(&self) {
        self.shared
            .fail("the worker ended by a panic: only reads go on");
        let (inbox, waiting) = {
            let mut state = self.shared.state.lock();
            state.inbox.is_dead = true;
            let waiting = std::mem::take(&mut state.waiting);
            (state.inbox.take(), waiting)
        };
        for io in inbox.into_requests().chain(waiting) {
            io.complete(BlkStatus::IoErr);
        }
        self.progress.lock().asked.clear();
    }
}

impl Shared {
    /// Works through what is there now; whether there was anything.
    fn step(self: &Arc<Self>, progress: &mut Progress, now: Duration) -> bool {
        let (inbox, is_due) = {
            let mut state = self.state.lock();
            let is_due = state.commit_at.is_some_and(|at| at <= now);
            if is_due && state.failed {
                state.commit_at = None;
            }
            (state.inbox.take(), is_due && !state.failed)
        };
        let any = !inbox.is_empty() || is_due;
        self.forget_lost(&inbox.lost);
        if !inbox.copied.is_empty() {
            self.end_copies(&inbox.copied);
        }
        for io in inbox.discards {
            self.discard_range(io);
        }
        if is_due || !inbox.flushes.is_empty() || !inbox.durable.is_empty() {
            self.commit();
        }
        let status = match self.state.lock().failed {
            true => BlkStatus::IoErr,
            false => BlkStatus::Ok,
        };
        for io in inbox.flushes.into_iter().chain(inbox.durable) {
            io.complete(status);
        }
        for asked in inbox.asked {
            self.commit();
            let below = self.state.lock().seq;
            let below = (asked.ask == Ask::WriteBack).then_some(below);
            progress.asked.push((below, asked.sender));
        }
        self.resend_waiting(progress);
        let started = self.write_back(progress, now);
        self.answer(progress);
        any || started
    }

    /// Makes durable all writes that have ended.
    pub fn commit(&self) {
        let (epoch, has_entries) = {
            let mut state = self.state.lock();
            (state.uncommitted, state.commit_at) = (0, None);
            let has_entries = state.open > 0;
            if !has_entries && !state.overwrote {
                return;
            }
            if has_entries {
                if state.seq >= CLEARED - 1 {
                    drop(state);
                    return self.fail("there are no more sequence numbers");
                }
                state.seq += 1;
                state.open = 0;
            }
            (state.overwrote, state.committing) = (false, true);
            let epoch = state.epoch;
            state.epoch ^= 1;
            state.begin_epoch();
            (epoch, has_entries)
        };
        // CRASH: entries, and the data that they lead to, are durable before the superblock makes them valid.
        let well = !has_entries || self.write_dirty();
        self.wait_for_writes(epoch);
        // CRASH: an entry whose write has failed leads to what its block held before, maybe another sector's.
        let lost = std::mem::take(&mut self.state.lock().inbox.lost);
        self.forget_lost(&lost);
        let well = well && self.flush_cache() && (!has_entries || self.write_superblock());
        let mut state = self.state.lock();
        state.committing = false;
        if let Some(journal) = state.journal.as_ref().filter(|_| well) {
            journal.clear(epoch);
        }
    }

    fn wait_for_writes(&self, epoch: usize) {
        while self.state.lock().writes[epoch] > 0 && simulate(Waiting::ForDevices) {}
        let mut state = self.state.lock();
        while state.writes[epoch] > 0 {
            self.quiet.wait(&mut state);
        }
    }

    /// Entries that were never written hold nothing.
    fn forget_lost(&self, lost: &[(u32, u32)]) {
        let mut blocks = Vec::new();
        {
            let mut state = self.state.lock();
            for index in lost.iter().flat_map(|(index, count)| *index..index + count) {
                let entry = &state.entries[index];
                // Written meanwhile, or about to be, or there twice.
                if !entry.unwritten || entry.writers > 0 || entry.leaving {
                    continue;
                }
                if !state.is_committed(index) {
                    state.open -= 1;
                }
                state.entries.begin_leaving(index);
                blocks.push(index);
            }
        }
        self.clear(&blocks);
    }

    fn discard_range(&self, io: Io) {
        let (from, to) = (io.sector.raw(), io.end().raw());
        loop {
            let (found, has_open) = {
                let state = self.state.lock();
                let range = state.entries.range(from, to);
                let staying = range.filter(|(_, index)| !state.entries[*index].leaving);
                let found: Vec<u32> = staying.map(|(_, index)| index).take(CLEAR_MAX).collect();
                let has_open = found.iter().any(|index| !state.is_committed(*index));
                (found, has_open)
            };
            if has_open {
                self.commit();
            }
            {
                let mut state = self.state.lock();
                for index in &found {
                    state.entries.begin_leaving(*index);
                }
            }
            self.clear(&found);
            if found.len() < CLEAR_MAX || self.state.lock().failed {
                break;
            }
        }
        if self.state.lock().failed {
            return io.complete(BlkStatus::IoErr);
        }
        self.origin.submit(io);
    }

    /// Clears entries that are leaving, and frees their blocks.
    pub fn clear(&self, blocks: &[u32]) {
        if blocks.is_empty() {
            return;
        }
        {
            let mut state = self.state.lock();
            for index in blocks {
                state.entries[*index].clearing = true;
                state.touch(&self.geometry, *index);
            }
        }
        // CRASH: no block is used again, and none that it hides is written, before it is durable that its entry is clear.
        let well = self.write_dirty() && self.flush_cache();
        let mut state = self.state.lock();
        state.stirs += 1;
        for index in blocks {
            // One that was never written leads to what its block held before. It is not used again, as nothing is written any more.
            if well || state.entries[*index].unwritten {
                state.entries.end_leaving(*index);
            } else {
                let entry = &mut state.entries[*index];
                (entry.leaving, entry.clearing) = (false, false);
            }
        }
    }

    /// Sends on those who waited, when something has stirred since the last time.
    fn resend_waiting(self: &Arc<Self>, progress: &mut Progress) {
        let waiting = {
            let mut state = self.state.lock();
            if state.stirs == progress.stirs {
                return;
            }
            progress.stirs = state.stirs;
            std::mem::take(&mut state.waiting)
        };
        for io in waiting {
            self.resend(io);
        }
    }

    fn answer(&self, progress: &mut Progress) {
        let state = self.state.lock();
        let oldest = state.entries.oldest().map(|index| state.entries[index].seq);
        progress.asked.retain(|(below, sender)| {
            let left = below.is_some_and(|below| oldest.is_some_and(|oldest| oldest < below));
            let waits = state.writeback > 0 || left && !state.failed;
            if !waits {
                let _ = sender.send(());
            }
            waits
        });
    }

    /// Makes durable what the origin was given. Whether that went well.
    pub fn flush_origin(&self) -> bool {
        let well = flush(&*self.origin).is_ok();
        if !well {
            self.fail("error flushing metadata");
        }
        well
    }
}
