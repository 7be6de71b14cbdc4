//! A pool as all its users see it: the tables of the pool device, the thin volumes, the worker.
//!
//! INVARIANT: only the worker changes the metadata. Everybody else takes the read lock, and only to look up.
//! INVARIANT: a request that goes to the data device by a mapping was counted into `all_io` while that mapping was
//! looked up, under the read lock. So once the worker has held the write lock, every request that uses an older
//! mapping is in the set.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak, mpsc};

use parking_lot::{Mutex, RwLock};
use thinmap_block::{BlockDevice, EndIo, Io};
use thinmap_dm::kit::{DeferredSet, Prison, Ticket};
use thinmap_dm::{DeviceId, DeviceUse, TableEvent};
use thinmap_runtime::{ActorHandle, Waiting, simulate};
use thinmap_thin_metadata::PoolMetadata;
use thinmap_units::{BlkStatus, DataBlock, DevNo, Sector, ThinId, VirtBlock};

use super::args::Features;
use super::lost::{Left, Lost};
use super::mode::Mode;
use super::worker::{Event, Work, Worker, WorkerState};
use crate::thin::Port;

/// See the module.
pub struct Pool {
    /// The pool's mapped device.
    pub dev_no: DevNo,
    pub(crate) metadata_dev: DeviceUse,
    pub(crate) data: DeviceUse,
    pub(crate) metadata: RwLock<PoolMetadata>,
    pub(crate) geometry: Geometry,
    mode: AtomicU8,
    /// No volume's request may reach the data device.
    pub(crate) suspended: AtomicBool,
    /// Something acknowledged depends on metadata that is not committed.
    pub(crate) dirty: AtomicBool,
    /// The worker has panicked or stopped: nothing is taken any more.
    dead: AtomicBool,
    pub(crate) features: Mutex<Features>,
    /// Every request on the data device that a volume caused.
    pub(crate) all_io: DeferredSet,
    /// Those among them that read shared blocks.
    pub(crate) shared_reads: DeferredSet,
    /// Ranges of volumes that the worker is changing. Lock order: before `metadata`.
    pub(crate) prison: Mutex<Prison<Work>>,
    volumes: Mutex<Volumes>,
    /// Volumes made in this life to which nobody has promised zeroes: see `docs/decisions/0020`.
    unpromised: Mutex<HashSet<ThinId>>,
    event: Mutex<Option<Arc<TableEvent>>>,
    pub(crate) low_water: AtomicU64,
    inbox: Mutex<Vec<Event>>,
    handle: OnceLock<ActorHandle>,
    pub(super) worker: Mutex<WorkerState>,
}

/// The open volumes, and what must not be forgotten of those that nobody has open.
#[derive(Default)]
struct Volumes {
    open: HashMap<ThinId, Arc<Volume>>,
    /// Closed, and changed since the last commit.
    changed: HashSet<ThinId>,
    /// Closed, and the changes given up, of which no flush has told yet.
    lost: HashSet<ThinId>,
    /// Keeps what was given up for the next process.
    kept: Option<Lost>,
}

impl Volumes {
    /// Something has changed in what was given up and not told.
    fn keep(&self) {
        if let Some(kept) = &self.kept {
            let open = self.open.values().filter(|v| v.has_lost_changes());
            kept.keep(open.map(|v| v.id).chain(self.lost.iter().copied()));
        }
    }
}

/// A thin volume while somebody has it open; one for all devices with its id.
pub struct Volume {
    /// Its id in the pool.
    pub id: ThinId,
    opens: AtomicU32,
    /// Cells held in it: the fast path asks the prison only when there are some.
    pub(crate) cells: AtomicU32,
    /// Zero what a partial write leaves of a new block, whatever the pool says: see `docs/decisions/0020`.
    pub(crate) zero_always: AtomicBool,
    /// Snapshots of it taken whose earlier writes are still being outwaited.
    unsettled: AtomicU32,
    /// Changed since the last commit.
    changed: AtomicBool,
    /// Changes that its users were told of were given up with a transaction: no flush may succeed any more.
    lost_changes: AtomicBool,
    /// A flush has failed for that.
    told: AtomicBool,
}

impl Volume {
    /// Its metadata was changed.
    pub(super) fn mark_changed(&self) {
        self.changed.store(true, SeqCst);
    }

    /// Whether flushes must fail, since what they are to make durable is gone.
    pub(crate) fn has_lost_changes(&self) -> bool {
        self.lost_changes.load(SeqCst)
    }

    /// A flush, or a request with FUA, fails for that: whoever opens the volume after this user starts afresh.
    pub(super) fn tell_of_lost_changes(&self) {
        self.told.store(true, SeqCst);
    }

    /// A snapshot was taken: writes in flight may still go to blocks that it shares.
    pub(super) fn unsettle(&self) {
        self.unsettled.fetch_add(1, SeqCst);
    }

    /// Those writes have ended.
    pub(super) fn settle(&self) {
        self.unsettled.fetch_sub(1, SeqCst);
    }

    pub(super) fn has_unsettled_writes(&self) -> bool {
        self.unsettled.load(SeqCst) != 0
    }
}

/// The arithmetic of data blocks, of any allowed size.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    block: u64,
    shift: Option<u32>,
}

impl Geometry {
    /// For blocks of this size.
    pub fn new(block: Sector) -> Self {
        let block = block.raw();
        let shift = block.is_power_of_two().then(|| block.trailing_zeros());
        Self { block, shift }
    }

    /// Size of a block.
    pub fn block(&self) -> Sector {
        Sector(self.block)
    }

    /// The block that `sector` is in, and where in it.
    pub fn split(&self, sector: Sector) -> (u64, Sector) {
        match self.shift {
            Some(shift) => (
                sector.raw() >> shift,
                Sector(sector.raw() & (self.block - 1)),
            ),
            None => (sector.raw() / self.block, Sector(sector.raw() % self.block)),
        }
    }

    /// First sector of a block.
    pub fn sector(&self, block: u64) -> Sector {
        Sector(block * self.block)
    }
}

/// What a request keeps while it is counted, as an end-io tag.
pub(crate) struct Tickets {
    all: Ticket,
    shared: Option<Ticket>,
}

impl Tickets {
    fn tag(&self) -> u64 {
        u64::from(self.all.raw()) | u64::from(self.shared.map_or(0, Ticket::raw)) << 8
    }
}

/// Why the worker gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerGone;

pub(super) struct NewPool {
    pub dev_no: DevNo,
    pub metadata_dev: DeviceUse,
    pub data: DeviceUse,
    pub metadata: PoolMetadata,
    pub features: Features,
    pub worker: WorkerState,
    pub lost: Option<Lost>,
}

impl Pool {
    pub(super) fn new(new: NewPool) -> Self {
        let geometry = Geometry::new(new.metadata.data_block_size());
        let lost = match new.lost.as_ref().map(Lost::left) {
            None => HashSet::new(),
            Some(Left::Volumes(ids)) => ids.into_iter().collect(),
            // Should they not be readable, every request will say so.
            Some(Left::All) => {
                let all = new.metadata.device_ids().unwrap_or_default();
                all.into_iter().collect()
            }
        };
        let volumes = Volumes {
            lost,
            kept: new.lost,
            ..Volumes::default()
        };
        Self {
            dev_no: new.dev_no,
            metadata_dev: new.metadata_dev,
            data: new.data,
            metadata: RwLock::new(new.metadata),
            geometry,
            mode: AtomicU8::new(Mode::Write as u8),
            suspended: AtomicBool::new(true),
            dirty: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            features: Mutex::new(new.features),
            all_io: DeferredSet::default(),
            shared_reads: DeferredSet::default(),
            prison: Mutex::default(),
            volumes: Mutex::new(volumes),
            unpromised: Mutex::default(),
            event: Mutex::new(None),
            low_water: AtomicU64::new(0),
            inbox: Mutex::default(),
            handle: OnceLock::new(),
            worker: Mutex::new(new.worker),
        }
    }

    pub(super) fn set_handle(&self, handle: ActorHandle) {
        let _ = self.handle.set(handle);
    }

    /// The present mode.
    pub fn mode(&self) -> Mode {
        Mode::from_raw(self.mode.load(SeqCst))
    }

    pub(super) fn store_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, SeqCst);
    }

    pub(super) fn bind_event(&self, event: Arc<TableEvent>) {
        *self.event.lock() = Some(event);
    }

    pub(super) fn trigger_event(&self) {
        let event = self.event.lock().clone();
        if let Some(event) = event {
            event.trigger();
        }
    }

    pub(super) fn features(&self) -> Features {
        *self.features.lock()
    }

    /// A volume was made new and empty.
    pub(super) fn add_unpromised(&self, id: ThinId) {
        self.unpromised.lock().insert(id);
    }

    /// The volume is promised zeroes, or is gone.
    pub(super) fn remove_unpromised(&self, id: ThinId) {
        self.unpromised.lock().remove(&id);
    }

    /// Opens a volume that `holds_something` or not: [`Pool::close_volume`] must follow.
    pub(crate) fn open_volume(&self, id: ThinId, holds_something: bool) -> Arc<Volume> {
        let zero_always = holds_something || !self.unpromised.lock().contains(&id);
        let mut volumes = self.volumes.lock();
        let Volumes {
            open,
            changed,
            lost,
            ..
        } = &mut *volumes;
        let volume = open.entry(id).or_insert_with(|| {
            Arc::new(Volume {
                id,
                opens: AtomicU32::new(0),
                cells: AtomicU32::new(0),
                zero_always: AtomicBool::new(zero_always),
                unsettled: AtomicU32::new(0),
                changed: AtomicBool::new(changed.remove(&id)),
                lost_changes: AtomicBool::new(lost.remove(&id)),
                told: AtomicBool::new(false),
            })
        });
        volume.opens.fetch_add(1, SeqCst);
        volume.clone()
    }

    pub(crate) fn close_volume(&self, volume: &Volume) {
        let mut volumes = self.volumes.lock();
        if volume.opens.fetch_sub(1, SeqCst) > 1 {
            return;
        }
        volumes.open.remove(&volume.id);
        if volume.changed.load(SeqCst) {
            volumes.changed.insert(volume.id);
        }
        if volume.has_lost_changes() {
            if !volume.told.load(SeqCst) {
                volumes.lost.insert(volume.id);
            }
            volumes.keep();
        }
    }

    pub(crate) fn is_open(&self, id: ThinId) -> bool {
        self.volumes.lock().open.contains_key(&id)
    }

    pub(super) fn volume_if_open(&self, id: ThinId) -> Option<Arc<Volume>> {
        self.volumes.lock().open.get(&id).cloned()
    }

    /// The open transaction is durable (`true`) or given up: every volume takes note, open or not.
    pub(super) fn transaction_ended(&self, durable: bool) {
        let mut volumes = self.volumes.lock();
        for volume in volumes.open.values() {
            if volume.changed.swap(false, SeqCst) && !durable {
                volume.lost_changes.store(true, SeqCst);
                volume.told.store(false, SeqCst);
            }
        }
        let closed = std::mem::take(&mut volumes.changed);
        if !durable {
            volumes.lost.extend(closed);
            volumes.keep();
        }
    }

    /// A new volume has this id: what was known of an earlier one is void.
    pub(super) fn forget_lost_changes(&self, id: ThinId) {
        let mut volumes = self.volumes.lock();
        volumes.changed.remove(&id);
        if volumes.lost.remove(&id) {
            volumes.keep();
        }
    }

    /// What the next process must know of a pool that has failed.
    pub(super) fn note_failure(&self) {
        if let Some(kept) = &self.volumes.lock().kept {
            kept.note_failure(true);
        }
    }

    /// The pool ends in good order: nothing is left for a next process.
    pub(super) fn forget_kept(&self) {
        if let Some(kept) = &self.volumes.lock().kept {
            kept.forget();
        }
    }

    /// Hands something to the worker. After its end the requests in it fail.
    pub(crate) fn push(&self, event: Event) {
        {
            let mut inbox = self.inbox.lock();
            // INVARIANT: looked at under the lock, so that nothing stays behind in a dead pool's inbox.
            if !self.dead.load(SeqCst) {
                inbox.push(event);
                drop(inbox);
                if let Some(handle) = self.handle.get() {
                    handle.wake();
                }
                return;
            }
        }
        event.fail();
    }

    pub(super) fn take_inbox(&self) -> Vec<Event> {
        std::mem::take(&mut *self.inbox.lock())
    }

    /// Ends the inbox: what is in it and what comes fails.
    pub(super) fn die(&self) {
        let rest = {
            let mut inbox = self.inbox.lock();
            self.dead.store(true, SeqCst);
            std::mem::take(&mut *inbox)
        };
        rest.into_iter().for_each(Event::fail);
    }

    pub(super) fn join_worker(&self) {
        if let Some(handle) = self.handle.get() {
            handle.join();
        }
    }

    /// Has `work` done by the worker and waits for its answer, which `work` may give later than it returns.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker<'_>, Answer<R>) + Send + 'static,
    ) -> Result<R, WorkerGone> {
        let (tx, rx) = mpsc::sync_channel(1);
        self.push(Event::Run(Box::new(move |worker| {
            work(worker, Answer(tx));
        })));
        loop {
            match rx.try_recv() {
                Ok(answer) => return Ok(answer),
                Err(mpsc::TryRecvError::Disconnected) => return Err(WorkerGone),
                Err(mpsc::TryRecvError::Empty) if simulate(Waiting::ForActors) => {}
                Err(mpsc::TryRecvError::Empty) => return rx.recv().map_err(|_| WorkerGone),
            }
        }
    }

    /// Hands a volume's request to the worker.
    pub(crate) fn defer(&self, port: &Arc<Port>, io: Io) {
        self.push(Event::Io(port.clone(), io));
    }

    /// Whether the worker holds any part of `blocks` from `v` on.
    pub(crate) fn is_held(&self, volume: &Volume, v: VirtBlock, blocks: u64) -> bool {
        volume.cells.load(SeqCst) != 0
            && self
                .prison
                .lock()
                .is_held(volume.id.raw(), v.raw()..v.raw() + blocks)
    }

    /// Counts a request in; call it under the metadata's read lock.
    pub(crate) fn enter(&self, reads_shared: bool) -> Tickets {
        Tickets {
            all: self.all_io.enter(),
            shared: reads_shared.then(|| self.shared_reads.enter()),
        }
    }

    /// Counts a request out that was not sent.
    pub(crate) fn leave(&self, tag: u64) {
        let ticket = |shift: u32| Ticket::from_raw((tag >> shift) as u8);
        let mut awaited = false;
        if let Some(ticket) = ticket(0) {
            awaited |= self.all_io.leave(ticket);
        }
        if let Some(ticket) = ticket(8) {
            awaited |= self.shared_reads.leave(ticket);
        }
        if awaited && let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Points a counted request to where its data lies; the caller submits it to the data device.
    pub(crate) fn aim(self: &Arc<Self>, io: &mut Io, tickets: Tickets, to: DataBlock, at: Sector) {
        io.sector = self.geometry.sector(to.raw()) + at;
        io.push_end_io(self.clone(), tickets.tag());
    }

    /// Makes a counted request that names no block (a flush, a read of an origin) leave the count at its end.
    pub(crate) fn count(self: &Arc<Self>, io: &mut Io, tickets: &Tickets) {
        io.push_end_io(self.clone(), tickets.tag());
    }

    pub(crate) fn uncount(&self, tickets: &Tickets) {
        self.leave(tickets.tag());
    }

    /// The data device.
    pub(crate) fn data_dev(&self) -> &Arc<dyn BlockDevice> {
        &self.data.dev
    }
}

impl EndIo for Pool {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        self.leave(tag);
        io.complete(status);
    }
}

/// Where an answer goes; dropping it without one is one too ([`WorkerGone`]).
pub struct Answer<R>(mpsc::SyncSender<R>);

impl<R> Answer<R> {
    /// Gives the answer.
    pub fn give(self, answer: R) {
        let _ = self.0.send(answer);
    }
}

/// A target's share in a pool: the last one to go ends the worker.
pub struct PoolRef {
    pool: Arc<Pool>,
    registry: Arc<PoolRegistry>,
}

impl std::ops::Deref for PoolRef {
    type Target = Arc<Pool>;

    fn deref(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for PoolRef {
    fn drop(&mut self) {
        if self.registry.release(&self.pool) {
            self.pool.push(Event::Stop);
            // Waits, so that the pool's devices are free again when its device is gone; but never on a
            // thread that the worker's own last I/O may need.
            if !thinmap_block::on_queue_thread() {
                self.pool.join_worker();
            }
            self.registry.forget(&self.pool);
        }
    }
}

/// All pools of the process: shared state of the `thin-pool` and `thin` targets.
#[derive(Default)]
pub struct PoolRegistry {
    pools: Mutex<Vec<(Weak<Pool>, usize)>>,
    /// Metadata and data devices of pools that are being made.
    opening: Mutex<Vec<[DeviceId; 2]>>,
}

/// Keeps others off two devices while a pool is made of them.
struct Opening<'a> {
    registry: &'a PoolRegistry,
    devices: [DeviceId; 2],
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut opening = self.registry.opening.lock();
        opening.retain(|devices| *devices != self.devices);
    }
}

/// Why a pool cannot be had.
#[derive(Debug)]
pub(super) struct Conflict {
    pub reason: &'static str,
    pub errno: i32,
}

impl PoolRegistry {
    /// The pool whose mapped device this is.
    pub fn by_device(self: &Arc<Self>, dev_no: DevNo) -> Option<PoolRef> {
        self.find(|pool| pool.dev_no == dev_no)
    }

    /// The pool for a table of device `dev_no` on these devices, made with `make` when there is none. The kernel's
    /// `__pool_find`, with one more refusal: a data device of another pool.
    pub(super) fn find_or_create<E: From<Conflict>>(
        self: &Arc<Self>,
        dev_no: DevNo,
        metadata: DeviceId,
        data: DeviceId,
        make: impl FnOnce() -> Result<Arc<Pool>, E>,
    ) -> Result<(PoolRef, bool), E> {
        const EINVAL: i32 = 22;
        const EBUSY: i32 = 16;
        let refuse = |reason, errno| Err(Conflict { reason, errno }.into());
        // `make` does I/O, on another pool's volume maybe, so no lock is held over it: the devices are reserved instead.
        let Some(_opening) = self.reserve([metadata, data]) else {
            return refuse("device is being opened by another pool", EBUSY);
        };
        let mut pools = self.pools.lock();
        let mut found = None;
        for (weak, refs) in pools.iter_mut() {
            let Some(pool) = weak.upgrade() else { continue };
            if *refs == 0 {
                // Its worker has a last commit to write.
                if pool.metadata_dev.id == metadata || pool.data.id == data {
                    return refuse("device is being closed by another pool", EBUSY);
                }
            } else if pool.metadata_dev.id == metadata {
                if pool.dev_no != dev_no {
                    return refuse("metadata device already in use by a pool", EBUSY);
                }
                if pool.data.id != data {
                    return refuse("data device already in use by a pool", EBUSY);
                }
                found = Some((pool, refs));
            } else if pool.dev_no == dev_no {
                return refuse("different pool cannot replace a pool", EINVAL);
            } else if pool.data.id == data {
                return refuse("data device already in use by a pool", EBUSY);
            }
        }
        let (pool, created) = match found {
            Some((pool, refs)) => {
                *refs += 1;
                (pool, false)
            }
            None => {
                drop(pools);
                let pool = make()?;
                self.pools.lock().push((Arc::downgrade(&pool), 1));
                (pool, true)
            }
        };
        let registry = self.clone();
        Ok((PoolRef { pool, registry }, created))
    }

    /// `None` when a pool is just being made of one of the devices.
    fn reserve(&self, devices: [DeviceId; 2]) -> Option<Opening<'_>> {
        let mut opening = self.opening.lock();
        if opening
            .iter()
            .flatten()
            .any(|device| devices.contains(device))
        {
            return None;
        }
        opening.push(devices);
        Some(Opening {
            registry: self,
            devices,
        })
    }

    fn find(self: &Arc<Self>, is: impl Fn(&Pool) -> bool) -> Option<PoolRef> {
        let mut pools = self.pools.lock();
        for (weak, refs) in pools.iter_mut() {
            if let Some(pool) = weak.upgrade()
                && *refs > 0
                && is(&pool)
            {
                *refs += 1;
                let registry = self.clone();
                return Some(PoolRef { pool, registry });
            }
        }
        None
    }

    /// The pool's worker has ended: its devices are free.
    fn forget(&self, pool: &Arc<Pool>) {
        let gone = |weak: &Weak<Pool>| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(pool));
        self.pools.lock().retain(|(weak, _)| !gone(weak));
    }

    /// Whether that was the last share.
    fn release(&self, pool: &Arc<Pool>) -> bool {
        let mut pools = self.pools.lock();
        for (weak, refs) in pools.iter_mut() {
            if std::ptr::eq(weak.as_ptr(), Arc::as_ptr(pool)) {
                *refs -= 1;
                return *refs == 0;
            }
        }
        false
    }
}
