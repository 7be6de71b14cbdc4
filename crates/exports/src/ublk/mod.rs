//! ublk, the kernel's user-space block driver: so far only the question whether the kernel has it.
//!
//! COMPAT: device files of the driver as of Linux 6.0 and later.

use std::path::Path;

/// What keeps ublk from being used.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The driver is not there.
    #[error(
        "{CONTROL} does not exist: the kernel has no ublk driver, or it is not loaded (modprobe ublk_drv)"
    )]
    NoDriver,
    /// The driver is there, but this build has no data path for it.
    #[error("the kernel has ublk, but this version serves block devices through loop devices only")]
    NotServed,
}

/// Why ublk is not used: this version has no data path for it, so there is always a reason.
pub fn why_not() -> Missing {
    if Path::new(CONTROL).exists() {
        Missing::NotServed
    } else {
        Missing::NoDriver
    }
}

const CONTROL: &str = "/dev/ublk-control";
