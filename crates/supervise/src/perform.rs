//! A stopped call, performed: the same answers as the shim gives, by way of `thinmap_interpose::World`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags};
use rustix::io::Errno;
use thinmap_interpose::{Caller, Face, NodeKind, World};

use crate::call::{Call, Flags, Into, PathCall};
use crate::listener::Pending;
use crate::remote::Remote;

/// A stopped call that may be ours.
pub enum Work {
    OnPath(PathBuf, PathCall),
    Ioctl {
        fd: i32,
        request: u32,
        argument: u64,
    },
    /// The question whether the kernel keeps keys.
    AskForKeys,
}

impl Work {
    /// `None` for what the kernel is to perform; quick, for most calls are of this kind.
    pub fn of(pending: &Pending, world: &World) -> Option<Self> {
        match Call::decode(pending.data())? {
            Call::OnPath { path, call } => {
                let path = Remote(pending).path(path).ok()?;
                let path = Path::new(OsStr::from_bytes(&path));
                world
                    .concerns(path)
                    .then(|| Self::OnPath(path.to_owned(), call))
            }
            Call::Ioctl {
                fd,
                request,
                argument,
            } => Some(Self::Ioctl {
                fd,
                request,
                argument,
            }),
            Call::RequestKey { kind, description } => {
                thinmap_interpose::asks_for_logon_keys(&Remote(pending), kind, description)
                    .then_some(Self::AskForKeys)
            }
        }
    }

    /// Performs it or leaves it to the kernel. May wait for the daemon.
    pub fn perform(self, pending: Pending, world: &World) {
        match self {
            Self::OnPath(path, PathCall::Unlink) => {
                if world.keeps_node(&path) {
                    pending.answer(Ok(()));
                }
            }
            Self::OnPath(path, PathCall::Open(flags)) => open(pending, world, &path, flags),
            Self::OnPath(path, PathCall::Look(into)) => {
                look(pending, world, &path, |face, caller| {
                    describe(face, into, caller)
                })
            }
            Self::OnPath(path, PathCall::Access { mode }) => {
                let mode = Access::from_bits_retain(mode);
                look(pending, world, &path, |face, _| {
                    if face.grants(mode) {
                        Ok(())
                    } else {
                        Err(Errno::ACCESS)
                    }
                });
            }
            Self::Ioctl {
                fd,
                request,
                argument,
            } => {
                ioctl(pending, world, fd, request, argument);
            }
            Self::AskForKeys => pending.answer(Err(Errno::NOSYS)),
        }
    }
}

fn open(pending: Pending, world: &World, path: &Path, flags: Flags) {
    let caller = Remote(&pending);
    let face = world
        .face(path)
        .or_else(|| caller.misses(path).then(|| world.face_of_missing(path))?);
    let Some(face) = face else {
        return pending.pass();
    };
    let flags = match flags {
        Flags::Value(flags) => Ok(flags),
        Flags::At(address) => {
            // Both machines that this is built for have the low byte first.
            let mut bytes = [0; 8];
            caller
                .read(address, &mut bytes)
                .map(|()| u64::from_le_bytes(bytes))
        }
    };
    let open = |flags| {
        if face == Face::Control && !caller.may_open_control() {
            return Err(Errno::ACCESS);
        }
        let fd = face.open(world, OFlags::from_bits_retain(flags as u32))?;
        Ok((flags, fd))
    };
    match flags.and_then(open) {
        Ok((flags, fd)) => pending.answer_with(fd, flags & libc::O_CLOEXEC as u64 != 0),
        Err(errno) => pending.answer(Err(errno)),
    }
}

/// What the kernel does not have and we do is handed to `tell`.
fn look(
    pending: Pending,
    world: &World,
    path: &Path,
    tell: impl FnOnce(&Face, &Remote<'_>) -> Result<(), Errno>,
) {
    let caller = Remote(&pending);
    let face = if caller.misses(path) {
        world.face_of_missing(path)
    } else {
        None
    };
    match face.map(|face| tell(&face, &caller)) {
        Some(told) => pending.answer(told),
        None => pending.pass(),
    }
}

fn describe(face: &Face, into: Into, caller: &Remote<'_>) -> Result<(), Errno> {
    let NodeKind { mode, major, minor } = face.node_kind();
    match into {
        Into::Stat(address) => {
            // SAFETY: a structure of integers, for which zeroes are a value.
            let mut stat: libc::stat = unsafe { std::mem::zeroed() };
            stat.st_mode = mode;
            stat.st_nlink = 1;
            stat.st_rdev = libc::makedev(major, minor);
            stat.st_blksize = 4096;
            caller.write(address, bytes_of(&stat))
        }
        Into::Statx(address) => {
            // SAFETY: as above.
            let mut stat: libc::statx = unsafe { std::mem::zeroed() };
            stat.stx_mask = libc::STATX_BASIC_STATS;
            stat.stx_mode = mode as u16;
            stat.stx_nlink = 1;
            stat.stx_rdev_major = major;
            stat.stx_rdev_minor = minor;
            stat.stx_blksize = 4096;
            caller.write(address, bytes_of(&stat))
        }
    }
}

/// The bytes of one of the kernel's structures, all of which were written: it was made of zeroes.
fn bytes_of<T: Copy>(of: &T) -> &[u8] {
    // SAFETY: as many bytes as the value has, for as long as it is borrowed.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(of).cast(), size_of::<T>()) }
}

fn ioctl(pending: Pending, world: &World, fd: i32, request: u32, argument: u64) {
    let caller = Remote(&pending);
    match caller.fd(fd) {
        Ok(fd) if world.is_control_fd(&fd) => {
            let result = world.ioctl(&fd, &caller, request, argument);
            pending.answer(result);
        }
        _ => pending.pass(),
    }
}
