//! The fast path: requests that need neither waiting nor a change of metadata.
//!
//! No allocation, no mutex unless a block of this very volume is being worked on, one shared lock that only the
//! worker ever takes alone.

use std::sync::atomic::Ordering::SeqCst;

use parking_lot::RwLockReadGuard;
use thinmap_block::{Io, Op};
use thinmap_dm::MapOutcome;
use thinmap_thin_metadata::{Lookup, MayRead, PoolMetadata, Run};
use thinmap_units::{BlkStatus, DataBlock, Sector, VirtBlock};

use super::{OriginRead, Thin};
use crate::thin_pool::Mode;

/// An insertion takes one or two microseconds, a pause of the processor some forty nanoseconds.
const LOCK_SPINS: u32 = 64;

impl Thin {
    pub(super) fn map_request(&self, io: Io) -> MapOutcome<'_> {
        if self.port.is_requeuing() {
            return MapOutcome::Requeue(io);
        }
        if self.pool.mode() == Mode::Fail {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        match io.op {
            Op::Read | Op::Write => self.map_block(io),
            Op::Flush => self.map_flush(io),
            Op::Discard | Op::WriteZeroes => self.defer(io),
        }
    }

    fn defer(&self, io: Io) -> MapOutcome<'_> {
        self.pool.defer(&self.port, io);
        MapOutcome::Submitted
    }

    /// Whether durability is more than the data device's flush.
    fn must_commit(&self) -> bool {
        self.pool.dirty.load(SeqCst) || self.port.volume.has_lost_changes()
    }

    /// With nothing to commit a flush is the data device's alone.
    fn map_flush(&self, mut io: Io) -> MapOutcome<'_> {
        if self.must_commit() {
            return self.defer(io);
        }
        let tickets = self.pool.enter(false);
        if self.pool.suspended.load(SeqCst) {
            self.pool.uncount(&tickets);
            return self.defer(io);
        }
        self.pool.count(&mut io, &tickets);
        MapOutcome::Remapped(io, self.pool.data_dev())
    }

    /// The metadata, unless the worker has it for longer than handing the request over to it would take.
    fn metadata_soon(&self) -> Option<RwLockReadGuard<'_, PoolMetadata>> {
        for _ in 0..LOCK_SPINS {
            if let Some(metadata) = self.pool.metadata.try_read() {
                return Some(metadata);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// A request over several blocks that lie in a row on the data device too and need nothing done: as one.
    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    pub(super) fn map_run(&self, io: Io) -> Result<MapOutcome<'_>, Io> {
        if self.port.is_requeuing() || self.pool.mode() == Mode::Fail {
            return Err(io);
        }
        let geometry = self.pool.geometry;
        let (v, at) = geometry.split(self.port.virtual_sector(&io));
        let blocks = (at + io.sectors).raw().div_ceil(geometry.block().raw());
        let volume = &self.port.volume;
        let Some(metadata) = self.metadata_soon() else {
            return Err(io);
        };
        // INVARIANT: as in `map_block`.
        if self.pool.is_held(volume, VirtBlock(v), blocks) {
            return Err(io);
        }
        match metadata.lookup_run(volume.id, VirtBlock(v), blocks, MayRead::No) {
            Ok(Run {
                first: Lookup::Mapped { data, shared },
                blocks: found,
            }) if found == blocks && self.needs_nothing(&io, shared) => {
                self.remap(metadata, io, data, shared, at)
            }
            _ => Err(io),
        }
    }

    /// Whether a request to a mapped block changes no metadata and waits for none.
    fn needs_nothing(&self, io: &Io, shared: bool) -> bool {
        (!shared || io.op == Op::Read) && (!io.flags.fua || !self.must_commit())
    }

    /// Sends a request where its data lies; gives it back when the pool is being suspended.
    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    fn remap(
        &self,
        metadata: RwLockReadGuard<'_, PoolMetadata>,
        mut io: Io,
        data: DataBlock,
        shared: bool,
        at: Sector,
    ) -> Result<MapOutcome<'_>, Io> {
        let tickets = self.pool.enter(shared);
        drop(metadata);
        // After entering: either this sees the suspension or the suspension waits for this.
        if self.pool.suspended.load(SeqCst) {
            self.pool.uncount(&tickets);
            return Err(io);
        }
        self.pool.aim(&mut io, tickets, data, at);
        Ok(MapOutcome::Remapped(io, self.pool.data_dev()))
    }

    fn map_block(&self, io: Io) -> MapOutcome<'_> {
        let (v, at) = self.pool.geometry.split(self.port.virtual_sector(&io));
        let v = VirtBlock(v);
        let volume = &self.port.volume;
        let Some(metadata) = self.metadata_soon() else {
            return self.defer(io);
        };
        // INVARIANT: looked at under the read lock; see `Worker::barrier`.
        if self.pool.is_held(volume, v, 1) {
            drop(metadata);
            return self.defer(io);
        }
        match metadata.lookup(volume.id, v, MayRead::No) {
            Ok(Lookup::Mapped { data, shared }) if self.needs_nothing(&io, shared) => self
                .remap(metadata, io, data, shared, at)
                .unwrap_or_else(|io| self.defer(io)),
            Ok(Lookup::Unmapped) if io.op == Op::Read => {
                drop(metadata);
                match self.port.origin_read(io) {
                    OriginRead::Zeroes(mut io) => {
                        io.buf.as_mut_slice().fill(0);
                        MapOutcome::Kill(io, BlkStatus::Ok)
                    }
                    OriginRead::Submit(io, origin) => MapOutcome::Remapped(io, origin),
                }
            }
            // Changes, reads of metadata, and errors to be told of are the worker's.
            Ok(_) | Err(_) => {
                drop(metadata);
                self.defer(io)
            }
        }
    }
}
