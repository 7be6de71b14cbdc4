//! `libthinmap_dm.so`: preloaded into a program, it answers what the program asks of the kernel's device mapper.
//!
//! It stands before a handful of libc functions, not before libdevmapper's: lvm2 carries a copy of that library inside.
//! Every other call goes on to the next library after a comparison or two; see `docs/internals/interposition.md`.
//!
//! INVARIANT: a function here never fails where the kernel's would have succeeded, keeps no lock while it asks the daemon, and
//! changes nothing in the process: no signal handler, no thread, no descriptor that outlives the call unless it is the result.

mod answer;
mod environment;
mod ioctl;
mod keyring;
mod next;
mod open;
mod stat;
mod state;
mod unlink;
