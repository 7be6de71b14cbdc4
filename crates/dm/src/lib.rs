//! Device mapper's core: tables of targets, mapped devices, suspend and resume, events.
//!
//! It knows targets only by their traits ([`TargetType`], [`Target`]) and devices only as
//! [`BlockDevice`](thinmap_block::BlockDevice)s; never a concrete target, never an export.
#![forbid(unsafe_code)]

mod device_use;
mod environment;
mod error;
pub mod kit;
mod target;

pub use device_use::{DeviceId, DeviceName, DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError};
pub use environment::{Environment, FileSystemFreezer, SharedState, TableEvent};
pub use error::{MessageError, ResumeError, TableError};
pub use target::{
    ConstructCx, DeviceRole, MapOutcome, StatusFlags, StatusKind, Target, TargetArgs,
    TargetFeatures, TargetInfo, TargetType,
};
