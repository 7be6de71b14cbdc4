//! What the line, requests under way, control threads and the worker share; and the way of a request through the cache.

use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_dm::MapOutcome;
use thinmap_dm::kit::{Copier, FanOut};
use thinmap_runtime::{ActorHandle, Clock, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::disk::Geometry;
use super::parts::Parts;
use super::state::{Place, Rules, State};
use super::worker::{Ask, Asked};

/// Buffers for writing back: 2 MiB, in pieces of at most 128 KiB.
const PIECE: Sector = Sector(256);
const BUFFERS: usize = 16;
/// Blocks in one request to the cache, as many as a tag can say.
const RUN_MAX: u64 = (1 << 24) - 1;

/// See the module.
pub(super) struct Shared {
    pub origin: Arc<dyn BlockDevice>,
    pub cache: Arc<dyn BlockDevice>,
    pub geometry: Geometry,
    pub rules: Rules,
    pub pace: Pace,
    pub clock: Arc<dyn Clock>,
    pub state: Mutex<State>,
    /// Told when the last write of an epoch has ended.
    pub quiet: Condvar,
    pub copier: Copier,
    pub handle: OnceLock<ActorHandle>,
}

/// How fast blocks go to the origin.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Blocks on their way at once.
    pub jobs: Option<u64>,
    pub max_age: Option<Duration>,
    /// How long the origin must not have been written past the cache.
    pub pause: Duration,
}

/// What [`Shared`] is made of.
pub(super) struct Devices {
    pub origin: Arc<dyn BlockDevice>,
    pub cache: Arc<dyn BlockDevice>,
}

impl Shared {
    pub fn new(
        devices: Devices,
        geometry: Geometry,
        (rules, pace): (Rules, Pace),
        clock: Arc<dyn Clock>,
        state: State,
    ) -> Self {
        Self {
            origin: devices.origin,
            cache: devices.cache,
            geometry,
            rules,
            pace,
            clock,
            state: Mutex::new(state),
            quiet: Condvar::new(),
            copier: Copier::new(PIECE, BUFFERS),
            handle: OnceLock::new(),
        }
    }

    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// A device has failed. Reads go on, nothing else.
    pub fn fail(&self, what: &str) {
        let mut state = self.state.lock();
        state.stirs += 1;
        if !std::mem::replace(&mut state.failed, true) {
            tracing::error!("writecache: {what}");
        }
        drop(state);
        self.wake();
    }

    /// Has the worker do something, and waits until it is done. Whether nothing has failed.
    pub fn ask(&self, ask: Ask) -> bool {
        let (sender, done) = mpsc::channel();
        {
            let mut state = self.state.lock();
            if state.inbox.is_dead {
                return false;
            }
            state.inbox.asked.push(Asked { ask, sender });
        }
        self.wake();
        while let Err(mpsc::TryRecvError::Empty) = done.try_recv() {
            if !simulate(Waiting::ForActors) {
                // An error means that the worker is no more.
                let _ = done.recv();
                break;
            }
        }
        !self.state.lock().failed
    }

    /// Takes a request; its sector is the line's own already.
    pub fn map(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        let block = self.geometry.block_sectors();
        if (io.sector.raw() | io.sectors.raw()) & (block - 1) != 0 {
            tracing::error!(?io, "writecache: I/O is not aligned");
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        match io.op {
            Op::Flush => self.flush(io),
            Op::Discard => self.discard(io),
            // `WriteZeroes` never comes: the core writes zeroes.
            Op::Read | Op::Write | Op::WriteZeroes => self.transfer(io),
        }
    }

    /// The origin's cache is flushed beside ours.
    fn flush(&self, io: Io) -> MapOutcome<'_> {
        let fan = {
            let mut state = self.state.lock();
            if state.failed {
                drop(state);
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
            state.stats.flushes += 1;
            if state.open == 0 && !state.overwrote && !state.committing {
                drop(state);
                return MapOutcome::Remapped(io, &self.origin);
            }
            let fan = FanOut::new(io, 2);
            state.inbox.flushes.push(fan.flush());
            fan
        };
        self.wake();
        MapOutcome::Remapped(fan.flush(), &self.origin)
    }

    fn discard(&self, io: Io) -> MapOutcome<'_> {
        let mut state = self.state.lock();
        state.stats.discards += io.sectors.raw() / self.geometry.block_sectors();
        if state.failed {
            drop(state);
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        state.inbox.discards.push(io);
        drop(state);
        self.wake();
        MapOutcome::Submitted
    }

    fn transfer(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        let mut place = self.place(&io);
        if self.len_of(place).is_none_or(|len| len == io.sectors) {
            return self.send(io, place);
        }
        let mut left = io.sectors;
        let parts = Parts::new(io);
        while let Some(part) = parts.cut(self.len_of(place).unwrap_or(left)) {
            left -= part.sectors;
            let next = part.end();
            let op = part.op;
            self.carry_out(part, place);
            if left == Sector::ZERO {
                break;
            }
            place = self.place_at(op, next, left);
        }
        parts.all_cut();
        MapOutcome::Submitted
    }

    /// A request that waited goes on.
    pub fn resend(self: &Arc<Self>, io: Io) {
        match self.transfer(io) {
            MapOutcome::Remapped(io, dev) => dev.submit(io),
            MapOutcome::Kill(io, status) => io.complete(status),
            MapOutcome::Submitted | MapOutcome::Requeue(_) => {}
        }
    }

    fn carry_out(self: &Arc<Self>, io: Io, place: Place) {
        match self.send(io, place) {
            MapOutcome::Remapped(io, dev) => dev.submit(io),
            MapOutcome::Kill(io, status) => io.complete(status),
            MapOutcome::Submitted | MapOutcome::Requeue(_) => {}
        }
    }

    /// Sectors that go to a place; `None`: all that are left.
    fn len_of(&self, place: Place) -> Option<Sector> {
        match place {
            Place::Cache { blocks, .. } => {
                Some(Sector(u64::from(blocks) * self.geometry.block_sectors()))
            }
            Place::Origin(sectors) => Some(sectors),
            Place::Wait(_) | Place::Fail => None,
        }
    }

    fn place(&self, io: &Io) -> Place {
        self.place_at(io.op, io.sector, io.sectors)
    }

    fn place_at(&self, op: Op, sector: Sector, sectors: Sector) -> Place {
        let (sector, sectors) = (sector.raw(), sectors.raw());
        let most = sectors.min(RUN_MAX * self.geometry.block_sectors());
        let mut state = self.state.lock();
        if !state.is_live {
            return Place::Fail;
        }
        if op == Op::Read {
            return state.place_read(&self.geometry, sector, most);
        }
        let now = self.clock.now();
        let with = (&self.geometry, &self.rules);
        let place = state.place_write(with, sector, most, now.as_millis() as u32);
        let mut wake = state.verify_watermark();
        if matches!(place, Place::Cache { .. }) {
            wake |= state.schedule_commit(&self.rules, now);
        }
        drop(state);
        if wake {
            self.wake();
        }
        place
    }

    /// Sends a request where all of it belongs.
    fn send(self: &Arc<Self>, mut io: Io, place: Place) -> MapOutcome<'_> {
        match place {
            Place::Cache {
                index,
                blocks,
                epoch,
            } => {
                let kind = match (io.op, io.flags.fua) {
                    (Op::Read, _) => Kind::Read,
                    (_, false) => Kind::Write,
                    (_, true) => Kind::DurableWrite,
                };
                // What makes it durable is a commit.
                io.flags.fua = false;
                let tag = Tag {
                    kind,
                    epoch,
                    index,
                    blocks,
                };
                io.push_end_io(self.clone(), tag.pack());
                io.sector = self.geometry.block_at(index);
                MapOutcome::Remapped(io, &self.cache)
            }
            Place::Origin(_) => {
                if io.op != Op::Read {
                    let tag = Tag {
                        kind: Kind::Around,
                        epoch: 0,
                        index: 0,
                        blocks: 0,
                    };
                    io.push_end_io(self.clone(), tag.pack());
                }
                MapOutcome::Remapped(io, &self.origin)
            }
            Place::Wait(seen) => {
                let mut state = self.state.lock();
                if state.inbox.is_dead {
                    drop(state);
                    return MapOutcome::Kill(io, BlkStatus::IoErr);
                }
                state.waiting.push(io);
                let stirred = state.stirs != seen;
                // The worker may have sent on those who waited for that already, and this one was not among them.
                state.stirs += u64::from(stirred);
                drop(state);
                if stirred {
                    self.wake();
                }
                MapOutcome::Submitted
            }
            Place::Fail => MapOutcome::Kill(io, BlkStatus::IoErr),
        }
    }
}

impl EndIo for Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let tag = Tag::unpack(tag);
        let (index, blocks) = (tag.index, tag.blocks);
        let mut state = self.state.lock();
        let (mut wake, mut waits) = (false, false);
        match tag.kind {
            Kind::Read => wake = state.read_ended(index, blocks),
            Kind::Around => {
                state.around -= 1;
                state.around_ended = Some(self.clock.now());
            }
            Kind::Write | Kind::DurableWrite => {
                let end = state.write_ended(index, blocks, tag.epoch, status.is_ok());
                wake = end.wake;
                waits = (tag.kind == Kind::DurableWrite || !end.noted)
                    && status.is_ok()
                    && !state.inbox.is_dead;
                if state.writes[tag.epoch] == 0 {
                    self.quiet.notify_all();
                }
            }
        }
        let ended = match waits {
            true => {
                state.inbox.durable.push(io);
                None
            }
            false => Some(io),
        };
        drop(state);
        if wake || waits {
            self.wake();
        }
        if let Some(io) = ended {
            io.complete(status);
        }
    }
}

/// What a request is pushed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tag {
    kind: Kind,
    epoch: usize,
    index: u32,
    blocks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    /// Ends when a commit after it has ended.
    DurableWrite,
    /// To the origin, past the cache.
    Around,
}

impl Tag {
    fn pack(self) -> u64 {
        let kind = self.kind as u64;
        u64::from(self.index)
            | u64::from(self.blocks) << 32
            | (self.epoch as u64) << 56
            | kind << 57
    }

    fn unpack(tag: u64) -> Self {
        let kinds = [Kind::Read, Kind::Write, Kind::DurableWrite, Kind::Around];
        Self {
            kind: kinds[(tag >> 57 & 3) as usize],
            epoch: (tag >> 56 & 1) as usize,
            index: tag as u32,
            blocks: (tag >> 32) as u32 & RUN_MAX as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_back_as_they_went() {
        for kind in [Kind::Read, Kind::Write, Kind::DurableWrite, Kind::Around] {
            for epoch in 0..2 {
                let tag = Tag {
                    kind,
                    epoch,
                    index: u32::MAX - 1,
                    blocks: RUN_MAX as u32,
                };
                assert_eq!(Tag::unpack(tag.pack()), tag);
            }
        }
    }
}
