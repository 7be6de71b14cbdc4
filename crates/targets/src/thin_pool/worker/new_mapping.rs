//! New mappings: provisioning a block, and breaking the sharing of one.
//!
//! A job holds the block's cell, fills the new data block (zeroes, a copy, the guest's own data), and only then has
//! the mapping inserted; then the guest's request ends and the cell is released. Where nothing has to be filled (a hole that reads as
//! the unmapped block did, or a pool that does not zero) the mapping comes first and the guest's request goes its usual way.
//!
//! CRASH: until the commit after the insertion nothing durable points to the new block. A power cut before it leaves the
//! volume as it was: unmapped, or mapped to the old block, which nobody has written to since it became shared.
//!
//! The old block of a broken sharing loses a reference with the insertion, and maybe its last one. Reads that
//! are still in flight on it are outwaited first (`shared_reads`); new ones find the cell held.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::kit::{CopyRequest, CopySource, Overlay};
use thinmap_units::{BlkStatus, DataBlock, Sector};

use super::changes::{Change, Made, Unchanged};
use super::commit::NoBlock;
use super::requests::Place;
use super::{Entry, Work, Worker};
use crate::thin::Port;
use crate::thin_pool::mode::Mode;

/// A block being provisioned or copied.
struct NewMapping {
    port: Arc<Port>,
    place: Place,
    data: DataBlock,
    /// The block that it replaces.
    old: Option<DataBlock>,
    /// [`super::WorkerState::aborts`] when `data` was allocated.
    aborts: u64,
}

impl Worker<'_> {
    /// Gives an unmapped block a data block, for a write.
    pub(super) fn provision(&mut self, port: Arc<Port>, io: Io, place: Place) {
        let Some((mapping, io)) = self.begin_mapping(port, io, place, None) else {
            return;
        };
        let block = self.pool.geometry.block();
        let begin = self.pool.geometry.sector(place.v.raw());
        let origin = mapping.port.origin_source(begin, block);
        let zero = self.pool.features().zero_new_blocks
            || mapping.port.volume.zero_always.load(SeqCst)
            || io.op == Op::WriteZeroes;
        let covered = io.sectors == block && io.op == Op::Write;
        // CRASH: with the mapping first, the block may durably be mapped without the guest's data. That is only right where what it
        // then reads as is what it read as before: not over an origin.
        // What is to be zeroed may be so already: a sparse file's block that nothing was ever written to.
        if origin.is_none() && (!zero || self.is_hole(mapping.data)) {
            return self.insert_then_write(mapping, io);
        }
        self.hold_cell(&mapping);
        if covered {
            return self.write_then_insert(mapping, io);
        }
        let mut sources = Vec::with_capacity(2);
        let mut filled = Sector::ZERO;
        if let Some((from, len)) = origin {
            sources.push((len, CopySource::Device(from, begin)));
            filled = len;
        }
        if filled < block {
            sources.push((block - filled, CopySource::Zeroes));
        }
        self.fill(mapping, sources, io);
    }

    fn is_hole(&self, data: DataBlock) -> bool {
        let dev = self.pool.data_dev();
        dev.is_hole(self.data_sector(data), self.pool.geometry.block())
    }

    /// Gives a volume its own copy of a block that it shares, for a write.
    pub(super) fn break_sharing(&mut self, port: Arc<Port>, io: Io, place: Place, old: DataBlock) {
        let Some((mapping, io)) = self.begin_mapping(port, io, place, Some(old)) else {
            return;
        };
        self.hold_cell(&mapping);
        // Reads that looked the block up without seeing the cell are in the set after this.
        self.barrier();
        if mapping.port.volume.has_unsettled_writes() {
            // Writes from before the last snapshot may still be on their way to the old block.
            let then = Box::new(move |worker: &mut Worker<'_>| worker.copy_block(mapping, io));
            return self.when_drained(true, false, then);
        }
        self.copy_block(mapping, io);
    }

    /// Keeps others off the mapping's place. `block_request` has seen that nobody does, and only this thread could.
    fn hold_cell(&mut self, mapping: &NewMapping) {
        let v = mapping.place.v.raw();
        let held = self.hold(&mapping.port, v, v + 1);
        debug_assert!(held, "the cell was free a moment ago");
    }

    fn copy_block(&mut self, mapping: NewMapping, io: Io) {
        let block = self.pool.geometry.block();
        if io.sectors == block && io.op == Op::Write {
            return self.write_then_insert(mapping, io);
        }
        let Some(old) = mapping.old else {
            return io.complete(BlkStatus::IoErr);
        };
        let (from, to) = (self.data_sector(old), self.data_sector(mapping.data));
        let dev = self.pool.data_dev().clone();
        if self.state.reflink {
            match dev.reflink(from, to, block) {
                // The guest's data goes over the clone: nothing but its own write is written.
                Ok(()) => return self.write_then_insert(mapping, io),
                Err(BlkStatus::NotSupp) => self.state.reflink = false,
                Err(_) => {}
            }
        }
        let sources = vec![(block, CopySource::Device(dev, from))];
        self.fill(mapping, sources, io);
    }

    /// Allocates; `None` when the request had to go elsewhere.
    fn begin_mapping(
        &mut self,
        port: Arc<Port>,
        io: Io,
        place: Place,
        old: Option<DataBlock>,
    ) -> Option<(NewMapping, Io)> {
        self.outwait_deletions();
        if self.pool.mode() != Mode::Write {
            self.unserviceable(Work::Io(port, io));
            return None;
        }
        if self.state.taken_back > 0 {
            self.state.retry.push(Work::Io(port, io));
            return None;
        }
        let data = match self.alloc_block() {
            Ok(data) => data,
            Err(NoBlock::NoSpace | NoBlock::Failed) => {
                self.unserviceable(Work::Io(port, io));
                return None;
            }
        };
        let mapping = NewMapping {
            port,
            place,
            data,
            old,
            aborts: self.state.aborts,
        };
        Some((mapping, io))
    }

    /// Fills the new block from `sources` with the guest's data on top, then inserts.
    fn fill(&mut self, mapping: NewMapping, segments: Vec<(Sector, CopySource)>, io: Io) {
        let request = CopyRequest {
            to: self.pool.data_dev().clone(),
            to_sector: self.data_sector(mapping.data),
            segments,
            overlay: Some(Overlay {
                offset: mapping.place.at,
                io,
            }),
        };
        let job_end = self.job_end();
        let done = Box::new(move |status, io: Option<Io>| {
            job_end(Box::new(move |worker| {
                worker.filled(mapping, io, status);
            }));
        });
        self.state.copies += usize::from(request.to.is_synchronous());
        self.state.copier.start(request, done);
    }

    /// Sends the guest's request to the new block, which needs nothing else, and inserts when it has ended.
    fn write_then_insert(&mut self, mapping: NewMapping, mut io: Io) {
        let to = self.data_sector(mapping.data) + mapping.place.at;
        let job_end = self.job_end();
        let end: WriteEnd = Box::new(move |io, status| {
            job_end(Box::new(move |worker| {
                worker.filled(mapping, Some(io), status);
            }));
        });
        io.sector = to;
        let sink = Arc::new(OneWrite {
            end: parking_lot::Mutex::new(Some(end)),
        });
        io.push_end_io(sink, 0);
        self.pool.data_dev().submit(io);
    }

    /// Nothing of the block needs to be written besides the guest's data, which may come after the mapping.
    fn insert_then_write(&mut self, mapping: NewMapping, io: Io) {
        // Where metadata is scarce the insertion is one step with its commit, which may still fail when the mapping can be seen
        // already: nobody may write by it, and be told so, until it is durable.
        self.hold_cell(&mapping);
        let inserted = self.insert(&mapping);
        self.release(&mapping.port, mapping.place.v.raw());
        if inserted {
            self.send(mapping.port, io, mapping.place, mapping.data, false);
        } else {
            io.complete(BlkStatus::IoErr);
        }
    }

    /// The new block's content is written, or could not be.
    fn filled(&mut self, mapping: NewMapping, io: Option<Io>, status: BlkStatus) {
        if !status.is_ok() {
            return self.give_up(mapping, io, status);
        }
        let replaces = mapping.old.is_some();
        let finish = Box::new(move |worker: &mut Worker<'_>| worker.finish(mapping, io));
        self.when_drained(false, replaces, finish);
    }

    fn finish(&mut self, mapping: NewMapping, io: Option<Io>) {
        let inserted = self.insert(&mapping);
        // Before the guest is told: what it sends next need not find the block held.
        self.release(&mapping.port, mapping.place.v.raw());
        if let Some(io) = io {
            if inserted {
                self.complete_durably(io);
            } else {
                io.complete(BlkStatus::IoErr);
            }
        }
    }

    /// Data could not be written or read: this request fails, the block stays as it was.
    fn give_up(&mut self, mapping: NewMapping, io: Option<Io>, status: BlkStatus) {
        tracing::error!(pool = %self.pool.dev_no, thin = %mapping.port.volume.id, block = %mapping.place.v,
            "thin: cannot fill a new data block: {status:?}");
        self.give_back(mapping.data, mapping.aborts);
        if let Some(io) = io {
            io.complete(status);
        }
        self.release(&mapping.port, mapping.place.v.raw());
    }

    /// `false`: the block is as it was, its data block given back, the pool's mode says why.
    fn insert(&mut self, mapping: &NewMapping) -> bool {
        if mapping.aborts != self.state.aborts {
            return false;
        }
        if !self.pool.mode().may_grow_metadata() {
            self.give_back(mapping.data, mapping.aborts);
            return false;
        }
        let (id, v, data) = (mapping.port.volume.id, mapping.place.v, mapping.data);
        let inserted = self.change_and_note(
            Change::Grows,
            Some(data),
            Entry::Insert(id, v, data),
            |metadata| {
                metadata.insert(id, v, data)?;
                Ok(((), Vec::new()))
            },
        );
        match inserted {
            Ok(((), Made::InTheOpenTransaction)) => {
                mapping.port.volume.mark_changed();
                self.state.inserted += 1;
                self.state.replaced |= mapping.old.is_some();
                true
            }
            Ok(((), Made::WithItsCommit)) => true,
            Err(Unchanged::Full) => {
                self.set_mode(Mode::OutOfMetadataSpace);
                self.give_back(data, mapping.aborts);
                false
            }
            Err(Unchanged::Metadata(error)) => {
                self.metadata_failed("insert a mapping", &error);
                false
            }
            Err(Unchanged::Failed) => {
                self.give_back(data, mapping.aborts);
                false
            }
        }
    }
}

type WriteEnd = Box<dyn FnOnce(Io, BlkStatus) + Send>;

/// Brings a guest's write back to the worker.
struct OneWrite {
    end: parking_lot::Mutex<Option<WriteEnd>>,
}

impl EndIo for OneWrite {
    fn end_io(self: Arc<Self>, io: Io, _tag: u64, status: BlkStatus) {
        if let Some(end) = self.end.lock().take() {
            end(io, status);
        }
    }
}
