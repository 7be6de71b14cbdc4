//! Space maps: how often each block is referred to, and which are free.
//!
//! On disk a space map is a row of bitmaps, two bits for each block (0, 1, 2, "more"), an index that
//! says where each bitmap is, and a btree with the counts of the blocks marked "more". The metadata
//! device's own map has its index in one block, which bounds it to 255 bitmaps; any other map keeps
//! the index in a btree. (dm-space-map-common.h)
//!
//! In core, a transaction's view is [`Counts`]: private copies of the bitmaps it touches. They go
//! back to blocks only at commit. That is what ties the knot of a metadata space map that lives in
//! the space it manages: changing a count never needs a block.

pub(crate) mod counts;
mod disk;
mod large;
pub(crate) mod metadata;

pub(crate) use counts::{Counts, Source};
pub use disk::DiskSpaceMap;
pub(crate) use large::LargeCounts;
pub(crate) use metadata::MetadataSpaceMap;

use crate::block::{BlockBytes, put_u32, put_u64, u32_at, u64_at};
use crate::error::{MetadataError, Result};

/// Bytes before the first count in a bitmap: checksum, padding, own address.
const BITMAP_HEADER_BYTES: usize = 16;
/// Words of 32 counts each in a bitmap.
pub(crate) const BITMAP_WORDS: usize = (4096 - BITMAP_HEADER_BYTES) / 8;
/// Blocks that one bitmap describes.
pub const ENTRIES_PER_BITMAP: u64 = BITMAP_WORDS as u64 * 32;
/// Bitmaps that the metadata space map's index can name.
pub const METADATA_BITMAPS_MAX: u64 = 255;
/// The largest metadata device that the format can use, in blocks (just under 16 GiB).
pub const METADATA_BLOCKS_MAX: u64 = METADATA_BITMAPS_MAX * ENTRIES_PER_BITMAP;

const _: () = assert!(ENTRIES_PER_BITMAP == 16_320);

/// What the superblock stores of a space map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceMapRoot {
    /// Blocks described.
    pub nr_blocks: u64,
    /// Blocks with a count above zero.
    pub nr_allocated: u64,
    /// Index block, or root of the index btree.
    pub bitmap_root: u64,
    /// Root of the btree with the counts above two.
    pub ref_count_root: u64,
}

impl SpaceMapRoot {
    /// Bytes on disk.
    pub const SIZE: usize = 32;

    /// Reads a root from the first [`SIZE`](Self::SIZE) bytes of `bytes`.
    ///
    /// # Panics
    /// When `bytes` is shorter.
    pub fn unpack(bytes: &[u8]) -> Self {
        Self {
            nr_blocks: u64_at(bytes, 0),
            nr_allocated: u64_at(bytes, 8),
            bitmap_root: u64_at(bytes, 16),
            ref_count_root: u64_at(bytes, 24),
        }
    }

    /// Writes the root to the first [`SIZE`](Self::SIZE) bytes of `bytes`.
    ///
    /// # Panics
    /// When `bytes` is shorter.
    pub fn pack(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.nr_blocks);
        put_u64(bytes, 8, self.nr_allocated);
        put_u64(bytes, 16, self.bitmap_root);
        put_u64(bytes, 24, self.ref_count_root);
    }
}

/// An index entry: where a bitmap is and how full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The bitmap's block.
    pub block: u64,
    /// Counts that are zero. The kernel counts a partial last bitmap as if it were whole.
    pub nr_free: u32,
    /// A hint: no count before this one is zero.
    pub none_free_before: u32,
}

impl IndexEntry {
    /// Bytes on disk.
    pub const SIZE: usize = 16;

    /// Reads an entry.
    pub fn unpack(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            block: u64_at(bytes, 0),
            nr_free: u32_at(bytes, 8),
            none_free_before: u32_at(bytes, 12),
        }
    }

    /// The entry's bytes.
    pub fn pack(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u64(&mut bytes, 0, self.block);
        put_u32(&mut bytes, 8, self.nr_free);
        put_u32(&mut bytes, 12, self.none_free_before);
        bytes
    }
}

/// Entry `at` of a metadata space map's index block.
///
/// # Panics
/// When `at` is not below [`METADATA_BITMAPS_MAX`].
pub fn index_entry(index_block: &BlockBytes, at: u64) -> IndexEntry {
    assert!(at < METADATA_BITMAPS_MAX);
    let start = 16 + at as usize * IndexEntry::SIZE;
    let mut bytes = [0; IndexEntry::SIZE];
    bytes.copy_from_slice(&index_block[start..start + IndexEntry::SIZE]);
    IndexEntry::unpack(&bytes)
}

pub(crate) fn put_index_entry(index_block: &mut BlockBytes, at: usize, entry: &IndexEntry) {
    let start = 16 + at * IndexEntry::SIZE;
    index_block[start..start + IndexEntry::SIZE].copy_from_slice(&entry.pack());
}

/// The two-bit count at position `at` of a bitmap block: 0 to 2, or 3 for "in the btree".
///
/// # Panics
/// When `at` is not below [`ENTRIES_PER_BITMAP`].
pub fn small_count(bitmap: &BlockBytes, at: u64) -> u32 {
    assert!(at < ENTRIES_PER_BITMAP);
    let word = u64_at(bitmap, BITMAP_HEADER_BYTES + at as usize / 32 * 8);
    counts::count_in_word(word, at)
}

pub(crate) fn past_end(block: u64, nr_blocks: u64) -> MetadataError {
    MetadataError::out_of_bounds(format!(
        "block {block} is past the end of its space map ({nr_blocks} blocks)"
    ))
}

/// Refuses roots that no real device could have.
fn check_root(root: &SpaceMapRoot, blocks_max: u64) -> Result<()> {
    if root.nr_blocks > blocks_max || root.nr_allocated > root.nr_blocks {
        return Err(MetadataError::new(
            crate::ErrorKind::Corrupt,
            format!(
                "space map root claims {} blocks, {} of them allocated",
                root.nr_blocks, root.nr_allocated
            ),
        ));
    }
    Ok(())
}
