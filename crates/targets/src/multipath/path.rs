//! One path: a device, whether it works, and the way back of the requests that took it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use thinmap_block::{EndIo, Io};
use thinmap_dm::DeviceUse;
use thinmap_units::{BlkStatus, Sector};

use super::routing::Routing;
use super::selector::{Load, PathArguments, Ring};

/// A path of a group.
pub(super) struct Path {
    pub(super) device: DeviceUse,
    routing: Weak<Routing>,
    ring: Arc<Ring>,
    pub(super) load: Load,
    /// Requests may take it. Written under the routing's lock.
    active: AtomicBool,
    fail_count: AtomicU32,
    /// See [`Ring`].
    turn: AtomicU64,
    /// Only for selectors that want to know how long requests take.
    timer: Option<Arc<Timer>>,
}

impl Path {
    /// The `index`th path of the group that `ring` chooses for.
    pub(super) fn new(
        device: DeviceUse,
        arguments: PathArguments,
        index: usize,
        ring: &Arc<Ring>,
        routing: Weak<Routing>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|path| Self {
            device,
            routing,
            ring: ring.clone(),
            load: Load::new(arguments),
            active: AtomicBool::new(true),
            fail_count: AtomicU32::new(0),
            turn: AtomicU64::new(Ring::first_turn(index)),
            timer: ring
                .selector
                .is_timed()
                .then(|| Arc::new(Timer(path.clone()))),
        })
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    pub(super) fn fail_count(&self) -> u32 {
        self.fail_count.load(Ordering::Relaxed)
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn.load(Ordering::SeqCst)
    }

    /// Goes from one turn to the next; `false` when it has gone on already.
    pub(super) fn take_turn(&self, from: u64, to: u64) -> bool {
        self.turn
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Takes the path out of use; `false` when it is. Under the routing's lock.
    pub(super) fn fail(&self) -> bool {
        if !self.active.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.ring.left();
        self.fail_count.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Brings the path into use again; `false` when it is. Under the routing's lock.
    pub(super) fn reinstate(&self) -> bool {
        if self.is_active() {
            return false;
        }
        self.turn.store(self.ring.joined(), Ordering::SeqCst);
        self.active.store(true, Ordering::SeqCst);
        true
    }

    /// Counts a request in that goes to the path's device, and sees to it that its end is told here.
    pub(super) fn begin(self: &Arc<Self>, io: &mut Io) {
        let begun = self.ring.begin(&self.load, io.sectors.bytes());
        io.push_end_io(self.clone(), io.sector.raw());
        if let (Some(begun), Some(timer)) = (begun, &self.timer) {
            io.push_end_io(timer.clone(), begun);
        }
    }
}

impl EndIo for Path {
    /// `tag` is the sector: devices below have written theirs over it.
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        self.ring.end(&self.load, io.sectors.bytes());
        if !is_the_paths(status) {
            return io.complete(status);
        }
        // A table outlives its requests.
        let Some(routing) = self.routing.upgrade() else {
            return io.complete(status);
        };
        io.sector = Sector(tag);
        routing.fail_path(&self);
        routing.try_again(io);
    }
}

/// Whether another path may do better: the kernel's `blk_path_error`.
fn is_the_paths(status: BlkStatus) -> bool {
    match status {
        BlkStatus::IoErr => true,
        BlkStatus::Ok
        | BlkStatus::NoSpc
        | BlkStatus::NotSupp
        | BlkStatus::Inval
        | BlkStatus::Medium
        | BlkStatus::Target
        | BlkStatus::ReservationConflict
        | BlkStatus::Protection
        | BlkStatus::Requeue => false,
    }
}

/// Measures a path's requests.
struct Timer(Weak<Path>);

impl EndIo for Timer {
    /// `tag` is when the request was begun.
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        // The frame below holds the path.
        if let Some(path) = self.0.upgrade() {
            path.ring.end_timed(&path.load, tag);
        }
        io.complete(status);
    }
}
