//! Write-zeroes for targets that have none: zeroes are written, one buffer after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_runtime::{IoBuf, pulse_goes_on};
use thinmap_units::{BlkStatus, Sector};

use crate::table::Line;
use crate::target::{MapOutcome, Target};

/// Writes zeroes over the range of `io`, which lies inside the line.
pub(super) fn write_out(line: &Line, io: Io) {
    let bytes = io.sectors.bytes().min(BUFFER_BYTES);
    let buf = IoBuf::alloc(usize::try_from(bytes).unwrap_or_default());
    let writer = Arc::new(WriteOut {
        target: line.target.clone(),
        begin: line.begin,
        turn: AtomicU8::new(WAITING),
        state: Mutex::new(State {
            at: io.sector,
            end: io.end(),
            parent: Some(io),
            zeroes: buf,
            status: BlkStatus::Ok,
        }),
    });
    writer.run();
}

struct WriteOut {
    target: Arc<dyn Target>,
    begin: Sector,
    /// Who goes on after a write: [`WriteOut::run`] when it ended inside the submission, its completion otherwise.
    turn: AtomicU8,
    state: Mutex<State>,
}

struct State {
    parent: Option<Io>,
    at: Sector,
    end: Sector,
    /// The part of the buffer that is not being written.
    zeroes: IoBuf,
    status: BlkStatus,
}

impl WriteOut {
    fn run(self: &Arc<Self>) {
        loop {
            let Some(io) = self.next_write() else { return };
            // A request may be of terabytes, and each write end inside its submission.
            pulse_goes_on();
            self.turn.store(SUBMITTING, Ordering::SeqCst);
            match self.target.map(io) {
                MapOutcome::Remapped(io, dev) => dev.submit(io),
                MapOutcome::Submitted => {}
                MapOutcome::Requeue(io) => io.complete(BlkStatus::Requeue),
                MapOutcome::Kill(io, status) => io.complete(status),
            }
            if self.turn.swap(WAITING, Ordering::SeqCst) == SUBMITTING {
                return;
            }
        }
    }

    /// The next write, or `None` after the end has been told.
    fn next_write(self: &Arc<Self>) -> Option<Io> {
        let mut state = self.state.lock();
        if state.at >= state.end || !state.status.is_ok() {
            let (parent, status) = (state.parent.take(), state.status);
            drop(state);
            if let Some(parent) = parent {
                parent.complete(status);
            }
            return None;
        }
        let mut sectors = (state.end - state.at).min(Sector::from_bytes(state.zeroes.len() as u64));
        if let Some(chunk) = self.target.split_at(Op::Write) {
            let into = (state.at - self.begin).raw() % chunk.raw().max(1);
            sectors = sectors.min(Sector(chunk.raw() - into));
        }
        let buf = state
            .zeroes
            .split_to(usize::try_from(sectors.bytes()).unwrap_or_default());
        let mut io = Io::write(state.at, buf, self.clone(), 0);
        io.flags.fua = state.parent.as_ref().is_some_and(|io| io.flags.fua);
        state.at += sectors;
        Some(io)
    }
}

impl EndIo for WriteOut {
    fn end_io(self: Arc<Self>, mut io: Io, _: u64, status: BlkStatus) {
        let mut state = self.state.lock();
        let mut buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        let spare = std::mem::replace(&mut state.zeroes, IoBuf::empty());
        // A stranger instead of our buffer is as good if it is zero; targets give back what they got.
        let _ = buf.unsplit(spare);
        state.zeroes = buf;
        state.status = state.status.and(status);
        drop(state);
        if self.turn.swap(ENDED, Ordering::SeqCst) == WAITING {
            self.run();
        }
    }
}

const BUFFER_BYTES: u64 = 256 << 10;
const WAITING: u8 = 0;
const SUBMITTING: u8 = 1;
const ENDED: u8 = 2;
