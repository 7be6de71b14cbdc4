//! The data path of a mapped device: count, look up, hand to the target; hold requests while suspended.
//!
//! INVARIANT: a request is counted in [`InFlight`] from before its table is looked at until it has been told to those
//! who wait for it, or lies in `held`. So when nothing is counted and the gate is closed, no target has a request.

mod in_flight;
mod split;
mod write_zeroes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op, out_of_range};
use thinmap_units::{BlkStatus, DevNo, Sector};

use self::in_flight::InFlight;
pub(crate) use self::split::combine;
use crate::table::{Line, LiveTable};
use crate::target::MapOutcome;

/// The part of a mapped device that requests know of.
pub(crate) struct IoCore {
    dev_no: DevNo,
    live: ArcSwapOption<LiveTable>,
    /// Of the live table, in sectors; 0 without one.
    size: AtomicU64,
    gate: AtomicU8,
    in_flight: InFlight,
    /// Requests that wait for a resume. Taken only when the gate is not open.
    held: Mutex<Vec<Io>>,
    /// A suspend without flush is under way or done: targets may give requests back.
    requeue_allowed: AtomicBool,
}

impl IoCore {
    pub(crate) fn new(dev_no: DevNo) -> Self {
        Self {
            dev_no,
            live: ArcSwapOption::empty(),
            size: AtomicU64::new(0),
            gate: AtomicU8::new(OPEN),
            in_flight: InFlight::default(),
            held: Mutex::default(),
            requeue_allowed: AtomicBool::new(false),
        }
    }

    pub(crate) fn live(&self) -> Option<Arc<LiveTable>> {
        self.live.load_full()
    }

    /// Puts a table in place. The caller has closed the gate and seen the last request off.
    pub(crate) fn swap(&self, table: Option<Arc<LiveTable>>) -> Option<Arc<LiveTable>> {
        let size = table.as_ref().map_or(Sector::ZERO, |t| t.table.size());
        let old = self.live.swap(table);
        self.size.store(size.raw(), Ordering::Release);
        old
    }

    pub(crate) fn size(&self) -> Sector {
        Sector(self.size.load(Ordering::Acquire))
    }

    /// Takes a new request.
    pub(crate) fn submit(self: &Arc<Self>, mut io: Io) {
        if out_of_range(&io, self.size()) {
            tracing::debug!(dev = %self.dev_no, ?io, "access beyond end of device");
            io.complete(BlkStatus::IoErr);
            return;
        }
        self.in_flight.enter();
        if self.gate.load(Ordering::SeqCst) != OPEN {
            self.in_flight.leave();
            self.hold(io);
            return;
        }
        let live = self.live.load();
        let Some(live) = live.as_deref() else {
            self.in_flight.leave();
            // Without a table there is nothing to flush; anything else was out of range above.
            let status = if io.op == Op::Flush {
                BlkStatus::Ok
            } else {
                BlkStatus::IoErr
            };
            io.complete(status);
            return;
        };
        if io.is_write() && live.limits.read_only {
            self.in_flight.leave();
            io.complete(BlkStatus::IoErr);
            return;
        }
        if (io.sector.raw() | io.sectors.raw()) & live.alignment_mask != 0 {
            self.in_flight.leave();
            io.complete(BlkStatus::Inval);
            return;
        }
        io.push_end_io(self.clone(), io.sector.raw());
        self.route(live, io);
    }

    /// Hands a counted request to its target, cut if it must be.
    fn route(self: &Arc<Self>, live: &LiveTable, io: Io) {
        if io.op == Op::Flush {
            match live.table.lines.as_slice() {
                [line] => map_to(line, io),
                _ => split::flush_each(live, io),
            }
            return;
        }
        // Nothing to do, but in range: a request without sectors.
        if io.sectors == Sector::ZERO {
            io.complete(BlkStatus::Ok);
            return;
        }
        match live.piece_at(io.op, io.sector) {
            Some(piece) if piece.sectors >= io.sectors => {
                issue(piece.line, piece.limits, io);
            }
            Some(piece) => self.route_across(live, piece.line, io),
            // The table shrank while the request was held.
            None => io.complete(BlkStatus::IoErr),
        }
    }

    /// A request that spans pieces: whole if its target takes it so, else cut.
    fn route_across(self: &Arc<Self>, live: &LiveTable, line: &Line, io: Io) {
        let transfers = matches!(io.op, Op::Read | Op::Write);
        if !transfers || io.sector + io.sectors > line.end() {
            return split::cut(self, live, io);
        }
        match line.target.map_across(io) {
            Ok(outcome) => carry_out(outcome),
            Err(io) => split::cut(self, live, io),
        }
    }

    fn hold(self: &Arc<Self>, io: Io) {
        let mut held = self.held.lock();
        match self.gate.load(Ordering::SeqCst) {
            CLOSED => held.push(io),
            OPEN => {
                drop(held);
                self.submit(io);
            }
            _ => {
                drop(held);
                io.complete(BlkStatus::IoErr);
            }
        }
    }

    /// Holds a request that its target gave back. It is counted until then, so a suspend does not miss it.
    fn take_back(&self, io: Io) {
        let mut held = self.held.lock();
        // Also while the gate is still open: a target that gives back would do so again at once.
        if self.requeue_allowed.load(Ordering::SeqCst) && self.gate.load(Ordering::SeqCst) != SHUT {
            held.push(io);
            return;
        }
        drop(held);
        io.complete(BlkStatus::IoErr);
    }

    /// Makes new requests wait. Those in flight go on.
    pub(crate) fn close_gate(&self) {
        let _held = self.held.lock();
        if self.gate.load(Ordering::SeqCst) != SHUT {
            self.gate.store(CLOSED, Ordering::SeqCst);
        }
    }

    /// Waits until no request is in flight; `false` when `stop` said so first (asked some times a second).
    pub(crate) fn wait_idle(&self, stop: &dyn Fn() -> bool) -> bool {
        self.in_flight.wait_idle(stop)
    }

    /// Whether targets may give requests back ([`MapOutcome::Requeue`]) instead of ending them.
    pub(crate) fn allow_requeue(&self, allowed: bool) {
        self.requeue_allowed.store(allowed, Ordering::SeqCst);
    }

    /// Lets requests through again, those that waited first.
    pub(crate) fn open_gate(self: &Arc<Self>) {
        let waiting = {
            let mut held = self.held.lock();
            self.gate.store(OPEN, Ordering::SeqCst);
            std::mem::take(&mut *held)
        };
        for io in waiting {
            self.submit(io);
        }
    }

    /// Fails what waits and whatever comes from now on: the device is gone.
    pub(crate) fn shut(&self) {
        let waiting = {
            let mut held = self.held.lock();
            self.gate.store(SHUT, Ordering::SeqCst);
            std::mem::take(&mut *held)
        };
        for io in waiting {
            io.complete(BlkStatus::IoErr);
        }
    }
}

impl EndIo for IoCore {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        if status == BlkStatus::Requeue {
            io.sector = Sector(tag);
            self.take_back(io);
        } else {
            io.complete(status);
        }
        self.in_flight.leave();
    }
}

/// Hands a piece to its target, unless the line cannot do it.
fn issue(line: &Line, limits: crate::table::LineLimits, io: Io) {
    match io.op {
        Op::Discard if limits.max_discard == Sector::ZERO => io.complete(BlkStatus::NotSupp),
        Op::WriteZeroes if limits.max_write_zeroes == Sector::ZERO => {
            write_zeroes::write_out(line, io);
        }
        _ => map_to(line, io),
    }
}

fn map_to(line: &Line, io: Io) {
    carry_out(line.target.map(io));
}

fn carry_out(outcome: MapOutcome<'_>) {
    match outcome {
        MapOutcome::Remapped(io, dev) => dev.submit(io),
        MapOutcome::Submitted => {}
        MapOutcome::Requeue(io) => io.complete(BlkStatus::Requeue),
        MapOutcome::Kill(io, status) => io.complete(status),
    }
}

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const SHUT: u8 = 2;
