//! The block layer: one trait that backings, mapped devices and simulated disks all are.
//!
//! A request ([`Io`]) is owned by whoever works on it, goes down a stack of devices and comes back
//! up the same way, exactly once, with its buffer.
#![forbid(unsafe_code)]

pub mod backing;
mod device;
mod io;
mod limits;
mod queue;
mod sync;

pub use device::{BlockDevice, Extent, out_of_range, submit_from_outside};
pub use io::{EndIo, Io, IoFlags, Op};
pub use limits::{QueueLimits, SECTORS_UNLIMITED};
pub use queue::{
    QueueHandle, QueueHandler, Turn, leave_large_copies, on_queue_thread, spawn_queue,
};
pub use sync::{flush, read, submit_all_and_wait, submit_and_wait, write};
