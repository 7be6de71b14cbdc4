//! `mirror`: the same content on several devices (legs), with a log of the regions in which they may differ.
//!
//! See `docs/internals/mirror-log.md` for the log's format, the states of a region and the order of writes.

mod args;
mod bits;
mod disk_log;
mod legs;
mod line;
mod log;
mod recovery;
mod regions;
mod set;
mod worker;
mod write;

pub use line::MirrorType;

const NAME: &str = "mirror";
