//! Requests that the fast path handed over, one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::{Io, Op};
use thinmap_thin_metadata::{Lookup, MayRead};
use thinmap_units::{BlkStatus, DataBlock, Sector, VirtBlock};

use super::commit::AfterCommit;
use super::{Work, Worker};
use crate::thin::{OriginRead, Port};
use crate::thin_pool::mode::Mode;

/// A request within one block of a volume.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub v: VirtBlock,
    /// From the block's begin.
    pub at: Sector,
}

impl Worker<'_> {
    pub(super) fn process(&mut self, work: Work) {
        if work.port().is_requeuing() {
            return work.end(BlkStatus::Requeue);
        }
        if self.pool.mode() == Mode::Fail {
            return work.end(BlkStatus::IoErr);
        }
        let (port, io) = match work {
            Work::Range(job) => return self.range_step(job),
            Work::Io(port, io) => (port, io),
        };
        if (io.op == Op::Flush || io.flags.fua) && port.volume.has_lost_changes() {
            port.volume.tell_of_lost_changes();
            return io.complete(BlkStatus::IoErr);
        }
        match io.op {
            Op::Flush => self.flush(io),
            Op::Discard => self.discard(port, io),
            Op::WriteZeroes => self.write_zeroes(port, io),
            Op::Read | Op::Write => self.block_request(port, io),
        }
    }

    fn flush(&mut self, mut io: Io) {
        if self.pool.dirty.load(SeqCst) {
            self.state.after_commit.push(AfterCommit::Complete(io));
            return;
        }
        let tickets = self.pool.enter(false);
        self.pool.count(&mut io, &tickets);
        self.pool.data_dev().submit(io);
    }

    /// A read, write or write-zeroes inside one block.
    pub(super) fn block_request(&mut self, port: Arc<Port>, io: Io) {
        let (v, at) = self.pool.geometry.split(port.virtual_sector(&io));
        let place = Place {
            v: VirtBlock(v),
            at,
        };
        let group = port.volume.id.raw();
        let detained = self
            .pool
            .prison
            .lock()
            .detain(group, v..v + 1, Work::Io(port, io));
        let Err(Work::Io(port, io)) = detained else {
            return;
        };
        let metadata = self.pool.metadata.read();
        let found = metadata.lookup(port.volume.id, place.v, MayRead::Yes);
        match found {
            Ok(Lookup::Mapped { data, shared }) if !(shared && io.is_write()) => {
                drop(metadata);
                self.send(port, io, place, data, shared);
            }
            Ok(Lookup::Mapped { data, .. }) => {
                drop(metadata);
                self.break_sharing(port, io, place, data);
            }
            Ok(Lookup::Unmapped) => {
                drop(metadata);
                self.unmapped(port, io, place);
            }
            Err(error) => {
                drop(metadata);
                tracing::error!(pool = %self.pool.dev_no, thin = %port.volume.id, block = %place.v, %error, "thin: cannot look a block up");
                io.complete(BlkStatus::IoErr);
            }
        }
    }

    /// Sends a request to the data block that its place is mapped to. With FUA not before that mapping is durable.
    pub(super) fn send(
        &mut self,
        port: Arc<Port>,
        mut io: Io,
        place: Place,
        data: DataBlock,
        shared: bool,
    ) {
        if io.flags.fua && self.pool.dirty.load(SeqCst) {
            self.state.after_commit.push(AfterCommit::Again(port, io));
            return;
        }
        // Mappings change on this thread only, so none can have changed since this one was looked up.
        let tickets = self.pool.enter(shared);
        self.pool.aim(&mut io, tickets, data, place.at);
        self.pool.data_dev().submit(io);
    }

    fn unmapped(&mut self, port: Arc<Port>, io: Io, place: Place) {
        if io.op != Op::Read {
            if io.op == Op::WriteZeroes && port.origin.is_none() && !io.flags.no_unmap {
                // It reads as zeroes already, and has to from now on.
                self.promise_zeroes(&port);
                return self.complete_durably(io);
            }
            return self.provision(port, io, place);
        }
        match port.origin_read(io) {
            OriginRead::Zeroes(mut io) => {
                io.buf.as_mut_slice().fill(0);
                io.complete(BlkStatus::Ok);
            }
            OriginRead::Submit(io, origin) => origin.submit(io),
        }
    }

    /// Ends a request well; with FUA not before what it depends on is durable.
    pub(super) fn complete_durably(&mut self, io: Io) {
        if io.flags.fua && self.pool.dirty.load(SeqCst) {
            self.state.after_commit.push(AfterCommit::Complete(io));
        } else if io.flags.fua && !self.pool.mode().may_commit() {
            // There is nothing to commit, only data; and a pool that was called dirty could never be clean again.
            let flushed = thinmap_block::flush(&**self.pool.data_dev());
            io.complete(flushed);
        } else if io.flags.fua {
            // The data may be in the data device's cache only.
            self.mark_dirty();
            self.state.after_commit.push(AfterCommit::Complete(io));
        } else {
            io.complete(BlkStatus::Ok);
        }
    }

    /// Holds block range `begin..end` of the request's volume against everybody else; `false` when part of it is held.
    pub(super) fn hold(&mut self, port: &Port, begin: u64, end: u64) -> bool {
        let mut prison = self.pool.prison.lock();
        if !prison.hold(port.volume.id.raw(), begin..end) {
            return false;
        }
        port.volume.cells.fetch_add(1, SeqCst);
        true
    }

    /// Releases a held range; those who waited for it are processed anew.
    pub(super) fn release(&mut self, port: &Port, begin: u64) {
        let waiting = {
            let mut prison = self.pool.prison.lock();
            port.volume.cells.fetch_sub(1, SeqCst);
            prison.release(port.volume.id.raw(), begin)
        };
        // They came before whatever is in line now.
        for work in waiting.into_iter().rev() {
            self.state.todo.push_front(work);
        }
    }

    /// After this, every request that does not know of a cell held before is counted in.
    pub(super) fn barrier(&self) {
        drop(self.pool.metadata.write());
    }

    /// First sector of a data block.
    pub(super) fn data_sector(&self, block: DataBlock) -> Sector {
        self.pool.geometry.sector(block.raw())
    }
}
