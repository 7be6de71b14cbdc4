//! Simulated devices: memory with a record of what was written, faults and power cuts.
//!
//! For tests only; nothing that ships depends on this crate.
#![forbid(unsafe_code)]

mod sim_metadata_disk;

pub use sim_metadata_disk::{Fault, Loss, SimMetadataDisk};
