//! Device mapper's core: tables of targets, mapped devices, suspend and resume, events.
//!
//! It knows targets only by their traits ([`TargetType`], [`Target`]) and devices only as
//! [`BlockDevice`](thinmap_block::BlockDevice)s; never a concrete target, never an export.
#![forbid(unsafe_code)]

mod claims;
mod device_use;
mod environment;
mod error;
mod event;
mod io;
pub mod kit;
mod mapped_device;
mod registry;
mod suspend;
mod table;
mod target;

pub use claims::OpenClaim;
pub use device_use::{DeviceId, DeviceName, DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError};
pub use environment::{Environment, FileSystemFreezer, KeptMemory, MemoryKeeper, SharedState};
pub use error::{MessageError, ResumeError, TableError};
pub use event::{GlobalEvents, TableEvent, Watcher, Watching};
pub use mapped_device::{
    DeviceError, DeviceFacts, MappedDevice, TableFacts, TargetStatus, WhichTable,
};
pub use registry::Registry;
pub use suspend::SuspendFlags;
pub use target::{
    ConstructCx, DeviceRole, MapOutcome, StatusFlags, StatusKind, Target, TargetArgs,
    TargetFeatures, TargetInfo, TargetType,
};
pub use thinmap_units::{TableLine, split_args};
