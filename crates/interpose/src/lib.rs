//! Device mapper as a program sees it that was written for the kernel's: which paths and which ioctls are
//! answered by the daemon instead of the kernel, and with what.
//!
//! Two ways in use it: the shim (`apps/shim`), inside the program, and the supervisor of `thinmap run --static`, beside
//! it. Both hand over the same paths and the same memory addresses, so both give the same answers. See
//! `docs/internals/interposition.md`.
#![deny(unsafe_code)]

mod caller;
mod capability;
mod cookie;
mod face;
mod foreign;
mod holders;
mod ioctl;
mod keyring;
mod proc_files;
mod renamed;
mod sysfs;
mod world;

pub use caller::{Caller, ProcessMemory, ThisThread};
pub use capability::{CAP_DAC_OVERRIDE, CAP_SYS_ADMIN, effective_capabilities, status_field};
pub use face::{Face, NodeKind};
pub use ioctl::is_dm_ioctl;
pub use keyring::asks_for_logon_keys;
pub use proc_files::read_kernels;
pub use world::World;
