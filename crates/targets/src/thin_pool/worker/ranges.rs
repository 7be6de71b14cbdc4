//! Discards and write-zeroes: unmapping in bounded steps, pass-down, and zeroes where unmapping does not do.
//!
//! A step holds at most [`STEP_BLOCKS`] blocks, outwaits the requests in flight, unmaps, and lets others have their turn.
//!
//! CRASH: blocks whose discard is passed down stay referenced until the data device is done with it, so they cannot be
//! allocated under the discard (`held_blocks` keeps them out of the committed counts, see `commit.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, IoFlags, Op};
use thinmap_runtime::IoBuf;
use thinmap_thin_metadata::{Lookup, MayRead, MetadataError};
use thinmap_units::{BlkStatus, DataBlock, Sector, VirtBlock};

use super::changes::{Change, Made, Unchanged, full};
use super::commit::AfterCommit;
use super::{Entry, Event, Work, Worker};
use crate::thin::Port;

/// Blocks unmapped in one step...
const STEP_BLOCKS: u64 = 2048;
/// ... and how many times fewer after a step for which the metadata device had no room.
const SMALLER: u64 = 16;
/// Single-block write-zeroes in flight for one large one.
const WINDOW: u64 = 16;

/// A request over many blocks, part way through.
pub struct RangeJob {
    pub(super) port: Arc<Port>,
    io: Io,
    kind: Kind,
    step_blocks: u64,
}

enum Kind {
    /// Unmap blocks from the first number up to the second.
    Unmap(u64, u64),
    /// Zero sectors (of the volume) from the first up to the second, then go on with the rest.
    Zero(Sector, Sector, Option<(u64, u64)>),
}

impl RangeJob {
    fn new(port: Arc<Port>, io: Io, kind: Kind) -> Self {
        Self {
            port,
            io,
            kind,
            step_blocks: STEP_BLOCKS,
        }
    }

    pub(super) fn end(self: Box<Self>, status: BlkStatus) {
        self.io.complete(status);
    }
}

/// A run of neighbouring data blocks: the first, and how many.
pub(super) type DataRun = (DataBlock, u64);

impl Worker<'_> {
    pub(super) fn discard(&mut self, port: Arc<Port>, io: Io) {
        if !self.pool.features().discard_enabled {
            return io.complete(BlkStatus::NotSupp);
        }
        let (begin, end) = self.whole_blocks(&port, &io);
        // A discard is a hint: parts of blocks, and a pool that cannot change its metadata, do without.
        if begin >= end || !self.pool.mode().may_commit() {
            return io.complete(BlkStatus::Ok);
        }
        let kind = Kind::Unmap(begin, end);
        self.range_step(Box::new(RangeJob::new(port, io, kind)));
    }

    pub(super) fn write_zeroes(&mut self, port: Arc<Port>, io: Io) {
        let first = port.virtual_sector(&io);
        let last = Sector((first + io.sectors).raw().saturating_sub(1));
        let geometry = self.pool.geometry;
        let one_block = geometry.split(first).0 == geometry.split(last).0;
        let (begin, end) = self.whole_blocks(&port, &io);
        let unmaps = port.origin.is_none()
            && !io.flags.no_unmap
            && self.pool.features().discard_enabled
            && self.pool.mode().may_commit()
            && begin < end;
        if unmaps {
            self.promise_zeroes(&port);
        }
        if one_block && !unmaps {
            return self.block_request(port, io);
        }
        let last = first + io.sectors;
        let kind = if unmaps {
            let edge = geometry.sector(begin);
            Kind::Zero(first, edge, Some((begin, end)))
        } else {
            Kind::Zero(first, last, None)
        };
        self.range_step(Box::new(RangeJob::new(port, io, kind)));
    }

    /// A write-zeroes is to leave something unmapped: what was promised to read as zeroes must not turn to old data around a later
    /// partial write.
    pub(super) fn promise_zeroes(&self, port: &Port) {
        if self.pool.features().zero_new_blocks {
            return;
        }
        port.volume.zero_always.store(true, SeqCst);
        self.pool.remove_unpromised(port.volume.id);
    }

    /// The blocks that lie wholly in a request.
    fn whole_blocks(&self, port: &Port, io: &Io) -> (u64, u64) {
        let geometry = self.pool.geometry;
        let first = port.virtual_sector(io);
        let (begin, rest) = geometry.split(first);
        let begin = begin + u64::from(rest > Sector::ZERO);
        (begin, geometry.split(first + io.sectors).0)
    }

    /// Goes on with a job.
    pub(super) fn range_step(&mut self, mut job: Box<RangeJob>) {
        loop {
            match job.kind {
                Kind::Zero(at, to, then) if at < to => return self.zero_some(job, at, to, then),
                Kind::Zero(_, _, None) => return self.complete_durably(job.io),
                Kind::Zero(_, _, Some((begin, end))) => {
                    job.kind = Kind::Unmap(begin, end);
                }
                Kind::Unmap(begin, end) => return self.unmap_some(job, begin, end),
            }
        }
    }

    fn unmap_some(&mut self, mut job: Box<RangeJob>, begin: u64, end: u64) {
        let begin = match self.next_mapped(&job.port, begin, end) {
            Ok(Some(begin)) => begin,
            Ok(None) => return self.unmapped_all(job, end),
            Err(error) => {
                tracing::error!(pool = %self.pool.dev_no, %error, "thin: cannot look a range up to unmap it");
                return job.io.complete(BlkStatus::IoErr);
            }
        };
        if !self.pool.mode().may_commit() {
            let ok = job.io.op == Op::Discard;
            let status = if ok { BlkStatus::Ok } else { BlkStatus::IoErr };
            return job.io.complete(status);
        }
        let step_end = end.min(begin + job.step_blocks);
        job.kind = Kind::Unmap(begin, end);
        let group = job.port.volume.id.raw();
        let detained = self
            .pool
            .prison
            .lock()
            .detain(group, begin..step_end, Work::Range(job));
        let Err(Work::Range(job)) = detained else {
            return;
        };
        if !self.hold(&job.port, begin, step_end) {
            debug_assert!(false, "nothing in the range was held a moment ago");
            return job.io.complete(BlkStatus::IoErr);
        }
        self.barrier();
        self.state.jobs += 1;
        let then = Box::new(move |worker: &mut Worker<'_>| {
            worker.state.jobs -= 1;
            worker.unmap_held(job, begin, step_end);
        });
        self.when_drained(true, false, then);
    }

    /// Blocks are unmapped; what is left of a write-zeroes is its end, less than a block.
    fn unmapped_all(&mut self, mut job: Box<RangeJob>, end: u64) {
        if job.io.op == Op::Discard {
            return job.io.complete(BlkStatus::Ok);
        }
        let first = job.port.virtual_sector(&job.io);
        let (from, to) = (self.pool.geometry.sector(end), first + job.io.sectors);
        job.kind = Kind::Zero(from, to, None);
        self.range_step(job);
    }

    fn next_mapped(&self, port: &Port, begin: u64, end: u64) -> Result<Option<u64>, MetadataError> {
        let metadata = self.pool.metadata.read();
        let mut at = begin;
        while at < end {
            let v = VirtBlock(at);
            let run = metadata.lookup_run(port.volume.id, v, end - at, MayRead::Yes)?;
            if run.first != Lookup::Unmapped {
                return Ok(Some(at));
            }
            at += run.blocks;
        }
        Ok(None)
    }

    /// No request is in flight on the held blocks any more.
    fn unmap_held(&mut self, mut job: Box<RangeJob>, begin: u64, end: u64) {
        let last = match job.kind {
            Kind::Unmap(_, last) => last,
            Kind::Zero(..) => end,
        };
        if !self.pool.mode().may_commit() {
            self.release(&job.port, begin);
            return job.io.complete(BlkStatus::IoErr);
        }
        let passdown = self.pool.features().discard_passdown;
        let unmapped = self.unmap(&job.port, begin, end, passdown);
        self.release(&job.port, begin);
        match unmapped {
            Err(Unchanged::Full) => self.unmap_less(job, begin, last),
            Err(Unchanged::Failed) => job.io.complete(BlkStatus::IoErr),
            Err(Unchanged::Metadata(error)) => {
                self.metadata_failed("unmap a range", &error);
                job.io.complete(BlkStatus::IoErr);
            }
            Ok(runs) => {
                job.kind = Kind::Unmap(end, last);
                self.unmapped_some(job, runs);
            }
        }
    }

    fn unmapped_some(&mut self, job: Box<RangeJob>, runs: Vec<DataRun>) {
        if runs.is_empty() {
            self.state.todo.push_back(Work::Range(job));
        } else if self.state.replaced || job.io.op == Op::WriteZeroes {
            // CRASH: another volume that has just got its own copy of one of the blocks maps the old one again after
            // a power cut; until that is committed the old one keeps its data. And a block that is to read as zeroes would, mapped
            // again, read as whatever a discard leaves.
            let wait = AfterCommit::PassDown(job, runs);
            self.state.after_commit.push(wait);
        } else {
            self.pass_down(job, runs);
        }
    }

    /// The metadata device had no room for a step: a smaller one, or none.
    fn unmap_less(&mut self, mut job: Box<RangeJob>, begin: u64, last: u64) {
        if job.step_blocks > 1 {
            job.step_blocks = (job.step_blocks / SMALLER).max(1);
            job.kind = Kind::Unmap(begin, last);
        } else if job.io.op == Op::Discard {
            // A hint.
            return job.io.complete(BlkStatus::Ok);
        } else {
            let first = job.port.virtual_sector(&job.io);
            let from = self.pool.geometry.sector(begin);
            job.kind = Kind::Zero(from, first + job.io.sectors, None);
        }
        self.state.todo.push_back(Work::Range(job));
    }

    /// Unmaps; gives the runs of data blocks whose discard is to be passed down, held.
    fn unmap(
        &mut self,
        port: &Port,
        begin: u64,
        end: u64,
        passdown: bool,
    ) -> Result<Vec<DataRun>, Unchanged> {
        let id = port.volume.id;
        // Where snapshots share the mapping, unmapping takes room: not what is kept back for deletions.
        let may_grow = self.pool.mode().may_grow_metadata();
        let entry = Entry::Remove(id, VirtBlock(begin), VirtBlock(end));
        let (runs, made) = self.change_and_note(Change::Frees, None, entry, |metadata| {
            let mut runs = Vec::new();
            let mut at = begin;
            while passdown && at < end {
                let run = metadata.lookup_run(id, VirtBlock(at), end - at, MayRead::Yes)?;
                if let Lookup::Mapped { data, .. } = run.first {
                    runs.push((data, run.blocks));
                }
                at += run.blocks;
            }
            let used = metadata.used_metadata_blocks();
            metadata.remove_range(id, VirtBlock(begin), VirtBlock(end))?;
            if !may_grow && metadata.used_metadata_blocks() > used {
                return Err(full("unmapping would take metadata blocks"));
            }
            Ok((runs.clone(), runs))
        })?;
        if made == Made::InTheOpenTransaction {
            port.volume.mark_changed();
        }
        Ok(runs)
    }

    /// Discards those blocks of held runs that nobody else refers to, then lets go of the runs.
    pub(super) fn pass_down(&mut self, job: Box<RangeJob>, runs: Vec<DataRun>) {
        let alone = match self.only_ours(&runs) {
            Ok(alone) => alone,
            Err(error) => {
                tracing::error!(pool = %self.pool.dev_no, %error, "thin: cannot tell which blocks are shared: not passing a discard down");
                Vec::new()
            }
        };
        let aborts = self.state.aborts;
        let max = self.pool.data_dev().limits().max_discard;
        let mut parts = Vec::new();
        for (data, len) in alone {
            let mut at = self.data_sector(data);
            let end = self.data_sector(DataBlock(data.raw() + len));
            while at < end {
                let sectors = (end - at).min(max.max(Sector(1)));
                parts.push((Op::Discard, at, sectors));
                at += sectors;
            }
        }
        let dev = self.pool.data_dev().clone();
        let job_end = self.job_end();
        let end = Box::new(move |_ignored: BlkStatus| {
            job_end(Box::new(move |worker| {
                worker.passed_down(job, runs, aborts)
            }));
        });
        Fan::run(parts, IoFlags::default(), end, |io| dev.submit(io));
    }

    /// A failed discard below does not matter: the blocks are unmapped all the same.
    fn passed_down(&mut self, job: Box<RangeJob>, runs: Vec<DataRun>, aborts: u64) {
        if aborts == self.state.aborts {
            self.let_go(&runs);
            self.mark_dirty();
        }
        self.state.todo.push_back(Work::Range(job));
    }

    /// The parts of held runs to which nothing else refers.
    fn only_ours(&self, runs: &[DataRun]) -> Result<Vec<DataRun>, MetadataError> {
        let metadata = self.pool.metadata.read();
        let mut alone: Vec<DataRun> = Vec::new();
        for (data, len) in runs {
            for block in data.raw()..data.raw() + len {
                if metadata.data_ref_count(DataBlock(block))? != 1 {
                    continue;
                }
                match alone.last_mut() {
                    Some((first, n)) if first.raw() + *n == block => *n += 1,
                    _ => alone.push((DataBlock(block), 1)),
                }
            }
        }
        Ok(alone)
    }

    /// Zeroes the next few blocks' worth as requests of their own.
    fn zero_some(
        &mut self,
        mut job: Box<RangeJob>,
        at: Sector,
        to: Sector,
        then: Option<(u64, u64)>,
    ) {
        let geometry = self.pool.geometry;
        let mut parts = Vec::new();
        let mut next = at;
        while next < to && (parts.len() as u64) < WINDOW {
            let end = geometry.sector(geometry.split(next).0 + 1).min(to);
            parts.push((Op::WriteZeroes, next + job.port.begin, end - next));
            next = end;
        }
        job.kind = Kind::Zero(next, to, then);
        let flags = job.io.flags;
        // Durability is the whole request's, at its end.
        let flags = IoFlags {
            fua: false,
            ..flags
        };
        let port = job.port.clone();
        let pool = self.pool.clone();
        // Not counted among the jobs in flight: the children are, each for itself, and while the pool is suspended or has no
        // space they wait, which a suspend must not wait for.
        let end = Box::new(move |status: BlkStatus| {
            pool.push(Event::Run(Box::new(move |worker: &mut Worker<'_>| {
                if status.is_ok() {
                    worker.take_in(Work::Range(job));
                } else {
                    job.io.complete(status);
                }
            })));
        });
        let mut children = Vec::new();
        Fan::run(parts, flags, end, |io| children.push(io));
        for child in children {
            self.block_request(port.clone(), child);
        }
    }
}

type FanEnd = Box<dyn FnOnce(BlkStatus) + Send>;

/// Several requests without data whose end is told once.
struct Fan {
    state: Mutex<(usize, BlkStatus, Option<FanEnd>)>,
}

impl Fan {
    fn run(
        parts: Vec<(Op, Sector, Sector)>,
        flags: IoFlags,
        end: FanEnd,
        mut submit: impl FnMut(Io),
    ) {
        // One more than there are, so that it cannot end before all are out.
        let fan = Arc::new(Self {
            state: Mutex::new((parts.len() + 1, BlkStatus::Ok, Some(end))),
        });
        for (op, sector, sectors) in parts {
            let mut io = Io::new(op, sector, sectors, IoBuf::empty(), fan.clone(), 0);
            io.flags = flags;
            submit(io);
        }
        fan.one_ended(BlkStatus::Ok);
    }

    fn one_ended(&self, status: BlkStatus) {
        let ended = {
            let mut state = self.state.lock();
            state.0 -= 1;
            state.1 = state.1.and(status);
            if state.0 > 0 {
                return;
            }
            (state.1, state.2.take())
        };
        if let (status, Some(end)) = ended {
            end(status);
        }
    }
}

impl EndIo for Fan {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, status: BlkStatus) {
        self.one_ended(status);
    }
}
