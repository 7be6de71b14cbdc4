//! What can go wrong in metadata, sorted by what the pool has to do about it.

use std::borrow::Cow;
use std::fmt;
use std::io;

use thinmap_units::MetaBlock;

/// `Result` with [`MetadataError`].
pub type Result<T, E = MetadataError> = std::result::Result<T, E>;

/// Which of the two spaces ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Blocks of the metadata device.
    Metadata,
    /// Blocks of the data device.
    Data,
}

/// The kind of a [`MetadataError`]: each leads a pool to a different reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device failed a read, write or flush.
    Io,
    /// What was read breaks the format's rules: checksum, address, structure, counts.
    Corrupt,
    /// No free block is left.
    NoSpace(Space),
    /// An earlier failure left the transaction unusable; see the method that returned it.
    Poisoned,
    /// The answer is not in memory and reading was not allowed.
    WouldBlock,
    /// No such device, mapping or metadata snapshot.
    NotFound,
    /// A device with that id is there already.
    Exists,
    /// A metadata snapshot is held already.
    Busy,
    /// The request makes no sense: shrinking, wrong transaction id, wrong block size.
    Inval,
    /// A change was asked of metadata that was opened read-only.
    ReadOnly,
    /// The metadata device is all zeroes and formatting was not asked for.
    Unformatted,
    /// The metadata uses features or a version that this code does not know.
    Unsupported,
}

/// An error from the metadata engine: its kind, where, and what was found there.
#[derive(Debug)]
pub struct MetadataError {
    kind: ErrorKind,
    block: Option<MetaBlock>,
    context: Cow<'static, str>,
    source: Option<io::Error>,
    /// The kernel's errno, where it is not the usual one of the kind.
    errno: Option<i32>,
}

impl MetadataError {
    /// An error of `kind`; `context` completes the sentence for an administrator.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            block: None,
            context: context.into(),
            source: None,
            errno: None,
        }
    }

    /// Damage found in metadata block `block`.
    pub fn corrupt(block: u64, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            block: Some(MetaBlock(block)),
            ..Self::new(ErrorKind::Corrupt, context)
        }
    }

    /// Block `block` says that it is another one (`ENOTBLK`).
    pub fn misplaced(block: u64, context: impl Into<Cow<'static, str>>) -> Self {
        const ENOTBLK: i32 = 15;
        Self {
            errno: Some(ENOTBLK),
            ..Self::corrupt(block, context)
        }
    }

    /// A reference to a block past the end of what refers to it can have (`EINVAL`).
    pub(crate) fn out_of_bounds(context: impl Into<Cow<'static, str>>) -> Self {
        const EINVAL: i32 = 22;
        Self {
            errno: Some(EINVAL),
            ..Self::new(ErrorKind::Corrupt, context)
        }
    }

    /// A failed device operation.
    pub fn io(source: io::Error, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            source: Some(source),
            ..Self::new(ErrorKind::Io, context)
        }
    }

    /// A node is not cached and reading it was not allowed.
    pub(crate) const fn would_block() -> Self {
        Self {
            kind: ErrorKind::WouldBlock,
            block: None,
            context: Cow::Borrowed("the block is not in memory"),
            source: None,
            errno: None,
        }
    }

    /// What the caller should react to.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The metadata block at fault, when one is known.
    pub const fn block(&self) -> Option<MetaBlock> {
        self.block
    }

    /// The sentence behind the kind.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The errno that the kernel's thin-pool gives in the same case.
    pub fn errno(&self) -> i32 {
        // Linux errno numbers; this crate is Linux only and needs no libc for six constants.
        const EPERM: i32 = 1;
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        const EBUSY: i32 = 16;
        const EEXIST: i32 = 17;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const ENODATA: i32 = 61;
        const EILSEQ: i32 = 84;
        if let Some(errno) = self.errno {
            return errno;
        }
        match self.kind {
            ErrorKind::Io => self
                .source
                .as_ref()
                .and_then(io::Error::raw_os_error)
                .unwrap_or(EIO),
            ErrorKind::Corrupt => EILSEQ,
            ErrorKind::NoSpace(_) => ENOSPC,
            ErrorKind::WouldBlock => EAGAIN,
            ErrorKind::NotFound => ENODATA,
            ErrorKind::Exists => EEXIST,
            ErrorKind::Busy => EBUSY,
            ErrorKind::Poisoned | ErrorKind::Inval | ErrorKind::Unsupported => EINVAL,
            ErrorKind::ReadOnly | ErrorKind::Unformatted => EPERM,
        }
    }
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        if let Some(block) = self.block {
            write!(f, " (metadata block {block})")?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for MetadataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}
