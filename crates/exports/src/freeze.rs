//! Freezing the file system on a device, so that what lies on the device is consistent: device mapper does this
//! when a device is suspended, and snapshots of mounted volumes depend on it.
//!
//! Blocks until the file system has written everything back to the device, so it must not run on a thread that
//! serves that device.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use thinmap_units::DevNo;

/// Freezes the file system that is mounted on `dev`, in whatever mount namespace; no mount is no error.
///
/// One that somebody else has frozen already is left to them. One that cannot freeze is written back instead.
/// An errno when the kernel refuses.
pub fn freeze(dev: DevNo) -> Result<(), i32> {
    let Some(fd) = open_mount_of(dev) else {
        return Ok(());
    };
    if let Some(holder) = HOLDER.get() {
        return holder.freeze(dev, fd);
    }
    match freeze_mounted(&fd) {
        Ok(()) => {
            FROZEN.lock().insert(dev, fd);
            Ok(())
        }
        Err(libc::EBUSY) => Ok(()),
        Err(libc::EOPNOTSUPP | libc::EINVAL) => {
            rustix::fs::syncfs(&fd).map_err(|errno| errno.raw_os_error())
        }
        Err(errno) => Err(errno),
    }
}

/// Another process that freezes in this one's place: a thread that waits in the kernel for its own process to write something back
/// would keep that process, once killed, from ending.
pub trait FreezeHolder: Send + Sync {
    /// Freezes what `fd` lies in and holds it, with the answers of [`freeze`].
    fn freeze(&self, dev: DevNo, fd: OwnedFd) -> Result<(), i32>;

    /// Takes that back; nothing when it was not frozen.
    fn thaw(&self, dev: DevNo);
}

/// From now on `holder` freezes and thaws.
pub fn set_holder(holder: Arc<dyn FreezeHolder>) {
    let _ = HOLDER.set(holder);
}

/// Freezes the file system that an open file lies in. An errno when the kernel refuses.
pub fn freeze_mounted(fd: &OwnedFd) -> Result<(), i32> {
    ioctl(fd, FIFREEZE)
}

/// Thaws the file system that an open file lies in. An errno when it was not frozen or the kernel refuses.
pub fn thaw_mounted(fd: &OwnedFd) -> Result<(), i32> {
    ioctl(fd, FITHAW)
}

/// Takes back what [`freeze`] did; nothing otherwise.
pub fn thaw(dev: DevNo) {
    if let Some(holder) = HOLDER.get() {
        return holder.thaw(dev);
    }
    let Some(fd) = FROZEN.lock().remove(&dev) else {
        return;
    };
    // EINVAL: an administrator thawed it.
    if let Err(errno) = thaw_mounted(&fd)
        && errno != libc::EINVAL
    {
        tracing::error!(%dev, errno, "a frozen file system cannot be thawed");
    }
}

/// A directory in the file system that `dev` carries.
fn open_mount_of(dev: DevNo) -> Option<OwnedFd> {
    for (process, mounts) in crate::openers::all_mounts() {
        for mount in mounts {
            let by_source = mount.dev.major == 0 && is_source(&mount.source, dev);
            if mount.dev != dev && !by_source {
                continue;
            }
            let path = inside(&process, &mount.mount_point);
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) else {
                continue;
            };
            // Another mount may lie on top of this one.
            let same = rustix::fs::fstat(&fd)
                .is_ok_and(|stat| by_source || DevNo::from_dev_t(stat.st_dev) == mount.dev);
            if same {
                return Some(fd);
            }
        }
    }
    None
}

fn is_source(source: &Path, dev: DevNo) -> bool {
    source.starts_with("/dev")
        && rustix::fs::stat(source).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::BlockDevice
                && DevNo::from_dev_t(stat.st_rdev) == dev
        })
}

/// A path as another process sees it.
fn inside(process: &Path, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    process.join("root").join(relative)
}

fn ioctl(fd: &OwnedFd, request: libc::c_ulong) -> Result<(), i32> {
    // SAFETY: both requests take no argument (the kernel ignores it) and touch no memory of ours.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, 0) } == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO))
}

/// File systems that we froze: the descriptor keeps each mounted until it is thawed.
static HOLDER: OnceLock<Arc<dyn FreezeHolder>> = OnceLock::new();

static FROZEN: LazyLock<Mutex<HashMap<DevNo, OwnedFd>>> = LazyLock::new(Mutex::default);

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`, <linux/fs.h>.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_mounted_is_nothing_to_freeze() {
        let dev = DevNo::new(7, 0xf_fff0);
        assert_eq!(freeze(dev), Ok(()));
        thaw(dev);
    }
}
