//! Exports: ways to give a [`thinmap_block::BlockDevice`] to those who want one. None knows device mapper.

pub mod block_node;
mod dev_node;
pub mod freeze;
mod fuse;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod loop_device;
mod mounts;
pub mod nbd;
mod openers;
pub mod ublk;
