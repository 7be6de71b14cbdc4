//! Simulated devices: memory with a record of what was written, faults and power cuts; and the actors and time of a
//! simulated process.
//!
//! For tests only; nothing that ships depends on this crate.
#![forbid(unsafe_code)]

mod fault_plan;
mod image;
mod image_metadata;
mod medium;
mod sim_disk;
mod sim_executor;
mod sim_metadata_disk;

pub use fault_plan::FaultPlan;
pub use image::{Content, Image, SECTOR, mix};
pub use image_metadata::ImageMetadata;
pub use medium::Medium;
pub use sim_disk::{DiskManners, JUNK, SimDisk};
pub use sim_executor::{SimClock, SimExecutor};
pub use sim_metadata_disk::{Fault, Loss, SimMetadataDisk};
