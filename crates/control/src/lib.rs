//! The control protocol: the kernel's device-mapper ioctl interface (version 4) over a Unix socket.
//!
//! A request is a command number and the very buffer that a program would give to `ioctl(2)` on
//! `/dev/mapper/control`, so that raw ioctls can be forwarded unchanged; beside it there are a few
//! native requests in JSON ([`native`]). The daemon implements [`DmService`] and [`NativeService`] and
//! runs a [`server`]; commands use [`client`].
#![forbid(unsafe_code)]

mod answer;
pub mod client;
#[cfg(test)]
mod codec_tests;
mod decode;
mod dispatch;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod ioctl;
#[cfg(test)]
mod kernel_rules_tests;
pub mod native;
mod request;
mod response;
mod run_dir;
pub mod server;
mod service;

pub use client::{CallError, Client, Forwarded};
pub use dispatch::{apply, check_version, dispatch};
pub use frame::BODY_BYTES_MAX;
pub use native::NativeService;
pub use request::Request;
pub use response::Response;
pub use run_dir::{
    SYSTEMS_DEV_DIR, SYSTEMS_RUN_DIR, control_socket, default_dev_dir, default_run_dir,
};
pub use server::{ControlService, RunningServer, Server, ServerError};
pub use service::{
    CancelToken, DeviceDeps, DeviceInfo, DeviceListEntry, DeviceSelector, DeviceStatus, DmError,
    DmService, Geometry, Removal, StatusKind, StatusQuery, SuspendOptions, TableInfo,
    TargetVersion,
};
pub use thinmap_units::{TableLine, split_args};
