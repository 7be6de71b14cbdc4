//! A system's files below its root: this system's, or another's that is mounted somewhere.
//!
//! INVARIANT: nothing outside of the tree is read or written. Links in it are followed as its own programs would follow them, with
//! its root for `/`: in an image, `/usr/local` may be a link to a path that this system has too.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const DIRECTORY_MODE: u32 = 0o755;
const PERMISSIONS: u32 = 0o7777;
const WRITABLE_BY_ALL: u32 = 0o002;
const WRITABLE_BY_GROUP: u32 = 0o020;

/// The tree below a root directory.
pub struct Tree {
    path: PathBuf,
    root: OwnedFd,
    is_running: bool,
}

impl Tree {
    /// The running system's tree, or the one at `root`.
    pub fn open(root: Option<&Path>) -> anyhow::Result<Self> {
        let path = root.unwrap_or(Path::new("/")).to_owned();
        let open = || -> Result<_, Errno> {
            let fd = rustix::fs::open(&path, DIRECTORY, Mode::empty())?;
            let is_running = same_file(&rustix::fs::fstat(&fd)?, &rustix::fs::stat("/")?);
            Ok((fd, is_running))
        };
        let (root, is_running) = open().with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            root,
            is_running,
        })
    }

    /// Whether it is the tree that this program runs in.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Where it is, from here.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As it is called in messages.
    pub fn name(&self) -> String {
        match self.is_running {
            true => "this system".to_owned(),
            false => self.path.display().to_string(),
        }
    }

    /// A path of the tree as seen from here, for messages.
    pub fn shown(&self, inside: &Path) -> PathBuf {
        self.path.join(relative(inside))
    }

    /// A directory of the tree, if it is there.
    pub fn dir(&self, inside: &Path) -> anyhow::Result<Option<OwnedFd>> {
        match self.open_inside(inside, DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| self.shown(inside).display().to_string()),
        }
    }

    /// A directory of the tree, made where it is missing. Every step to it must be root's: who can change one of them could
    /// put code of his own into every program.
    pub fn make_dir(&self, inside: &Path) -> anyhow::Result<OwnedFd> {
        let mut here = rustix::io::dup(&self.root)?;
        let mut way = PathBuf::from("/");
        for component in inside.components() {
            if let Component::Normal(name) = component {
                way.push(name);
                here = self
                    .step(&here, &way)
                    .with_context(|| self.shown(&way).display().to_string())?;
            }
            self.must_be_roots(&here, &way)?;
        }
        Ok(here)
    }

    fn step(&self, parent: &OwnedFd, way: &Path) -> Result<OwnedFd, Errno> {
        match self.open_inside(way, DIRECTORY) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let name = way.file_name().unwrap_or_default();
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(DIRECTORY_MODE))?;
        let made = self.open_inside(way, DIRECTORY)?;
        // Neither the caller's mask nor a parent's group.
        rustix::fs::fchown(&made, Some(Uid::ROOT), Some(Gid::ROOT))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(DIRECTORY_MODE))?;
        rustix::fs::fsync(parent)?;
        Ok(made)
    }

    fn must_be_roots(&self, dir: &OwnedFd, way: &Path) -> anyhow::Result<()> {
        let shown = self.shown(way);
        let stat = rustix::fs::fstat(dir).with_context(|| shown.display().to_string())?;
        if stat.st_uid != 0 {
            bail!(
                "{}: belongs to user {}, not to root",
                shown.display(),
                stat.st_uid
            );
        }
        if stat.st_mode & WRITABLE_BY_ALL != 0 {
            bail!("{}: may be changed by every user", shown.display());
        }
        if stat.st_mode & WRITABLE_BY_GROUP != 0 && stat.st_gid != 0 {
            bail!(
                "{}: may be changed by group {}: chmod g-w {0}",
                shown.display(),
                stat.st_gid
            );
        }
        Ok(())
    }

    /// Removes a directory if it is empty.
    pub fn remove_dir(&self, inside: &Path) -> Result<(), Errno> {
        let parent = self.open_inside(inside.parent().unwrap_or(inside), DIRECTORY)?;
        let name = inside.file_name().unwrap_or_default();
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    /// The first `len` bytes of a program of the tree.
    pub fn read_start(&self, inside: &Path, len: u64) -> Result<Vec<u8>, Errno> {
        let fd = self.open_inside(inside, OFlags::RDONLY | OFlags::CLOEXEC)?;
        let mut start = Vec::new();
        File::from(fd)
            .take(len)
            .read_to_end(&mut start)
            .map_err(|error| errno_of(&error))?;
        Ok(start)
    }

    fn open_inside(&self, inside: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = relative(inside);
        if self.is_running {
            // Without openat2, which a container's filter may forbid.
            return rustix::fs::openat(&self.root, path, flags, Mode::empty());
        }
        rustix::fs::openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )
    }
}

/// A file as it was found.
pub struct Contents {
    pub bytes: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

/// Reads a regular file of a directory; `None` where there is none, ELOOP where there is a link.
pub fn read(dir: &OwnedFd, name: &str) -> Result<Option<Contents>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .read_to_end(&mut bytes)
        .map_err(|error| errno_of(&error))?;
    Ok(Some(Contents {
        bytes,
        mode: stat.st_mode & PERMISSIONS,
        owner: (stat.st_uid, stat.st_gid),
    }))
}

/// Removes a file, durably; whether there was one.
pub fn remove(dir: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => rustix::fs::fsync(dir).map(|()| true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A file under a temporary name, until it takes the place of the one of its own name. Gone if it never does.
pub struct NewFile<'a> {
    dir: &'a OwnedFd,
    name: &'a str,
    temporary: String,
}

impl<'a> NewFile<'a> {
    /// Writes it. One that a killed command left is overwritten.
    pub fn write(
        dir: &'a OwnedFd,
        name: &'a str,
        bytes: &[u8],
        mode: u32,
        (user, group): (u32, u32),
    ) -> Result<Self, Errno> {
        let temporary = format!(".{name}.thinmap-new");
        remove(dir, &temporary)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        let new = Self {
            dir,
            name,
            temporary,
        };
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(|error| errno_of(&error))?;
        let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::fchown(file.as_fd(), owner.0, owner.1)?;
        rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
        rustix::fs::fsync(&file)?;
        Ok(new)
    }

    /// Its name for the time being.
    pub fn temporary_name(&self) -> &str {
        &self.temporary
    }

    /// Puts it in place, at once and durably.
    pub fn commit(self) -> Result<(), Errno> {
        rustix::fs::renameat(self.dir, self.temporary.as_str(), self.dir, self.name)?;
        rustix::fs::fsync(self.dir)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        // After the commit there is none of this name.
        let _ = rustix::fs::unlinkat(self.dir, self.temporary.as_str(), AtFlags::empty());
    }
}

fn relative(inside: &Path) -> &Path {
    match inside.strip_prefix("/").unwrap_or(inside) {
        root if root.as_os_str().is_empty() => Path::new("."),
        path => path,
    }
}

fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
