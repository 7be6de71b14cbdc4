//! Requests cut into entries: each inside one stripe and on one member, and joined again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::super::level::SyncKind;
use super::super::members::Members;

/// What an entry asks of its stripe.
#[derive(Clone)]
pub(super) enum Ask {
    /// The data of this member, which could not be had from itself.
    Read(usize),
    /// New data for this member.
    Write(usize),
    /// A part of a sync window; mismatches are counted there.
    Sync(SyncKind, Arc<AtomicU64>),
}

/// A part of a request that waits for its stripe, or is worked on.
pub(super) struct Entry {
    pub(super) ask: Ask,
    /// Sectors of the members, inside one stripe.
    pub(super) range: Range<Sector>,
    /// Its buffer, for reads and writes, is as long as the range.
    pub(super) io: Io,
    /// Is worked on alone, because too much was lost of a longer part.
    pub(super) is_fine: bool,
}

impl Entry {
    /// Whether both concern the same data.
    pub(super) fn collides(&self, other: &Self) -> bool {
        match (&self.ask, &other.ask) {
            (Ask::Read(a) | Ask::Write(a), Ask::Read(b) | Ask::Write(b)) => {
                a == b && overlap(&self.range, &other.range)
            }
            _ => true,
        }
    }

    /// Whether it may be worked on together with others.
    pub(super) fn joins(&self) -> bool {
        !self.is_fine && !matches!(self.ask, Ask::Sync(..))
    }

    /// Ends it. The superblocks come first where that matters.
    pub(super) fn end(self, members: &Members, status: BlkStatus) {
        match self.ask {
            Ask::Write(_) => members.answer(self.io, status),
            Ask::Read(_) | Ask::Sync(..) => self.io.complete(status),
        }
    }

    /// The same in pieces that begin and end at multiples of `unit`.
    pub(super) fn into_fine(self, members: &Arc<Members>, unit: Sector) -> Vec<Self> {
        let (ask, begin) = (self.ask, self.range.start);
        let mut cut = Cut::new(self.io, members.clone(), matches!(ask, Ask::Write(_)));
        let mut entries = Vec::new();
        let mut at = begin;
        while at < self.range.end {
            let next = Sector((at.raw() / unit.raw() + 1) * unit.raw()).min(self.range.end);
            entries.push(Self {
                ask: ask.clone(),
                range: at..next,
                io: cut.take(next - at),
                is_fine: true,
            });
            at = next;
        }
        cut.all_taken();
        entries
    }
}

/// Whether two ranges have a sector in common.
pub(super) fn overlap(a: &Range<Sector>, b: &Range<Sector>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Whether two ranges overlap or lie side by side.
pub(super) fn touch(a: &Range<Sector>, b: &Range<Sector>) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// A request that loses piece after piece from its front, and ends when all have.
pub(super) struct Cut {
    rest: Io,
    pieces: Vec<Option<IoBuf>>,
    joint: Arc<Joint>,
}

struct Joint {
    members: Arc<Members>,
    is_write: bool,
    sector: Sector,
    sectors: Sector,
    state: Mutex<JointState>,
}

struct JointState {
    /// What is left of the request, once all pieces have been taken.
    whole: Option<Io>,
    pieces: Vec<Option<IoBuf>>,
    /// Pieces on their way, and one while pieces are taken.
    left: usize,
    status: BlkStatus,
}

impl Cut {
    pub(super) fn new(io: Io, members: Arc<Members>, is_write: bool) -> Self {
        let joint = Joint {
            members,
            is_write,
            sector: io.sector,
            sectors: io.sectors,
            state: Mutex::new(JointState {
                whole: None,
                pieces: Vec::new(),
                left: 1,
                status: BlkStatus::Ok,
            }),
        };
        Self {
            rest: io,
            pieces: Vec::new(),
            joint: Arc::new(joint),
        }
    }

    /// Where the next piece begins.
    pub(super) fn sector(&self) -> Sector {
        self.rest.sector
    }

    /// What is left to be taken.
    pub(super) fn sectors(&self) -> Sector {
        self.rest.sectors
    }

    /// The next piece.
    pub(super) fn take(&mut self, sectors: Sector) -> Io {
        let tag = self.pieces.len() as u64;
        self.pieces.push(None);
        let sink: Arc<dyn EndIo> = self.joint.clone();
        self.rest.split_front(sectors, sink, tag)
    }

    /// Every piece was taken, and none was begun yet.
    pub(super) fn all_taken(self) {
        let mut state = self.joint.state.lock();
        state.left = self.pieces.len();
        state.pieces = self.pieces;
        state.whole = Some(self.rest);
    }
}

impl EndIo for Joint {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let (whole, status) = {
            let mut state = self.state.lock();
            let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
            let slot = usize::try_from(tag).ok();
            if let Some(slot) = slot.and_then(|slot| state.pieces.get_mut(slot)) {
                *slot = Some(buf);
            }
            state.status = state.status.and(status);
            state.left -= 1;
            if state.left > 0 {
                return;
            }
            (self.join(&mut state), state.status)
        };
        let Some(whole) = whole else {
            return;
        };
        if self.is_write {
            self.members.answer(whole, status);
        } else {
            whole.complete(status);
        }
    }
}

impl Joint {
    /// The request as it was before it was cut.
    fn join(&self, state: &mut JointState) -> Option<Io> {
        let mut whole = state.whole.take()?;
        whole.buf = IoBuf::empty();
        for piece in state.pieces.drain(..).flatten() {
            let joined = whole.buf.unsplit(piece);
            debug_assert!(
                joined.is_ok(),
                "pieces come back in the buffers that they had"
            );
        }
        whole.sector = self.sector;
        whole.sectors = self.sectors;
        Some(whole)
    }
}
