//! A request in parts that go to different places, and its end.

use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use thinmap_block::{EndIo, Io};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

/// Ends a request when all its parts have ended, with the first failure among them.
pub(super) struct Parts {
    state: Mutex<State>,
}

struct State {
    /// What no part was cut from yet, with the frames of those who wait.
    rest: Option<Io>,
    bufs: SmallVec<[IoBuf; 8]>,
    /// Parts under way, and one while there is a rest.
    left: usize,
    status: BlkStatus,
}

impl Parts {
    pub fn new(io: Io) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                rest: Some(io),
                bufs: SmallVec::new(),
                left: 1,
                status: BlkStatus::Ok,
            }),
        })
    }

    /// The next part, of so many sectors.
    pub fn cut(self: &Arc<Self>, sectors: Sector) -> Option<Io> {
        let mut state = self.state.lock();
        let tag = state.bufs.len() as u64;
        let part = state.rest.as_mut()?.split_front(sectors, self.clone(), tag);
        state.bufs.push(IoBuf::empty());
        state.left += 1;
        Some(part)
    }

    /// Everything has been cut.
    pub fn all_cut(&self) {
        self.ended(None, BlkStatus::Ok);
    }

    fn ended(&self, buf: Option<(usize, IoBuf)>, status: BlkStatus) {
        let mut state = self.state.lock();
        if let Some((index, buf)) = buf {
            state.bufs[index] = buf;
        }
        state.status = state.status.and(status);
        state.left -= 1;
        if state.left > 0 {
            return;
        }
        let (rest, bufs) = (state.rest.take(), std::mem::take(&mut state.bufs));
        let status = state.status;
        drop(state);
        let Some(mut io) = rest else {
            return;
        };
        let mut whole = IoBuf::empty();
        for buf in bufs {
            let joined = whole.unsplit(buf).is_ok();
            debug_assert!(joined, "parts of one buffer");
        }
        io.sectors = Sector::from_bytes(whole.len() as u64);
        io.sector -= io.sectors;
        io.buf = whole;
        io.complete(status);
    }
}

impl EndIo for Parts {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        self.ended(Some((tag as usize, buf)), status);
    }
}
