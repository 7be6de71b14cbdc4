//! What lines, requests under way, control threads and the worker share.
//!
//! INVARIANT: a region is in `hydrating` from before its copy begins until its bit is set or the copy has failed; while it is, no write
//! to it goes to the destination but the one that is copied with it.
//!
//! INVARIANT: a word is in `dirty` from when a bit of it was set until a commit that holds it is durable; the same of bits in `kept`.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_dm::kit::{Copier, CopyRequest, CopySource, Overlay};
use thinmap_dm::{MapOutcome, TableEvent};
use thinmap_runtime::{ActorHandle, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::kept::Kept;
use super::metadata::Metadata;
use super::regions::Regions;

/// What a request that has ended was pushed with, when it was no write of a whole region.
const GUEST: u64 = u64::MAX;
/// Copy buffers: 2 MiB, in pieces of at most 128 KiB.
const PIECE_SECTORS_MAX: u64 = 256;
const BUFFERS: usize = 16;

/// See the module.
pub(super) struct Shared {
    pub dest: Arc<dyn BlockDevice>,
    pub source: Arc<dyn BlockDevice>,
    pub event: Arc<TableEvent>,
    /// Where the line begins.
    pub begin: Sector,
    pub len: Sector,
    /// Sectors, a power of two.
    pub region: u64,
    /// Set when the line becomes live.
    pub regions: OnceLock<Regions>,
    pub metadata: Mutex<Metadata>,
    pub state: Mutex<State>,
    /// Told when a copy ends.
    idle: Condvar,
    /// Metadata can no longer be changed.
    pub read_only: AtomicBool,
    /// A copy has failed since the worker looked: none is begun in the background for a while.
    pub has_failed: AtomicBool,
    pub passdown: AtomicBool,
    pub hydration: AtomicBool,
    pub running: AtomicBool,
    pub threshold: AtomicU32,
    pub batch: AtomicU32,
    /// Requests of the guest's under way.
    pub guests: AtomicU64,
    pub stop: AtomicBool,
    copier: Copier,
    pub handle: OnceLock<ActorHandle>,
}

/// See the module.
#[derive(Default)]
pub(super) struct State {
    /// Writes that wait for a region which is being copied.
    hydrating: HashMap<u64, Vec<Io>>,
    /// Words with bits that no commit holds.
    pub dirty: BTreeSet<u64>,
    /// Flushes, and FUA writes to regions that are there: for after a commit.
    pub flushes: Vec<Io>,
    /// FUA writes that came with a region: end after a commit.
    pub completions: Vec<Io>,
    /// The worker has panicked.
    pub dead: bool,
    /// What the next daemon finds, where something keeps memory.
    pub kept: Option<Kept>,
}

impl State {
    /// A region has come that no commit holds.
    fn note(&mut self, region: u64) {
        self.dirty.insert(region / 64);
        if let Some(kept) = &self.kept {
            kept.set(region);
        }
    }

    /// Regions being copied.
    pub fn hydrating(&self) -> usize {
        self.hydrating.len()
    }
}

/// What [`Shared`] is made of.
pub(super) struct Parts {
    pub dest: Arc<dyn BlockDevice>,
    pub source: Arc<dyn BlockDevice>,
    pub event: Arc<TableEvent>,
    pub begin: Sector,
    pub len: Sector,
    pub region: u32,
    pub metadata: Metadata,
}

impl Shared {
    pub fn new(parts: Parts) -> Self {
        let region = u64::from(parts.region);
        Self {
            dest: parts.dest,
            source: parts.source,
            event: parts.event,
            begin: parts.begin,
            len: parts.len,
            region,
            regions: OnceLock::new(),
            metadata: Mutex::new(parts.metadata),
            state: Mutex::default(),
            idle: Condvar::new(),
            read_only: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            passdown: AtomicBool::new(true),
            hydration: AtomicBool::new(true),
            running: AtomicBool::new(false),
            threshold: AtomicU32::new(1),
            batch: AtomicU32::new(1),
            guests: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            copier: Copier::new(Sector(region.min(PIECE_SECTORS_MAX)), BUFFERS),
            handle: OnceLock::new(),
        }
    }

    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    fn region_of(&self, sector: Sector) -> u64 {
        sector.raw() / self.region
    }

    /// Sectors of a region; the last one may be short.
    fn region_len(&self, region: u64, count: u64) -> Sector {
        let begin = region * self.region;
        Sector((count * self.region).min(self.len.raw().saturating_sub(begin)))
    }

    /// Takes a request; its sector is the line's own already.
    pub fn map(self: &Arc<Self>, mut io: Io) -> MapOutcome<'_> {
        self.guests.fetch_add(1, SeqCst);
        io.push_end_io(self.clone(), GUEST);
        let Some(regions) = self.regions.get() else {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        };
        match io.op {
            Op::Flush => self.issue(io),
            Op::Discard => self.discard(regions, io),
            Op::Read if !regions.has(self.region_of(io.sector)) => {
                MapOutcome::Remapped(io, &self.source)
            }
            Op::Read => MapOutcome::Remapped(io, &self.dest),
            Op::Write | Op::WriteZeroes => self.write(regions, io),
        }
    }

    /// Sends a request to the destination, after a commit if it promises that something is durable.
    fn issue(&self, io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush && !io.flags.fua {
            return MapOutcome::Remapped(io, &self.dest);
        }
        let mut state = self.state.lock();
        if state.dirty.is_empty() {
            drop(state);
            return MapOutcome::Remapped(io, &self.dest);
        }
        if state.dead || self.read_only.load(SeqCst) {
            drop(state);
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        state.flushes.push(io);
        drop(state);
        self.wake();
        MapOutcome::Submitted
    }

    /// A write inside one region: the first one to a region brings the rest of it along.
    fn write(self: &Arc<Self>, regions: &Regions, mut io: Io) -> MapOutcome<'_> {
        let region = self.region_of(io.sector);
        if regions.has(region) {
            return self.issue(io);
        }
        let whole = io.sectors == self.region_len(region, 1);
        {
            let mut state = self.state.lock();
            if let Some(waiting) = state.hydrating.get_mut(&region) {
                waiting.push(io);
                return MapOutcome::Submitted;
            }
            // Set under the lock: a copy may have ended since it was looked at.
            if regions.has(region) {
                drop(state);
                return self.issue(io);
            }
            if state.dead || self.read_only.load(SeqCst) {
                drop(state);
                return MapOutcome::Kill(io, BlkStatus::IoErr);
            }
            state.hydrating.insert(region, Vec::new());
        }
        if whole {
            io.push_end_io(self.clone(), region);
            return MapOutcome::Remapped(io, &self.dest);
        }
        self.copy(region, 1, Some(io));
        MapOutcome::Submitted
    }

    /// Copies regions, all of which are in `hydrating`, with a guest's write laid over the first one.
    fn copy(self: &Arc<Self>, region: u64, count: u64, write: Option<Io>) {
        let from = Sector(region * self.region);
        let len = self.region_len(region, count);
        let request = CopyRequest {
            to: self.dest.clone(),
            to_sector: from,
            segments: vec![(len, CopySource::Device(self.source.clone(), from))],
            overlay: write.map(|io| Overlay {
                offset: io.sector - from,
                io,
            }),
        };
        let shared = self.clone();
        let done = Box::new(move |status: BlkStatus, io: Option<Io>| {
            shared.copied(region, count, status, io);
        });
        self.copier.start(request, done);
    }

    /// Regions have come, or not; `write` came with them.
    fn copied(&self, region: u64, count: u64, status: BlkStatus, write: Option<Io>) {
        if !status.is_ok() {
            tracing::error!(region, count, ?status, "clone: hydration failed");
            self.has_failed.store(true, SeqCst);
        }
        let mut waiting = Vec::new();
        let mut ended = write;
        {
            let mut state = self.state.lock();
            for region in region..region + count {
                if status.is_ok()
                    && let Some(regions) = self.regions.get()
                    && regions.set(region)
                {
                    state.note(region);
                }
                waiting.extend(state.hydrating.remove(&region).unwrap_or_default());
            }
            // It is durable when the destination was flushed and the region's bit committed.
            if status.is_ok() && !state.dead && ended.as_ref().is_some_and(|io| io.flags.fua) {
                state.completions.extend(ended.take());
            }
            self.idle.notify_all();
        }
        if let Some(io) = ended {
            io.complete(status);
        }
        for io in waiting {
            if !status.is_ok() {
                io.complete(status);
                continue;
            }
            match self.issue(io) {
                MapOutcome::Remapped(io, dev) => dev.submit(io),
                MapOutcome::Kill(io, status) => io.complete(status),
                MapOutcome::Submitted | MapOutcome::Requeue(_) => {}
            }
        }
        self.wake();
    }

    /// Regions that are discarded whole need not be copied any more.
    fn discard(&self, regions: &Regions, mut io: Io) -> MapOutcome<'_> {
        let first = io.sector.raw().div_ceil(self.region);
        let end = io.end().raw() / self.region;
        if first >= end {
            return MapOutcome::Kill(io, BlkStatus::Ok);
        }
        if !self.read_only.load(SeqCst) {
            let mut state = self.state.lock();
            for region in first..end {
                // One that is being copied comes, and may be written then.
                if !state.hydrating.contains_key(&region) && regions.set(region) {
                    state.note(region);
                }
            }
        } else if (first..end).any(|region| !regions.has(region)) {
            return MapOutcome::Kill(io, BlkStatus::Ok);
        }
        if !self.passdown.load(SeqCst) {
            return MapOutcome::Kill(io, BlkStatus::Ok);
        }
        io.sector = Sector(first * self.region);
        io.sectors = Sector((end - first) * self.region);
        MapOutcome::Remapped(io, &self.dest)
    }

    /// Starts copies in the background from `from` on, as many as may be; where to go on.
    pub fn hydrate(self: &Arc<Self>, from: u64) -> u64 {
        let Some(regions) = self.regions.get() else {
            return from;
        };
        let mut from = from;
        while self.may_hydrate() && !regions.is_done() {
            let threshold = u64::from(self.threshold.load(SeqCst));
            let batch = u64::from(self.batch.load(SeqCst)).max(1);
            let mut state = self.state.lock();
            // Under the lock once more: see `stop_hydration`.
            if !self.running.load(SeqCst) {
                break;
            }
            let busy = state.hydrating.len() as u64;
            let room = threshold.saturating_sub(busy).min(batch);
            if room == 0 {
                break;
            }
            let mut next = regions.next_missing(from);
            while let Some(region) = next
                && state.hydrating.contains_key(&region)
            {
                next = regions.next_missing(region + 1);
            }
            let Some(first) = next else {
                if from == 0 {
                    break;
                }
                from = 0;
                continue;
            };
            let mut end = first;
            while end < first + room
                && end < regions.count()
                && !regions.has(end)
                && !state.hydrating.contains_key(&end)
            {
                state.hydrating.insert(end, Vec::new());
                end += 1;
            }
            drop(state);
            self.copy(first, end - first, None);
            from = end;
        }
        from
    }

    /// COMPAT: never beside requests of the guest's.
    fn may_hydrate(&self) -> bool {
        self.running.load(SeqCst)
            && self.hydration.load(SeqCst)
            && !self.read_only.load(SeqCst)
            && !self.has_failed.load(SeqCst)
            && self.guests.load(SeqCst) == 0
    }

    /// Ends copying in the background, and waits until nothing is copied. The caller has seen to it that no write comes.
    pub fn stop_hydration(&self) {
        {
            // So that no copy begins after it was looked whether there is any.
            let _state = self.state.lock();
            self.running.store(false, SeqCst);
        }
        while self.state.lock().hydrating() > 0 && simulate(Waiting::ForActors) {}
        let mut state = self.state.lock();
        while state.hydrating() > 0 {
            self.idle.wait(&mut state);
        }
    }
}

/// A guest's request has ended, or a write of a whole region.
impl EndIo for Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if tag == GUEST {
            self.guests.fetch_sub(1, SeqCst);
            io.complete(status);
        } else {
            self.copied(tag, 1, status, Some(io));
        }
    }
}
