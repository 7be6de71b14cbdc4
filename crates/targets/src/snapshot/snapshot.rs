//! One snapshot: what its lines, its origin's writes and its worker share. It outlives the line that made it when another one takes
//! it over.
//!
//! INVARIANT: `reads` counts every read on its way to the origin that found its chunk without exception, and was entered under the
//! state's lock; likewise `merge_writes` every write of a merging line to a chunk of the COW device.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_dm::TableEvent;
use thinmap_dm::kit::{Copier, CopyRequest, CopySource, DeferredSet, Overlay, Ticket};
use thinmap_runtime::{ActorHandle, Spawner};
use thinmap_units::{BlkStatus, Sector};

use super::kept::Kept;
use super::origin::Origin;
use super::state::{State, Validity, Waiting};
use super::store::Store;
use super::worker::{Copied, Event, SnapshotActor, WorkerState};

/// Copy buffers of one snapshot: 2 MiB, in pieces of at most 128 KiB.
const COPY_BUFFER_SECTORS: u64 = 4096;
const COPY_PIECE_SECTORS_MAX: u64 = 256;
const COPY_BUFFERS_MAX: u64 = 128;

/// See the module.
pub(super) struct Snapshot {
    /// Size of a chunk, a power of two.
    pub chunk: Sector,
    devices: ArcSwap<Devices>,
    /// Told when the snapshot becomes invalid: that of the line which has it.
    event: Mutex<Arc<TableEvent>>,
    /// All snapshots of the same origin.
    pub origin: Arc<Origin>,
    pub state: RwLock<State>,
    pub reads: DeferredSet,
    pub merge_writes: DeferredSet,
    copier: Copier,
    /// Copies and whole writes of chunks on their way.
    pub copies: AtomicUsize,
    inbox: Mutex<Inbox>,
    handle: OnceLock<ActorHandle>,
    pub worker: Mutex<WorkerState>,
    pub persistent: bool,
}

#[derive(Default)]
struct Inbox {
    events: Vec<Event>,
    /// The worker has panicked: nothing is taken any more.
    dead: bool,
}

/// Where a snapshot copies from and to: those of the line which has it.
#[derive(Clone)]
pub(super) struct Devices {
    pub origin: Arc<dyn BlockDevice>,
    pub cow: Arc<dyn BlockDevice>,
}

/// A line's hold on a snapshot; the last one ends the worker, and waits for that.
pub(super) struct SnapshotRef(pub Arc<Snapshot>);

impl Drop for SnapshotRef {
    fn drop(&mut self) {
        if let Some(handle) = self.0.handle.get() {
            self.0.push(Event::Stop);
            handle.join();
        }
        if let Some(kept) = &self.0.worker.lock().kept {
            kept.forget();
        }
    }
}

/// What a line gives its snapshot.
pub(super) struct NewSnapshot {
    pub chunk: Sector,
    pub devices: Devices,
    pub event: Arc<TableEvent>,
    pub origin: Arc<Origin>,
    pub state: State,
    /// Of a persistent snapshot.
    pub store: Option<Store>,
    /// Of a transient one, where something keeps memory.
    pub kept: Option<Kept>,
}

impl Snapshot {
    /// Starts a snapshot's worker. `name` shows in thread lists.
    pub fn start(
        new: NewSnapshot,
        spawner: &dyn Spawner,
        name: &str,
    ) -> std::io::Result<Arc<SnapshotRef>> {
        let piece = new.chunk.raw().min(COPY_PIECE_SECTORS_MAX);
        let buffers = (COPY_BUFFER_SECTORS / piece).min(COPY_BUFFERS_MAX);
        let snapshot = Arc::new(Self {
            chunk: new.chunk,
            devices: ArcSwap::from_pointee(new.devices),
            event: Mutex::new(new.event),
            origin: new.origin,
            state: RwLock::new(new.state),
            reads: DeferredSet::default(),
            merge_writes: DeferredSet::default(),
            copier: Copier::new(Sector(piece), usize::try_from(buffers).unwrap_or(1)),
            copies: AtomicUsize::new(0),
            inbox: Mutex::default(),
            handle: OnceLock::new(),
            persistent: new.store.is_some(),
            worker: Mutex::new(WorkerState::new(new.store, new.kept)),
        });
        let actor = Arc::new(SnapshotActor(snapshot.clone()));
        let handle = spawner.spawn(name, actor)?;
        let _ = snapshot.handle.set(handle);
        Ok(Arc::new(SnapshotRef(snapshot)))
    }

    /// Another line has the snapshot now.
    pub fn adopt(&self, devices: Devices, event: Arc<TableEvent>) {
        self.devices.store(Arc::new(devices));
        *self.event.lock() = event;
    }

    /// No line with it was ever live: what was kept of it stays as it is, for another try.
    pub fn put_back(&self) {
        if let Some(kept) = self.worker.lock().kept.take() {
            kept.put_back();
        }
    }

    pub fn devices(&self) -> Arc<Devices> {
        self.devices.load_full()
    }

    pub fn trigger_event(&self) {
        self.event.lock().trigger();
    }

    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Leaves something to the worker.
    pub fn push(&self, event: Event) {
        let mut inbox = self.inbox.lock();
        if inbox.dead {
            drop(inbox);
            return event.fail();
        }
        inbox.events.push(event);
        drop(inbox);
        self.wake();
    }

    pub fn take_inbox(&self) -> Vec<Event> {
        std::mem::take(&mut self.inbox.lock().events)
    }

    /// The worker is no more; what waits in its inbox.
    pub fn die(&self) -> Vec<Event> {
        let mut inbox = self.inbox.lock();
        inbox.dead = true;
        std::mem::take(&mut inbox.events)
    }

    /// The chunk that a sector is in.
    pub fn chunk_of(&self, sector: Sector) -> u64 {
        sector.raw() >> self.chunk.raw().trailing_zeros()
    }

    /// First sector of a chunk; far out of every device where a damaged store names a chunk that cannot be.
    pub fn sector_of(&self, chunk: u64) -> Sector {
        Sector(chunk.checked_mul(self.chunk.raw()).unwrap_or(FAR_AWAY))
    }

    /// How far into its chunk a sector is.
    pub fn within(&self, sector: Sector) -> Sector {
        Sector(sector.raw() & (self.chunk.raw() - 1))
    }

    /// Whether a write to these chunks of the origin must wait: it is left with whatever it waits for then, if it is still in
    /// `waiting`. Copies to be started when all locks are given back are added to `starts`.
    pub fn protect(
        self: &Arc<Self>,
        (first, last): (u64, u64),
        waiting: &mut Option<Waiting>,
        starts: &mut Vec<Start>,
    ) -> bool {
        if self.state.read().is_protected(first, last) {
            return false;
        }
        let mut state = self.state.write();
        match state.validity {
            Validity::Valid => {}
            Validity::Dropping => {
                state.stranded.extend(waiting.take());
                return true;
            }
            Validity::Invalid => return false,
        }
        let mut wait_for = None;
        for chunk in first..=last {
            if !state.pending.contains_key(&chunk) {
                if state.complete.find(chunk).is_some() {
                    continue;
                }
                let Some((new, sequence)) = state.allocate(chunk, || self.cow_size()) else {
                    tracing::error!(%chunk, "snapshot: no room for an exception that a write to the origin needs: the snapshot becomes invalid");
                    self.drop_snapshot(&mut state);
                    state.stranded.extend(waiting.take());
                    return true;
                };
                let snapshot = self.clone();
                starts.push(Start {
                    snapshot,
                    chunk,
                    new,
                    sequence,
                });
            }
            wait_for = Some(chunk);
        }
        let Some(pending) = wait_for.and_then(|chunk| state.pending.get_mut(&chunk)) else {
            return false;
        };
        // The last one: exceptions become complete in the order in which they were made.
        pending.origin.extend(waiting.take());
        true
    }

    /// Begins to make the snapshot invalid. The worker does it.
    pub fn drop_snapshot(&self, state: &mut State) {
        state.validity = Validity::Dropping;
        self.push(Event::Invalidate);
    }

    pub fn cow_size(&self) -> Sector {
        self.devices.load().cow.size()
    }

    /// What the status says.
    pub fn status(&self) -> String {
        let total = self.cow_size();
        let state = self.state.read();
        if state.validity != Validity::Valid {
            return "Invalid".to_owned();
        }
        if state.merge_failed {
            return "Merge failed".to_owned();
        }
        if state.overflowed {
            return "Overflow".to_owned();
        }
        // The header, and every area so far.
        let metadata = state
            .area
            .map_or(0, |area| (area + 2).saturating_mul(self.chunk.raw()));
        format!("{}/{total} {metadata}", state.room.allocated())
    }

    /// Starts a copy of `chunk` with a guest's write laid over it.
    pub fn copy(self: &Arc<Self>, start: &Start, overlay: Option<Io>) {
        let devices = self.devices();
        let from = self.sector_of(start.chunk);
        let left = devices.origin.size().raw().saturating_sub(from.raw());
        let len = Sector(left.min(self.chunk.raw()));
        let overlay = overlay.map(|io| Overlay {
            offset: self.within(io.sector),
            io,
        });
        let request = CopyRequest {
            to: devices.cow.clone(),
            to_sector: self.sector_of(start.new),
            segments: vec![(len, CopySource::Device(devices.origin.clone(), from))],
            overlay,
        };
        let (chunk, new, sequence) = (start.chunk, start.new, start.sequence);
        let snapshot = self.clone();
        self.copies.fetch_add(1, SeqCst);
        let done = Box::new(move |status, io| {
            snapshot.push(Event::Copied(Copied {
                chunk,
                new,
                sequence,
                status,
                io,
            }));
        });
        self.copier.start(request, done);
    }

    /// Copies merged chunks back; `done` is told of the end.
    pub fn copy_back(
        &self,
        (old, new, chunks): (u64, u64, u64),
        done: impl FnOnce(BlkStatus) + Send + 'static,
    ) {
        let devices = self.devices();
        let to = self.sector_of(old);
        let left = devices.origin.size().raw().saturating_sub(to.raw());
        let len = Sector(left.min(chunks * self.chunk.raw()));
        let from = CopySource::Device(devices.cow.clone(), self.sector_of(new));
        let request = CopyRequest {
            to: devices.origin.clone(),
            to_sector: to,
            segments: vec![(len, from)],
            overlay: None,
        };
        self.copier
            .start(request, Box::new(move |status, _| done(status)));
    }
}

/// A read that went to the origin has ended.
impl EndIo for Snapshot {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if let Some(ticket) = u8::try_from(tag).ok().and_then(Ticket::from_raw)
            && self.reads.leave(ticket)
        {
            self.wake();
        }
        // The origin is written without a copy then: what was read may be new already.
        let is_valid = self.state.read().validity == Validity::Valid;
        if io.op == Op::Read && status.is_ok() && !is_valid {
            return io.complete(BlkStatus::IoErr);
        }
        io.complete(status);
    }
}

/// An exception that was made and is to be copied.
pub(super) struct Start {
    pub snapshot: Arc<Snapshot>,
    pub chunk: u64,
    pub new: u64,
    pub sequence: u64,
}

impl Start {
    /// Copies what the origin holds.
    pub fn go(self) {
        let snapshot = self.snapshot.clone();
        snapshot.copy(&self, None);
    }
}

/// The last sector that there could be.
const FAR_AWAY: u64 = u64::MAX >> 9;
