//! What a killed daemon left: the kernel has stopped its devices by itself, but they are there until deleted.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{ControlCommand, DeviceInfo, STATE_DEAD, control};
use super::driver::{Driver, Kernel};
use super::{block_path, device::FEATURES_NEEDED};
use crate::mounts;

/// Devices of an earlier daemon with the same run directory, deleted; and mounts that still lie on them. Never while
/// a daemon of this run directory lives.
pub(crate) fn clean_stale(run_dir: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let Ok(driver) = Kernel::open() else {
        return Default::default();
    };
    let deleted = clean_stale_on(&driver, run_dir);
    if deleted.is_empty() {
        return Default::default();
    }
    let mut mounts: Vec<_> = mounts::all()
        .into_iter()
        .flat_map(|(_, mounts)| mounts)
        .filter(|mount| deleted.contains(&mount.source))
        .map(|mount| mount.mount_point)
        .collect();
    mounts.dedup();
    for device in &deleted {
        tracing::warn!(device = %device.display(), "deleted a ublk device of an earlier daemon");
    }
    for mount in &mounts {
        tracing::error!(mount_point = %mount.display(),
            "still mounted on a device of an earlier daemon: unmount it, every access fails");
    }
    (deleted, mounts)
}

pub(super) fn clean_stale_on(driver: &dyn Driver, run_dir: &Path) -> Vec<PathBuf> {
    let ours = mark(run_dir);
    let mut deleted = Vec::new();
    for id in driver.ids() {
        let mut info = DeviceInfo::default();
        let asked = driver.control(
            control::INFO,
            ControlCommand::new(id, 0),
            info.as_mut_bytes(),
        );
        let is_ours = info.server_flags == ours && info.flags & FEATURES_NEEDED == FEATURES_NEEDED;
        if asked.is_err() || !is_ours {
            continue;
        }
        let command = |op| driver.control(op, ControlCommand::new(id, 0), &mut []);
        // Not dead yet: the kernel is just about to notice the end of its server.
        let stopped = if info.state == STATE_DEAD {
            Ok(0)
        } else {
            command(control::STOP)
        };
        match stopped.and_then(|_| command(control::DELETE_ASYNC)) {
            Ok(_) => {
                driver.hide(id);
                deleted.push(block_path(id));
            }
            Err(Errno::NODEV) => {}
            Err(errno) => {
                tracing::error!(device = %block_path(id).display(), %errno, "cannot be deleted");
            }
        }
    }
    deleted
}

/// What the devices of a daemon with this run directory carry in the kernel (FNV-1a of its path, 64 bits).
pub(super) fn mark(run_dir: &Path) -> u64 {
    let dir = std::fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let bytes = b"thinmap\0".iter().chain(dir.as_os_str().as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
