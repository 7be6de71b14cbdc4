//! Cutting a request at the borders of lines and chunks, and joining it again.
//!
//! The request itself stays whole in [`Cut`] and loses piece after piece from its front; when all have ended it gets its
//! buffer back and completes with the first failure. At most [`WINDOW`] pieces are under way: a discard of a terabyte
//! must not become sixteen million requests at once.

use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io};
use thinmap_runtime::{IoBuf, pulse_goes_on};
use thinmap_units::{BlkStatus, Sector};

use super::{IoCore, issue};
use crate::kit::FanOut;
use crate::table::LiveTable;

/// Cuts a counted request that no single target takes whole.
pub(super) fn cut(core: &Arc<IoCore>, live: &LiveTable, io: Io) {
    let cut = Arc::new(Cut {
        core: core.clone(),
        sector: io.sector,
        sectors: io.sectors,
        state: Mutex::new(State {
            rest: Some(io),
            pieces: Vec::new(),
            in_flight: 0,
            status: BlkStatus::Ok,
            issuing: true,
        }),
    });
    cut.issue(live);
}

/// Sends a flush to every target: each may stand on other devices.
pub(super) fn flush_each(live: &LiveTable, io: Io) {
    let lines = &live.table.lines;
    let fan = FanOut::new(io, lines.len());
    for line in lines {
        super::map_to(line, fan.flush());
    }
}

struct Cut {
    core: Arc<IoCore>,
    sector: Sector,
    sectors: Sector,
    state: Mutex<State>,
}

struct State {
    /// What no piece was cut from yet, with the frames of those who wait; taken at the end.
    rest: Option<Io>,
    /// Buffers of the pieces, in order, `None` while under way.
    pieces: Vec<Option<IoBuf>>,
    in_flight: usize,
    status: BlkStatus,
    /// A thread is in [`Cut::issue`]: pieces that end meanwhile leave going on to it, so that synchronous devices
    /// do not nest.
    issuing: bool,
}

enum Next<'a> {
    Piece(crate::table::Piece<'a>, Io),
    Wait,
    End(Io),
}

impl Cut {
    /// Sends pieces until the window is full or nothing is left. The caller has set `issuing`.
    fn issue(self: &Arc<Self>, live: &LiveTable) {
        loop {
            pulse_goes_on();
            let next = self.next(live);
            match next {
                Next::Piece(piece, io) => issue(piece.line, piece.limits, io),
                Next::Wait => return,
                Next::End(io) => {
                    let status = self.state.lock().status;
                    io.complete(status);
                    return;
                }
            }
        }
    }

    fn next<'a>(self: &Arc<Self>, live: &'a LiveTable) -> Next<'a> {
        let mut state = self.state.lock();
        if state.may_issue(WINDOW)
            && let Some(rest) = state.rest.as_mut()
        {
            if let Some(piece) = live.piece_at(rest.op, rest.sector) {
                let sectors = piece.sectors.min(rest.sectors);
                let tag = state.pieces.len() as u64;
                let io = match state.rest.as_mut() {
                    Some(rest) => rest.split_front(sectors, self.clone(), tag),
                    None => return Next::Wait,
                };
                // Only data must come back in order.
                if !io.buf.is_empty() {
                    state.pieces.push(None);
                }
                state.in_flight += 1;
                return Next::Piece(piece, io);
            }
            // The table shrank after the range was checked.
            state.status = BlkStatus::IoErr;
        }
        state.issuing = false;
        match state.finished() {
            Some(io) => Next::End(self.join(&mut state, io)),
            None => Next::Wait,
        }
    }

    /// Makes the request what it was before it was cut.
    fn join(&self, state: &mut State, mut io: Io) -> Io {
        let rest = std::mem::replace(&mut io.buf, IoBuf::empty());
        let pieces = std::mem::take(&mut state.pieces);
        for piece in pieces.into_iter().flatten().chain([rest]) {
            if let Err(stranger) = io.buf.unsplit(piece) {
                io.buf = copied_together(&io.buf, &stranger);
            }
        }
        io.sector = self.sector;
        io.sectors = self.sectors;
        io
    }
}

impl State {
    fn may_issue(&self, window: usize) -> bool {
        let left = self.rest.as_ref().map_or(Sector::ZERO, |io| io.sectors);
        self.status.is_ok() && left > Sector::ZERO && self.in_flight < window
    }

    /// The request, once no piece is under way and none will follow.
    fn finished(&mut self) -> Option<Io> {
        if self.in_flight > 0 || self.may_issue(WINDOW) {
            return None;
        }
        self.rest.take()
    }
}

impl EndIo for Cut {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let mut state = self.state.lock();
        if !io.buf.is_empty() {
            let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
            let slot = usize::try_from(tag).ok();
            if let Some(slot) = slot.and_then(|slot| state.pieces.get_mut(slot)) {
                *slot = Some(buf);
            }
        }
        state.status = combine(state.status, status);
        state.in_flight -= 1;
        if state.issuing {
            return;
        }
        // Half a window at a time: waking up for every single piece costs more.
        if state.may_issue(WINDOW / 2) {
            state.issuing = true;
            drop(state);
            // The request is counted, so the table it started on is still in place.
            if let Some(live) = self.core.live.load().as_deref() {
                self.issue(live);
            }
            return;
        }
        if let Some(io) = state.finished() {
            let io = self.join(&mut state, io);
            let status = state.status;
            drop(state);
            io.complete(status);
        }
    }
}

/// The status of a request from those of two of its parts.
///
/// COMPAT: a part that is given back takes the whole with it, even if another one failed.
pub(crate) fn combine(a: BlkStatus, b: BlkStatus) -> BlkStatus {
    if a == BlkStatus::Requeue || b == BlkStatus::Requeue {
        BlkStatus::Requeue
    } else {
        a.and(b)
    }
}

fn copied_together(front: &IoBuf, back: &IoBuf) -> IoBuf {
    let mut whole = IoBuf::alloc(front.len() + back.len());
    let (left, right) = whole.as_mut_slice().split_at_mut(front.len());
    left.copy_from_slice(front.as_slice());
    right.copy_from_slice(back.as_slice());
    whole
}

const WINDOW: usize = 128;
