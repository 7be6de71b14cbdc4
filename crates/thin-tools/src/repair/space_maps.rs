//! The space maps of the new image, from the references that its trees make.
//!
//! Takes memory as a walk does, and 12 bytes for each block that is referred to more than twice.

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{
    BlockBytes, BlockKind, ENTRIES_PER_BITMAP, ErrorKind, IndexEntry, META_BLOCK_SIZE,
    METADATA_BLOCKS_MAX, MetadataError, Result, SpaceMapRoot,
};
use thinmap_thin_metadata::Superblock;

use super::copy::Output;
use super::{add_trees, first_finding, on, tree};
use crate::Progress;
use crate::check::Findings;
use crate::image::Image;
use crate::walk::{DataCounts, Role, WINDOW_CHUNKS, Walk};

const BITMAP_HEADER_BYTES: usize = 16;

/// Blocks with a count above two.
type Large = Vec<(u64, [u8; 4])>;

/// Writes both space maps behind the `used` blocks of the trees, and their roots into `superblock`.
pub(super) fn write(
    output: &Image,
    superblock: &mut Superblock,
    used: u64,
    quiet: bool,
) -> Result<()> {
    let findings = Findings::default();
    let progress = Progress::new("counting", used, quiet);
    let mut walk = Walk::new(output, used, &findings, &progress);
    let nr_data = superblock.data_space_map.nr_blocks;
    let chunks = nr_data.div_ceil(ENTRIES_PER_BITMAP);
    if chunks > METADATA_BLOCKS_MAX {
        let what = format!("{nr_data} data blocks are more than metadata can describe");
        return Err(on(output, &MetadataError::new(ErrorKind::Inval, what)));
    }
    walk.data = Some(DataCounts::new(nr_data, 0, chunks));
    add_trees(&mut walk, superblock);
    let mut out = Output::new(output, used);
    superblock.data_space_map = data_space_map(&mut walk, &mut out, nr_data, chunks)?;
    superblock.metadata_space_map = metadata_space_map(&walk, &mut out, output.blocks())?;
    drop(walk);
    match first_finding(findings) {
        None => Ok(()),
        Some(finding) => {
            let error = MetadataError::new(ErrorKind::Corrupt, finding.to_string());
            Err(on(output, &error))
        }
    }
}

fn data_space_map(
    walk: &mut Walk<'_>,
    out: &mut Output<'_>,
    nr_blocks: u64,
    chunks: u64,
) -> Result<SpaceMapRoot> {
    let (mut index, mut large, mut nr_allocated) = (Vec::new(), Large::new(), 0);
    for chunk in 0..chunks {
        if chunk > 0 && chunk % WINDOW_CHUNKS == 0 {
            let data = DataCounts::new(nr_blocks, chunk, chunks);
            let leaves = walk.blocks.leaves(Role::Mappings);
            walk.in_parallel(&leaves, |_, bytes, (): &mut ()| {
                if let Ok(bytes) = bytes {
                    data.add_leaf(Node(bytes));
                }
            });
            walk.data = Some(data);
        }
        let first = chunk * ENTRIES_PER_BITMAP;
        let is_used = walk.data.as_ref().is_some_and(|data| data.has_chunk(chunk));
        let end = match is_used {
            true => (nr_blocks - first).min(ENTRIES_PER_BITMAP),
            false => 0,
        };
        let count = |block| walk.data.as_ref().map_or(0, |data| data.count(block));
        let mut bitmap = Bitmap::of(first, end, count, &mut large);
        nr_allocated += bitmap.used;
        let block = out.put(BlockKind::Bitmap, &mut bitmap.bytes)?;
        let entry = bitmap.entry(block);
        index.push((chunk, entry.pack()));
    }
    Ok(SpaceMapRoot {
        nr_blocks,
        nr_allocated,
        bitmap_root: tree::build(out, &index)?,
        ref_count_root: tree::build(out, &large)?,
    })
}

fn metadata_space_map(walk: &Walk<'_>, out: &mut Output<'_>, blocks: u64) -> Result<SpaceMapRoot> {
    let nr_blocks = blocks.min(METADATA_BLOCKS_MAX);
    let trees = walk.blocks.len();
    let is_large = |block: &u64| walk.blocks.refs(*block) > 2;
    let large: Large = (1..trees)
        .filter(is_large)
        .map(|block| (block, walk.blocks.refs(block).to_le_bytes()))
        .collect();
    let ref_count_root = tree::build(out, &large)?;
    // The bitmaps and the index come last, so what they have to say of themselves is known.
    let bitmaps = nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
    let end = out.next() + bitmaps + 1;
    let count = |block| match block {
        0 => 1,
        block if block < trees => walk.blocks.refs(block),
        block => u32::from(block < end),
    };
    // A copy that turned out to be of no use is free.
    let unused = (1..trees).filter(|block| walk.blocks.refs(*block) == 0);
    let nr_allocated = end - unused.count() as u64;
    let mut index: BlockBytes = [0; META_BLOCK_SIZE];
    for at in 0..bitmaps {
        let first = at * ENTRIES_PER_BITMAP;
        let end = (nr_blocks - first).min(ENTRIES_PER_BITMAP);
        let mut bitmap = Bitmap::of(first, end, count, &mut Large::new());
        let block = out.put(BlockKind::Bitmap, &mut bitmap.bytes)?;
        let entry = bitmap.entry(block);
        let start = BITMAP_HEADER_BYTES + at as usize * IndexEntry::SIZE;
        index[start..start + IndexEntry::SIZE].copy_from_slice(&entry.pack());
    }
    let bitmap_root = out.put(BlockKind::Index, &mut index)?;
    out.flush()?;
    Ok(SpaceMapRoot {
        nr_blocks,
        nr_allocated,
        bitmap_root,
        ref_count_root,
    })
}

/// A bitmap in the making.
struct Bitmap {
    bytes: Box<BlockBytes>,
    used: u64,
    none_free_before: u32,
}

impl Bitmap {
    /// The bitmap from block `first` on, of which `blocks` are to be counted.
    fn of(first: u64, blocks: u64, count: impl Fn(u64) -> u32, large: &mut Large) -> Self {
        let mut bitmap = Self {
            bytes: Box::new([0; META_BLOCK_SIZE]),
            used: 0,
            none_free_before: ENTRIES_PER_BITMAP as u32,
        };
        let mut first_free = None;
        for at in 0..blocks {
            let count = count(first + at);
            if count == 0 {
                first_free = first_free.or(Some(at as u32));
                continue;
            }
            bitmap.used += 1;
            if count > 2 {
                large.push((first + at, count.to_le_bytes()));
            }
            // The high bit of a pair is at the lower place.
            let small = count.min(3) as u8;
            let pair = small >> 1 | (small & 1) << 1;
            bitmap.bytes[BITMAP_HEADER_BYTES + at as usize / 4] |= pair << (at % 4 * 2);
        }
        bitmap.none_free_before = first_free.unwrap_or(blocks as u32);
        bitmap
    }

    fn entry(&self, block: u64) -> IndexEntry {
        IndexEntry {
            block,
            // COMPAT: a partial last bitmap counts as if it were whole.
            nr_free: (ENTRIES_PER_BITMAP - self.used) as u32,
            none_free_before: self.none_free_before,
        }
    }
}
