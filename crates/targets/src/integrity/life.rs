//! How a line begins and ends: what is done to superblock, journal and bitmap at a resume and at a suspend.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::flush;
use thinmap_dm::MemoryKeeper;
use thinmap_units::BlkStatus;

use super::bits::{self, BITMAP_BLOCK, Bits};
use super::journal::{Journal, Span, next_seq};
use super::kept::{KeptJournal, Marks};
use super::replay::examine;
use super::shared::{Mode, Shared, Slow};
use super::superblock::flag;

/// What a resume needs to know of the table.
#[derive(Clone, Copy)]
pub(super) struct Beginning {
    /// This is the line's first resume.
    pub first: bool,
    pub reset_recalculate: bool,
    pub bitmap_blocks: usize,
    pub log2_sectors_per_bit: u32,
}

impl Beginning {
    /// Sectors of the line that one block of the bitmap is for.
    pub fn bitmap_block_sectors(&self) -> Option<u64> {
        (BITMAP_BLOCK as u64 * 8)
            .checked_shl(self.log2_sectors_per_bit)
            .filter(|s| *s != 0)
    }
}

impl Shared {
    /// Before a resume. COMPAT: errors are those of requests then, not of the resume.
    pub fn begin(self: &Arc<Self>, slow: &mut Slow, how: Beginning) {
        slow.journal_used = false;
        if self.mode == Mode::Recovery {
            return;
        }
        // CRASH: journal and bitmap may have been written by a line that failed, or a daemon that died, before they were durable.
        // Data that are written because of what is read here must not outlive it.
        self.check("flushing disk cache", flush(&*self.meta));
        self.grow(slow, how);
        if self.has_flag(flag::DIRTY_BITMAP) {
            self.begin_dirty(slow, how);
            self.write_superblock(slow);
        } else {
            if how.first {
                self.replay();
            }
            if how.reset_recalculate {
                self.recalculate_all();
            }
            if self.mode == Mode::Bitmap {
                self.begin_bitmap(slow, how);
            }
        }
        let provided = self.layout.provided;
        if self.has_flag(flag::RECALCULATING) && self.recalc.load(SeqCst) > provided {
            self.recalc.store(provided, SeqCst);
            self.flush_all();
            self.write_superblock(slow);
        }
    }

    fn recalculate_all(&self) {
        self.set_flag(flag::RECALCULATING, true);
        self.recalc.store(0, SeqCst);
    }

    /// Devices may be larger or smaller than when they were formatted.
    fn grow(&self, slow: &mut Slow, how: Beginning) {
        let (before, now) = (slow.sb.provided, self.layout.provided);
        if before == now {
            return;
        }
        let same_bits = u32::from(slow.sb.log2_blocks_per_bit) + u32::from(self.layout.log2_block)
            == how.log2_sectors_per_bit;
        if now > before && self.mode == Mode::Bitmap && same_bits {
            let mut bits = Bits::new(how.log2_sectors_per_bit, how.bitmap_blocks);
            self.read_journal(&mut bits.disk);
            let added = bits.touched(&(before..now));
            bits::put(&mut bits.disk, added, true);
            self.fast.lock().bits = Some(bits);
            self.write_bits(0..how.bitmap_blocks as u64);
        }
        slow.sb.provided = now;
        self.write_superblock(slow);
    }

    /// The place of the journal holds a bitmap of a line that was not suspended.
    fn begin_dirty(self: &Arc<Self>, slow: &mut Slow, how: Beginning) {
        let mut bits = Bits::new(how.log2_sectors_per_bit, how.bitmap_blocks);
        self.read_journal(&mut bits.disk);
        let log2_blocks = (how.log2_sectors_per_bit as u8).saturating_sub(self.layout.log2_block);
        let same_bits = slow.sb.log2_blocks_per_bit == log2_blocks;
        let everything = bits.touched(&(0..self.layout.provided));
        let is_clear = same_bits && bits::all(&bits.disk, everything.clone(), false);
        if !is_clear || how.reset_recalculate {
            self.recalculate_all();
        }
        if self.mode != Mode::Bitmap {
            self.write_blank(0, self.layout.shape.sections, 0);
            self.replay();
            self.set_flag(flag::DIRTY_BITMAP, false);
            return;
        }
        let trusted = same_bits && !how.reset_recalculate;
        if !trusted {
            slow.sb.log2_blocks_per_bit = log2_blocks;
            bits::put(&mut bits.disk, everything, true);
        }
        bits.recalc.copy_from_slice(&bits.disk);
        bits.may_write.copy_from_slice(&bits.disk);
        self.fast.lock().bits = Some(bits);
        if !trusted {
            self.write_bits(0..how.bitmap_blocks as u64);
        }
    }

    /// A bitmap takes the place of the journal.
    fn begin_bitmap(&self, slow: &mut Slow, how: Beginning) {
        let mut bits = Bits::new(how.log2_sectors_per_bit, how.bitmap_blocks);
        let log2_blocks = (how.log2_sectors_per_bit as u8).saturating_sub(self.layout.log2_block);
        self.set_flag(flag::DIRTY_BITMAP, true);
        slow.sb.log2_blocks_per_bit = log2_blocks;
        // CRASH: before the bitmap: what is found then is no bitmap but the empty journal, and more than needed is recalculated.
        self.write_superblock(slow);
        if let Some(from) = self.recalculated_before() {
            let unsure = bits.touched(&(from.min(self.layout.provided)..self.layout.provided));
            for of in [&mut bits.disk, &mut bits.may_write, &mut bits.recalc] {
                bits::put(of, unsure.clone(), true);
            }
        }
        self.fast.lock().bits = Some(bits);
        self.write_bits(0..(how.bitmap_blocks as u64));
    }

    /// Writes what the journal has to where it belongs, and makes it ready for more.
    fn replay(self: &Arc<Self>) {
        let mut journal = Journal::blank(&self.layout, self.commit_ids);
        self.read_journal(journal.bytes_mut());
        if let Some(cipher) = &self.journal_cipher {
            let bytes = self.layout.shape.sectors as usize * 512;
            for (number, section) in (0..).zip(journal.bytes_mut().chunks_mut(bytes)) {
                cipher.decrypt(number, section);
            }
        }
        if self.failed().is_none() {
            match examine(&journal) {
                Ok(found) => {
                    self.fast.lock().journal = Some(journal);
                    if !found.is_empty {
                        self.replay_span(found.span);
                    }
                    let goes_on = self.mode == Mode::Journal || found.is_empty;
                    let (section, seq) = match found.go_on {
                        Some(seq) if goes_on => (found.span.first, seq),
                        _ => {
                            self.clear_journal(found.span.first, found.erase_seq);
                            (0, next_seq(found.erase_seq))
                        }
                    };
                    if let Some(journal) = &mut self.fast.lock().journal {
                        journal.begin_at(section, seq);
                    }
                }
                Err(what) => self.fail(what, BlkStatus::IoErr),
            }
        }
        if self.mode != Mode::Journal || self.failed().is_some() {
            self.fast.lock().journal = None;
        }
    }

    /// CRASH: the section after the newest one first, so that it does not look like the oldest to be replayed; the newest last.
    fn clear_journal(&self, from: u32, seq: u8) {
        let sections = self.layout.shape.sections;
        self.write_blank(from, 1, seq);
        if sections < 2 {
            return;
        }
        let middle = from + 1..from + sections - 1;
        let to_end = middle.end.min(sections).max(middle.start);
        self.write_blank(middle.start, to_end - middle.start, seq);
        self.write_blank(0, middle.end - to_end, seq);
        self.write_blank((from + sections - 1) % sections, 1, seq);
    }

    fn replay_span(self: &Arc<Self>, span: Span) {
        let mut blocks = std::collections::BTreeMap::new();
        {
            let fast = self.fast.lock();
            let Some(journal) = &fast.journal else {
                return;
            };
            let shape = journal.shape();
            let mut block = vec![0; self.layout.block_bytes()];
            let tag_size = self.layout.tag_size as usize;
            let (mut tag, mut wanted) = (vec![0; tag_size], vec![0; tag_size]);
            for i in 0..span.count {
                let section = (span.first + i) % shape.sections;
                if let Some(signer) = self.signer()
                    && !journal.is_signed(section, signer)
                {
                    return self.fail("journal mac", BlkStatus::Protection);
                }
                for entry in 0..shape.entries {
                    let Some(sector) = journal.sector(section, entry) else {
                        continue;
                    };
                    if sector & (self.layout.block_sectors() - 1) != 0 {
                        return self.fail("invalid sector in journal", BlkStatus::IoErr);
                    }
                    if sector >= self.layout.provided {
                        continue;
                    }
                    let position = section * shape.entries + entry;
                    journal.get(position, &mut block, &mut tag);
                    if self.internal_hash.is_some() {
                        self.tags_for(sector, &block, &mut wanted);
                        if tag != wanted {
                            let what = "tag mismatch when replaying journal";
                            return self.fail(what, BlkStatus::Protection);
                        }
                    }
                    blocks.insert(sector, position);
                }
            }
        }
        let blocks: Vec<(u64, u32)> = blocks.into_iter().collect();
        self.write_home(&blocks);
    }

    /// Does what the last process died over, and keeps what the next one will need.
    ///
    /// CRASH: what was left stays where it is until it is durable; done twice, it is the same.
    pub fn take_over(
        self: &Arc<Self>,
        slow: &mut Slow,
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
    ) -> std::io::Result<()> {
        match self.mode {
            Mode::Journal => {
                let kept = KeptJournal::open(keeper, name, &self.layout)?;
                let left = kept.left();
                if !left.is_empty() {
                    self.put_left(left);
                    self.commit(slow);
                }
                let mut fast = self.fast.lock();
                if let Some(journal) = &fast.journal
                    && self.failed().is_none()
                {
                    kept.reset(journal.position());
                    fast.kept = Some(kept);
                }
            }
            Mode::Direct if self.internal_hash.is_some() => {
                let marks = Marks::open(keeper, name, &self.layout)?;
                for blocks in marks.left() {
                    let log2 = self.layout.log2_block;
                    let range = blocks.start << log2..blocks.end << log2;
                    if let Err((what, status)) = self.recalculate_range(&range) {
                        self.fail(what, status);
                    }
                }
                self.flush_all();
                if self.failed().is_none() {
                    marks.reset();
                    self.tags.marks.store(Some(Arc::new(marks)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts blocks into the journal, which is empty and has room for as many.
    fn put_left(&self, left: std::collections::BTreeMap<u64, Vec<u8>>) {
        let mut tag = vec![0; self.layout.tag_size as usize];
        let mut fast = self.fast.lock();
        for (sector, block) in left {
            if let Some(journal) = &mut fast.journal
                && sector < self.layout.provided
            {
                self.tags_for(sector, &block, &mut tag);
                journal.put(sector, &block, &tag);
            }
        }
    }

    /// After a suspend: everything becomes durable, and the device one that needs no replay.
    pub fn end_all(self: &Arc<Self>, slow: &mut Slow) {
        if self.mode == Mode::Recovery {
            return;
        }
        self.commit(slow);
        self.fast.lock().commit_at = None;
        slow.clear_bits_at = None;
        let sections = self.layout.shape.sections;
        match self.mode {
            Mode::Journal => {
                self.write_out();
                self.flush_all();
                if let Some(kept) = self.fast.lock().kept.take() {
                    kept.forget();
                }
                let place = self
                    .fast
                    .lock()
                    .journal
                    .as_ref()
                    .map(|j| (j.free_section(), j.commit_seq));
                if let Some((section, seq)) = place.filter(|_| slow.journal_used) {
                    self.write_blank(section, sections - section, seq);
                    self.write_blank(0, section, next_seq(seq));
                }
            }
            Mode::Bitmap => {
                self.flush_all();
                self.write_blank(0, sections, 0);
                self.set_flag(flag::DIRTY_BITMAP, false);
                self.write_superblock(slow);
            }
            _ => {
                if let Some(marks) = self.tags.marks.swap(None) {
                    marks.forget();
                }
            }
        }
        if let Some(done) = self.recalculated_before()
            && done < self.layout.provided
        {
            self.flush_all();
            self.write_superblock(slow);
        }
    }
}
