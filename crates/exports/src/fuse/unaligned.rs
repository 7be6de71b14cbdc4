//! Reads and writes that are not whole blocks: ordinary programs on the FUSE file, never the loop driver.
//!
//! A write reads the blocks it touches, changes them and writes them back. One such write runs per file at a
//! time, so two of them never lose each other's bytes.
//! INVARIANT: each job holds one `DeviceFile::enter` and one `Channel::begin` until it has answered.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, submit_from_outside};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::abi::WriteOut;
use super::channel::Channel;
use super::data::errno_of;
use super::file::{DeviceFile, Geometry};

/// The blocks around a range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cover {
    start: u64,
    len: usize,
    /// Bytes before the range in the first block.
    skip: usize,
}

impl Cover {
    fn of(offset: u64, len: usize, block: u32) -> Self {
        let block = u64::from(block);
        let start = offset / block * block;
        let end = (offset + len as u64).div_ceil(block) * block;
        Self {
            start,
            len: (end - start) as usize,
            skip: (offset - start) as usize,
        }
    }
}

/// A read of any bytes.
pub(super) struct UnalignedRead {
    channel: Arc<Channel>,
    file: Arc<DeviceFile>,
    skip: usize,
    len: usize,
    covered: usize,
}

impl UnalignedRead {
    pub(super) fn start(
        channel: &Arc<Channel>,
        file: Arc<DeviceFile>,
        device: &Arc<dyn BlockDevice>,
        geometry: &Geometry,
        unique: u64,
        offset: u64,
        len: usize,
    ) {
        let cover = Cover::of(offset, len, geometry.limits.logical_block_size);
        channel.begin(cover.len);
        let job = Self {
            channel: channel.clone(),
            file,
            skip: cover.skip,
            len,
            covered: cover.len,
        };
        let buf = IoBuf::alloc(cover.len);
        let start = Sector::from_bytes(cover.start);
        let read = Io::read(start, buf, Arc::new(job), unique);
        submit_from_outside(&**device, read);
    }
}

impl EndIo for UnalignedRead {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if status.is_ok() {
            self.channel
                .reply_bytes(tag, &io.buf.as_slice()[self.skip..][..self.len]);
        } else {
            self.channel.reply(tag, errno_of(status));
        }
        self.file.leave();
        self.channel.end(self.covered);
    }
}

/// Those of one file: one runs, the others wait.
#[derive(Default)]
pub(super) struct UnalignedWrites {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: bool,
    waiting: VecDeque<Arc<UnalignedWrite>>,
}

/// A write of any bytes.
pub(super) struct UnalignedWrite {
    channel: Arc<Channel>,
    file: Arc<DeviceFile>,
    device: Arc<dyn BlockDevice>,
    unique: u64,
    cover: Cover,
    data: Vec<u8>,
    flags: IoFlags,
}

impl UnalignedWrite {
    #[expect(
        clippy::too_many_arguments,
        reason = "the whole request, taken apart by its only caller"
    )]
    pub(super) fn start(
        channel: &Arc<Channel>,
        file: Arc<DeviceFile>,
        device: Arc<dyn BlockDevice>,
        geometry: &Geometry,
        unique: u64,
        offset: u64,
        data: Vec<u8>,
        flags: IoFlags,
    ) {
        let cover = Cover::of(offset, data.len(), geometry.limits.logical_block_size);
        channel.begin(cover.len);
        let job = Arc::new(Self {
            channel: channel.clone(),
            file,
            device,
            unique,
            cover,
            data,
            flags,
        });
        {
            let mut state = job.file.unaligned.state.lock();
            if state.running {
                state.waiting.push_back(job.clone());
                return;
            }
            state.running = true;
        }
        job.run();
    }

    fn run(self: Arc<Self>) {
        let buf = IoBuf::alloc(self.cover.len);
        let device = self.device.clone();
        let read = Io::read(Sector::from_bytes(self.cover.start), buf, self, 0);
        submit_from_outside(&*device, read);
    }

    fn finish(&self, status: BlkStatus) {
        // The next one starts before the answer, so that nobody sees the file idle with jobs waiting.
        let next = {
            let mut state = self.file.unaligned.state.lock();
            let next = state.waiting.pop_front();
            state.running = next.is_some();
            next
        };
        if status.is_ok() {
            let size = u32::try_from(self.data.len()).expect("a request is below 4 GiB");
            self.channel
                .reply_struct(self.unique, &WriteOut { size, padding: 0 });
        } else {
            self.channel.reply(self.unique, errno_of(status));
        }
        self.file.leave();
        self.channel.end(self.cover.len);
        if let Some(next) = next {
            next.run();
        }
    }
}

impl EndIo for UnalignedWrite {
    fn end_io(self: Arc<Self>, mut io: Io, _tag: u64, status: BlkStatus) {
        if !status.is_ok() || io.op == Op::Write {
            return self.finish(status);
        }
        let mut buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        buf.as_mut_slice()[self.cover.skip..][..self.data.len()].copy_from_slice(&self.data);
        let device = self.device.clone();
        let start = Sector::from_bytes(self.cover.start);
        let mut write = Io::write(start, buf, self.clone(), 0);
        write.flags = self.flags;
        submit_from_outside(&*device, write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cover_is_whole_blocks() {
        assert_eq!(
            Cover::of(0, 1, 512),
            Cover {
                start: 0,
                len: 512,
                skip: 0
            }
        );
        assert_eq!(
            Cover::of(511, 2, 512),
            Cover {
                start: 0,
                len: 1024,
                skip: 511
            }
        );
        assert_eq!(
            Cover::of(5000, 10, 4096),
            Cover {
                start: 4096,
                len: 4096,
                skip: 904
            }
        );
    }
}
