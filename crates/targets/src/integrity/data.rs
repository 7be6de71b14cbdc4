//! The data path: reads are checked, writes get tags.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use smallvec::SmallVec;
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::MapOutcome;
use thinmap_units::{BlkStatus, Sector};

use super::bits;
use super::layout::TagPlace;
use super::shared::{Fast, Mode, Shared, Stalled};
use super::superblock::flag;
use super::tags::Buffers;

/// What tags of discarded blocks are filled with.
pub(super) const DISCARDED: u8 = 0xf6;
/// Tags of a usual request, without an allocation.
pub(super) type TagBytes = SmallVec<[u8; 512]>;
/// In a frame's tag beside the sector: flush when it has ended.
const FUA: u64 = 1 << 63;

impl Shared {
    /// Takes a request of the guest's.
    pub fn map(self: &Arc<Self>, mut io: Io) -> MapOutcome<'_> {
        if let Some(status) = self.failed() {
            return MapOutcome::Kill(io, status);
        }
        if io.op == Op::Flush {
            self.flush_later(io);
            return MapOutcome::Submitted;
        }
        io.sector -= self.begin;
        if io.end().raw() > self.layout.provided {
            tracing::error!("integrity: Too big sector number: {io:?}");
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        let unit = self.layout.block_sectors();
        if (io.sector.raw() | io.sectors.raw()) & (unit - 1) != 0 {
            tracing::error!("integrity: Bio not aligned on {unit} sectors: {io:?}");
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        if self.mode == Mode::Recovery && io.op != Op::Read {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        self.go(io);
        MapOutcome::Submitted
    }

    /// Goes on with a request, or begins again; its sector is the line's.
    pub fn go(self: &Arc<Self>, io: Io) {
        if let Some(status) = self.failed() {
            return io.complete(status);
        }
        match io.op {
            Op::Read => self.read(io),
            Op::Write if self.mode == Mode::Journal => self.write_to_journal(io),
            Op::Discard if self.mode != Mode::Direct => self.discard_later(io),
            _ => self.write(io),
        }
    }

    fn range_of(io: &Io) -> Range<u64> {
        io.sector.raw()..io.end().raw()
    }

    /// Buffers of tags that a range needs, and where the first one is.
    pub fn tags_of(&self, range: &Range<u64>) -> (std::ops::RangeInclusive<u64>, TagPlace) {
        let first = self.layout.tag_place(range.start);
        let bytes = self.tag_bytes(range);
        let size = 512_u64 << self.layout.log2_buffer;
        let last = first.buffer + (first.offset as u64 + bytes as u64 - 1) / size;
        (first.buffer..=last, first)
    }

    /// Bytes of a range's tags.
    pub fn tag_bytes(&self, range: &Range<u64>) -> usize {
        ((range.end - range.start) >> self.layout.log2_block) as usize
            * self.layout.tag_size as usize
    }

    /// Sets the tags from that of the block at a sector of the line on.
    pub fn set_tags(&self, buffers: &Buffers, (sector, place): (u64, TagPlace), tags: &[u8]) {
        let block = sector >> self.layout.log2_block;
        self.tags.set(buffers, (block, place.offset), tags);
    }

    /// The tags of these data; zeroes where nobody makes any.
    pub fn tags_for(&self, sector: u64, data: &[u8], tags: &mut [u8]) {
        let Some(hash) = &self.internal_hash else {
            return tags.fill(0);
        };
        let salt: &[u8] = self.salt.as_ref().map_or(&[], |salt| salt);
        let blocks = data.chunks(self.layout.block_bytes());
        let tags = tags.chunks_mut(self.layout.tag_size as usize);
        let sectors = (sector..).step_by(self.layout.block_sectors() as usize);
        for ((block, tag), sector) in blocks.zip(tags).zip(sectors) {
            let sector = sector.to_le_bytes();
            hash.digest([salt, &sector, block].into_iter(), tag);
        }
    }

    fn read(self: &Arc<Self>, mut io: Io) {
        let range = Self::range_of(&io);
        {
            let mut fast = self.fast.lock();
            if !fast.ranges.take(&range) {
                return fast.ranges.wait(range, io);
            }
            if let Some(journal) = &fast.journal
                && self.mode == Mode::Journal
                && journal.has_all(&range)
            {
                journal.overlay(&range, io.buf.as_mut_slice(), &mut |_| {});
                drop(fast);
                return self.end(io, &range, BlkStatus::Ok);
            }
        }
        let logical = io.sector.raw();
        io.sector = self.layout.data_sector(logical);
        io.push_end_io(self.clone(), logical);
        self.data.submit(io);
    }

    fn read_ended(self: Arc<Self>, mut io: Io, range: Range<u64>, status: BlkStatus) {
        if !status.is_ok() {
            return self.end(io, &range, status);
        }
        let mut fresh = SmallVec::<[usize; 16]>::new();
        let unchecked = {
            let fast = self.fast.lock();
            if let Some(journal) = &fast.journal
                && self.mode == Mode::Journal
            {
                journal.overlay(&range, io.buf.as_mut_slice(), &mut |number| {
                    fresh.push(number);
                });
            }
            self.is_unchecked(&fast, &range)
        };
        let blocks = (range.end - range.start) >> self.layout.log2_block;
        if unchecked || fresh.len() as u64 == blocks {
            return self.end(io, &range, BlkStatus::Ok);
        }
        let (buffers, place) = self.tags_of(&range);
        let tags = self.tags.clone();
        tags.fetch(buffers, move |got| {
            let status = match got {
                Ok(buffers) => self.verify(&io, &range, (&buffers, place), &fresh),
                Err(status) => status,
            };
            self.end(io, &range, status);
        });
    }

    /// Whether what is read is what it is, whatever the tags say.
    fn is_unchecked(&self, fast: &Fast, range: &Range<u64>) -> bool {
        let before = self.has_flag(flag::RECALCULATING) && range.end > self.recalc.load(SeqCst);
        let noted = |b: &bits::Bits| !bits::all(&b.recalc, b.touched(range), false);
        self.internal_hash.is_none()
            || self.mode == Mode::Recovery
            || before
            || fast.bits.as_ref().is_some_and(noted)
    }

    /// Compares data with their tags; blocks that came from the journal need none.
    fn verify(
        &self,
        io: &Io,
        range: &Range<u64>,
        (buffers, place): (&Buffers, TagPlace),
        fresh: &[usize],
    ) -> BlkStatus {
        let bytes = self.tag_bytes(range);
        let mut stored = TagBytes::from_elem(0, bytes);
        self.tags.get(buffers, place.offset, &mut stored);
        let mut wanted = TagBytes::from_elem(0, bytes);
        self.tags_for(range.start, io.buf.as_slice(), &mut wanted);
        let size = self.layout.tag_size as usize;
        let pairs = stored.chunks(size).zip(wanted.chunks(size));
        for (number, (stored, wanted)) in pairs.enumerate() {
            let discarded = || self.allow_discards && stored.iter().all(|b| *b == DISCARDED);
            if stored == wanted || discarded() || fresh.binary_search(&number).is_ok() {
                continue;
            }
            let sector = range.start + number as u64 * self.layout.block_sectors();
            tracing::error!("integrity: Checksum failed at sector {sector:#x}");
            self.mismatches.fetch_add(1, SeqCst);
            return BlkStatus::Protection;
        }
        BlkStatus::Ok
    }

    /// A write or discard, with its tags, to where they belong.
    fn write(self: &Arc<Self>, io: Io) {
        let range = Self::range_of(&io);
        {
            let mut fast = self.fast.lock();
            if !fast.ranges.take(&range) {
                return fast.ranges.wait(range, io);
            }
            if let Some(bits) = &fast.bits
                && !bits::all(&bits.may_write, bits.touched(&range), true)
            {
                let waited = fast.ranges.release(&range);
                let dead = fast.dead;
                if !dead {
                    fast.unnoted.push(io);
                    drop(fast);
                    self.wake();
                } else {
                    drop(fast);
                    io.complete(BlkStatus::IoErr);
                }
                return waited.into_iter().for_each(|io| self.go(io));
            }
        }
        if self.internal_hash.is_none() {
            return self.submit_write(io, range);
        }
        let mut tags = TagBytes::from_elem(DISCARDED, self.tag_bytes(&range));
        if io.op == Op::Write {
            self.tags_for(range.start, io.buf.as_slice(), &mut tags);
        }
        let (buffers, place) = self.tags_of(&range);
        let shared = self.clone();
        self.tags.fetch(buffers, move |got| match got {
            Ok(buffers) => {
                shared.set_tags(&buffers, (range.start, place), &tags);
                shared.submit_write(io, range);
            }
            Err(status) => shared.end(io, &range, status),
        });
    }

    fn submit_write(self: &Arc<Self>, mut io: Io, range: Range<u64>) {
        // A FUA write waits for its tags too: it is flushed when it has ended.
        let fua = if io.flags.fua { FUA } else { 0 };
        io.flags.fua = false;
        io.sector = self.layout.data_sector(range.start);
        io.push_end_io(self.clone(), range.start | fua);
        self.data.submit(io);
    }

    fn write_ended(self: Arc<Self>, io: Io, range: Range<u64>, fua: bool, status: BlkStatus) {
        self.release(&range);
        self.commit_soon();
        match self.failed() {
            None if fua && status.is_ok() => self.flush_later(io),
            failed => io.complete(status.and(failed.unwrap_or(BlkStatus::Ok))),
        }
    }

    fn end(self: &Arc<Self>, io: Io, range: &Range<u64>, status: BlkStatus) {
        self.release(range);
        io.complete(status);
    }

    fn write_to_journal(self: &Arc<Self>, io: Io) {
        let mut tags = TagBytes::from_elem(0, self.tag_bytes(&Self::range_of(&io)));
        self.tags_for(io.sector.raw(), io.buf.as_slice(), &mut tags);
        let mut write = Stalled { io, tags, done: 0 };
        let mut fast = self.fast.lock();
        if fast.dead {
            drop(fast);
            return write.io.complete(BlkStatus::IoErr);
        }
        if !fast.stalled.is_empty() || !self.put(&mut fast, &mut write) {
            fast.stalled.push_back(write);
            drop(fast);
            return self.wake();
        }
        let low = fast
            .journal
            .as_ref()
            .is_some_and(|j| j.free() <= self.tuning.free_low);
        drop(fast);
        match low {
            true => self.wake(),
            false => self.commit_soon(),
        }
        self.put_ended(write.io);
    }

    /// Puts what is left of a write into the journal; whether that was all.
    pub fn put(&self, fast: &mut Fast, write: &mut Stalled) -> bool {
        let Some(journal) = &mut fast.journal else {
            return false;
        };
        let Stalled { io, tags, done } = write;
        let sector = io.sector.raw() + *done as u64 * self.layout.block_sectors();
        let data = &io.buf.as_slice()[*done * self.layout.block_bytes()..];
        let tags = &tags[*done * self.layout.tag_size as usize..];
        let count = journal.put(sector, data, tags);
        if let Some(kept) = &fast.kept {
            kept.put(sector, &data[..count * self.layout.block_bytes()]);
        }
        *done += count;
        *done as u64 == io.sectors.raw() >> self.layout.log2_block
    }

    /// A write is in the journal as a whole.
    pub fn put_ended(&self, io: Io) {
        match io.flags.fua {
            true => self.flush_later(io),
            false => io.complete(BlkStatus::Ok),
        }
    }

    fn discard_later(&self, io: Io) {
        let mut fast = self.fast.lock();
        if fast.dead {
            drop(fast);
            return io.complete(BlkStatus::IoErr);
        }
        fast.discards.push(io);
        drop(fast);
        self.wake();
    }
}

/// A request to the data device has ended.
impl EndIo for Shared {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let start = tag & !FUA;
        io.sector = Sector(start);
        let range = Self::range_of(&io);
        match io.op {
            Op::Read => self.read_ended(io, range, status),
            _ => self.write_ended(io, range, tag & FUA != 0, status),
        }
    }
}
