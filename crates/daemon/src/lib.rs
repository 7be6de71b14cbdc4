//! The daemon: owns the devices, serves commands, makes devices visible and takes them away again.
//!
//! A library, so that a simulator can run it; `apps/thinmap` is its command.
#![forbid(unsafe_code)]

mod access;
mod config;
mod daemon;
mod devices;
#[cfg(test)]
mod devices_tests;
mod ending;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod keeper;
mod late;
mod lifecycle;
mod native;
mod nbd;
mod nodes;
mod opener;
mod order;
mod privileges;
mod process;
mod question;
mod reaper;
mod resume;
mod service;
mod stand_in;
mod state;
mod state_log;
mod watchdog;
mod without_host;

pub use access::{Access, AccessError, AccessSection};
pub use config::{Config, ConfigError, ConfigFile, ContinuitySection, last_config};
pub use daemon::Daemon;
pub use lifecycle::{RunError, run};
pub use privileges::give_up as give_up_privileges;
pub use question::{VERB as ASK_BACKINGS, answer as answer_for_backings};
