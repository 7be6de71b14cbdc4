//! A write, discard or write-zeroes on its way to all copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::copies::Places;
use super::members::Members;

/// See the module.
pub(super) struct Writing {
    members: Arc<Members>,
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
    pub fn start(members: &Arc<Members>, places: Places, mut io: Io) {
        let mut places: Places = places
            .into_iter()
            .filter(|(member, _)| members.is_writable(*member))
            .collect();
        let Some((last, last_sector)) = places.pop() else {
            members.answer(io, BlkStatus::IoErr);
            return;
        };
        let writing = Arc::new(Self {
            members: members.clone(),
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
                if !self.members.fail(member) {
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
            self.members.answer(io, self.status());
        }
    }
}
