//! A transaction's view of reference counts, whatever they count and wherever they are kept.
//!
//! INVARIANT: a block is handed out by [`Counts::alloc`] only if its count is zero now and was
//! zero at the last commit. So whatever the last commit can reach stays untouched until the next.

use std::sync::Arc;

use super::{
    BITMAP_HEADER_BYTES, BITMAP_WORDS, ENTRIES_PER_BITMAP, IndexEntry, LargeCounts, past_end,
    small_count,
};
use crate::block::{BlockBytes, put_u64, u64_at};
use crate::cache::BlockMap;
use crate::error::{ErrorKind, MetadataError, Result};

/// The low bit of each pair.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;
/// Bitmaps that were only read are dropped when this many are held.
const CHUNKS_CLEAN_MAX: usize = 1024;

/// The space map as of the last commit, or as changed by what was already written back.
pub(crate) trait Source {
    /// The index entry of bitmap `at`.
    fn entry(&self, at: u64) -> Result<IndexEntry>;
    /// The bitmap in `block`.
    fn bitmap(&self, block: u64) -> Result<Arc<BlockBytes>>;
    /// The count of `block` from the btree of large counts.
    fn large_count(&self, block: u64) -> Result<Option<u32>>;
}

type Words = [u64; BITMAP_WORDS];

/// A bitmap being changed.
pub(crate) struct Chunk {
    words: Box<Words>,
    /// The words at the last commit.
    committed: Box<Words>,
    pub(crate) entry: IndexEntry,
    pub(crate) dirty: bool,
    /// Its block was allocated in this transaction.
    pub(crate) placed: bool,
}

/// Count at position `at` of its word. The kernel keeps the high bit of a pair at the lower place.
pub(crate) fn count_in_word(word: u64, at: u64) -> u32 {
    let pair = (word >> ((at % 32) * 2)) as u32;
    ((pair & 1) << 1) | ((pair >> 1) & 1)
}

/// `word` with the count at position `at` of it set to `count`, which is at most three.
pub(crate) fn with_count(word: u64, at: u64, count: u32) -> u64 {
    let shift = (at % 32) * 2;
    let pair = u64::from(count >> 1 | (count & 1) << 1);
    word & !(3 << shift) | pair << shift
}

/// The low bit of each pair that is not zero.
pub(crate) fn used_pairs(word: u64) -> u64 {
    (word | (word >> 1)) & LOW_BITS
}

/// The first pair that [`used_pairs`] left out; 32 when there is none.
pub(crate) fn first_free_pair(used: u64) -> u32 {
    (!used & LOW_BITS).trailing_zeros() / 2
}

impl Chunk {
    pub(crate) fn new() -> Self {
        let mut chunk = Self {
            words: Box::new([0; BITMAP_WORDS]),
            committed: Box::new([0; BITMAP_WORDS]),
            entry: IndexEntry::default(),
            dirty: true,
            placed: false,
        };
        chunk.recount();
        chunk
    }

    fn load(entry: IndexEntry, bitmap: &BlockBytes) -> Self {
        let mut words = Box::new([0; BITMAP_WORDS]);
        for (at, word) in words.iter_mut().enumerate() {
            *word = u64_at(bitmap, BITMAP_HEADER_BYTES + at * 8);
        }
        let mut chunk = Self {
            committed: words.clone(),
            words,
            entry,
            dirty: false,
            placed: false,
        };
        // The index may lie or, from thin_restore, not count what is past the end as free.
        chunk.recount();
        chunk
    }

    fn recount(&mut self) {
        let used: u32 = self.words.iter().map(|w| used_pairs(*w).count_ones()).sum();
        self.entry.nr_free = ENTRIES_PER_BITMAP as u32 - used;
        let first = self.words.iter().position(|w| used_pairs(*w) != LOW_BITS);
        self.entry.none_free_before = first.map_or(ENTRIES_PER_BITMAP as u32, |at| {
            let free = !used_pairs(self.words[at]) & LOW_BITS;
            at as u32 * 32 + free.trailing_zeros() / 2
        });
    }

    pub(crate) fn store(&self, bitmap: &mut BlockBytes) {
        bitmap[..BITMAP_HEADER_BYTES].fill(0);
        for (at, word) in self.words.iter().enumerate() {
            put_u64(bitmap, BITMAP_HEADER_BYTES + at * 8, *word);
        }
    }

    fn count(&self, at: u64) -> u32 {
        count_in_word(self.words[(at / 32) as usize], at)
    }

    fn set(&mut self, at: u64, count: u32) {
        let word = &mut self.words[(at / 32) as usize];
        *word = with_count(*word, at, count);
        self.dirty = true;
    }

    fn was_free(&self, at: u64) -> bool {
        count_in_word(self.committed[(at / 32) as usize], at) == 0
    }

    /// The first block from `from` to before `end` that is free now and was free at the commit.
    fn find_free(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from.max(u64::from(self.entry.none_free_before));
        while at < end {
            let word = (at / 32) as usize;
            let used = used_pairs(self.words[word]) | used_pairs(self.committed[word]);
            let free = (!used & LOW_BITS) >> ((at % 32) * 2);
            if free != 0 {
                let found = at + u64::from(free.trailing_zeros() / 2);
                return (found < end).then_some(found);
            }
            at = (at / 32 + 1) * 32;
        }
        None
    }
}

/// The counts as the open transaction sees them.
pub(crate) struct Counts {
    nr_blocks: u64,
    nr_allocated: u64,
    pub(crate) chunks: BlockMap<Chunk>,
    /// Counts not yet in the btree of large counts.
    pub(crate) large: LargeCounts,
    /// Where the search for a free block goes on.
    cursor: u64,
    /// Free blocks that [`alloc`](Self::alloc) can still hand out.
    nr_free: u64,
}

impl Counts {
    pub(crate) fn new(nr_blocks: u64, nr_allocated: u64) -> Self {
        Self {
            nr_blocks,
            nr_allocated,
            chunks: BlockMap::default(),
            large: LargeCounts::default(),
            cursor: 0,
            nr_free: nr_blocks - nr_allocated,
        }
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    pub(crate) fn nr_allocated(&self) -> u64 {
        self.nr_allocated
    }

    /// Blocks that can be allocated in this transaction: those freed in it do not count.
    pub(crate) fn nr_free(&self) -> u64 {
        self.nr_free
    }

    pub(crate) fn is_changed(&self) -> bool {
        !self.large.is_empty() || self.chunks.values().any(|c| c.dirty)
    }

    /// Blocks that giving all changes a home will take; rather too many than too few.
    pub(crate) fn commit_estimate(&self) -> u64 {
        self.estimate(self.chunks.values().filter(|c| c.dirty).count())
    }

    /// No less than that, and counted in no time.
    pub(crate) fn commit_estimate_max(&self) -> u64 {
        self.estimate(self.chunks.len())
    }

    fn estimate(&self, bitmaps: usize) -> u64 {
        // A bitmap and its way in the index; a count's way in its tree, with a split.
        2 * bitmaps as u64 + 3 * self.large.len() as u64 + 3
    }

    /// Forgets the transaction's bitmaps once they are written back: what is free now may be
    /// allocated from here on.
    pub(crate) fn committed(&mut self) {
        assert!(self.large.is_empty());
        self.chunks.clear();
        self.nr_free = self.nr_blocks.saturating_sub(self.nr_allocated);
    }

    /// Adds room for blocks with count zero; gives the bitmaps that have to be made.
    pub(crate) fn extend(
        &mut self,
        source: &impl Source,
        nr_blocks: u64,
    ) -> Result<std::ops::Range<u64>> {
        let old = self.nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        if !self.nr_blocks.is_multiple_of(ENTRIES_PER_BITMAP) {
            // Brings the entry's count of free blocks in line with the new end.
            self.chunk_mut(source, old - 1)?.dirty = true;
        }
        self.nr_free += nr_blocks - self.nr_blocks;
        self.nr_blocks = nr_blocks;
        Ok(old..nr_blocks.div_ceil(ENTRIES_PER_BITMAP))
    }

    pub(crate) fn count(&self, source: &impl Source, block: u64) -> Result<u32> {
        if block >= self.nr_blocks {
            return Err(past_end(block, self.nr_blocks));
        }
        let (index, at) = (block / ENTRIES_PER_BITMAP, block % ENTRIES_PER_BITMAP);
        let small = match self.chunks.get(&index) {
            Some(chunk) => chunk.count(at),
            None => small_count(&*source.bitmap(source.entry(index)?.block)?, at),
        };
        if small < 3 {
            return Ok(small);
        }
        self.large_count(source, block)
    }

    fn large_count(&self, source: &impl Source, block: u64) -> Result<u32> {
        if let Some(count) = self.large.get(block) {
            return Ok(count);
        }
        source
            .large_count(block)?
            .filter(|c| *c > 2)
            .ok_or_else(|| {
                MetadataError::new(
                    ErrorKind::Corrupt,
                    format!("the reference count of block {block} is missing from the space map"),
                )
            })
    }

    pub(crate) fn inc(&mut self, source: &impl Source, block: u64) -> Result<()> {
        self.change(source, block, |count| {
            count.checked_add(1).ok_or("is too large to raise")
        })
    }

    /// Gives whether the block is free now.
    pub(crate) fn dec(&mut self, source: &impl Source, block: u64) -> Result<bool> {
        self.change(source, block, |count| {
            count.checked_sub(1).ok_or("is zero already")
        })?;
        let (index, at) = (block / ENTRIES_PER_BITMAP, block % ENTRIES_PER_BITMAP);
        Ok(self.chunk_mut(source, index)?.count(at) == 0)
    }

    fn change(
        &mut self,
        source: &impl Source,
        block: u64,
        new_count: impl FnOnce(u32) -> std::result::Result<u32, &'static str>,
    ) -> Result<()> {
        if block >= self.nr_blocks {
            return Err(past_end(block, self.nr_blocks));
        }
        let (index, at) = (block / ENTRIES_PER_BITMAP, block % ENTRIES_PER_BITMAP);
        let small = self.chunk_mut(source, index)?.count(at);
        let old = if small < 3 {
            small
        } else {
            self.large_count(source, block)?
        };
        let new = new_count(old).map_err(|what| {
            MetadataError::new(
                ErrorKind::Corrupt,
                format!("the reference count of block {block} {what}"),
            )
        })?;
        if old > 2 || new > 2 {
            self.large.set(block, old, new);
        }
        let chunk = self.chunk_mut(source, index)?;
        chunk.set(at, new.min(3));
        let was_free = chunk.was_free(at);
        if old == 0 {
            chunk.entry.nr_free -= 1;
            self.nr_allocated += 1;
            self.nr_free = self.nr_free.saturating_sub(u64::from(was_free));
        } else if new == 0 {
            chunk.entry.nr_free += 1;
            chunk.entry.none_free_before = chunk.entry.none_free_before.min(at as u32);
            self.nr_allocated = self.nr_allocated.saturating_sub(1);
            self.nr_free += u64::from(was_free);
        }
        Ok(())
    }

    /// A free block, now with count one. Searches from the last one on, so that blocks asked for
    /// in sequence lie in sequence.
    pub(crate) fn alloc(&mut self, source: &impl Source) -> Result<Option<u64>> {
        if self.nr_free == 0 {
            return Ok(None);
        }
        let (cursor, end) = (self.cursor.min(self.nr_blocks), self.nr_blocks);
        let found = match self.find_free(source, cursor, end)? {
            Some(block) => Some(block),
            None => self.find_free(source, 0, cursor)?,
        };
        if let Some(block) = found {
            self.inc(source, block)?;
            self.cursor = block + 1;
        }
        Ok(found)
    }

    fn find_free(&mut self, source: &impl Source, from: u64, end: u64) -> Result<Option<u64>> {
        let mut at = from;
        while at < end {
            let index = at / ENTRIES_PER_BITMAP;
            let base = index * ENTRIES_PER_BITMAP;
            let nr_free = match self.chunks.get(&index) {
                Some(chunk) => chunk.entry.nr_free,
                None => source.entry(index)?.nr_free,
            };
            if nr_free > 0 {
                let chunk_end = (end - base).min(ENTRIES_PER_BITMAP);
                let chunk = self.chunk_mut(source, index)?;
                if let Some(found) = chunk.find_free(at - base, chunk_end) {
                    return Ok(Some(base + found));
                }
            }
            at = base + ENTRIES_PER_BITMAP;
        }
        Ok(None)
    }

    fn chunk_mut(&mut self, source: &impl Source, index: u64) -> Result<&mut Chunk> {
        // Two look-ups on a hit, because a borrow that is returned on one branch only is not
        // accepted; `entry` would need the chunk before its reading can fail.
        if !self.chunks.contains_key(&index) {
            if self.chunks.len() >= CHUNKS_CLEAN_MAX {
                self.chunks.retain(|_, chunk| chunk.dirty);
            }
            let entry = source.entry(index)?;
            let bitmap = source.bitmap(entry.block)?;
            self.chunks.insert(index, Chunk::load(entry, &bitmap));
        }
        match self.chunks.get_mut(&index) {
            Some(chunk) => Ok(chunk),
            None => unreachable!("inserted above"),
        }
    }
}
