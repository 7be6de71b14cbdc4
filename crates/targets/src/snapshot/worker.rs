//! A snapshot's worker: the one that changes its store. It commits exceptions whose copies have ended, makes the snapshot invalid,
//! merges.
//!
//! Its turn may wait for the COW device and, while merging, for the origin's flush; never for guest I/O.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use thinmap_block::Io;
use thinmap_dm::kit::{DeferredSet, Generation};
use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::BlkStatus;

use super::disk::Slot;
use super::kept::Kept;
use super::merge::Merge;
use super::origin::go_on;
use super::snapshot::Snapshot;
use super::state::{Pending, Validity, Waiting};
use super::store::{COMMIT_SLOTS_MAX, Store};

/// While something waits for requests in flight, the worker looks at least this often.
const DRAIN_PERIOD: Duration = Duration::from_millis(5);

/// What reaches the worker.
pub(super) enum Event {
    /// A chunk's content was written to the COW device, or not.
    Copied(Copied),
    /// Merged chunks were copied to the origin, or not.
    Merged(BlkStatus),
    /// The snapshot must become invalid.
    Invalidate,
    /// Merge, if there is something to merge.
    StartMerge,
    /// Stop merging; the sender is told, or dropped, when nothing of it is under way.
    StopMerge(mpsc::Sender<()>),
    /// The last line has gone.
    Stop,
}

/// The end of a copy.
pub(super) struct Copied {
    pub chunk: u64,
    pub new: u64,
    pub sequence: u64,
    pub status: BlkStatus,
    /// The guest's write that was part of it.
    pub io: Option<Io>,
}

impl Event {
    /// Fails what is in the event.
    pub fn fail(self) {
        if let Self::Copied(Copied { io: Some(io), .. }) = self {
            io.complete(BlkStatus::IoErr);
        }
    }
}

/// What the worker keeps from turn to turn.
pub(super) struct WorkerState {
    pub(super) store: Option<Store>,
    pub(super) kept: Option<Kept>,
    /// Copies that ended before one that was begun earlier, by number.
    finished: BTreeMap<u64, Copied>,
    /// The number that is committed next.
    next: u64,
    draining: Vec<Draining>,
    pub(super) merge: Merge,
    /// Who wants merging to stop.
    pub(super) stop_merge: Vec<mpsc::Sender<()>>,
    pub(super) stop: bool,
}

/// Chunks that are complete, while reads of the origin from before are on their way.
struct Draining {
    until: Drain,
    chunks: Vec<u64>,
}

/// Outwaits the requests that are in a set now.
#[derive(Default)]
pub(super) struct Drain(Option<Generation>);

impl Drain {
    /// Whether they have ended.
    pub fn is_over(&mut self, set: &DeferredSet) -> bool {
        if self.0.is_none() {
            if set.is_empty() {
                return true;
            }
            // Too many generations are draining: asked again later.
            self.0 = set.close();
        }
        self.0.is_some_and(|generation| set.drained(generation))
    }
}

impl WorkerState {
    pub fn new(store: Option<Store>, kept: Option<Kept>) -> Self {
        Self {
            store,
            kept,
            finished: BTreeMap::new(),
            next: 0,
            draining: Vec::new(),
            merge: Merge::Off,
            stop_merge: Vec::new(),
            stop: false,
        }
    }
}

/// The worker as the runtime knows it.
pub(super) struct SnapshotActor(pub Arc<Snapshot>);

/// The worker during a turn.
pub(super) struct Worker<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) state: &'a mut WorkerState,
}

impl Actor for SnapshotActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut state = self.0.worker.lock();
        let mut worker = Worker {
            snapshot: &self.0,
            state: &mut state,
        };
        worker.turn(now)
    }

    fn panicked(&self) {
        tracing::error!(
            "snapshot: the worker panicked: the snapshot is invalid from now on, though its store may not say so"
        );
        let events = self.0.die();
        let mut worker = self.0.worker.lock();
        let finished = std::mem::take(&mut worker.finished);
        worker.stop_merge.clear();
        drop(worker);
        finished
            .into_values()
            .for_each(|copied| Event::Copied(copied).fail());
        events.into_iter().for_each(Event::fail);
        if let Some(kept) = &self.0.worker.lock().kept {
            kept.invalidate();
        }
        become_invalid(&self.0);
    }
}

impl Worker<'_> {
    fn turn(&mut self, now: Duration) -> NextTurn {
        loop {
            let events = self.snapshot.take_inbox();
            let idle = events.is_empty();
            for event in events {
                self.take(event);
            }
            while self.commit_some() {}
            self.check_draining();
            self.merge_some();
            if idle {
                break;
            }
        }
        if self.state.stop && self.is_idle() {
            self.snapshot.die().into_iter().for_each(Event::fail);
            return NextTurn::Stop;
        }
        if self.state.draining.is_empty() && !self.state.merge.is_draining() {
            NextTurn::WhenWoken
        } else {
            NextTurn::At(now + DRAIN_PERIOD)
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Copied(copied) => {
                self.snapshot.copies.fetch_sub(1, SeqCst);
                self.state.finished.insert(copied.sequence, copied);
            }
            Event::Merged(status) => self.merged(status),
            Event::Invalidate => self.invalidate(),
            Event::StartMerge => self.start_merge(),
            Event::StopMerge(sender) => self.state.stop_merge.push(sender),
            Event::Stop => self.state.stop = true,
        }
    }

    /// Nothing is under way and nothing waits to be done.
    fn is_idle(&self) -> bool {
        self.is_settled() && self.state.draining.is_empty() && self.state.merge.is_off()
    }

    /// No exception is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.snapshot.copies.load(SeqCst) == 0
            && self.state.finished.is_empty()
            && self.snapshot.state.read().pending.is_empty()
    }

    /// Commits what comes next and has been copied; whether there was anything.
    fn commit_some(&mut self) -> bool {
        let room = match &self.state.store {
            Some(store) => store.commit_room(),
            None => COMMIT_SLOTS_MAX,
        };
        let mut batch = Vec::new();
        while batch.len() < room
            && let Some(copied) = self.state.finished.remove(&self.state.next)
        {
            self.state.next += 1;
            batch.push(copied);
        }
        if batch.is_empty() {
            return false;
        }
        if self.snapshot.state.read().validity != Validity::Valid {
            self.abandon(batch);
            return true;
        }
        let is_copied = batch.iter().all(|copied| copied.status.is_ok());
        if is_copied && self.write_slots(&batch) {
            self.publish(batch);
        } else {
            tracing::error!(
                "snapshot: an exception could not be made, for an error of the origin or the COW device: the snapshot becomes invalid"
            );
            self.invalidate();
            self.abandon(batch);
        }
        true
    }

    fn write_slots(&mut self, batch: &[Copied]) -> bool {
        let slot = |copied: &Copied| Slot {
            old: copied.chunk,
            new: copied.new,
        };
        let slots: Vec<Slot> = batch.iter().map(slot).collect();
        if let Some(kept) = &self.state.kept {
            kept.note(&slots);
        }
        match &mut self.state.store {
            Some(store) => store.commit(&*self.snapshot.devices().cow, &slots).is_ok(),
            None => true,
        }
    }

    fn abandon(&self, batch: Vec<Copied>) {
        for copied in batch {
            Event::Copied(copied).fail();
        }
    }

    /// Exceptions are in force.
    fn publish(&mut self, batch: Vec<Copied>) {
        let mut writes = Vec::new();
        {
            let mut state = self.snapshot.state.write();
            if state.validity != Validity::Valid {
                drop(state);
                return self.abandon(batch);
            }
            state.area = self.state.store.as_ref().map(Store::area);
            for copied in &batch {
                state.complete.insert(copied.chunk, copied.new);
                if let Some(pending) = state.pending.get_mut(&copied.chunk) {
                    let new = copied.new;
                    writes.extend(pending.snapshot.drain(..).map(|io| (io, new)));
                }
            }
        }
        let devices = self.snapshot.devices();
        for (mut io, new) in writes {
            io.sector = self.snapshot.sector_of(new) + self.snapshot.within(io.sector);
            devices.cow.submit(io);
        }
        let mut chunks = Vec::with_capacity(batch.len());
        for copied in batch {
            chunks.push(copied.chunk);
            if let Some(io) = copied.io {
                io.complete(BlkStatus::Ok);
            }
        }
        self.state.draining.push(Draining {
            until: Drain::default(),
            chunks,
        });
    }

    fn check_draining(&mut self) {
        let snapshot = self.snapshot;
        let over = |draining: &mut Draining| draining.until.is_over(&snapshot.reads);
        let settled: Vec<Draining> = self.state.draining.extract_if(.., over).collect();
        for draining in settled {
            let waiting: Vec<Waiting> = {
                let mut state = snapshot.state.write();
                let ended = draining.chunks.iter();
                ended
                    .filter_map(|chunk| state.pending.remove(chunk))
                    .flat_map(|pending| pending.origin)
                    .collect()
            };
            for waiting in waiting {
                go_on(&snapshot.origin, waiting);
            }
        }
    }

    /// Makes the snapshot invalid: in its header first, so that the writes which wait can go.
    fn invalidate(&mut self) {
        {
            let mut state = self.snapshot.state.write();
            if state.validity == Validity::Invalid {
                return;
            }
            state.validity = Validity::Dropping;
        }
        if let Some(kept) = &self.state.kept {
            kept.invalidate();
        }
        let cow = self.snapshot.devices().cow.clone();
        if let Some(store) = &self.state.store
            && store.invalidate(&*cow).is_err()
        {
            tracing::error!(
                "snapshot: the header could not be written: the snapshot is invalid, and must not be activated again"
            );
        }
        self.state.draining.clear();
        become_invalid(self.snapshot);
    }
}

/// The snapshot is invalid: those who wrote to it fail, those who wait for it do so no longer.
fn become_invalid(snapshot: &Snapshot) {
    let (stranded, pending, queued) = {
        let mut state = snapshot.state.write();
        state.validity = Validity::Invalid;
        state.merging = None;
        let pending: Vec<Pending> = state.pending.drain().map(|(_, p)| p).collect();
        let queued = std::mem::take(&mut state.queued);
        (std::mem::take(&mut state.stranded), pending, queued)
    };
    snapshot.trigger_event();
    queued
        .into_iter()
        .for_each(|io| io.complete(BlkStatus::IoErr));
    let mut waiting = stranded;
    for pending in pending {
        waiting.extend(pending.origin);
        let failed = pending.snapshot.into_iter();
        failed.for_each(|io| io.complete(BlkStatus::IoErr));
    }
    for waiting in waiting {
        go_on(&snapshot.origin, waiting);
    }
}
