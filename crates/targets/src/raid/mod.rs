//! `raid`: md's levels 0, 1, 4, 5, 6 and 10 as device mapper's target, with dm-raid's superblocks and md's bitmap on disk.
//!
//! See `docs/internals/raid.md`.

mod args;
mod array;
mod assemble;
mod bitmap_disk;
mod copies;
mod copies_sync;
mod copies_write;
mod gate;
mod keeper;
mod level;
mod line;
mod members;
mod metadata;
mod parity;
mod raid10;
mod raid_type;
mod regions;
mod setup;
mod status;
mod striped;
mod superblock;
mod sync;
mod transfer;

pub use line::RaidType;
