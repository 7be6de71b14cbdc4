//! A thin pool's metadata in the format of Linux `dm-thin-metadata.c` (thin-pool 1.22), read and
//! write.
//!
//! [`PoolMetadata`] is a synchronous engine over a [`MetadataDevice`]: no threads, no async. The
//! pool keeps it in a reader-writer lock; `&self` methods may run concurrently.
//!
//! What is where: `superblock` the root of everything; `device_details` what is known of each
//! volume; `mapping` the two-level tree from (volume, block) to data block; `pool_metadata` opening
//! and facts; `deletion` large volumes taken down in steps; `transaction` changes, commit, abort;
//! `metadata_snap` the held root; [`check`] an offline check of the whole image.
#![forbid(unsafe_code)]

mod check;
mod deletion;
mod device_details;
mod headroom;
mod mapping;
mod metadata_snap;
mod pool_metadata;
mod superblock;
mod transaction;
mod volumes;

pub use check::{Finding, check};
pub use deletion::{Deletion, DeletionStep};
pub use device_details::DeviceDetails;
pub use mapping::{Lookup, Run};
pub use pool_metadata::{OpenOptions, PoolMetadata};
pub use superblock::{SUPERBLOCK_MAGIC, Superblock};
pub use transaction::PoolCommit;

pub use thinmap_persistent_data::{
    Block4k, ErrorKind, METADATA_BLOCKS_MAX, MayRead, MetadataDevice, MetadataError, Result, Space,
};
