//! The daemon: owns the devices, serves commands, makes devices visible and takes them away again.
//!
//! A library, so that a simulator can run it; `apps/thinmap` is its command.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod devices;
mod lifecycle;
mod native;
mod nodes;
mod opener;
mod reaper;
mod service;
mod without_host;

pub use config::{Config, ConfigError, ConfigFile};
pub use daemon::Daemon;
pub use lifecycle::{RunError, run};
