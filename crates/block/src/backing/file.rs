//! A file or block device of the host as a [`BlockDevice`]: direct I/O over io_uring where the file system
//! can, buffered otherwise, and plain system calls on memory file systems, where a ring only adds a hop.
//!
//! INVARIANT: no request is started that reaches beyond the size seen last, so a file never grows by a write.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thinmap_runtime::{IoBuf, RingOp};
use thinmap_units::{BlkStatus, DevNo, Sector};

use crate::device::{BlockDevice, out_of_range};
use crate::io::{Io, Op};
use crate::limits::QueueLimits;
use crate::queue;

mod probe;

/// How to open a backing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenMode {
    /// Refuse writes.
    pub read_only: bool,
    /// Refuse to share: a mounted or otherwise claimed block device is busy, a file locked by others too.
    pub exclusive: bool,
}

/// Why a backing could not be opened. Each names the path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("{path}: {action}: {errno}")]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        errno: Errno,
    },
    /// Claimed by a mount, another device or another program.
    #[error("{path}: in use by a mount or another program")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: neither a block device nor a regular file")]
    NotBlock {
        /// The file.
        path: PathBuf,
    },
}

impl OpenError {
    /// The errno that device mapper gives for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::System { errno, .. } => errno.raw_os_error(),
            Self::Busy { .. } => Errno::BUSY.raw_os_error(),
            Self::NotBlock { .. } => Errno::NOTBLK.raw_os_error(),
        }
    }
}

/// An open file or block device.
#[derive(Clone)]
pub struct FileDevice {
    inner: Arc<Inner>,
}

struct Inner {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    dev_no: Option<DevNo>,
    limits: QueueLimits,
    size: AtomicU64,
    /// On a memory file system: system calls never wait for a medium.
    inline: bool,
    /// The file system tells holes from data truly.
    tells_holes: bool,
    /// Zero-range is not supported: learnt from the first refusal.
    no_zero_range: AtomicBool,
    /// Writes go through the page cache.
    buffered: bool,
    /// The page cache could not write something out. The system tells that once, and takes the pages for clean then: no later flush of
    /// this open file means anything.
    lost_writes: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A process that another thread forks meanwhile holds the lock too, until it executes its program.
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

impl FileDevice {
    /// Opens `path`, with direct I/O where it works for 512-byte sectors (or the device's own logical blocks).
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self, OpenError> {
        let system = |action, errno| OpenError::System {
            path: path.to_owned(),
            action,
            errno,
        };
        let kind = rustix::fs::stat(path).map_err(|e| system("stat", e))?;
        let is_block = match FileType::from_raw_mode(kind.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            _ => {
                return Err(OpenError::NotBlock {
                    path: path.to_owned(),
                });
            }
        };
        let mut flags = OFlags::CLOEXEC;
        flags |= if mode.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        if is_block && mode.exclusive {
            flags |= OFlags::EXCL;
        }
        let open = |flags| rustix::fs::open(path, flags, Mode::empty());
        let mut fd = open(flags | OFlags::DIRECT)
            .or_else(|e| {
                if e == Errno::INVAL {
                    open(flags)
                } else {
                    Err(e)
                }
            })
            .map_err(|e| match e {
                Errno::BUSY => OpenError::Busy {
                    path: path.to_owned(),
                },
                e => system("open", e),
            })?;
        // In memory direct I/O goes round nothing, and copies inside the file would go through pages of their own.
        let inline = !is_block && probe::is_memory_file_system(fd.as_fd());
        if !is_block && (inline || probe::direct_io_align(fd.as_fd()) > 512) {
            fd = open(flags).map_err(|e| system("open", e))?;
        }
        if !is_block && mode.exclusive {
            let lock = if mode.read_only {
                FlockOperation::NonBlockingLockShared
            } else {
                FlockOperation::NonBlockingLockExclusive
            };
            rustix::fs::flock(&fd, lock).map_err(|_| OpenError::Busy {
                path: path.to_owned(),
            })?;
        }
        let size = probe::size(fd.as_fd(), is_block).map_err(|e| system("size", e))?;
        let inner = Inner {
            path: path.to_owned(),
            dev_no: is_block.then(|| DevNo::from_dev_t(kind.st_rdev)),
            limits: probe::limits(fd.as_fd(), &kind, mode.read_only),
            size: AtomicU64::new(size.0),
            inline,
            tells_holes: !is_block && probe::tells_holes(fd.as_fd()),
            no_zero_range: AtomicBool::new(false),
            buffered: !rustix::fs::fcntl_getfl(&fd).is_ok_and(|f| f.contains(OFlags::DIRECT)),
            lost_writes: AtomicBool::new(false),
            fd: Arc::new(fd),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The device number, for a block device.
    pub fn dev_no(&self) -> Option<DevNo> {
        self.inner.dev_no
    }
}

impl BlockDevice for FileDevice {
    fn limits(&self) -> QueueLimits {
        self.inner.limits
    }

    fn size(&self) -> Sector {
        if let Ok(size) = probe::size(self.inner.fd.as_fd(), self.inner.dev_no.is_some()) {
            self.inner.size.store(size.0, Ordering::Relaxed);
        }
        Sector(self.inner.size.load(Ordering::Relaxed))
    }

    fn submit(&self, io: Io) {
        if io.is_write() && self.inner.limits.read_only {
            io.complete(BlkStatus::IoErr);
            return;
        }
        // A file may have grown behind our back: ask again before refusing.
        if out_of_range(&io, Sector(self.inner.size.load(Ordering::Relaxed)))
            && out_of_range(&io, self.size())
        {
            io.complete(BlkStatus::IoErr);
            return;
        }
        FileIo::new(io, self.inner.clone()).start();
    }

    fn is_synchronous(&self) -> bool {
        self.inner.inline
    }

    fn reflink(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        probe::clone_range(self.inner.fd.as_fd(), from.bytes(), to.bytes(), len.bytes())
            .map_err(status_of)
    }

    fn copy_range(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        // Elsewhere it would go through the page cache, which direct I/O goes round.
        if !self.inner.inline {
            return Err(BlkStatus::NotSupp);
        }
        probe::copy_range(self.inner.fd.as_fd(), from.bytes(), to.bytes(), len.bytes())
            .map_err(status_of)
    }

    fn is_hole(&self, start: Sector, len: Sector) -> bool {
        self.inner.tells_holes && probe::is_hole(self.inner.fd.as_fd(), start.bytes(), len.bytes())
    }
}

fn status_of(errno: Errno) -> BlkStatus {
    match errno {
        Errno::OPNOTSUPP
        | Errno::NOSYS
        | Errno::XDEV
        | Errno::INVAL
        | Errno::NOTTY
        | Errno::ISDIR
        | Errno::PERM => BlkStatus::NotSupp,
        errno => BlkStatus::from_errno(errno.raw_os_error()),
    }
}

/// A request on its way through a ring: knows what is done and what is left.
pub(crate) struct FileIo {
    io: Io,
    inner: Arc<Inner>,
    /// Bytes of the request that are done.
    done: u64,
    /// The done front of the buffer, while the rest is in flight.
    front: IoBuf,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The request as one operation.
    Whole,
    /// Write-zeroes where the file system has no zero-range: zeroes are written.
    WritingZeroes,
    /// A FUA write-zeroes has zeroed and must still be made durable.
    Flushing,
}

impl FileIo {
    fn new(io: Io, inner: Arc<Inner>) -> Self {
        let step = if io.op == Op::WriteZeroes
            && io.flags.no_unmap
            && inner.no_zero_range.load(Ordering::Relaxed)
        {
            Step::WritingZeroes
        } else {
            Step::Whole
        };
        Self {
            io,
            inner,
            done: 0,
            front: IoBuf::empty(),
            step,
        }
    }

    fn start(mut self) {
        if !self.inner.inline || self.is_left_to_others() {
            queue::start(self);
            return;
        }
        loop {
            let (fd, op, offset, mut buf) = self.operation();
            let result = probe::run_now(fd.as_fd(), op, offset, &mut buf);
            match self.step_on(buf, result) {
                Ok(next) => self = next,
                Err((io, status)) => return io.complete(status),
            }
        }
    }

    fn is_left_to_others(&self) -> bool {
        matches!(self.io.op, Op::Read | Op::Write) && queue::leaves_copies(self.io.sectors.bytes())
    }

    /// Whether the file is in memory, where operations end on the spot.
    pub(crate) fn is_inline(&self) -> bool {
        self.inner.inline
    }

    /// The next operation: descriptor, what, byte offset, buffer.
    pub(crate) fn operation(&mut self) -> (Arc<OwnedFd>, RingOp, u64, IoBuf) {
        let offset = self.io.sector.bytes() + self.done;
        let len = self.io.sectors.bytes() - self.done;
        let buf = std::mem::replace(&mut self.io.buf, IoBuf::empty());
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (op, buf) = match (self.step, self.io.op) {
            (Step::Flushing, _) | (_, Op::Flush) => return (self.fd(), RingOp::Flush, 0, buf),
            (Step::WritingZeroes, _) => {
                let chunk = usize::try_from(len).map_or(ZEROES_BYTES, |l| l.min(ZEROES_BYTES));
                (
                    RingOp::Write {
                        dsync: self.io.flags.fua,
                    },
                    IoBuf::alloc(chunk),
                )
            }
            (Step::Whole, Op::Read) => (RingOp::Read, buf),
            (Step::Whole, Op::Write) => (
                RingOp::Write {
                    dsync: self.io.flags.fua,
                },
                buf,
            ),
            (Step::Whole, Op::Discard) => (RingOp::Fallocate { mode: punch, len }, buf),
            (Step::Whole, Op::WriteZeroes) => {
                let keep = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                let mode = if self.io.flags.no_unmap { keep } else { punch };
                (RingOp::Fallocate { mode, len }, buf)
            }
        };
        (self.fd(), op, offset, buf)
    }

    fn fd(&self) -> Arc<OwnedFd> {
        self.inner.fd.clone()
    }

    /// The operation has ended: go on with what is left, or complete the request.
    pub(crate) fn ended(self, buf: IoBuf, result: i32) {
        match self.step_on(buf, result) {
            Ok(next) => queue::start(next),
            Err((io, status)) => io.complete(status),
        }
    }

    /// `Ok` with the next step, or the request with its end.
    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    fn step_on(mut self, mut buf: IoBuf, result: i32) -> Result<Self, (Io, BlkStatus)> {
        let transfers = matches!(self.io.op, Op::Read | Op::Write);
        let done = u64::try_from(result).unwrap_or(0);
        if transfers {
            // Put the buffer together again: front (done before), then this operation's.
            let rest = buf.split_to(usize::try_from(done).map_or(0, |d| d.min(buf.len())));
            let _ = self.front.unsplit(rest);
            self.io.buf = buf;
        }
        if result < 0 {
            return self.failed(-result);
        }
        if self.makes_durable() && self.inner.lost_writes.load(Ordering::Relaxed) {
            return Err(self.finish(BlkStatus::IoErr));
        }
        match self.step {
            Step::Whole if !transfers => {
                self.done = self.io.sectors.bytes();
                if self.io.op == Op::WriteZeroes && self.io.flags.fua {
                    self.step = Step::Flushing;
                    return Ok(self);
                }
                Err(self.finish(BlkStatus::Ok))
            }
            Step::Flushing => Err(self.finish(BlkStatus::Ok)),
            Step::Whole | Step::WritingZeroes => {
                self.done += done;
                if self.done >= self.io.sectors.bytes() {
                    return Err(self.finish(BlkStatus::Ok));
                }
                if done == 0 {
                    // End of file inside a range that was inside the device: truncated under us.
                    tracing::error!(path = %self.inner.path.display(), io = ?self.io, "backing file is shorter than it was");
                    return Err(self.finish(BlkStatus::IoErr));
                }
                Ok(self)
            }
        }
    }

    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    fn failed(mut self, errno: i32) -> Result<Self, (Io, BlkStatus)> {
        let unsupported = errno == libc::EOPNOTSUPP || errno == libc::ENOSYS;
        if errno == libc::EINTR || errno == libc::EAGAIN {
            return Ok(self);
        }
        if unsupported && self.io.op == Op::WriteZeroes && self.step == Step::Whole {
            if self.io.flags.no_unmap {
                self.inner.no_zero_range.store(true, Ordering::Relaxed);
            }
            self.step = Step::WritingZeroes;
            return Ok(self);
        }
        let status = if unsupported {
            BlkStatus::NotSupp
        } else {
            BlkStatus::from_errno(errno)
        };
        if self.makes_durable() && self.inner.buffered && !unsupported {
            self.inner.lost_writes.store(true, Ordering::Relaxed);
        }
        if !unsupported {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::error!(path = %self.inner.path.display(), io = ?self.io, %error, "backing I/O failed");
        }
        Err(self.finish(status))
    }

    fn makes_durable(&self) -> bool {
        self.io.op == Op::Flush || self.io.flags.fua
    }

    fn finish(mut self, status: BlkStatus) -> (Io, BlkStatus) {
        let rest = std::mem::replace(&mut self.io.buf, IoBuf::empty());
        let _ = self.front.unsplit(rest);
        self.io.buf = self.front;
        (self.io, status)
    }
}

/// Zeroes written at a time where the file system cannot zero a range itself.
const ZEROES_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests;
