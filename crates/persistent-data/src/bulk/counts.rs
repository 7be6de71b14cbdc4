//! Reference counts that are made at one go, and both space maps from them.

use std::collections::BTreeMap;

use super::{BulkTree, BulkWriter};
use crate::block::{BlockKind, put_u64, u64_at};
use crate::cache::BlockMap;
use crate::error::{ErrorKind, MetadataError, Result, Space};
use crate::space_map::{
    ENTRIES_PER_BITMAP, IndexEntry, SpaceMapRoot, counts, past_end, put_index_entry,
};

/// Bytes before the first count in a bitmap.
const HEADER_BYTES: usize = 16;
/// Bytes of counts in a bitmap.
const COUNT_BYTES: usize = 4080;

/// The counts of the blocks that have any. Memory goes with the bitmaps touched: a quarter of a byte for
/// each block near one in use.
pub struct BulkCounts {
    nr_blocks: u64,
    nr_allocated: u64,
    bitmaps: BlockMap<Box<[u8; COUNT_BYTES]>>,
    large: BTreeMap<u64, u32>,
}

impl BulkCounts {
    /// Counts of `nr_blocks` blocks, all zero.
    pub fn new(nr_blocks: u64) -> Self {
        Self {
            nr_blocks,
            nr_allocated: 0,
            bitmaps: BlockMap::default(),
            large: BTreeMap::new(),
        }
    }

    /// One more reference to `block`.
    ///
    /// # Errors
    /// `Corrupt`: past the end, or the count does not fit.
    pub fn inc(&mut self, block: u64) -> Result<()> {
        if block >= self.nr_blocks {
            return Err(past_end(block, self.nr_blocks));
        }
        let bitmap = self
            .bitmaps
            .entry(block / ENTRIES_PER_BITMAP)
            .or_insert_with(|| Box::new([0; COUNT_BYTES]));
        let at = block % ENTRIES_PER_BITMAP;
        let start = (at / 32) as usize * 8;
        let word = u64_at(&bitmap[..], start);
        let count = counts::count_in_word(word, at);
        self.nr_allocated += u64::from(count == 0);
        if count >= 2 {
            let large = self.large.entry(block).or_insert(2);
            *large = large.checked_add(1).ok_or_else(|| {
                MetadataError::new(
                    ErrorKind::Corrupt,
                    format!("block {block} has too many references to count"),
                )
            })?;
        }
        let word = counts::with_count(word, at, (count + 1).min(3));
        put_u64(&mut bitmap[..], start, word);
        Ok(())
    }

    /// Writes the space map: bitmaps, their index as a tree, and the tree of large counts.
    ///
    /// # Errors
    /// `NoSpace(Metadata)`, `Io`.
    pub fn write(self, out: &mut BulkWriter<'_>) -> Result<SpaceMapRoot> {
        let nr_bitmaps = self.nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        if nr_bitmaps > out.nr_blocks() {
            return Err(MetadataError::new(
                ErrorKind::NoSpace(Space::Metadata),
                format!(
                    "the space map of {} data blocks does not fit in {} metadata blocks",
                    self.nr_blocks,
                    out.nr_blocks()
                ),
            ));
        }
        let mut index = BulkTree::<{ IndexEntry::SIZE }>::default();
        let nothing = [0; COUNT_BYTES];
        for at in 0..nr_bitmaps {
            let counts = self.bitmaps.get(&at).map_or(&nothing, |bitmap| bitmap);
            let entry = write_bitmap(out, counts)?;
            index.push(out, at, entry.pack())?;
        }
        let bitmap_root = index.finish(out)?;
        let mut large = BulkTree::<4>::default();
        for (block, count) in self.large {
            large.push(out, block, count.to_le_bytes())?;
        }
        Ok(SpaceMapRoot {
            nr_blocks: self.nr_blocks,
            nr_allocated: self.nr_allocated,
            bitmap_root,
            ref_count_root: large.finish(out)?,
        })
    }
}

fn write_bitmap(out: &mut BulkWriter<'_>, counts: &[u8; COUNT_BYTES]) -> Result<IndexEntry> {
    let mut used = 0;
    let mut first_free = None;
    for at in (0..COUNT_BYTES).step_by(8) {
        let pairs = counts::used_pairs(u64_at(counts, at));
        used += pairs.count_ones();
        if first_free.is_none() && pairs.count_ones() < 32 {
            first_free = Some(at as u32 * 4 + counts::first_free_pair(pairs));
        }
    }
    let block = out.put(BlockKind::Bitmap, |bytes| {
        bytes[HEADER_BYTES..].copy_from_slice(counts);
    })?;
    Ok(IndexEntry {
        block,
        nr_free: ENTRIES_PER_BITMAP as u32 - used,
        none_free_before: first_free.unwrap_or(ENTRIES_PER_BITMAP as u32),
    })
}

/// Writes the metadata space map, in which every block handed out so far has one reference, and writes out
/// what is left in memory. Nothing may be put after it.
///
/// # Errors
/// `NoSpace(Metadata)`, `Io`.
pub fn write_metadata_space_map(out: &mut BulkWriter<'_>) -> Result<SpaceMapRoot> {
    let nr_blocks = out.nr_blocks();
    let ref_count_root = BulkTree::<4>::default().finish(out)?;
    let nr_bitmaps = nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
    // The bitmaps and the index, which are the last.
    let nr_allocated = out.next_block() + nr_bitmaps + 1;
    let mut entries = Vec::new();
    for at in 0..nr_bitmaps {
        let used = nr_allocated.saturating_sub(at * ENTRIES_PER_BITMAP);
        entries.push(write_bitmap(out, &ones(used.min(ENTRIES_PER_BITMAP)))?);
    }
    let bitmap_root = out.put(BlockKind::Index, |bytes| {
        for (at, entry) in entries.iter().enumerate() {
            put_index_entry(bytes, at, entry);
        }
    })?;
    out.write_out()?;
    Ok(SpaceMapRoot {
        nr_blocks,
        nr_allocated,
        bitmap_root,
        ref_count_root,
    })
}

/// The first `used` counts one, the others zero.
fn ones(used: u64) -> [u8; COUNT_BYTES] {
    let mut bitmap = [0; COUNT_BYTES];
    for at in 0..used {
        let start = (at / 32) as usize * 8;
        let word = counts::with_count(u64_at(&bitmap, start), at, 1);
        put_u64(&mut bitmap, start, word);
    }
    bitmap
}
