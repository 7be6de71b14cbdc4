//! Which metadata blocks the live space map has in use, and how often.

use std::collections::HashMap;

use thinmap_persistent_data::{
    BlockBytes, BlockKind, ENTRIES_PER_BITMAP, META_BLOCK_SIZE, index_entry, small_count, verify,
};
use thinmap_thin_metadata::Superblock;

use crate::check::large_counts;
use crate::walk::{Role, Summaries, Walk};

/// Which metadata blocks are in use, as far as the space map can be read.
pub(super) struct InUse {
    bitmaps: Vec<Option<Box<BlockBytes>>>,
    /// Counts above two.
    large: HashMap<u64, u32>,
}

impl InUse {
    pub(super) fn read(walk: &Walk<'_>, superblock: &Superblock) -> Self {
        let root = superblock.metadata_space_map.bitmap_root;
        let read = |block: u64, kind| {
            let mut bytes = Box::new([0; META_BLOCK_SIZE]);
            walk.image.read_run(block, &mut bytes[..]).ok()?;
            verify(kind, block, &bytes).ok()?;
            Some(bytes)
        };
        let count = walk.blocks.len().div_ceil(ENTRIES_PER_BITMAP);
        let bitmaps = read(root, BlockKind::Index).map_or_else(Vec::new, |index| {
            (0..count)
                .map(|at| read(index_entry(&index, at).block, BlockKind::Bitmap))
                .collect()
        });
        Self {
            bitmaps,
            large: HashMap::new(),
        }
    }

    /// Reads the counts above two, as far as they can be read.
    pub(super) fn read_large(&mut self, walk: &mut Walk<'_>, superblock: &Superblock) {
        let root = superblock.metadata_space_map.ref_count_root;
        walk.add_root(root, Role::Counts);
        walk.run();
        Summaries::new(walk).of(root);
        self.large = large_counts(walk, root, 0..u64::MAX);
    }

    /// How often `block` is referred to; `None` when that cannot be read.
    pub(super) fn count(&self, block: u64) -> Option<u32> {
        let bitmap = self.bitmaps.get((block / ENTRIES_PER_BITMAP) as usize)?;
        match small_count(bitmap.as_ref()?, block % ENTRIES_PER_BITMAP) {
            3 => self.large.get(&block).copied(),
            small => Some(small),
        }
    }

    /// Whether `block` is in use; `None` when that cannot be read.
    pub(super) fn is(&self, block: u64) -> Option<bool> {
        let bitmap = self.bitmaps.get((block / ENTRIES_PER_BITMAP) as usize)?;
        Some(small_count(bitmap.as_ref()?, block % ENTRIES_PER_BITMAP) > 0)
    }

    /// Whether `block` may be in use.
    pub(super) fn may_be(&self, block: u64) -> bool {
        self.is(block) != Some(false)
    }
}
