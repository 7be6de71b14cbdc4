//! A FUSE file system of one flat directory with one file per device: the data path of loop devices, and
//! the device itself for users who may not have loop devices.
//!
//! The kernel protocol is spoken directly (`abi`), by queue threads that each own one descriptor of the
//! connection (`queue`) and turn requests into [`thinmap_block::Io`] (`data`). Everything else is `meta`.

mod abi;
mod channel;
mod data;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod meta;
mod mount;
mod nodes;
mod queue;
mod ringing;
mod server;
mod unaligned;
mod uring;

pub(crate) use file::{DeviceFile, Geometry};
pub(crate) use mount::{abort_connection, mounts_at, unmount_lazily};
pub(crate) use nodes::FuseFileNodes;
pub(crate) use queue::Buffers;
pub use server::DESCRIPTOR_NAME;
pub(crate) use server::{FuseServer, answer_for_dead, canonical};
