//! A write, discard or write-zeroes on its way to all copies.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::copies::{Places, Shared};

/// Writes under way, none of which overlap: copies get what overlaps in the same order, or they would differ for ever where the bitmap
/// says that they do not.
#[derive(Default)]
pub(super) struct WritesUnderWay(Mutex<UnderWay>);

#[derive(Default)]
struct UnderWay {
    /// Of the array.
    ranges: Vec<Range<Sector>>,
    /// Those that overlap one under way, or one that waits before them.
    waiting: VecDeque<Io>,
    /// A thread is in [`Shared::leave`] and begins what can begin: writes that end at once must not nest.
    is_starting: bool,
}

impl WritesUnderWay {
    /// Counts a write in, or keeps it.
    fn enter(&self, io: Io) -> Option<Io> {
        let mut state = self.0.lock();
        let range = range_of(&io);
        let in_its_way = |other: &Range<Sector>| overlap(other, &range);
        if state.ranges.iter().any(in_its_way)
            || state.waiting.iter().any(|io| in_its_way(&range_of(io)))
        {
            state.waiting.push_back(io);
            return None;
        }
        state.ranges.push(range);
        Some(io)
    }
}

impl UnderWay {
    /// The first of those that wait for nothing any more, counted in.
    fn next(&mut self) -> Option<Io> {
        let clear = |index: &usize| {
            let range = range_of(&self.waiting[*index]);
            let earlier = self.waiting.iter().take(*index).map(range_of);
            let mut others = self.ranges.iter().cloned().chain(earlier);
            !others.any(|other| overlap(&other, &range))
        };
        let index = (0..self.waiting.len()).find(clear)?;
        let io = self.waiting.remove(index)?;
        self.ranges.push(range_of(&io));
        Some(io)
    }
}

impl Shared {
    /// Takes something that changes the array.
    pub fn write(self: &Arc<Self>, io: Io) {
        if let Some(io) = self.writes.enter(io) {
            Writing::start(self, io);
        }
    }

    fn leave(self: &Arc<Self>, range: &Range<Sector>) {
        let mut state = self.writes.0.lock();
        if let Some(index) = state.ranges.iter().position(|other| other == range) {
            state.ranges.swap_remove(index);
        }
        if state.is_starting {
            return;
        }
        state.is_starting = true;
        while let Some(io) = state.next() {
            drop(state);
            Writing::start(self, io);
            state = self.writes.0.lock();
        }
        state.is_starting = false;
    }
}

fn range_of(io: &Io) -> Range<Sector> {
    io.sector..io.end()
}

fn overlap(a: &Range<Sector>, b: &Range<Sector>) -> bool {
    a.start < b.end && b.start < a.end
}

/// See the module.
pub(super) struct Writing {
    shared: Arc<Shared>,
    /// Of the array.
    range: Range<Sector>,
    left: AtomicUsize,
    /// The request itself travels to the last copy and waits here for the others.
    io: Mutex<Option<Io>>,
    written: AtomicBool,
    refused: AtomicBool,
    /// A copy failed that the array cannot do without.
    lost: AtomicBool,
}

/// In a tag: this is the request itself.
const ITSELF: u64 = 1 << 32;

impl Writing {
    /// Sends a request to all copies that are written.
    fn start(shared: &Arc<Shared>, mut io: Io) {
        let (members, range) = (&shared.members, range_of(&io));
        let places = shared.placement.places(io.sector);
        let mut places: Places = places
            .into_iter()
            .filter(|(member, _)| members.is_writable(*member))
            .collect();
        let Some((last, last_sector)) = places.pop() else {
            shared.leave(&range);
            return members.answer(io, BlkStatus::IoErr);
        };
        let writing = Arc::new(Self {
            shared: shared.clone(),
            range,
            left: AtomicUsize::new(places.len() + 1),
            io: Mutex::new(None),
            written: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        });
        for (member, sector) in places {
            members.submit(member, writing.copy_of(&io, sector, member as u64));
        }
        io.sector = last_sector;
        io.push_end_io(writing, ITSELF | last as u64);
        members.submit(last, io);
    }

    fn copy_of(self: &Arc<Self>, io: &Io, sector: Sector, tag: u64) -> Io {
        let mut buf = IoBuf::alloc(io.buf.len());
        buf.as_mut_slice().copy_from_slice(io.buf.as_slice());
        let mut copy = Io::new(io.op, sector, io.sectors, buf, self.clone(), tag);
        copy.flags = io.flags;
        copy
    }

    fn status(&self) -> BlkStatus {
        if self.lost.load(SeqCst) {
            BlkStatus::IoErr
        } else if self.refused.load(SeqCst) {
            BlkStatus::NotSupp
        } else if self.written.load(SeqCst) {
            BlkStatus::Ok
        } else {
            BlkStatus::IoErr
        }
    }
}

impl EndIo for Writing {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let member = (tag & 0xff) as usize;
        match status {
            BlkStatus::Ok => self.written.store(true, SeqCst),
            // A discard that one member does not know: no reason to give that member up.
            BlkStatus::NotSupp => self.refused.store(true, SeqCst),
            _ => {
                if !self.shared.members.fail(member) {
                    self.lost.store(true, SeqCst);
                }
            }
        }
        if tag & ITSELF != 0 {
            *self.io.lock() = Some(io);
        }
        if self.left.fetch_sub(1, SeqCst) == 1
            && let Some(io) = self.io.lock().take()
        {
            self.shared.leave(&self.range);
            self.shared.members.answer(io, self.status());
        }
    }
}
