//! A write, discard, write-zeroes or flush to all legs at once.
//!
//! The guest's own request goes to the first leg; the others get copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_runtime::{BufferPool, IoBuf};
use thinmap_units::{BlkStatus, Sector};

use super::legs::Failure;
use super::set::MirrorSet;
use super::worker::Event;

struct LegWrites {
    set: Arc<MirrorSet>,
    /// The request's place in the mapped device.
    sector: Sector,
    left: AtomicUsize,
    /// A bit for each leg.
    failed: AtomicU32,
    io: Mutex<Option<Io>>,
}

impl MirrorSet {
    /// Sends a counted write, or a flush, to all legs.
    pub fn write_legs(self: &Arc<Self>, mut io: Io) {
        let legs = &self.legs.list;
        let all = Arc::new(LegWrites {
            set: self.clone(),
            sector: io.sector,
            left: AtomicUsize::new(legs.len()),
            failed: AtomicU32::new(0),
            io: Mutex::new(None),
        });
        let place = |leg: &super::legs::Leg| match io.op {
            Op::Flush => Sector::ZERO,
            _ => leg.place(self.offset(all.sector)),
        };
        let first_sector = place(&legs[0]);
        for (index, leg) in legs.iter().enumerate().skip(1) {
            let buf = self.copy_of(&io.buf);
            let mut copy = Io::new(
                io.op,
                place(leg),
                io.sectors,
                buf,
                all.clone(),
                index as u64,
            );
            copy.flags = io.flags;
            leg.dev().submit(copy);
        }
        io.sector = first_sector;
        io.push_end_io(all, 0);
        legs[0].dev().submit(io);
    }

    /// A counted write, or a flush, did not reach all legs, or the log.
    pub fn failed(self: &Arc<Self>, io: Io) {
        let log_failed = self.log_failed.load(SeqCst);
        if !log_failed {
            self.mark_out_of_sync(&io);
            self.legs.in_sync.store(false, SeqCst);
        }
        if !self.legs.any_is_well() || (self.features.keep_log && log_failed) {
            io.complete(BlkStatus::IoErr);
        } else if self.features.hold_failed() {
            self.hold(io);
        } else {
            // COMPAT: one leg has it. Which one is not remembered by a log in memory.
            io.complete(BlkStatus::Ok);
        }
    }

    fn mark_out_of_sync(&self, io: &Io) {
        if io.op == Op::Flush {
            self.regions.lock().flush_failed = true;
            return;
        }
        let region = self.region_at(self.offset(io.sector));
        let delayed = {
            let mut regions = self.regions.lock();
            self.log.set_in_sync(region, false);
            regions.mark_out_of_sync(region)
        };
        if let Some(delayed) = delayed {
            self.push(Event::GiveUp(region));
            delayed
                .into_iter()
                .for_each(|io| self.push(Event::Write(io)));
        }
    }

    fn copy_of(&self, buf: &IoBuf) -> IoBuf {
        if buf.is_empty() {
            return IoBuf::empty();
        }
        let is_large_enough = |pool: &&BufferPool| buf.len() <= pool.buffer_bytes();
        let mut copy = match self.write_buffers.iter().find(is_large_enough) {
            // What is cut off is dropped, and the whole goes back to the pool with the rest.
            Some(pool) => pool.take_or_alloc().split_to(buf.len()),
            None => IoBuf::alloc(buf.len()),
        };
        copy.as_mut_slice().copy_from_slice(buf.as_slice());
        copy
    }
}

impl EndIo for LegWrites {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if !status.is_ok() {
            self.failed.fetch_or(1 << tag, SeqCst);
        }
        if tag == 0 {
            *self.io.lock() = Some(io);
        } else {
            drop(io);
        }
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.end();
        }
    }
}

impl LegWrites {
    /// All legs have answered.
    fn end(&self) {
        let Some(mut io) = self.io.lock().take() else {
            return;
        };
        io.sector = self.sector;
        let failed = self.failed.load(SeqCst);
        if failed == 0 {
            return io.complete(BlkStatus::Ok);
        }
        // COMPAT: what a discard leaves is undefined anyway, so a leg that fails it is not at fault.
        if io.op == Op::Discard {
            return io.complete(BlkStatus::NotSupp);
        }
        for index in 0..self.set.legs.list.len() {
            if failed >> index & 1 != 0 {
                self.set.legs.fail(index, Failure::Write);
            }
        }
        self.set.failed(io);
    }
}
