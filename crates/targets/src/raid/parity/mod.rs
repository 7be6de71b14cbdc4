//! Levels 4, 5 and 6: data and parity in rows of chunks.
//!
//! Reads of members that hold their data go straight through. Everything else is worked on stripe by stripe: see `engine.rs` for who
//! may begin, `plan.rs` for what is read, `job.rs` for the steps.

mod blocks;
mod compute;
mod engine;
mod galois;
mod geometry;
mod job;
mod plan;
mod request;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, QueueLimits, submit_all_and_wait};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use self::engine::Engine;
use self::geometry::{Algorithm, Geometry};
use self::plan::MEMBERS_MAX;
use self::request::{Ask, Cut, Entry};
use super::level::{Level, Shape, SyncKind, Synced};

/// The level of such a shape, or what is wrong with it.
pub(super) fn new(shape: &Shape) -> Result<Arc<dyn Level>, String> {
    let parities = match shape.level {
        4 | 5 => 1,
        6 => 2,
        level => return Err(format!("level {level} has no parity")),
    };
    let members = shape.members.len();
    if members > MEMBERS_MAX {
        return Err(format!("{members} members are too many"));
    }
    let algorithm = Algorithm::from_md(shape.layout);
    let geometry = algorithm.and_then(|a| Geometry::new(members, parities, a, shape.chunk));
    let Some(geometry) = geometry else {
        return Err(format!(
            "level {} has no layout {} of {members} members",
            shape.level, shape.layout
        ));
    };
    let cache = Sector(u64::from(shape.stripe_cache) * UNIT.raw());
    let engine = Engine::new(shape.members.clone(), geometry, cache);
    Ok(Arc::new(Parity {
        straight: Arc::new(Straight(engine.clone())),
        engine,
        len: Sector(shape.member_len.raw() / shape.chunk.raw() * shape.chunk.raw()),
    }))
}

/// See the module.
struct Parity {
    engine: Arc<Engine>,
    straight: Arc<Straight>,
    /// Used of each member.
    len: Sector,
}

impl Level for Parity {
    fn submit(&self, mut io: Io) {
        match io.op {
            Op::Read => {
                let place = self.engine.geometry.place(io.sector);
                let end = place.sector + io.sectors;
                if !self
                    .engine
                    .members
                    .is_readable(place.member, place.sector, end)
                {
                    return self.engine.begin(io);
                }
                io.push_end_io(self.straight.clone(), io.sector.raw());
                io.sector = place.sector;
                self.engine.members.submit(place.member, io);
            }
            Op::Write => self.engine.begin(io),
            // The limits say that there are none.
            Op::Discard | Op::WriteZeroes | Op::Flush => {
                self.engine.members.answer(io, BlkStatus::NotSupp);
            }
        }
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        match op {
            Op::Read => Some(self.engine.geometry.chunk()),
            Op::Write | Op::Discard | Op::WriteZeroes | Op::Flush => {
                Some(self.engine.geometry.row_sectors())
            }
        }
    }

    fn sync_range(&self, begin: Sector, end: Sector) -> Range<Sector> {
        let geometry = &self.engine.geometry;
        let last = Sector(end.raw().max(begin.raw() + 1) - 1);
        let chunk = geometry.chunk().raw();
        if begin.raw() / chunk == last.raw() / chunk {
            let first = geometry.place(begin).sector;
            return first..first + (end - begin);
        }
        let row = |sector: Sector| sector.raw() / geometry.row_sectors().raw();
        Sector(row(begin) * chunk)..Sector((row(last) + 1) * chunk)
    }

    fn sync_len(&self) -> Sector {
        self.len
    }

    fn recover_len(&self) -> Sector {
        self.len
    }

    fn sync(&self, kind: SyncKind, window: Range<Sector>) -> Result<Synced, BlkStatus> {
        let window_device = Window {
            engine: self.engine.clone(),
            kind,
            mismatches: Arc::new(AtomicU64::new(0)),
        };
        let stripe = self.engine.stripe.raw();
        let mut requests = Vec::new();
        let (mut at, end) = (window.start, window.end.min(self.len));
        while at < end {
            let next = Sector((at.raw() / stripe + 1) * stripe).min(end);
            let flags = IoFlags::default();
            requests.push((Op::Discard, flags, at, next - at, IoBuf::empty()));
            at = next;
        }
        for (_, status) in submit_all_and_wait(&window_device, requests) {
            if !status.is_ok() {
                return Err(status);
            }
        }
        let mismatches = window_device.mismatches.load(Ordering::Relaxed);
        Ok(Synced { mismatches })
    }

    fn data_members(&self) -> u32 {
        u32::try_from(self.engine.geometry.data_chunks()).unwrap_or(u32::MAX)
    }
}

impl Engine {
    /// A read or write of the array, in the order of its stripes.
    fn begin(self: &Arc<Self>, io: Io) {
        let is_write = io.op == Op::Write;
        let left = |sector: Sector| Sector(self.stripe.raw() - sector.raw() % self.stripe.raw());
        if io.sectors <= left(io.sector) {
            return self.submit([self.entry(io)]);
        }
        let mut cut = Cut::new(io, self.members.clone(), is_write);
        let mut entries = Vec::new();
        while cut.sectors() > Sector::ZERO {
            let piece = cut.take(left(cut.sector()).min(cut.sectors()));
            entries.push(self.entry(piece));
        }
        cut.all_taken();
        self.submit(entries);
    }

    /// An entry for what lies inside one stripe.
    fn entry(&self, io: Io) -> Entry {
        let place = self.geometry.place(io.sector);
        let ask = if io.op == Op::Write {
            Ask::Write(place.member)
        } else {
            Ask::Read(place.member)
        };
        Entry {
            ask,
            range: place.sector..place.sector + io.sectors,
            io,
            is_fine: false,
        }
    }
}

/// Sees reads that went straight through.
struct Straight(Arc<Engine>);

impl EndIo for Straight {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        if matches!(status, BlkStatus::Ok | BlkStatus::Requeue) {
            return io.complete(status);
        }
        // The sector of the array again: layers below have rewritten it.
        io.sector = Sector(tag);
        self.0.begin(io);
    }
}

/// A sync window as requests that can be waited for: each goes through its range of the members.
struct Window {
    engine: Arc<Engine>,
    kind: SyncKind,
    mismatches: Arc<AtomicU64>,
}

impl BlockDevice for Window {
    fn limits(&self) -> QueueLimits {
        QueueLimits::STACKING
    }

    fn size(&self) -> Sector {
        Sector::ZERO
    }

    fn submit(&self, io: Io) {
        let entry = Entry {
            ask: Ask::Sync(self.kind, self.mismatches.clone()),
            range: io.sector..io.end(),
            io,
            is_fine: false,
        };
        self.engine.submit([entry]);
    }
}

/// What md calls a stripe, on each member.
const UNIT: Sector = Sector(8);
