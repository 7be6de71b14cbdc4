//! Blocks that come and go: copies, and what their end changes.

use std::sync::Arc;

use thinmap_block::{Io, Op};
use thinmap_dm::kit::{CopyRequest, CopySource, Overlay};
use thinmap_units::{BlkStatus, Sector};

use super::args::IoMode;
use super::map::begin_of;
use super::policy::{Task, Work};
use super::shared::{Change, Health, Shared, State, Then};
use super::traffic::{Lock, Step};

/// Migrations at once, whatever the threshold.
const MIGRATIONS_MAX: u64 = 128;

impl Shared {
    /// Does what a block has become quiet for.
    pub fn take_step(self: &Arc<Self>, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Copy(work)) => self.copy(work),
            Some(Step::Leave(work)) => {
                let mut state = self.state.lock();
                self.change(&mut state, work.cblock, None, Then::Left(work));
            }
            Some(Step::Overwrite(work, io)) => self.bring_in(work, io),
            Some(Step::Invalidate(cblock, io)) => {
                let mut state = self.state.lock();
                let oblock = io.sector.raw() / self.shape.block;
                if state.can_commit() {
                    let then = Then::Send(oblock, io);
                    return self.change(&mut state, cblock, None, then);
                }
                drop(state);
                self.unlock(oblock);
                io.complete(BlkStatus::IoErr);
            }
        }
    }

    /// A mapping has come or gone.
    fn change(&self, state: &mut State, cblock: u32, oblock: Option<u64>, then: Then) {
        let is_urgent = then.is_urgent();
        state.changes.push(Change {
            cblock,
            oblock,
            then,
        });
        if is_urgent {
            self.wake();
        }
    }

    /// Starts what the policy wants done, as much at once as may be.
    pub fn migrate(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if !state.running || state.dead || state.migrations >= MIGRATIONS_MAX {
                return;
            }
            let fits = (state.migrations + 1).saturating_mul(self.shape.block)
                <= state.migration_threshold;
            let idle = state.in_flight == 0 && state.idle_at == Some(state.requests);
            // COMPAT: only write-back is ever held back altogether.
            if !fits && state.migrations > 0 {
                return;
            }
            let Some(work) = state.policy.next_work(idle && fits) else {
                return;
            };
            if work.task != Task::Writeback && !self.may_migrate(&state) {
                state.policy.done(work, false);
                continue;
            }
            if state.traffic.is_locked(work.oblock) {
                // Another time: at the next tick, or when something ends.
                return state.policy.done(work, false);
            }
            state.migrations += 1;
            let step = Step::Copy(work);
            let step = state.traffic.lock(work.oblock, Lock::Writes, step);
            drop(state);
            self.take_step(step);
        }
    }

    fn copy(self: &Arc<Self>, work: Work) {
        let (discarded, dirty) = {
            let state = self.state.lock();
            let discarded = state.discards.has(self.discard_of(work.oblock));
            (discarded, state.dirty.has(u64::from(work.cblock)))
        };
        let len = Sector(self.shape.block);
        let on_origin = begin_of(work.oblock, self.shape.block);
        let in_cache = begin_of(u64::from(work.cblock), self.shape.block);
        let promotes = work.task == Task::Promote;
        if !promotes && (discarded || !dirty) {
            return self.copied(work, BlkStatus::Ok);
        }
        let (to, to_sector, source) = match promotes {
            true if discarded => (&self.cache, in_cache, CopySource::Zeroes),
            true => {
                let source = CopySource::Device(self.origin.clone(), on_origin);
                (&self.cache, in_cache, source)
            }
            false => {
                let source = CopySource::Device(self.cache.clone(), in_cache);
                (&self.origin, on_origin, source)
            }
        };
        let request = CopyRequest {
            to: to.clone(),
            to_sector,
            segments: vec![(len, source)],
            overlay: None,
        };
        let shared = self.clone();
        let done = move |status: BlkStatus, _| shared.copied(work, status);
        self.copier.start(request, Box::new(done));
    }

    /// A copy in the background has ended.
    fn copied(self: &Arc<Self>, work: Work, status: BlkStatus) {
        if !status.is_ok() {
            tracing::error!(?work, ?status, "cache: migration failed");
        }
        let mut state = self.state.lock();
        if !status.is_ok() {
            // Not at once again.
            state.idle_at = None;
        }
        match work.task {
            Task::Demote if status.is_ok() && state.can_commit() => {
                let step = Step::Leave(work);
                let step = state.traffic.lock(work.oblock, Lock::All, step);
                drop(state);
                return self.take_step(step);
            }
            Task::Demote => state.policy.done(work, false),
            Task::Writeback => {
                if status.is_ok() {
                    self.set_dirty(&mut state, work.cblock, false);
                }
                state.policy.done(work, false);
            }
            Task::Promote => {
                self.promoted(&mut state, work, status.is_ok());
            }
        }
        drop(state);
        self.ended(work.oblock);
    }

    /// A block is in the cache, or not; whether it is.
    fn promoted(&self, state: &mut State, work: Work, well: bool) -> bool {
        let well = well && state.can_commit();
        let discard = self.discard_of(work.oblock);
        state.discards.put(discard, false);
        state.policy.done(work, well);
        if well {
            state.counts.promotions = state.counts.promotions.wrapping_add(1);
            self.change(state, work.cblock, Some(work.oblock), Then::Nothing);
            if self.kept {
                state.fresh.insert(work.oblock);
            }
        }
        well
    }

    /// A migration in the background has ended.
    pub fn ended(self: &Arc<Self>, oblock: u64) {
        self.unlock(oblock);
        let mut state = self.state.lock();
        state.migrations -= 1;
        if state.migrations == 0 {
            self.idle.notify_all();
        }
        drop(state);
        self.wake();
    }

    /// Requests to a block go on.
    pub fn unlock(self: &Arc<Self>, oblock: u64) {
        let waiting = self.state.lock().traffic.unlock(oblock);
        for io in waiting {
            self.send(io);
        }
    }

    /// A guest's write brings its block into the cache.
    fn bring_in(self: &Arc<Self>, work: Work, io: Io) {
        let offset = Sector(io.sector.raw() % self.shape.block);
        let block = Sector(self.shape.block);
        let mut state = self.state.lock();
        // It may have been written since it was looked at.
        let discarded = state.discards.has(self.discard_of(work.oblock));
        if io.sectors != block && !discarded {
            state.policy.done(work, false);
            drop(state);
            let mut waiting = self.state.lock().traffic.unlock(work.oblock);
            waiting.insert(0, io);
            return waiting.into_iter().for_each(|io| self.send(io));
        }
        state.traffic.overwrites(work);
        drop(state);
        if io.sectors == block && io.op == Op::Write {
            return self.overwrite(io, work.cblock);
        }
        // The rest of the block is zeroes, as nobody needs what it was.
        let request = CopyRequest {
            to: self.cache.clone(),
            to_sector: begin_of(u64::from(work.cblock), self.shape.block),
            segments: vec![(block, CopySource::Zeroes)],
            overlay: Some(Overlay { offset, io }),
        };
        let shared = self.clone();
        let done = move |status: BlkStatus, io: Option<Io>| {
            // If it is FUA, the commit that it waits for flushes it.
            if let Some(io) = io {
                shared.promoted_with(work.oblock, io, status);
            }
        };
        self.copier.start(request, Box::new(done));
    }

    /// A guest's write has brought its block, or failed.
    pub fn promoted_with(self: &Arc<Self>, oblock: u64, io: Io, status: BlkStatus) {
        let mut state = self.state.lock();
        let Some(work) = state.traffic.overwritten(oblock) else {
            drop(state);
            return io.complete(BlkStatus::IoErr);
        };
        let well = self.promoted(&mut state, work, status.is_ok());
        if well {
            self.set_dirty(&mut state, work.cblock, true);
        }
        let ends = match well {
            true if io.flags.fua || self.kept => self.end_durably(&mut state, io),
            true => Some((io, BlkStatus::Ok)),
            false if status.is_ok() => Some((io, BlkStatus::IoErr)),
            false => Some((io, status)),
        };
        drop(state);
        if let Some((io, status)) = ends {
            io.complete(status);
        }
        self.unlock(oblock);
    }

    /// The metadata cannot be changed any more.
    pub fn set_health(&self, health: Health) {
        let mut state = self.state.lock();
        if state.health < health {
            state.health = health;
            let word = if health == Health::Fail {
                "fail"
            } else {
                "read-only"
            };
            tracing::error!("cache: switching cache to {word} mode");
            drop(state);
            self.event.trigger();
        }
    }

    /// Forgets blocks of the cache, in passthrough mode.
    pub fn invalidate(&self, cblocks: std::ops::Range<u32>) {
        debug_assert!(self.mode == IoMode::Passthrough, "nothing is dirty or read");
        let mut state = self.state.lock();
        for cblock in cblocks {
            let Some(oblock) = state.policy.holds(cblock) else {
                continue;
            };
            // One that is locked is on its way out.
            if !state.traffic.is_locked(oblock) && state.policy.invalidate(cblock) {
                self.change(&mut state, cblock, None, Then::Nothing);
            }
        }
    }
}
