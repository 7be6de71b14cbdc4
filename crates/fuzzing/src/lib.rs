//! What the fuzz targets do with an input: the bodies that libFuzzer drives (`fuzz/`) and that the replay of the corpus runs on
//! stable Rust (`tests/replay.rs`).
//!
//! A body panics when something is wrong; it never asks what libFuzzer is. Devices in here are memory that asserts its bounds
//! ([`world`]), so whatever an input asks for, nothing outside can be touched. See `docs/internals/fuzzing.md`.
#![forbid(unsafe_code)]

pub mod corpus;
mod input;
mod targets;
pub mod world;

pub use input::Input;
pub use targets::{Target, by_name};

/// Every target there is.
pub static ALL: &[Target] = targets::ALL;
