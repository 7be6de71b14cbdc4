//! Mounting and unmounting: mount(2) for root, the setuid helper fusermount3 for everybody else.

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("{FUSE_DEVICE}: {0} (is the fuse module loaded, and may this user open it?)")]
    Device(Errno),
    #[error("{path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("mount on {path}: {errno}")]
    Mount { path: PathBuf, errno: Errno },
    #[error("not allowed to mount, and {0}")]
    Helper(String),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Mounts an empty FUSE file system on `dir`; the descriptor is its connection.
pub(crate) fn mount(dir: &Path) -> Result<OwnedFd, MountError> {
    std::fs::create_dir_all(dir).map_err(|source| MountError::Directory {
        path: dir.to_owned(),
        source,
    })?;
    let fd = open_device().map_err(MountError::Device)?;
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,subtype=thinmap",
        fd.as_raw_fd()
    );
    let options = CString::new(options).expect("no NUL in numbers");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match rustix::mount::mount("thinmap", dir, "fuse", flags, options.as_c_str()) {
        Ok(()) => Ok(fd),
        Err(Errno::PERM | Errno::ACCESS) => mount_by_helper(dir),
        Err(errno) => Err(MountError::Mount {
            path: dir.to_owned(),
            errno,
        }),
    }
}

/// One more descriptor of the same connection.
pub(crate) fn clone_connection(fd: &OwnedFd) -> Result<OwnedFd, MountError> {
    let other = open_device().map_err(MountError::Device)?;
    let mut session = fd.as_raw_fd();
    // SAFETY: the ioctl reads one 32-bit descriptor number at the address, which is ours.
    let result = unsafe {
        libc::ioctl(
            other.as_raw_fd(),
            super::abi::DEV_IOC_CLONE,
            &raw mut session,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(other)
}

/// Takes the mount out of the tree now; it ends when its last user lets go.
pub(crate) fn unmount_lazily(dir: &Path) -> Result<(), String> {
    match rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => {
            let status = Command::new(HELPER)
                .args(["-u", "-z", "-q", "--"])
                .arg(dir)
                .stdin(Stdio::null())
                .status();
            match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(format!("{HELPER} -u: {status}")),
                Err(error) => Err(format!("{HELPER}: {error}")),
            }
        }
        Err(errno) => Err(errno.to_string()),
    }
}

/// Device numbers (of the file system, as in stat's `st_dev`) of FUSE mounts exactly at `dir`.
pub(crate) fn mounts_at(dir: &Path) -> Vec<thinmap_units::DevNo> {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else {
        return Vec::new();
    };
    crate::mounts::parse(&table)
        .into_iter()
        .filter(|mount| mount.mount_point == dir && mount.fs_type.starts_with("fuse"))
        .map(|mount| mount.dev)
        .collect()
}

/// Ends a connection for all who have it open. Where nobody has mounted fusectl (containers) it is mounted below `dir` for the moment.
pub(crate) fn abort_connection(minor: u32, dir: &Path) -> std::io::Result<()> {
    let write = |at: &Path| std::fs::write(at.join(format!("{minor}/abort")), "1");
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mounts = crate::mounts::parse(&table);
    if let Some(control) = mounts.iter().find(|mount| mount.fs_type == "fusectl") {
        return write(&control.mount_point);
    }
    let at = dir.join("fusectl");
    std::fs::create_dir_all(&at)?;
    let none = CString::default();
    rustix::mount::mount("none", &at, "fusectl", MountFlags::empty(), none.as_c_str())?;
    let written = write(&at);
    let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
    let _ = std::fs::remove_dir(&at);
    written
}

fn open_device() -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        FUSE_DEVICE,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

/// fusermount3 mounts for us and sends the descriptor over the socket that `_FUSE_COMMFD` names.
fn mount_by_helper(dir: &Path) -> Result<OwnedFd, MountError> {
    // The helper's end must survive exec; so it is not close-on-exec, for the short time until it is dropped.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(std::io::Error::from)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let output = Command::new(HELPER)
        .args([
            "-o",
            "rw,nosuid,nodev,default_permissions,fsname=thinmap,subtype=thinmap",
            "--",
        ])
        .arg(dir)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            MountError::Helper(format!("{HELPER} cannot be run: {error} (package fuse3)"))
        })?;
    drop(theirs);
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(MountError::Helper(format!(
            "{HELPER} failed: {}",
            text.trim()
        )));
    }
    let fd = receive_descriptor(&ours)
        .ok_or_else(|| MountError::Helper(format!("{HELPER} sent no descriptor")))?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(std::io::Error::from)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(std::io::Error::from)?;
    Ok(fd)
}

fn receive_descriptor(socket: impl AsFd) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )
    .ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

const FUSE_DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
