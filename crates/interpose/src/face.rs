//! Which paths look different to a program that looks for device mapper.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, MemfdFlags, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use crate::holders;
use crate::proc_files;
use crate::sysfs;
use crate::world::{CONTROL_MAJOR, CONTROL_MINOR, World};

const PROC_MISC: &[u8] = b"/proc/misc";
const PROC_DEVICES: &[u8] = b"/proc/devices";
/// Where a kernel with dm-cache shows its policy: lvm2 looks, and loads the module if there is nothing.
const POLICY_MODULE: &[u8] = b"/sys/module/dm_cache_smq";
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// What stands at a path in place of what the kernel has there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Face {
    /// Device mapper's control node.
    Control,
    /// A read-only file with these bytes.
    Text(Vec<u8>),
    /// A directory with entries of these names.
    Directory(Vec<String>),
}

/// What `stat` tells of a face.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeKind {
    /// Type and permissions.
    pub mode: u32,
    /// Of a device, its numbers; otherwise 0.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
}

impl Face {
    /// What `stat` tells of it.
    pub fn node_kind(&self) -> NodeKind {
        let file = |mode, major, minor| NodeKind { mode, major, minor };
        match self {
            Self::Control => file(S_IFCHR | 0o600, CONTROL_MAJOR, CONTROL_MINOR),
            Self::Text(_) => file(S_IFREG | 0o444, 0, 0),
            Self::Directory(_) => file(S_IFDIR | 0o555, 0, 0),
        }
    }

    /// Whether `access` grants `mode` (R_OK, W_OK, X_OK) on it.
    pub fn grants(&self, mode: Access) -> bool {
        let is_directory = matches!(self, Self::Directory(_));
        let may_write = *self == Self::Control || !mode.contains(Access::WRITE_OK);
        may_write && (is_directory || !mode.contains(Access::EXEC_OK))
    }

    /// Opens what it shows in `world`, always to be closed at an exec.
    ///
    /// COMPAT: O_PATH opens it too; the kernel would give a descriptor that takes no ioctl.
    pub fn open(&self, world: &World, flags: OFlags) -> Result<OwnedFd, Errno> {
        if flags.contains(OFlags::CREATE | OFlags::EXCL) {
            return Err(Errno::EXIST);
        }
        if flags.contains(OFlags::DIRECTORY) && !matches!(self, Self::Directory(_)) {
            return Err(Errno::NOTDIR);
        }
        match self {
            Self::Directory(names) => holders::directory(names),
            Self::Control => {
                let fd = world.open_control()?;
                if flags.contains(OFlags::NONBLOCK) {
                    rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK)?;
                }
                Ok(fd)
            }
            Self::Text(text) => text_file(text),
        }
    }
}

/// A file that is nowhere, holds `text` and takes no other.
fn text_file(text: &[u8]) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create(c"thinmap", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = text;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::seek(&fd, SeekFrom::Start(0))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::GROW)?;
    Ok(fd)
}

impl World {
    /// Whether the path may have a face, or a removal to be left out: a quick answer for the many that have none.
    pub fn concerns(&self, path: &Path) -> bool {
        let bytes = path.as_os_str().as_bytes();
        let in_sysfs = bytes.starts_with(b"/sys/")
            && path.parent().is_some_and(|parent| parent.ends_with("dm"));
        self.is_control(path)
            || holders::concerns(path)
            || bytes == PROC_MISC
            || bytes == PROC_DEVICES
            || bytes == POLICY_MODULE
            || in_sysfs
            || self.renamed.concerns(path)
    }

    /// The face of an absolute path that stands before whatever the kernel has there.
    pub fn face(&self, path: &Path) -> Option<Face> {
        if self.is_control(path) {
            return Some(Face::Control);
        }
        let text = match path.as_os_str().as_bytes() {
            PROC_MISC => proc_files::misc(),
            PROC_DEVICES => proc_files::devices(&self.majors()),
            _ => None,
        };
        text.map(Face::Text)
    }

    /// The face of an absolute path at which the kernel has nothing.
    pub fn face_of_missing(&self, path: &Path) -> Option<Face> {
        if self.is_control(path) {
            return Some(Face::Control);
        }
        if let Some(names) = holders::holders(self, path) {
            return Some(Face::Directory(names));
        }
        if path.as_os_str().as_bytes() == POLICY_MODULE {
            return Some(Face::Directory(Vec::new()));
        }
        sysfs::attribute(self, path).map(Face::Text)
    }
}
