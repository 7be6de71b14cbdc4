//! What a tool needs of the program around it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::ServedDevice;

/// The program around the tools.
pub trait Host {
    /// The running pool named `name`, with a metadata snapshot taken for the caller; `None` when there is no
    /// such pool here.
    ///
    /// # Errors
    /// Why the pool cannot be read now, in a sentence that names it.
    fn live_pool(&self, name: &str) -> Result<Option<Box<dyn LivePool>>, String>;

    /// Tells block device `device` that `len` bytes from byte `from` on hold nothing of use.
    ///
    /// # Errors
    /// The system's.
    fn discard(&self, device: &File, from: u64, len: u64) -> io::Result<()>;

    /// Who uses a device of a daemon of thinmap's, for people; `None` when nobody does, or the device is not
    /// thinmap's after all. A daemon that does not answer soon counts as a user: what it would say is not known.
    fn user_of(&self, device: &ServedDevice) -> Option<String>;
}

/// A running pool, of which a metadata snapshot is held until this is dropped.
pub trait LivePool {
    /// Where its metadata can be read.
    fn metadata(&self) -> &Path;

    /// The block of the metadata snapshot's superblock.
    fn held_root(&self) -> u64;
}

/// No program around the tools: no running pools, no discards.
pub struct NoHost;

impl Host for NoHost {
    fn live_pool(&self, _: &str) -> Result<Option<Box<dyn LivePool>>, String> {
        Ok(None)
    }

    fn discard(&self, _: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn user_of(&self, _: &ServedDevice) -> Option<String> {
        Some("thinmap, maybe: its daemon cannot be asked from here".to_owned())
    }
}

/// A tool's input: a path, or a running pool.
pub(crate) enum Input {
    /// A device or file of the host.
    Path(PathBuf),
    /// A pool of the daemon.
    Pool(Box<dyn LivePool>),
}

impl Input {
    /// What `word` means: a file or device if there is one of that name, else a running pool.
    pub(crate) fn find(host: &dyn Host, word: &str) -> Result<Self, String> {
        let path = Path::new(word);
        if word.contains('/') || path.exists() {
            return Ok(Self::Path(path.to_owned()));
        }
        match host.live_pool(word)? {
            Some(pool) => Ok(Self::Pool(pool)),
            None => Ok(Self::Path(path.to_owned())),
        }
    }
}
