//! One request to several devices: a flush on a striped device, a discard over all its stripes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use crate::io::combine;

/// Ends a request when a known number of parts has ended, with the first failure among them.
pub struct FanOut {
    op: Op,
    flags: thinmap_block::IoFlags,
    left: AtomicUsize,
    state: Mutex<(Option<Io>, BlkStatus)>,
}

impl FanOut {
    /// Waits for `parts` parts of `io`, at least one, which carry no data.
    pub fn new(io: Io, parts: usize) -> Arc<Self> {
        debug_assert!(parts > 0, "a request in no parts never ends");
        Arc::new(Self {
            op: io.op,
            flags: io.flags,
            left: AtomicUsize::new(parts),
            state: Mutex::new((Some(io), BlkStatus::Ok)),
        })
    }

    /// One part: the same operation on `sectors` at `sector`.
    pub fn part(self: &Arc<Self>, sector: Sector, sectors: Sector) -> Io {
        let mut io = Io::new(self.op, sector, sectors, IoBuf::empty(), self.clone(), 0);
        io.flags = self.flags;
        io
    }

    /// One part of a flush, which has no range.
    pub fn flush(self: &Arc<Self>) -> Io {
        self.part(Sector::ZERO, Sector::ZERO)
    }
}

impl EndIo for FanOut {
    fn end_io(self: Arc<Self>, _: Io, _: u64, status: BlkStatus) {
        if !status.is_ok() {
            let mut state = self.state.lock();
            state.1 = combine(state.1, status);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let (io, status) = std::mem::replace(&mut *self.state.lock(), (None, BlkStatus::Ok));
            if let Some(io) = io {
                io.complete(status);
            }
        }
    }
}
