//! An array at work: the way of requests through gate and bitmap to the level, and what its two actors share.
//!
//! The *keeper* writes superblocks and bitmap; the *syncer* goes through sync windows. Neither waits for the other.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, mpsc};

use parking_lot::{Condvar, Mutex};
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::TableEvent;
use thinmap_dm::kit::Ticket;
use thinmap_runtime::{ActorHandle, Spawner, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::gate::Gate;
use super::keeper::{Cleaning, KeeperActor};
use super::level::Level;
use super::members::{Keeper, MAX_SECTOR, MemberState, Members};
use super::metadata::{Metadata, read_superblock};
use super::regions::{Regions, Span};
use super::sync::{SyncActor, SyncState};
use crate::told::wait_until_told;

/// How an array behaves over time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long a region stays dirty after its last write, about; milliseconds.
    pub daemon_sleep: u32,
    /// KiB per second and member, when guests are busy too.
    pub min_rate: u32,
    /// The same, at most; 0: no limit.
    pub max_rate: u32,
}

/// See the module.
pub(super) struct Array {
    pub members: Arc<Members>,
    pub level: Arc<dyn Level>,
    /// None without metadata: then nothing is remembered over an end.
    pub regions: Option<Regions>,
    pub gate: Gate,
    pub pace: Pace,
    /// Parity: a resync needs every member.
    pub needs_all: bool,
    pub event: Arc<TableEvent>,
    /// For the keeper alone.
    pub metadata: Mutex<Metadata>,
    pub inbox: Mutex<Inbox>,
    pub sync: Mutex<SyncState>,
    /// Told when the syncer has stopped for a suspend.
    pub sync_stopped: Condvar,
    /// The first resync has come so far; everything, when it has ended.
    resynced: AtomicU64,
    /// Guests' requests so far.
    pub requests: AtomicU64,
    pub cleaning: Cleaning,
    keeper: OnceLock<ActorHandle>,
    syncer: OnceLock<ActorHandle>,
}

/// What waits for the keeper.
#[derive(Default)]
pub(super) struct Inbox {
    /// Writes that wait for their regions to be dirty on disk.
    pub writes: Vec<(Io, Span)>,
    /// Superblocks are out of date.
    pub superblocks: bool,
    /// An event is to be raised when they are not any more.
    pub event: bool,
    /// Who waits for everything to be written.
    pub settle: Vec<mpsc::Sender<()>>,
    pub stop: bool,
    /// The keeper is no more: nothing waits.
    pub dead: bool,
}

/// What an array is made of.
pub(super) struct NewArray {
    pub members: Arc<Members>,
    pub level: Arc<dyn Level>,
    pub regions: Option<Regions>,
    pub metadata: Metadata,
    pub pace: Pace,
    /// Parity: a resync needs every member.
    pub needs_all: bool,
    /// Nothing is written, neither data nor metadata.
    pub read_only: bool,
    /// Rebuilding members that lack only what the bitmap says.
    pub by_bitmap: Vec<usize>,
    pub event: Arc<TableEvent>,
    pub resynced: Sector,
}

/// A line's hold on its array: the actors end with it.
pub(super) struct ArrayRef(pub Arc<Array>);

impl Drop for ArrayRef {
    fn drop(&mut self) {
        self.0.sync.lock().stop = true;
        self.0.wake_syncer();
        if let Some(handle) = self.0.syncer.get() {
            handle.join();
        }
        self.0.inbox.lock().stop = true;
        self.0.wake_keeper();
        if let Some(handle) = self.0.keeper.get() {
            handle.join();
        }
    }
}

/// How members tell their array; weak, for the array holds them.
struct Told(std::sync::Weak<Array>);

impl Keeper for Told {
    fn changed(&self) {
        if let Some(array) = self.0.upgrade() {
            array.ask_for_superblocks(true);
        }
    }

    fn heal(&self, member: usize, window: Range<Sector>) {
        if let Some(array) = self.0.upgrade() {
            array.sync.lock().add_heal(member, window);
            array.wake_syncer();
        }
    }
}

impl Array {
    /// An array whose actors run, suspended. `name` shows in thread lists.
    pub fn start(
        new: NewArray,
        spawner: &dyn Spawner,
        name: &str,
    ) -> std::io::Result<Arc<ArrayRef>> {
        let needed = new.regions.as_ref().is_some_and(Regions::any_needed);
        let array = Arc::new(Self {
            sync: Mutex::new(SyncState::new(needed, new.read_only)),
            members: new.members,
            level: new.level,
            regions: new.regions,
            gate: Gate::default(),
            pace: new.pace,
            needs_all: new.needs_all,
            event: new.event,
            metadata: Mutex::new(new.metadata),
            inbox: Mutex::default(),
            sync_stopped: Condvar::new(),
            resynced: AtomicU64::new(new.resynced.raw()),
            requests: AtomicU64::new(0),
            cleaning: Cleaning::default(),
            keeper: OnceLock::new(),
            syncer: OnceLock::new(),
        });
        array.sync.lock().by_bitmap = new.by_bitmap;
        array.note_consistency();
        let told = Told(Arc::downgrade(&array));
        array.members.set_keeper(Arc::new(told));
        let keeper = Arc::new(KeeperActor(array.clone()));
        let handle = spawner.spawn(&format!("raid-{name}"), keeper)?;
        let _ = array.keeper.set(handle);
        let held = Arc::new(ArrayRef(array.clone()));
        let syncer = Arc::new(SyncActor(array.clone()));
        let handle = spawner.spawn(&format!("resync-{name}"), syncer)?;
        let _ = array.syncer.set(handle);
        Ok(held)
    }

    /// How far the first resync has come.
    pub fn resynced(&self) -> Sector {
        Sector(self.resynced.load(SeqCst))
    }

    /// It has come so far.
    pub fn set_resynced(&self, to: Sector) {
        self.resynced.store(to.raw(), SeqCst);
    }

    /// Members agree as far as nothing is left to be synced, or as the syncer says while it is at it.
    pub fn note_consistency(&self) {
        let needed = self.regions.as_ref().is_some_and(Regions::any_needed);
        let to = if needed { Sector::ZERO } else { MAX_SECTOR };
        self.members.set_consistent_to(to.min(self.resynced()));
    }

    pub fn wake_keeper(&self) {
        if let Some(handle) = self.keeper.get() {
            handle.wake();
        }
    }

    pub fn wake_syncer(&self) {
        if let Some(handle) = self.syncer.get() {
            handle.wake();
        }
    }

    /// Has the superblocks written, and an event raised then.
    pub fn ask_for_superblocks(&self, event: bool) {
        let mut inbox = self.inbox.lock();
        inbox.superblocks = true;
        inbox.event |= event;
        let dead = inbox.dead;
        drop(inbox);
        if dead {
            // Nobody writes them any more, so nobody is to wait for it.
            self.members.recorded(self.members.failures());
        }
        self.wake_keeper();
    }

    /// Takes a request; its sector is counted from the array's begin.
    pub fn submit(self: &Arc<Self>, io: Io) {
        self.requests.fetch_add(1, SeqCst);
        match io.op {
            Op::Read => self.level.submit(io),
            Op::Flush => Flush::start(&self.members, io),
            _ => self.write(io),
        }
    }

    /// Takes something that changes the array: the gate, the bitmap, the level.
    pub fn write(self: &Arc<Self>, io: Io) {
        let range = self.level.sync_range(io.sector, io.end());
        let Some((ticket, mut io)) = self.gate.enter(&range, io) else {
            return;
        };
        let Some(regions) = &self.regions else {
            io.push_end_io(self.clone(), pack(ticket, Span { first: 0, count: 0 }));
            return self.level.submit(io);
        };
        let span = regions.span(&range);
        let dirty = regions.begin(span);
        io.push_end_io(self.clone(), pack(ticket, span));
        if dirty {
            return self.level.submit(io);
        }
        let mut inbox = self.inbox.lock();
        if inbox.dead {
            drop(inbox);
            return io.complete(BlkStatus::IoErr);
        }
        inbox.writes.push((io, span));
        drop(inbox);
        self.wake_keeper();
    }

    /// A suspend begins: the syncer stops after its window.
    pub fn pause(&self) {
        self.sync.lock().paused = true;
        self.wake_syncer();
    }

    /// The suspend was given up, or has ended.
    pub fn go_on(&self) {
        let mut sync = self.sync.lock();
        sync.paused = false;
        sync.blocked = false;
        drop(sync);
        self.wake_syncer();
    }

    /// Suspended: waits for the syncer to stop and for bitmap and superblocks to be written.
    pub fn settle(&self) {
        let stopped = || !self.sync.lock().is_at_work();
        while !stopped() && simulate(Waiting::ForActors) {}
        let mut sync = self.sync.lock();
        while sync.is_at_work() {
            self.sync_stopped.wait(&mut sync);
        }
        drop(sync);
        let (sender, receiver) = mpsc::channel();
        {
            let mut inbox = self.inbox.lock();
            if inbox.dead {
                return;
            }
            inbox.settle.push(sender);
        }
        self.wake_keeper();
        wait_until_told(&receiver);
    }

    /// Resumed once more: failed members whose superblock can be read are taken back, and get what they lack.
    pub fn revive(&self) {
        for (index, member) in self.members.iter().enumerate() {
            let Some(meta) = member
                .meta
                .as_ref()
                .filter(|_| member.state() == MemberState::Failed)
            else {
                continue;
            };
            let Ok(superblock) = read_superblock(&*meta.dev) else {
                continue;
            };
            tracing::info!(
                member = index,
                "raid: a failed member has a readable superblock: it is taken back"
            );
            // What it may have lost is in regions that are dirty on disk: none became clean while it was missing.
            if let Some(regions) = &self.regions {
                let dirty = (0..regions.len()).filter(|index| regions.is_on_disk(*index));
                dirty.for_each(|index| regions.set_needed(index));
            }
            // One that had not got everything yet lacks more than that.
            let was_whole = superblock.is_some_and(|found| found.recovered == MAX_SECTOR);
            let by_bitmap = was_whole && !member.is_incomplete();
            let mut sync = self.sync.lock();
            sync.by_bitmap.retain(|other| *other != index);
            if by_bitmap {
                sync.by_bitmap.push(index);
            }
            drop(sync);
            member.set_rebuilding(Sector::ZERO, by_bitmap);
        }
    }
}

/// A write has ended.
impl EndIo for Array {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let (ticket, span) = unpack(tag);
        if let Some(regions) = &self.regions {
            let degraded = self.members.is_degraded();
            let failed = !status.is_ok() && io.op == Op::Write;
            regions.end(span, degraded || failed);
            if failed && !degraded {
                // On a member that has to stay; another may have it.
                self.members.set_consistent_to(Sector::ZERO);
                self.sync.lock().ask_for_resync();
                self.wake_syncer();
            }
        }
        if let Some(ticket) = ticket {
            self.gate.leave(ticket);
        }
        io.complete(status);
    }
}

/// Eight bits, and twice 22: there are at most 2^21 regions.
fn pack(ticket: Ticket, span: Span) -> u64 {
    u64::from(ticket.raw()) | u64::from(span.first) << 8 | u64::from(span.count) << 30
}

fn unpack(tag: u64) -> (Option<Ticket>, Span) {
    let field = |shift: u32| (tag >> shift & 0x3f_ffff) as u32;
    let ticket = Ticket::from_raw((tag & 0xff) as u8);
    let span = Span {
        first: field(8),
        count: field(30),
    };
    (ticket, span)
}

/// A flush on its way to all members.
struct Flush {
    members: Arc<Members>,
    state: Mutex<FlushState>,
}

struct FlushState {
    io: Option<Io>,
    left: usize,
    status: BlkStatus,
}

impl Flush {
    fn start(members: &Arc<Members>, io: Io) {
        let all = 0..members.len();
        let targets: Vec<usize> = all.filter(|index| members.is_writable(*index)).collect();
        if targets.is_empty() {
            return io.complete(BlkStatus::IoErr);
        }
        let flush = Arc::new(Self {
            members: members.clone(),
            state: Mutex::new(FlushState {
                io: Some(io),
                left: targets.len(),
                status: BlkStatus::Ok,
            }),
        });
        for index in targets {
            members.submit(index, Io::flush(flush.clone(), index as u64));
        }
    }
}

impl EndIo for Flush {
    fn end_io(self: Arc<Self>, _: Io, tag: u64, status: BlkStatus) {
        let failed = !status.is_ok() && !self.members.fail(tag as usize);
        let mut state = self.state.lock();
        if failed {
            state.status = state.status.and(status);
        }
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let (io, status) = (state.io.take(), state.status);
        drop(state);
        if let Some(io) = io {
            let enough = status.is_ok() && !self.members.has_lost_too_much();
            let status = if enough { status } else { BlkStatus::IoErr };
            self.members.answer(io, status);
        }
    }
}
