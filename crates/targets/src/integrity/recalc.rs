//! Recalculation: tags are made of the data that are there, from the line's beginning to its end, while it is in use.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::{IoFlags, Op, submit_all_and_wait};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::bits;
use super::shared::{Mode, Shared, Slow};
use super::superblock::flag;

impl Shared {
    /// How far recalculation is, while it goes on or has gone on.
    pub fn recalculated_before(&self) -> Option<u64> {
        self.has_flag(flag::RECALCULATING)
            .then(|| self.recalc.load(SeqCst))
    }

    /// Recalculates the next stretch; whether there was one.
    pub fn recalculate(self: &Arc<Self>, slow: &mut Slow) -> bool {
        let all = self.layout.provided;
        let Some(from) = self.recalculated_before().filter(|from| *from < all) else {
            return false;
        };
        if self.failed().is_some() || self.internal_hash.is_none() || self.mode == Mode::Recovery {
            return false;
        }
        let mut end = (from + CHUNK_SECTORS).min(all);
        if !self.layout.separate {
            end = end.min((from | (self.layout.interleave() - 1)) + 1);
        }
        let range = from..end;
        self.take_waiting(range.clone());
        if let Err((what, status)) = self.recalculate_range(&range) {
            self.fail(what, status);
            self.release(&range);
            return false;
        }
        // Behind the range: who reads it next finds its tags right.
        self.recalc.store(end, SeqCst);
        self.release(&range);
        slow.recalculated += end - from;
        if end == all {
            self.end_recalculation(slow);
        } else if slow.recalculated >= SUPERBLOCK_EVERY {
            slow.recalculated = 0;
            self.flush_all();
            self.write_superblock(slow);
            if self.has_bits() && slow.clear_bits_at.is_none() {
                let interval = self.tuning.bitmap_flush_interval;
                slow.clear_bits_at = Some(self.clock.now() + interval);
            }
        }
        true
    }

    fn end_recalculation(self: &Arc<Self>, slow: &mut Slow) {
        {
            let mut fast = self.fast.lock();
            if let Some(bits) = &mut fast.bits {
                let everything = bits.touched(&(0..self.layout.provided));
                bits::put(&mut bits.recalc, everything, false);
            }
        }
        self.flush_all();
        self.write_superblock(slow);
        if self.has_bits() {
            self.clear_bits(slow);
        }
    }

    /// Makes the tags of a range, which nobody else is at work on, anew.
    pub fn recalculate_range(
        self: &Arc<Self>,
        range: &Range<u64>,
    ) -> Result<(), (&'static str, BlkStatus)> {
        let trusted = self
            .fast
            .lock()
            .bits
            .as_ref()
            .is_some_and(|bits| bits::all(&bits.recalc, bits.touched(range), false));
        if trusted {
            return Ok(());
        }
        let (numbers, place) = self.tags_of(range);
        let fetching = self.tags.begin(numbers);
        let pieces = (range.start..range.end).step_by(PIECE_SECTORS as usize);
        let requests = pieces.map(|sector| {
            let sectors = PIECE_SECTORS.min(range.end - sector);
            let buf = IoBuf::alloc((sectors * 512) as usize);
            let from = self.layout.data_sector(sector);
            (Op::Read, IoFlags::default(), from, Sector(sectors), buf)
        });
        let read = submit_all_and_wait(&*self.data, requests.collect());
        let mut tags = vec![0; self.tag_bytes(range)];
        let (mut at, mut sector) = (0, range.start);
        for (buf, status) in read {
            if !status.is_ok() {
                return Err(("reading data", status));
            }
            let end = sector + buf.len() as u64 / 512;
            let bytes = self.tag_bytes(&(sector..end));
            self.tags_for(sector, buf.as_slice(), &mut tags[at..at + bytes]);
            (at, sector) = (at + bytes, end);
        }
        let buffers = fetching.wait().map_err(|status| ("reading tags", status))?;
        self.set_tags(&buffers, (range.start, place), &tags);
        let mut fast = self.fast.lock();
        if let Some(bits) = &mut fast.bits {
            let whole = bits.round_down(range.start)..bits.round_down(range.end);
            let done = bits.touched(&whole);
            bits::put(&mut bits.recalc, done, false);
        }
        Ok(())
    }
}

/// Recalculated at a time: 4 MiB. Requests to these sectors wait meanwhile.
const CHUNK_SECTORS: u64 = 8192;
const PIECE_SECTORS: u64 = 2048;
/// COMPAT: the superblock is written after so much as there: sixteen times 16 MiB.
const SUPERBLOCK_EVERY: u64 = 16 * 32768;
