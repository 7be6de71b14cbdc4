//! `thinmap run --static`: system calls that concern device mapper are performed by a supervisor, by way of
//! seccomp user notification, for programs into which nothing can be preloaded.
//!
//! The program installs the filter on itself right before it is executed ([`submit`]) and keeps its process id, its terminal and
//! its exit status. The supervisor ([`serve`]) is another process, which ends with the last process under the filter. See
//! `docs/internals/interposition.md`.

mod call;
mod filter;
mod handover;
mod listener;
mod perform;
mod remote;
mod serve;

pub use handover::submit;
pub use serve::serve;
