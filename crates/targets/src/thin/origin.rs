//! External origins: what unmapped blocks of a volume read as, also when the origin is smaller.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, EndIo, Io};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::Port;

/// How an unmapped read is served.
pub(crate) enum OriginRead<'a> {
    /// There is no origin there: the request is to be filled with zeroes.
    Zeroes(Io),
    /// This request goes to the origin; the guest's ends with it.
    Submit(Io, &'a Arc<dyn BlockDevice>),
}

impl Port {
    /// Serves a read of an unmapped place.
    pub(crate) fn origin_read(&self, mut io: Io) -> OriginRead<'_> {
        let Some(origin) = &self.origin else {
            return OriginRead::Zeroes(io);
        };
        let (at, size) = (self.virtual_sector(&io), self.origin_size());
        if at >= size {
            return OriginRead::Zeroes(io);
        }
        io.sector = at;
        if at + io.sectors <= size {
            return OriginRead::Submit(io, &origin.dev);
        }
        // Its end lies beyond the origin's: only the front is read, the rest is zeroes.
        let straddle = Arc::new(Straddle {
            rest: Mutex::new(None),
        });
        let front = io.split_front(size - at, straddle.clone(), 0);
        io.buf.as_mut_slice().fill(0);
        *straddle.rest.lock() = Some(io);
        OriginRead::Submit(front, &origin.dev)
    }

    fn origin_size(&self) -> Sector {
        Sector(self.origin_size.load(Ordering::SeqCst))
    }

    /// Where the origin's part of the block at `begin` lies, and how long it is; `None` without one.
    pub(crate) fn origin_source(
        &self,
        begin: Sector,
        block: Sector,
    ) -> Option<(Arc<dyn BlockDevice>, Sector)> {
        let origin = self.origin.as_ref()?;
        let size = self.origin_size();
        (begin < size).then(|| (origin.dev.clone(), block.min(size - begin)))
    }
}

/// A read whose front is at the origin.
struct Straddle {
    rest: Mutex<Option<Io>>,
}

impl EndIo for Straddle {
    fn end_io(self: Arc<Self>, mut front: Io, _tag: u64, status: BlkStatus) {
        let Some(mut io) = self.rest.lock().take() else {
            return;
        };
        let mut buf = std::mem::replace(&mut front.buf, IoBuf::empty());
        let rest = std::mem::replace(&mut io.buf, IoBuf::empty());
        let joined = buf.unsplit(rest).is_ok();
        io.sectors = Sector::from_bytes(buf.len() as u64);
        io.buf = buf;
        debug_assert!(joined, "both parts come from one buffer");
        io.complete(status);
    }
}
