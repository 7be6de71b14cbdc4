//! The one seam of the data path.

use std::panic::{AssertUnwindSafe, catch_unwind};

use thinmap_units::{BlkStatus, Sector};

use crate::io::{Io, Op};
use crate::limits::QueueLimits;

/// A stretch of a device of one kind, for block-status queries (NBD's base:allocation).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length.
    pub sectors: Sector,
    /// Whether space is allocated for it.
    pub allocated: bool,
    /// Whether it is known to read as zeroes.
    pub zeroes: bool,
}

/// Anything that takes block requests: a file, a mapped device, a simulated disk.
pub trait BlockDevice: Send + Sync {
    /// What requests must look like. Control path: callers cache it per opening.
    fn limits(&self) -> QueueLimits;

    /// Present size. Asks the system anew where the size may have changed (a grown file). Control path.
    fn size(&self) -> Sector;

    /// Takes a request; it completes exactly once, on any thread, maybe before this returns. Never blocks for
    /// long: called from queue threads.
    ///
    /// A flush covers writes that completed before it was submitted.
    fn submit(&self, io: Io);

    /// Whether requests end inside [`submit`](Self::submit) by the caller's own processor time (the kernel's
    /// BLK_FEAT_SYNCHRONOUS): many large ones are then worth spreading over threads.
    fn is_synchronous(&self) -> bool {
        false
    }

    /// Makes `to..to+len` share the content of `from..from+len` inside the device without copying.
    /// Blocking: for worker threads only. [`BlkStatus::NotSupp`] where the backing cannot.
    fn reflink(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        let _ = (from, to, len);
        Err(BlkStatus::NotSupp)
    }

    /// Copies `from..from+len` to `to..to+len` inside the device without taking it through our memory.
    /// Blocking: for worker threads only. [`BlkStatus::NotSupp`] where that is no gain.
    fn copy_range(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        let _ = (from, to, len);
        Err(BlkStatus::NotSupp)
    }

    /// Whether `start..start+len` is known to hold nothing on the medium, and so to read as zeroes. `false` says
    /// nothing. Asks the system: for worker threads only.
    ///
    /// The caller sees to it that no write to the range is in flight.
    fn is_hole(&self, start: Sector, len: Sector) -> bool {
        let _ = (start, len);
        false
    }

    /// Describes `start..start+len` as runs, in order, covering at least the first sector and at most the
    /// range. May read metadata: for export threads' slow path. The default knows nothing: one allocated run.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let _ = start;
        out.push(Extent {
            sectors: len,
            allocated: true,
            zeroes: false,
        });
        Ok(())
    }
}

/// Submits a request that comes from outside. If the device panics this request fails, and those of others go on.
pub fn submit_from_outside(device: &dyn BlockDevice, io: Io) {
    // The request fails as it is dropped.
    if catch_unwind(AssertUnwindSafe(|| device.submit(io))).is_err() {
        tracing::error!("a device has panicked on a request, which failed");
    }
}

/// Whether a request leaves a device of `size`; such a request is failed with [`BlkStatus::IoErr`] like the
/// kernel's "access beyond end of device".
pub fn out_of_range(io: &Io, size: Sector) -> bool {
    io.op != Op::Flush
        && io
            .sector
            .checked_add(io.sectors)
            .is_none_or(|end| end > size)
}
