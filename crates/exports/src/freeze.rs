//! Freezing the file system on a device, so that what lies on the device is consistent: device mapper does this
//! when a device is suspended, and snapshots of mounted volumes depend on it.
//!
//! Blocks until the file system has written everything back to the device, so it must not run on a thread that
//! serves that device.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use thinmap_units::DevNo;

use crate::mounts::{self, MountLine};

/// Freezes the file system that is mounted on `dev`, in whatever mount namespace that no user has made for themselves; no mount
/// is no error.
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

/// A directory, or a file that is a mount point, in the file system that `dev` carries. What is returned is proven to lie in it: to
/// freeze another one would stop what has nothing to do with the device.
fn open_mount_of(dev: DevNo) -> Option<OwnedFd> {
    let on_btrfs: Vec<String> = mounts::btrfs_devices()
        .into_iter()
        .filter(|(_, device)| *device == dev)
        .map(|(id, _)| id)
        .collect();
    for (process, mounts) in mounts::all() {
        let carries = |mount: &MountLine| {
            mount.dev == dev || (mount.fs_type == "btrfs" && !on_btrfs.is_empty())
        };
        let mut candidates = mounts.into_iter().filter(carries).peekable();
        if candidates.peek().is_none() || !mounts::is_ours(&process) {
            continue;
        }
        for mount in candidates {
            let Some(fd) = open_mount(&process, &mount) else {
                continue;
            };
            let is_it = match mount.dev == dev {
                true => {
                    rustix::fs::fstat(&fd).is_ok_and(|stat| DevNo::from_dev_t(stat.st_dev) == dev)
                }
                false => btrfs_id(&fd).is_some_and(|id| on_btrfs.contains(&id)),
            };
            if is_it {
                return Some(fd);
            }
        }
    }
    None
}

/// Opens a mount point, if this mount is what is there: another may lie on top of it, or have come in its place.
fn open_mount(process: &Path, mount: &MountLine) -> Option<OwnedFd> {
    let path = inside(process, &mount.mount_point);
    // What it is comes before what it does when it is opened.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
    let (flags, what) = (
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        StatxFlags::TYPE | StatxFlags::MNT_ID,
    );
    let stat = rustix::fs::statx(&found, "", flags, what).ok()?;
    let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
    if stat.stx_mnt_id != mount.id || !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The id of the btrfs that an open file lies in, as sysfs writes it.
fn btrfs_id(fd: &OwnedFd) -> Option<String> {
    let mut answer = [0u8; BTRFS_FS_INFO_BYTES];
    // SAFETY: the kernel writes one structure of this size, which the request's number holds, to our array.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, answer.as_mut_ptr()) };
    let id = (result == 0).then(|| &answer[BTRFS_FS_ID])?;
    let mut text = String::new();
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    Some(text)
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

/// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`, <linux/btrfs.h>: two numbers of 64 bits, then the id.
const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;
const BTRFS_FS_INFO_BYTES: usize = 1024;
const BTRFS_FS_ID: Range<usize> = 16..32;

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
