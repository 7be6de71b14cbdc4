//! What the line, its requests and its worker share.
//!
//! INVARIANT: a write carries a frame of [`MirrorSet`]'s exactly while its region counts it.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::kit::Copier;
use thinmap_dm::{MapOutcome, TableEvent};
use thinmap_runtime::{ActorHandle, BufferPool, Spawner};
use thinmap_units::{BlkStatus, Sector};

use super::args::Features;
use super::disk_log::DiskLog;
use super::legs::{Failure, Legs};
use super::log::Log;
use super::regions::{Admission, Regions};
use super::worker::{Ask, Event, MirrorActor, WorkerState};
use crate::told::wait_until_told;

/// Recovery copies at most 2 MiB at a time, in pieces of at most 128 KiB.
const COPY_PIECE: Sector = Sector(256);
const COPY_BUFFERS: usize = 16;
/// Buffers for what is written to the second and further legs, 2 MiB of small ones and at most 8 MiB of large ones; still larger writes
/// get one of their own.
const WRITE_BUFFERS: [(Sector, usize); 2] = [(Sector(256), 16), (Sector(2048), 8)];

/// See the module.
pub(super) struct MirrorSet {
    pub begin: Sector,
    pub len: Sector,
    pub features: Features,
    pub legs: Legs,
    pub log: Log,
    /// The log could not be written when a write needed it.
    pub log_failed: AtomicBool,
    pub regions: Mutex<Regions>,
    holds: Mutex<Holds>,
    pub event: Arc<TableEvent>,
    pub copier: Copier,
    /// Small ones, and large ones.
    pub write_buffers: [BufferPool; 2],
    inbox: Mutex<Inbox>,
    handle: OnceLock<ActorHandle>,
    pub worker: Mutex<WorkerState>,
}

/// Writes that wait for another table.
#[derive(Default)]
struct Holds {
    list: Vec<Io>,
    /// A suspend is under way or done: with noflush or not.
    suspending: Option<bool>,
}

#[derive(Default)]
struct Inbox {
    events: Vec<Event>,
    /// The worker has ended: nothing is taken any more.
    is_dead: bool,
}

/// The line's hold on the set: the worker ends with it.
pub(super) struct SetRef(pub Arc<MirrorSet>);

impl Drop for SetRef {
    fn drop(&mut self) {
        if let Some(handle) = self.0.handle.get() {
            self.0.push(Event::Stop);
            handle.join();
        }
    }
}

/// What a set is made of.
pub(super) struct NewSet {
    pub begin: Sector,
    pub len: Sector,
    pub features: Features,
    pub legs: Legs,
    pub log: Log,
    pub disk_log: Option<DiskLog>,
    pub event: Arc<TableEvent>,
}

impl MirrorSet {
    /// Starts the worker. `name` shows in thread lists.
    pub fn start(new: NewSet, spawner: &dyn Spawner, name: &str) -> std::io::Result<SetRef> {
        let region = new.log.region;
        let piece = region.min(COPY_PIECE);
        // COMPAT: a mirror that begins in sync raises no event for it.
        new.legs.in_sync.store(new.log.all_in_sync(), SeqCst);
        let set = Arc::new(Self {
            begin: new.begin,
            len: new.len,
            features: new.features,
            legs: new.legs,
            log: new.log,
            log_failed: AtomicBool::new(false),
            regions: Mutex::default(),
            holds: Mutex::default(),
            event: new.event,
            copier: Copier::new(piece, COPY_BUFFERS),
            write_buffers: WRITE_BUFFERS.map(|(size, count)| {
                // No write is longer than a region.
                BufferPool::new(count, size.min(region).bytes() as usize)
            }),
            inbox: Mutex::default(),
            handle: OnceLock::new(),
            worker: Mutex::new(WorkerState::new(new.disk_log)),
        });
        let handle = spawner.spawn(name, Arc::new(MirrorActor(set.clone())))?;
        let _ = set.handle.set(handle);
        Ok(SetRef(set))
    }

    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Leaves something to the worker.
    pub fn push(&self, event: Event) {
        let mut inbox = self.inbox.lock();
        if inbox.is_dead {
            drop(inbox);
            return event.fail();
        }
        inbox.events.push(event);
        let is_first = inbox.events.len() == 1;
        drop(inbox);
        if is_first {
            self.wake();
        }
    }

    pub fn take_inbox(&self) -> Vec<Event> {
        std::mem::take(&mut self.inbox.lock().events)
    }

    /// The worker is no more; what waits in its inbox.
    pub fn die(&self) -> Vec<Event> {
        let mut inbox = self.inbox.lock();
        inbox.is_dead = true;
        std::mem::take(&mut inbox.events)
    }

    /// Has the worker do something and waits until it is done, or the worker is no more.
    pub fn ask(&self, what: Ask) {
        let (sender, done) = mpsc::channel();
        self.push(Event::Ask(what, sender));
        wait_until_told(&done);
    }

    /// A sector of the mapped device, from the line's begin.
    pub fn offset(&self, sector: Sector) -> Sector {
        sector - self.begin
    }

    pub fn region_at(&self, offset: Sector) -> u64 {
        offset.raw() >> self.log.region.raw().trailing_zeros()
    }

    /// Whether writes may not go on without a log.
    pub fn waits_for_log(&self) -> bool {
        self.features.handle_errors && self.log_failed.load(SeqCst)
    }

    pub fn map_read(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        let offset = self.offset(io.sector);
        match self.leg_for_read(offset) {
            Some(leg) => self.read_from(leg, offset, io),
            None => MapOutcome::Kill(io, BlkStatus::IoErr),
        }
    }

    fn leg_for_read(&self, offset: Sector) -> Option<usize> {
        let region = self.region_at(offset);
        if !self.log.is_in_sync(region) {
            let default = self.legs.default_index();
            return self.legs.default_is_well().then_some(default);
        }
        // While a write is under way legs may differ, and the old must not be read behind the new.
        if self.features.handle_errors && !self.regions.lock().is_busy(region) {
            let in_turn = self.legs.choose_by_place(offset);
            return in_turn.or_else(|| self.legs.choose());
        }
        self.legs.choose()
    }

    fn read_from(self: &Arc<Self>, leg: usize, offset: Sector, mut io: Io) -> MapOutcome<'_> {
        io.push_end_io(self.clone(), read_tag(leg, offset));
        let leg = &self.legs.list[leg];
        io.sector = leg.place(offset);
        MapOutcome::Remapped(io, leg.dev())
    }

    fn read_ended(self: &Arc<Self>, io: Io, leg: usize, offset: Sector, status: BlkStatus) {
        if status.is_ok() || status == BlkStatus::NotSupp {
            return io.complete(status);
        }
        self.legs.fail(leg, Failure::Read);
        let in_sync = self.log.is_in_sync(self.region_at(offset));
        let other = match self.legs.choose() {
            Some(other) if in_sync || self.legs.default_is_well() => other,
            _ => {
                tracing::error!(%offset, "mirror: no leg left to read from");
                return io.complete(BlkStatus::IoErr);
            }
        };
        // The leg that failed is never chosen again, so this ends.
        if let MapOutcome::Remapped(io, dev) = self.read_from(other, offset, io) {
            dev.submit(io);
        }
    }

    /// A write, discard or write-zeroes from the guest.
    pub fn map_write(self: &Arc<Self>, io: Io) -> MapOutcome<'_> {
        if self.waits_for_log() {
            self.push(Event::Write(io));
            return MapOutcome::Submitted;
        }
        match self.admit(io, false) {
            Some((io, Admission::All)) => self.write_legs(io),
            Some((io, Admission::Default)) => return self.write_default(io),
            Some((io, _)) => self.push(Event::Write(io)),
            None => {}
        }
        MapOutcome::Submitted
    }

    /// Counts a write in; `None` when it waits for a recovery, or for a write that it overlaps.
    pub fn admit(self: &Arc<Self>, mut io: Io, by_worker: bool) -> Option<(Io, Admission)> {
        let offset = self.offset(io.sector);
        let region = self.region_at(offset);
        let sectors = offset.raw()..(offset + io.sectors).raw();
        let mut regions = self.regions.lock();
        let in_sync = self.log.is_in_sync(region);
        let marks = self.log.device.is_some();
        let admission = regions.admit(region, sectors, in_sync, marks, by_worker);
        match admission {
            Admission::Wait => {
                regions.keep(region, io);
                return None;
            }
            Admission::Mark if !by_worker => {}
            _ => io.push_end_io(self.clone(), offset.raw()),
        }
        Some((io, admission))
    }

    /// A counted write to a region where only the default leg is right.
    fn write_default(self: &Arc<Self>, mut io: Io) -> MapOutcome<'_> {
        if self.features.hold_failed() && self.legs.failed.load(SeqCst) {
            self.failed(io);
            return MapOutcome::Submitted;
        }
        if io.op == Op::Discard {
            self.write_legs(io);
            return MapOutcome::Submitted;
        }
        let leg = self.legs.default_leg();
        io.sector = leg.place(self.offset(io.sector));
        MapOutcome::Remapped(io, leg.dev())
    }

    /// The same for the worker.
    pub fn submit_default(self: &Arc<Self>, io: Io) {
        if let MapOutcome::Remapped(io, dev) = self.write_default(io) {
            dev.submit(io);
        }
    }

    /// A write that could not be made everywhere waits for a suspend: somebody will load another table.
    pub fn hold(&self, io: Io) {
        let mut holds = self.holds.lock();
        match holds.suspending {
            None => holds.list.push(io),
            Some(noflush) => {
                drop(holds);
                let_go(io, noflush);
            }
        }
    }

    /// A suspend begins: nothing is held any longer.
    pub fn begin_suspend(&self, noflush: bool) {
        let held = {
            let mut holds = self.holds.lock();
            holds.suspending = Some(noflush);
            std::mem::take(&mut holds.list)
        };
        for io in held {
            let_go(io, noflush);
        }
    }

    pub fn end_suspend(&self) {
        self.holds.lock().suspending = None;
    }

    /// Fails all that waits for anything: there is no worker any more.
    pub fn fail_all(&self) {
        let waiting = self.regions.lock().take_waiting();
        self.begin_suspend(false);
        for io in waiting {
            io.complete(BlkStatus::IoErr);
        }
    }
}

/// Given back without flush, so that it is mapped by the next table; failed otherwise.
fn let_go(io: Io, noflush: bool) {
    io.complete(if noflush {
        BlkStatus::Requeue
    } else {
        BlkStatus::IoErr
    });
}

impl EndIo for MirrorSet {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if tag & READ != 0 {
            let leg = (tag >> LEG_AT & 15) as usize;
            return self.read_ended(io, leg, Sector(tag & OFFSET), status);
        }
        let region = self.region_at(Sector(tag));
        let in_sync = self.log.is_in_sync(region);
        let left = self.regions.lock().leave(region, tag, in_sync);
        if left.wakes {
            self.wake();
        }
        io.complete(status);
        for io in left.waiting {
            self.push(Event::Write(io));
        }
    }
}

/// Of a read: its leg and its place. The tag of a write is its place.
fn read_tag(leg: usize, offset: Sector) -> u64 {
    READ | (leg as u64) << LEG_AT | offset.raw()
}

const READ: u64 = 1 << 63;
const LEG_AT: u32 = 59;
/// No device has more than 2^54 sectors.
const OFFSET: u64 = (1 << LEG_AT) - 1;
