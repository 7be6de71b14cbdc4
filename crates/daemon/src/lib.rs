//! The daemon: owns the devices, serves commands, makes devices visible and takes them away again.
//!
//! A library, so that a simulator can run it; `apps/thinmap` is its command.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod devices;
pub mod keeper;
mod lifecycle;
mod native;
mod nodes;
mod opener;
mod resume;
mod service;
mod state;

pub use config::{Config, ConfigError, ConfigFile, ContinuitySection};
pub use lifecycle::{RunError, run};
