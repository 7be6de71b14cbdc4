//! The data path: READ, WRITE, FSYNC and FALLOCATE as block requests, and their replies.

use std::sync::Arc;

use thinmap_block::{EndIo, Io, IoFlags, Op, submit_from_outside};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};
use zerocopy::FromBytes;

use super::abi::{FallocateIn, InHeader, ReadWriteIn};
use super::channel::Channel;
use super::file::{DeviceFile, Geometry};
use super::queue::Queue;
use super::unaligned::{UnalignedRead, UnalignedWrite};

/// The ways back for one file's requests on one queue: made once, so a request allocates nothing.
pub(super) struct Sinks {
    file: Arc<DeviceFile>,
    read: Arc<Sink>,
    write: Arc<Sink>,
    plain: Arc<Sink>,
}

#[derive(Clone, Copy)]
enum Reply {
    Data,
    Written,
    Nothing,
}

/// Answers the kernel when a request ends; the tag is the kernel's `unique`.
struct Sink {
    channel: Arc<Channel>,
    file: Arc<DeviceFile>,
    reply: Reply,
}

impl Sinks {
    fn new(channel: &Arc<Channel>, file: Arc<DeviceFile>) -> Self {
        let sink = |reply| {
            Arc::new(Sink {
                channel: channel.clone(),
                file: file.clone(),
                reply,
            })
        };
        Self {
            read: sink(Reply::Data),
            write: sink(Reply::Written),
            plain: sink(Reply::Nothing),
            file,
        }
    }
}

impl EndIo for Sink {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let bytes = io.buf.len();
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        match (status, self.reply) {
            (BlkStatus::Ok, Reply::Data) => self.channel.reply_data(tag, buf),
            (BlkStatus::Ok, Reply::Written) => self.channel.reply_written(tag, buf),
            (BlkStatus::Ok, Reply::Nothing) => self.channel.reply(tag, 0),
            (failed, _) => self.channel.reply_error(tag, errno_of(failed), buf),
        }
        // The buffer goes back to its pool before its bytes are counted out.
        drop(io);
        self.file.leave();
        self.channel.end(bytes);
    }
}

/// What programs see: an I/O error where a block device would give one.
pub(super) fn errno_of(status: BlkStatus) -> i32 {
    match status {
        // EAGAIN would make the caller spin, and ENOSYS-like answers switch off an operation for good.
        BlkStatus::Requeue => libc::EIO,
        other => other.errno(),
    }
}

impl Queue {
    /// The file of a request, its ways back cached; answers the request when there is no such file.
    fn sinks_of(&mut self, header: &InHeader) -> Option<&Sinks> {
        if !self.sinks.contains_key(&header.nodeid) {
            let Some(file) = self.files.by_id(header.nodeid) else {
                self.channel.reply(header.unique, libc::EIO);
                return None;
            };
            // Those of removed devices go here: their FORGET may have come to another queue.
            self.sinks.retain(|_, sinks| !sinks.file.is_retired());
            self.sinks
                .insert(header.nodeid, Sinks::new(&self.channel, file));
        }
        self.sinks.get(&header.nodeid)
    }

    pub(super) fn read(&mut self, header: &InHeader, args: &[u8]) {
        let Ok((args, _)) = ReadWriteIn::read_from_prefix(args) else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let Some(sinks) = self.sinks_of(header) else {
            return;
        };
        let (file, sink) = (sinks.file.clone(), sinks.read.clone());
        let Some((device, geometry)) = file.enter() else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let len = clamped(args.offset, u64::from(args.size), geometry.size_bytes);
        if len == 0 {
            file.leave();
            return self.channel.reply(header.unique, 0);
        }
        if is_aligned(&geometry, args.offset, len) {
            let buf = self.take_buffer(header.unique, len as usize);
            self.channel.begin(buf.len());
            let start = Sector::from_bytes(args.offset);
            submit_from_outside(&*device, Io::read(start, buf, sink, header.unique));
        } else {
            UnalignedRead::start(
                &self.channel,
                file,
                &device,
                &geometry,
                header.unique,
                args.offset,
                len as usize,
            );
        }
    }

    pub(super) fn write(&mut self, header: &InHeader, args: &[u8], received: usize) {
        let Ok((args, _)) = ReadWriteIn::read_from_prefix(args) else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let Some(sinks) = self.sinks_of(header) else {
            return;
        };
        let (file, sink) = (sinks.file.clone(), sinks.write.clone());
        let Some((device, geometry)) = file.enter() else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let wanted = u64::from(args.size).min(received as u64);
        let len = clamped(args.offset, wanted, geometry.size_bytes);
        let refused = if geometry.read_only {
            Some(libc::EROFS)
        } else if len == 0 {
            // Like writing past the end of a block device.
            Some(libc::ENOSPC)
        } else {
            None
        };
        if let Some(errno) = refused {
            file.leave();
            return self.channel.reply(header.unique, errno);
        }
        let flags = IoFlags {
            fua: args.flags & SYNC_FLAGS != 0,
            no_unmap: false,
        };
        if is_aligned(&geometry, args.offset, len) {
            let buf = self.take_payload(header.unique, len as usize);
            self.channel.begin(buf.len());
            let mut io = Io::write(Sector::from_bytes(args.offset), buf, sink, header.unique);
            io.flags = flags;
            submit_from_outside(&*device, io);
        } else {
            let data = self.payload(header.unique, len as usize).to_vec();
            UnalignedWrite::start(
                &self.channel,
                file,
                device,
                &geometry,
                header.unique,
                args.offset,
                data,
                flags,
            );
        }
    }

    pub(super) fn fsync(&mut self, header: &InHeader) {
        let Some(sinks) = self.sinks_of(header) else {
            return;
        };
        let (file, sink) = (sinks.file.clone(), sinks.plain.clone());
        let Some((device, _)) = file.enter() else {
            // A file that never had a device has nothing to lose; the loop driver asks at its set-up.
            return self.channel.reply(header.unique, 0);
        };
        self.channel.begin(0);
        submit_from_outside(&*device, Io::flush(sink, header.unique));
    }

    pub(super) fn fallocate(&mut self, header: &InHeader, args: &[u8]) {
        let Ok((args, _)) = FallocateIn::read_from_prefix(args) else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let no_unmap = match args.mode.cast_signed() & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => false,
            libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return self.channel.reply(header.unique, libc::EOPNOTSUPP),
        };
        let Some(sinks) = self.sinks_of(header) else {
            return;
        };
        let (file, sink) = (sinks.file.clone(), sinks.plain.clone());
        let Some((device, geometry)) = file.enter() else {
            return self.channel.reply(header.unique, libc::EIO);
        };
        let len = clamped(args.offset, args.length, geometry.size_bytes);
        let answer = if geometry.read_only {
            Some(libc::EROFS)
        } else if !is_aligned(&geometry, args.offset, len) {
            Some(libc::EINVAL)
        } else if len == 0 {
            Some(0)
        } else if !no_unmap && !frees_space(&geometry) {
            Some(libc::EOPNOTSUPP)
        } else {
            None
        };
        if let Some(errno) = answer {
            file.leave();
            return self.channel.reply(header.unique, errno);
        }
        self.channel.begin(0);
        // Zeroing, not discarding: a hole punched into a file must read as zeroes.
        let mut io = Io::new(
            Op::WriteZeroes,
            Sector::from_bytes(args.offset),
            Sector::from_bytes(len),
            IoBuf::empty(),
            sink,
            header.unique,
        );
        io.flags.no_unmap = no_unmap;
        submit_from_outside(&*device, io);
    }
}

/// What of `offset..offset+len` lies in the device, in bytes.
fn clamped(offset: u64, len: u64, size: u64) -> u64 {
    len.min(size.saturating_sub(offset))
}

/// Whether a hole may be asked for. Where it may not, writing zeroes in its place would cost what the asker means to save; who wants
/// zeroes writes them himself then.
fn frees_space(geometry: &Geometry) -> bool {
    geometry.limits.supports_discard() || geometry.limits.max_write_zeroes > Sector::ZERO
}

fn is_aligned(geometry: &Geometry, offset: u64, len: u64) -> bool {
    (offset | len) & (u64::from(geometry.limits.logical_block_size) - 1) == 0
}

/// O_DSYNC, and so O_SYNC, which includes its bit.
const SYNC_FLAGS: u32 = libc::O_DSYNC.cast_unsigned();
