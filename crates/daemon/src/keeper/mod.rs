//! Continuity: a small process that starts the daemon, holds what must outlive it, and starts the next one.
//!
//! [`process`] is that process, [`binary`] what it starts, [`dead`] how it sees a daemon off, [`freezes`] its account of frozen file systems; [`link`] is the daemon's end of the socket between
//! them; [`message`] is what they say. See `docs/internals/continuity.md`.

mod binary;
mod dead;
mod freezes;
pub mod link;
pub(crate) mod message;
pub mod process;
