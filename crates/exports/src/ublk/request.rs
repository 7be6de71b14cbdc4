//! One queue of one device: its requests as block requests, and their way back.

use std::sync::Arc;

use parking_lot::RwLock;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, submit_from_outside};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::abi::{Descriptor, IO_FLAG_FUA, IO_FLAG_NO_UNMAP, op};
use super::driver::CharDevice;
use super::lane::Lane;
use super::params::IO_BYTES_MAX;
use crate::fuse::Buffers;

/// What is behind a block device; nothing before the first activation.
#[derive(Default)]
pub(super) struct Behind {
    present: RwLock<Option<(Arc<dyn BlockDevice>, bool)>>,
}

impl Behind {
    pub(super) fn set(&self, device: Arc<dyn BlockDevice>, read_only: bool) {
        *self.present.write() = Some((device, read_only));
    }

    pub(super) fn clear(&self) {
        *self.present.write() = None;
    }

    fn device(&self) -> Option<(Arc<dyn BlockDevice>, bool)> {
        self.present.read().clone()
    }
}

/// The way back of one queue's requests: made once, so that a request allocates nothing.
pub(super) struct QueueSink {
    pub(super) lane: Arc<Lane>,
    pub(super) slot: u32,
    pub(super) device: Arc<dyn CharDevice>,
    pub(super) queue: u16,
    pub(super) behind: Arc<Behind>,
}

impl QueueSink {
    /// Starts the request that `tag` has. Whatever becomes of it, the lane is told the result exactly once.
    pub(super) fn start(self: &Arc<Self>, tag: u16, descriptor: &Descriptor, buffers: &Buffers) {
        if let Err(errno) = self.try_start(tag, descriptor, buffers) {
            self.lane.ended(self.slot, tag, -errno);
        }
    }

    fn try_start(
        self: &Arc<Self>,
        tag: u16,
        descriptor: &Descriptor,
        buffers: &Buffers,
    ) -> Result<(), i32> {
        let (device, read_only) = self.behind.device().ok_or(libc::EIO)?;
        let op = match descriptor.op_flags & op::MASK {
            op::READ => Op::Read,
            op::WRITE => Op::Write,
            op::FLUSH => Op::Flush,
            op::DISCARD => Op::Discard,
            op::WRITE_ZEROES => Op::WriteZeroes,
            _ => return Err(libc::EOPNOTSUPP),
        };
        if read_only && !matches!(op, Op::Read | Op::Flush) {
            return Err(libc::EROFS);
        }
        let sectors = Sector(u64::from(descriptor.sectors));
        let mut buf = IoBuf::empty();
        if matches!(op, Op::Read | Op::Write) {
            if sectors == Sector::ZERO || sectors.bytes() > u64::from(IO_BYTES_MAX) {
                return Err(libc::EINVAL);
            }
            buf = buffers.take(sectors.bytes() as usize);
        }
        if op == Op::Write {
            let taken = self.device.take_data(self.queue, tag, buf.as_mut_slice());
            taken.map_err(|errno| {
                tracing::error!(%errno, "ublk: the data of a write cannot be read");
                libc::EIO
            })?;
        }
        self.lane.begin(buf.len());
        let mut io = if op == Op::Flush {
            Io::flush(self.clone(), u64::from(tag))
        } else {
            let start = Sector(descriptor.start_sector);
            Io::new(op, start, sectors, buf, self.clone(), kind_and_tag(op, tag))
        };
        io.flags = IoFlags {
            fua: descriptor.op_flags & IO_FLAG_FUA != 0
                && matches!(op, Op::Write | Op::WriteZeroes),
            no_unmap: descriptor.op_flags & IO_FLAG_NO_UNMAP != 0 && op == Op::WriteZeroes,
        };
        submit_from_outside(&*device, io);
        Ok(())
    }
}

impl EndIo for QueueSink {
    fn end_io(self: Arc<Self>, io: Io, kind_and_tag: u64, status: BlkStatus) {
        let tag = (kind_and_tag & u64::from(u16::MAX)) as u16;
        let bytes = io.buf.len();
        // The data is copied here, on whatever thread, not on the one that serves the other requests.
        let result = match (status, kind_and_tag & IS_READ != 0) {
            (BlkStatus::Ok, true) => {
                match self.device.give_data(self.queue, tag, io.buf.as_slice()) {
                    Ok(()) => bytes as i32,
                    Err(errno) => {
                        tracing::error!(%errno, "ublk: the data of a read cannot be handed over");
                        -libc::EIO
                    }
                }
            }
            (BlkStatus::Ok, false) => bytes as i32,
            // EAGAIN would be taken for a shortage of the driver's own.
            (BlkStatus::Requeue, _) => -libc::EIO,
            (failed, _) => -failed.errno(),
        };
        // The buffer goes back to its pool before its bytes are counted out.
        drop(io);
        self.lane.end(bytes);
        self.lane.ended(self.slot, tag, result);
    }
}

fn kind_and_tag(op: Op, tag: u16) -> u64 {
    u64::from(tag) | if op == Op::Read { IS_READ } else { 0 }
}

/// Set in a request's tag; below are the kernel's 16 bits.
const IS_READ: u64 = 1 << 16;
