//! `thin-pool`: metadata and data devices that together hold thin volumes and their snapshots.
//!
//! # The life of a request
//!
//! A volume's request enters at [`crate::thin`], which looks its block up without waiting. Mapped to a block of its own (or
//! read from any): it goes to the data device at once, counted in the pool's deferred sets. Everything else is handed to
//! the pool's one worker: a block to be provisioned, a shared block to be copied before it is written, discards, flushes
//! that need a commit, lookups that need the metadata device.
//!
//! # Why it is safe
//!
//! - A block that somebody works on is a held cell ([`Prison`](thinmap_dm::kit::Prison)): requests to it wait there. So a guest never sees
//!   half a copy, and two writes never provision one block twice.
//! - Snapshots share blocks. A shared block is never written: the writer gets a new block, and its old one loses a
//!   reference. Whether a block is shared is told by times: mapped before the volume's last snapshot. A block may be taken for
//!   shared after its other owner has gone; it is then copied once more than needed, as in the kernel.
//! - The metadata is copy-on-write too. A commit is all or nothing; before it the data device is flushed, so whatever
//!   a durable mapping points to is durable. Guests' flushes and writes with FUA wait for such a commit, all in one.
//! - A block that was freed is not used again before the commit that frees it is durable (the metadata engine sees
//!   to that), and not freed while requests on it are in flight (cells plus deferred sets).
//! - create_snap does not need a suspended origin: writes that looked up before it are part of the snapshot and have
//!   ended when the message is answered; later ones break sharing.
//! - When metadata fails, the transaction is given up and the pool no longer writes: `docs/internals/failure-modes.md`.
//!
//! # Where is what
//!
//! `args` the table line; `target` what device mapper sees; `pool` what is shared; `mode` the failure modes; `message`,
//! `status` words in and out; `worker` everything that changes something; `journal` what a crash of the
//! daemon must not undo; `metadata_dev` the door of the metadata engine.

mod args;
mod journal;
mod lost;
mod message;
mod metadata_dev;
mod mode;
pub(crate) mod pool;
mod status;
mod target;
#[cfg(test)]
mod tests;
mod tuning;
mod worker;

pub(crate) use metadata_dev::BlockMetadataDevice;
pub use mode::Mode;
pub use target::ThinPoolType;
pub use tuning::{PoolTuning, Sizes};
