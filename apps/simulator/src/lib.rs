//! The simulator: the whole daemon, single-threaded, from one seed, with an oracle. See `docs/internals/simulator.md`.
#![forbid(unsafe_code)]

mod alone;
mod commands;
mod cut;
mod oracle;
mod run;
mod swarm;
mod world;

pub use alone::{Kind, run_alone};
pub use run::{Outcome, run, run_mirrored, run_short};
pub use swarm::Swarm;

/// Whether runs print what happens in them.
pub fn set_log(on: bool) {
    world::LOG.store(on, std::sync::atomic::Ordering::Relaxed);
}
