//! `raid`: md's levels 0, 1, 4, 5, 6 and 10 as device mapper's target, with dm-raid's superblocks and md's bitmap on disk.
//!
//! See `docs/internals/raid.md`.

mod level;
mod members;
