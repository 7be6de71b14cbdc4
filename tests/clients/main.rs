//! Programs that were written for the kernel's device mapper, unmodified, on thinmap.
//!
//! They look at fixed places (/dev/mapper, /etc/lvm), so the tests take turns. `docs/clients/` says how each is set up.

mod article;
mod containerd;
mod cryptsetup;
mod docker;
mod docker_file_systems;
mod docker_removal;
mod harmless;
mod install_shim;
mod integritysetup;
mod lvm2;
mod lvm2_cache;
mod lvm2_change;
mod lvm2_exchange;
mod lvm2_mirror;
mod lvm2_pvmove;
mod lvm2_raid;
mod lvm2_snapshot;
mod lvm2_thin;
mod lvm2_writecache;
mod multipath;
mod static_program;
mod support;
mod veritysetup;
