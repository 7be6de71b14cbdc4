//! End-to-end tests: the real binary, real block devices, real file systems.
//!
//! Each test lives in a [`world::World`] of its own (run directory, device directory, files) and leaves nothing behind,
//! also when it fails. They need root, loop and FUSE; where one is missing they say `SKIP` and why.

mod awkward;
mod bad_input;
mod cache;
mod continuity;
mod deletion;
mod encrypted;
mod file_systems;
mod fio;
mod flush_log;
mod full;
#[cfg(target_arch = "x86_64")]
mod hang;
mod integrity;
mod kept;
mod keys;
mod kill;
mod late;
mod many;
mod memory;
mod mirrors;
mod multipath;
mod nbd;
mod raid;
mod restart;
mod security;
mod session;
mod snapshots;
#[cfg(target_arch = "x86_64")]
mod spin;
mod start;
mod test_targets;
mod thin_tools;
mod tools_in_use;
mod uring;
mod user;
mod verify;
mod writecache;
use thinmap_tests::world;
