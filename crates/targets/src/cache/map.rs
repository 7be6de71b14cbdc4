//! Requests: where they go, and what their end sets free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::MapOutcome;
use thinmap_dm::kit::FanOut;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::args::IoMode;
use super::policy::{Access, Found};
use super::shared::{Shared, State};
use super::traffic::{Lock, Step};

/// A request is pushed with its sector on the origin, and with these.
const OVERWRITE: u64 = 1 << 63;
const ROUND: u64 = 1 << 62;
const SECTOR: u64 = ROUND - 1;

impl Shared {
    /// Takes a request.
    pub fn map(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        match io.op {
            Op::Flush => self.flush(io),
            Op::Discard => self.discard(io),
            Op::Read | Op::Write | Op::WriteZeroes => self.route(io),
        }
    }

    /// Takes a request again, or for the first time, on a thread that is not the core's.
    pub fn send(self: &Arc<Self>, io: Io) {
        match self.map(io) {
            MapOutcome::Remapped(io, dev) => dev.submit(io),
            MapOutcome::Kill(io, status) => io.complete(status),
            MapOutcome::Submitted | MapOutcome::Requeue(_) => {}
        }
    }

    fn flush(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        let mut state = self.state.lock();
        if !state.has_uncommitted() {
            drop(state);
            self.flush_devices(io);
            return MapOutcome::Submitted;
        }
        if !state.can_commit() {
            drop(state);
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        state.flushes.push(io);
        drop(state);
        self.wake();
        MapOutcome::Submitted
    }

    /// A flush that needs no commit.
    pub fn flush_devices(&self, io: Io) {
        let parts = FanOut::new(io, 2);
        self.origin.submit(parts.flush());
        self.cache.submit(parts.flush());
    }

    /// Notes which blocks were discarded whole.
    fn discard(&self, io: Io) -> MapOutcome<'_> {
        let block = self.shape.discard_block;
        let first = io.sector.raw().div_ceil(block);
        let end = (io.end().raw() / block).max(first);
        let mut state = self.state.lock();
        for at in first..end.min(self.shape.discard_blocks) {
            state.discards.put(at, true);
        }
        let passdown = state.discard_passdown;
        drop(state);
        match passdown {
            true => MapOutcome::Remapped(io, &self.origin),
            false => MapOutcome::Kill(io, BlkStatus::Ok),
        }
    }

    /// A read or write inside one block.
    fn route(self: &Arc<Self>, mut io: Io) -> MapOutcome<'_> {
        let oblock = io.sector.raw() / self.shape.block;
        if oblock >= self.shape.origin_blocks {
            // COMPAT: a last block that is not whole is never cached.
            return MapOutcome::Remapped(io, &self.origin);
        }
        let write = io.is_write();
        let mut state = self.state.lock();
        if state.traffic.is_shut(oblock, write) {
            if state.dead {
                drop(state);
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
            state.traffic.wait(oblock, io);
            return MapOutcome::Submitted;
        }
        let sectors = io.sector.raw()..io.end().raw();
        if write && state.traffic.overlaps(oblock, &sectors) {
            // Otherwise the block could differ from the origin for ever, and nobody know.
            state.traffic.wait_behind(oblock, io);
            return MapOutcome::Submitted;
        }
        state.requests += 1;
        let discarded = state.discards.has(self.discard_of(oblock));
        let whole = io.sectors.raw() == self.shape.block;
        let access = Access {
            write,
            cheap: self.mode == IoMode::Writeback && (whole || discarded),
            may_migrate: self.may_migrate(&state),
        };
        let found = state.policy.look_up(oblock, access);
        let cblock = match found {
            Found::MissPromote(work) => {
                // COMPAT: counted neither as hit nor as miss.
                let step = Step::Overwrite(work, io);
                let step = state.traffic.lock(oblock, Lock::All, step);
                drop(state);
                self.take_step(step);
                return MapOutcome::Submitted;
            }
            Found::Hit(cblock) => Some(cblock),
            Found::Miss => None,
        };
        state.counts.count(write, cblock.is_some());
        let has_work = state.policy.has_work();
        if write {
            let discard = self.discard_of(oblock);
            state.discards.put(discard, false);
        }
        let place = match (cblock, self.mode) {
            (Some(cblock), IoMode::Passthrough) if write => {
                state.counts.demotions = state.counts.demotions.wrapping_add(1);
                let step = Step::Invalidate(cblock, io);
                let step = state.traffic.lock(oblock, Lock::All, step);
                drop(state);
                self.take_step(step);
                return MapOutcome::Submitted;
            }
            (_, IoMode::Passthrough) | (None, _) => None,
            (Some(cblock), _) => Some(cblock),
        };
        self.enter(&mut state, &mut io, oblock);
        let through = write
            && self.mode == IoMode::Writethrough
            && place.is_some_and(|cblock| !state.dirty.has(u64::from(cblock)));
        if through {
            state.traffic.goes_through(oblock, sectors);
        }
        if let Some(cblock) = place.filter(|_| write && !through) {
            self.set_dirty(&mut state, cblock, true);
        }
        drop(state);
        if has_work {
            self.wake();
        }
        match place {
            None => MapOutcome::Remapped(io, &self.origin),
            Some(cblock) if through => {
                self.write_both(io, cblock);
                MapOutcome::Submitted
            }
            Some(cblock) => {
                io.sector = self.in_cache(cblock, io.sector);
                MapOutcome::Remapped(io, &self.cache)
            }
        }
    }

    /// Whether blocks may come into the cache and leave it.
    pub fn may_migrate(&self, state: &State) -> bool {
        self.migrates && state.running && state.can_commit()
    }

    /// Sends a write to the origin for which its block was taken out of the cache.
    pub fn send_past(self: &Arc<Self>, mut io: Io, oblock: u64) {
        let mut state = self.state.lock();
        self.enter(&mut state, &mut io, oblock);
        drop(state);
        self.origin.submit(io);
    }

    /// Counts a request in.
    fn enter(self: &Arc<Self>, state: &mut State, io: &mut Io, oblock: u64) {
        state.traffic.enter(oblock, io.is_write());
        state.in_flight += 1;
        let round = match std::mem::replace(&mut state.in_round, true) {
            true => 0,
            false => ROUND,
        };
        io.push_end_io(self.clone(), io.sector.raw() | round);
    }

    /// A block of the cache differs from the origin, or no longer.
    pub fn set_dirty(&self, state: &mut State, cblock: u32, dirty: bool) {
        if !state.dirty.put(u64::from(cblock), dirty) {
            return;
        }
        state.policy.set_dirty(cblock, dirty);
        if !dirty && state.dirty.ones() == 0 {
            self.event.trigger();
        }
    }

    /// A write to a clean cached block: origin and cache at once.
    fn write_both(&self, mut io: Io, cblock: u32) {
        let both = Arc::new(Both {
            state: Mutex::new((None, BlkStatus::Ok)),
            one_ended: AtomicBool::new(false),
        });
        let mut buf = match io.buf.is_empty() {
            true => IoBuf::empty(),
            false => IoBuf::alloc(io.buf.len()),
        };
        buf.as_mut_slice().copy_from_slice(io.buf.as_slice());
        let place = self.in_cache(cblock, io.sector);
        let mut copy = Io::new(io.op, place, io.sectors, buf, both.clone(), COPY);
        copy.flags = io.flags;
        self.cache.submit(copy);
        io.push_end_io(both, 0);
        self.origin.submit(io);
    }

    /// Writes a guest's whole block to where it is to be cached.
    pub fn overwrite(self: &Arc<Self>, mut io: Io, cblock: u32) {
        io.push_end_io(self.clone(), io.sector.raw() | OVERWRITE);
        io.sector = self.in_cache(cblock, io.sector);
        self.cache.submit(io);
    }

    /// A write ends as soon as its mapping is durable: a FUA write, whose data are, or one to a block that is fresh.
    pub fn end_durably(&self, state: &mut State, io: Io) -> Option<(Io, BlkStatus)> {
        if !state.has_uncommitted() {
            return Some((io, BlkStatus::Ok));
        }
        if !state.can_commit() {
            let status = match io.flags.fua {
                true => BlkStatus::IoErr,
                // The next flush fails, and no daemon takes these metadata over.
                false => BlkStatus::Ok,
            };
            return Some((io, status));
        }
        state.completions.push(io);
        self.wake();
        None
    }
}

impl EndIo for Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let oblock = (tag & SECTOR) / self.shape.block;
        if tag & OVERWRITE != 0 {
            return self.promoted_with(oblock, io, status);
        }
        let mut state = self.state.lock();
        state.in_flight -= 1;
        if tag & ROUND != 0 {
            state.in_round = false;
            state.policy.next_round();
        }
        let behind = match io.is_write() && self.mode == IoMode::Writethrough {
            true => state.traffic.has_gone_through(oblock, tag & SECTOR),
            false => Vec::new(),
        };
        let step = state.traffic.leave(oblock, io.is_write());
        // Not durable without a flush, but the next daemon must know where it is.
        let is_fresh = io.is_write() && state.fresh.contains(&oblock);
        let ends = match (io.flags.fua || is_fresh) && status.is_ok() {
            true => self.end_durably(&mut state, io),
            false => Some((io, status)),
        };
        drop(state);
        if let Some((io, status)) = ends {
            io.complete(status);
        }
        self.take_step(step);
        behind.into_iter().for_each(|io| self.send(io));
    }
}

/// A write to two devices; ends when both have.
struct Both {
    /// The guest's own request when it has ended, and the worst status so far.
    state: Mutex<(Option<Io>, BlkStatus)>,
    one_ended: AtomicBool,
}

/// The tag of the copy.
const COPY: u64 = 1;

impl EndIo for Both {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let mut state = self.state.lock();
        state.1 = state.1.and(status);
        if tag != COPY {
            state.0 = Some(io);
        }
        if !self.one_ended.swap(true, SeqCst) {
            return;
        }
        let (io, status) = (state.0.take(), state.1);
        drop(state);
        if let Some(io) = io {
            io.complete(status);
        }
    }
}

/// Sectors that a block of the origin begins at.
pub(super) fn begin_of(oblock: u64, block: u64) -> Sector {
    Sector(oblock * block)
}
