//! A file or block device for one tool alone.
//!
//! INVARIANT: what is open for [`Access::Read`] or [`Access::Write`] is nobody else's meanwhile: a block device is
//! claimed, and the file that a loop device stands on is locked; a file is locked (thinmap's daemon locks its own), and
//! refused when a loop device stands on it. Tables inside a daemon of thinmap's show in none of this: who opens
//! a path of the command line asks for them first ([`crate::ServedDevice`]).

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thinmap_units::DevNo;

use crate::image::{Access, ImageError};
use crate::loops::{file_under, loop_device_on};

/// An open file or block device that nobody else uses.
#[derive(Debug)]
pub(crate) struct Claimed {
    file: File,
    /// The file under a loop device.
    under: Option<File>,
    is_block: bool,
}

impl Claimed {
    /// Opens what is at `path`, which must exist.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        let stat =
            std::fs::metadata(path).map_err(|source| system(path, "cannot be opened", source))?;
        let is_block = stat.file_type().is_block_device();
        if !is_block && !stat.is_file() {
            let path = path.to_owned();
            return Err(ImageError::NotBlock { path });
        }
        let flags = match access {
            Access::Write => OFlags::RDWR,
            Access::Read | Access::ReadLive => OFlags::RDONLY,
        };
        Self::claim(path, flags, access, "cannot be opened")
    }

    /// Opens `path` for a text, as a new file if there is none. What it holds stays until [`Self::clear`].
    pub(crate) fn create(path: &Path) -> Result<Self, ImageError> {
        let flags = OFlags::WRONLY | OFlags::CREATE;
        Self::claim(path, flags, Access::Write, "cannot be created")
    }

    fn claim(
        path: &Path,
        flags: OFlags,
        access: Access,
        action: &'static str,
    ) -> Result<Self, ImageError> {
        let is_block = std::fs::metadata(path).is_ok_and(|stat| stat.file_type().is_block_device());
        let claims = match is_block && access != Access::ReadLive {
            // With O_EXCL, O_CREAT would refuse what is there.
            true => (flags - OFlags::CREATE) | OFlags::EXCL,
            false => flags,
        };
        let mode = Mode::from_raw_mode(0o666);
        let fd = rustix::fs::open(path, claims | OFlags::CLOEXEC, mode).map_err(|e| match e {
            Errno::BUSY => {
                let user = "a pool, a mount or another program that claims the device";
                busy(path, access, user)
            }
            errno => system(path, action, errno.into()),
        })?;
        let file = File::from(fd);
        let stat = file
            .metadata()
            .map_err(|source| system(path, action, source))?;
        let mut claimed = Self {
            file,
            under: None,
            is_block: stat.file_type().is_block_device(),
        };
        if access == Access::ReadLive {
            return Ok(claimed);
        }
        if stat.is_file() {
            lock(path, &claimed.file, access)?;
            if let Some(user) = loop_device_on(&stat) {
                return Err(busy(path, access, &user));
            }
        } else if claimed.is_block
            // A file that cannot be opened is nobody's through this name.
            && let Some(under) = file_under(DevNo::from_dev_t(stat.rdev()))
            && let Ok(file) = File::open(under)
        {
            lock(path, &file, access)?;
            claimed.under = Some(file);
        }
        Ok(claimed)
    }

    /// Whether it is a block device.
    pub(crate) fn is_block(&self) -> bool {
        self.is_block
    }

    /// Empties a file; anything else stays as it is.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match self.file.metadata()?.is_file() {
            true => self.file.set_len(0),
            false => Ok(()),
        }
    }
}

fn lock(path: &Path, file: &File, access: Access) -> Result<(), ImageError> {
    let kind = match access {
        Access::Write => FlockOperation::NonBlockingLockExclusive,
        Access::Read | Access::ReadLive => FlockOperation::NonBlockingLockShared,
    };
    rustix::fs::flock(file, kind).map_err(|errno| match errno {
        Errno::WOULDBLOCK => busy(path, access, "a pool or another tool that has it locked"),
        errno => system(path, "cannot be locked", errno.into()),
    })
}

fn busy(path: &Path, access: Access, user: &str) -> ImageError {
    ImageError::Busy {
        path: path.to_owned(),
        user: user.to_owned(),
        access,
    }
}

fn system(path: &Path, action: &'static str, source: io::Error) -> ImageError {
    ImageError::System {
        path: path.to_owned(),
        action,
        source,
    }
}

impl Deref for Claimed {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // A process that another thread forks meanwhile holds the locks too, until it executes its program.
        for file in std::iter::once(&self.file).chain(&self.under) {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use crate::image::tests::file_of;

    #[test]
    fn a_file_in_use_is_refused_but_for_a_metadata_snapshot() {
        let file = file_of(10);
        let first = Image::open(file.path(), Access::Write).expect("first");
        let refused = Image::open(file.path(), Access::Read).expect_err("locked");
        assert!(matches!(refused, ImageError::Busy { .. }), "{refused}");
        assert!(Image::open(file.path(), Access::ReadLive).is_ok());
        drop(first);
        let _reader = Image::open(file.path(), Access::Read).expect("free again");
        assert!(Image::open(file.path(), Access::Read).is_ok());
        assert!(Image::open(file.path(), Access::Write).is_err());
    }

    #[test]
    fn a_descriptor_that_a_fork_took_along_does_not_keep_a_closed_image() {
        let file = file_of(10);
        let first = Claimed::open(file.path(), Access::Write).expect("first");
        let _forked = first.try_clone().expect("descriptor");
        drop(first);
        Image::open(file.path(), Access::Write).expect("free again");
    }

    #[test]
    fn an_output_in_use_keeps_what_it_holds() {
        let file = file_of(3);
        let used = Claimed::open(file.path(), Access::Read).expect("first");
        let refused = Claimed::create(file.path()).expect_err("locked");
        let text = refused.to_string();
        assert!(
            text.contains("in use") && !text.contains("snapshot"),
            "{text}"
        );
        drop(used);
        let output = Claimed::create(file.path()).expect("free again");
        assert_eq!(output.metadata().expect("stat").len(), 3 * 4096);
        output.clear().expect("cleared");
        assert_eq!(output.metadata().expect("stat").len(), 0);
    }
}
