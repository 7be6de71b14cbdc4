//! Requests to a snapshot, and to a device that a snapshot is being merged into.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::MapOutcome;
use thinmap_dm::kit::{FanOut, Ticket};
use thinmap_units::BlkStatus;

use super::line::SnapshotLine;
use super::snapshot::{Snapshot, Start};
use super::state::{Validity, Waiting};
use super::worker::{Copied, Event};

impl SnapshotLine {
    /// A request to a snapshot.
    pub(super) fn map_snapshot(&self, io: Io) -> MapOutcome<'_> {
        if io.op == Op::Flush {
            return MapOutcome::Remapped(io, &self.cow.dev);
        }
        let held = self.member.slot.load();
        let Some(snapshot) = held.as_ref().map(|held| &held.0) else {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        };
        match io.op {
            Op::Read => self.read(snapshot, io),
            Op::Discard => self.discard(snapshot, io),
            Op::Write | Op::WriteZeroes | Op::Flush => self.write(snapshot, io),
        }
    }

    fn read(&self, snapshot: &Arc<Snapshot>, mut io: Io) -> MapOutcome<'_> {
        let state = snapshot.state.read();
        if state.validity != Validity::Valid {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        match state.complete.find(snapshot.chunk_of(io.sector)) {
            Some(new) => {
                io.sector = snapshot.sector_of(new) + snapshot.within(io.sector);
                MapOutcome::Remapped(io, &self.cow.dev)
            }
            None => {
                let ticket = snapshot.reads.enter();
                io.push_end_io(snapshot.clone(), u64::from(ticket.raw()));
                MapOutcome::Remapped(io, &self.origin.dev)
            }
        }
    }

    fn write(&self, snapshot: &Arc<Snapshot>, mut io: Io) -> MapOutcome<'_> {
        let chunk = snapshot.chunk_of(io.sector);
        {
            let state = snapshot.state.read();
            if state.validity != Validity::Valid || state.overflowed {
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
            if let Some(new) = state.complete.find(chunk) {
                io.sector = snapshot.sector_of(new) + snapshot.within(io.sector);
                return MapOutcome::Remapped(io, &self.cow.dev);
            }
        }
        let mut state = snapshot.state.write();
        if state.validity != Validity::Valid || state.overflowed {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        if let Some(new) = state.complete.find(chunk) {
            io.sector = snapshot.sector_of(new) + snapshot.within(io.sector);
            return MapOutcome::Remapped(io, &self.cow.dev);
        }
        if let Some(pending) = state.pending.get_mut(&chunk) {
            pending.snapshot.push(io);
            return MapOutcome::Submitted;
        }
        let Some((new, sequence)) = state.allocate(chunk, || self.cow.dev.size()) else {
            if self.keeps_what_it_has() {
                tracing::error!(%chunk, "snapshot: no room for a write: the snapshot takes none any more");
                state.overflowed = true;
            } else {
                tracing::error!(%chunk, "snapshot: no room for a write: the snapshot becomes invalid");
                snapshot.drop_snapshot(&mut state);
                state.stranded.push(Waiting::Fail(io));
                return MapOutcome::Submitted;
            }
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        };
        drop(state);
        let start = Start {
            snapshot: snapshot.clone(),
            chunk,
            new,
            sequence,
        };
        if io.sectors == snapshot.chunk {
            return self.write_whole(start, io);
        }
        snapshot.copy(&start, Some(io));
        MapOutcome::Submitted
    }

    /// A whole chunk: nothing of the origin's is needed.
    fn write_whole(&self, start: Start, mut io: Io) -> MapOutcome<'_> {
        start.snapshot.copies.fetch_add(1, SeqCst);
        io.sector = start.snapshot.sector_of(start.new);
        io.push_end_io(Arc::new(WholeWrite(start)), 0);
        MapOutcome::Remapped(io, &self.cow.dev)
    }

    /// COMPAT: passed down, it changes the origin without an exception, as the feature says.
    fn discard(&self, snapshot: &Arc<Snapshot>, io: Io) -> MapOutcome<'_> {
        {
            let state = snapshot.state.read();
            if state.validity != Validity::Valid || state.overflowed {
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
        }
        if !self.features.discard_passdown_origin {
            return self.discard_exception(snapshot, io);
        }
        let (sector, sectors) = (io.sector, io.sectors);
        let both = FanOut::new(io, 2);
        let mut below = both.part(sector, sectors);
        let ticket = snapshot.reads.enter();
        below.push_end_io(snapshot.clone(), u64::from(ticket.raw()));
        self.origin.dev.submit(below);
        self.discard_exception(snapshot, both.part(sector, sectors))
    }

    /// A whole chunk that has an exception reads as zeroes then; one without stays the origin's.
    fn discard_exception(&self, snapshot: &Arc<Snapshot>, mut io: Io) -> MapOutcome<'_> {
        let chunk = snapshot.chunk_of(io.sector);
        let found = snapshot.state.read().complete.find(chunk);
        let Some(new) = found else {
            return MapOutcome::Kill(io, BlkStatus::Ok);
        };
        io.sector = snapshot.sector_of(new) + snapshot.within(io.sector);
        if io.sectors == snapshot.chunk {
            io.push_end_io(Arc::new(Zeroing), 0);
            io.op = Op::WriteZeroes;
            io.flags.no_unmap = true;
        }
        MapOutcome::Remapped(io, &self.cow.dev)
    }

    /// A request to a device that a snapshot is merged into.
    pub(super) fn map_merge(&self, mut io: Io) -> MapOutcome<'_> {
        match io.op {
            Op::Flush => return self.flush_both(io),
            Op::Discard => return MapOutcome::Kill(io, BlkStatus::Ok),
            Op::Read | Op::Write | Op::WriteZeroes => {}
        }
        let held = self.member.slot.load();
        if let Some(snapshot) = held.as_ref().map(|held| &held.0) {
            let chunk = snapshot.chunk_of(io.sector);
            let state = snapshot.state.read();
            let found = state.complete.find(chunk);
            if state.validity == Validity::Valid
                && let Some(new) = found
            {
                let is_merging = state.merging.as_ref().is_some_and(|m| m.contains(&chunk));
                if io.op != Op::Read && is_merging {
                    drop(state);
                    return self.queue(snapshot, io, chunk);
                }
                if io.op != Op::Read && state.doubtful.as_ref().is_some_and(|d| d.contains(&chunk))
                {
                    return MapOutcome::Kill(io, BlkStatus::IoErr);
                }
                if io.op != Op::Read {
                    let ticket = snapshot.merge_writes.enter();
                    io.push_end_io(
                        Arc::new(MergeWrite(snapshot.clone())),
                        u64::from(ticket.raw()),
                    );
                }
                io.sector = snapshot.sector_of(new) + snapshot.within(io.sector);
                return MapOutcome::Remapped(io, &self.cow.dev);
            }
        }
        if io.op == Op::Read {
            return MapOutcome::Remapped(io, &self.origin.dev);
        }
        match self.member_origin().write(io, &self.origin.dev) {
            Some(io) => MapOutcome::Remapped(io, &self.origin.dev),
            None => MapOutcome::Submitted,
        }
    }

    /// A write waits until its chunk is merged.
    fn queue(&self, snapshot: &Arc<Snapshot>, io: Io, chunk: u64) -> MapOutcome<'_> {
        let mut state = snapshot.state.write();
        if state.merging.as_ref().is_some_and(|m| m.contains(&chunk)) {
            state.queued.push(io);
            return MapOutcome::Submitted;
        }
        drop(state);
        // Merged meanwhile, or not at all.
        self.map_merge(io)
    }

    fn flush_both(&self, io: Io) -> MapOutcome<'_> {
        let both = FanOut::new(io, 2);
        self.origin.dev.submit(both.flush());
        self.cow.dev.submit(both.flush());
        MapOutcome::Submitted
    }
}

/// A guest's write of a whole chunk that makes its exception: it ends when that is committed.
struct WholeWrite(Start);

impl EndIo for WholeWrite {
    fn end_io(self: Arc<Self>, io: Io, _: u64, status: BlkStatus) {
        let start = &self.0;
        start.snapshot.push(Event::Copied(Copied {
            chunk: start.chunk,
            new: start.new,
            sequence: start.sequence,
            status,
            io: Some(io),
        }));
    }
}

/// A discard that is done by writing zeroes.
struct Zeroing;

impl EndIo for Zeroing {
    fn end_io(self: Arc<Self>, mut io: Io, _: u64, status: BlkStatus) {
        io.op = Op::Discard;
        io.flags.no_unmap = false;
        io.complete(status);
    }
}

/// A write to a chunk on the COW device of a snapshot that is being merged.
struct MergeWrite(Arc<Snapshot>);

impl EndIo for MergeWrite {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if let Some(ticket) = u8::try_from(tag).ok().and_then(Ticket::from_raw)
            && self.0.merge_writes.leave(ticket)
        {
            self.0.wake();
        }
        io.complete(status);
    }
}
