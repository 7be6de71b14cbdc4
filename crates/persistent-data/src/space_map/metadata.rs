//! The metadata device's own space map.
//!
//! The kernel keeps it consistent while it changes itself by queueing operations. Here bitmaps are
//! private copies until the commit, so the recursion is confined to [`prepare`], which repeats
//! until giving homes to the changed bitmaps changes no further bitmap.

use std::sync::Arc;

use super::counts::Chunk;
use super::{
    Counts, ENTRIES_PER_BITMAP, IndexEntry, METADATA_BITMAPS_MAX, METADATA_BLOCKS_MAX, Source,
    SpaceMapRoot, check_root, index_entry, put_index_entry,
};
use crate::block::{BlockBytes, BlockKind, META_BLOCK_SIZE};
use crate::btree::{self, Plain};
use crate::cache::MayRead;
use crate::error::{ErrorKind, MetadataError, Result};
use crate::transaction_manager::{Reader, TransactionManager};

pub(crate) struct MetadataSpaceMap {
    pub(crate) counts: Counts,
    index: Vec<IndexEntry>,
    index_block: u64,
    /// The index block was allocated in this transaction.
    index_placed: bool,
    index_dirty: bool,
    large_root: u64,
}

struct MetadataSource<'a> {
    reader: &'a Reader,
    index: &'a [IndexEntry],
    large_root: u64,
}

impl Source for MetadataSource<'_> {
    fn entry(&self, at: u64) -> Result<IndexEntry> {
        self.index.get(at as usize).copied().ok_or_else(|| {
            MetadataError::new(ErrorKind::Corrupt, format!("there is no bitmap {at}"))
        })
    }

    fn bitmap(&self, block: u64) -> Result<Arc<BlockBytes>> {
        self.reader.read(block, BlockKind::Bitmap, MayRead::Yes)
    }

    fn large_count(&self, block: u64) -> Result<Option<u32>> {
        let value = btree::lookup::<4>(self.reader, self.large_root, block, MayRead::Yes)?;
        Ok(value.map(u32::from_le_bytes))
    }
}

impl MetadataSpaceMap {
    /// A map of `nr_blocks` free blocks. The tree of large counts is still to be made.
    pub(crate) fn new(nr_blocks: u64) -> Self {
        let nr_blocks = nr_blocks.min(METADATA_BLOCKS_MAX);
        let mut map = Self {
            counts: Counts::new(nr_blocks, 0),
            index: Vec::new(),
            index_block: 0,
            index_placed: false,
            index_dirty: true,
            large_root: 0,
        };
        map.add_bitmaps(nr_blocks.div_ceil(ENTRIES_PER_BITMAP));
        map
    }

    pub(crate) fn open(reader: &Reader, root: &SpaceMapRoot) -> Result<Self> {
        check_root(root, METADATA_BLOCKS_MAX)?;
        let bytes = reader.read(root.bitmap_root, BlockKind::Index, MayRead::Yes)?;
        let bitmaps = root.nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        Ok(Self {
            counts: Counts::new(root.nr_blocks, root.nr_allocated),
            index: (0..bitmaps).map(|at| index_entry(&bytes, at)).collect(),
            index_block: root.bitmap_root,
            index_placed: false,
            index_dirty: false,
            large_root: root.ref_count_root,
        })
    }

    pub(crate) fn set_large_root(&mut self, root: u64) {
        self.large_root = root;
    }

    pub(crate) fn root(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.counts.nr_blocks(),
            nr_allocated: self.counts.nr_allocated(),
            bitmap_root: self.index_block,
            ref_count_root: self.large_root,
        }
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.index_dirty || self.counts.is_changed()
    }

    fn add_bitmaps(&mut self, bitmaps: u64) {
        for at in self.index.len() as u64..bitmaps {
            self.counts.chunks.insert(at, Chunk::new());
            self.index.push(IndexEntry::default());
        }
    }

    pub(crate) fn extend(&mut self, reader: &Reader, nr_blocks: u64) -> Result<()> {
        assert!(nr_blocks.div_ceil(ENTRIES_PER_BITMAP) <= METADATA_BITMAPS_MAX);
        let (source, counts) = self.split(reader);
        let new = counts.extend(&source, nr_blocks)?;
        self.add_bitmaps(new.end);
        self.index_dirty = true;
        Ok(())
    }

    pub(crate) fn count(&self, reader: &Reader, block: u64) -> Result<u32> {
        let source = MetadataSource {
            reader,
            index: &self.index,
            large_root: self.large_root,
        };
        self.counts.count(&source, block)
    }

    pub(crate) fn inc(&mut self, reader: &Reader, block: u64) -> Result<()> {
        let (source, counts) = self.split(reader);
        counts.inc(&source, block)
    }

    pub(crate) fn dec(&mut self, reader: &Reader, block: u64) -> Result<bool> {
        let (source, counts) = self.split(reader);
        counts.dec(&source, block)
    }

    pub(crate) fn alloc(&mut self, reader: &Reader) -> Result<u64> {
        let (source, counts) = self.split(reader);
        counts.alloc(&source)?.ok_or_else(|| {
            MetadataError::new(
                ErrorKind::NoSpace(crate::Space::Metadata),
                "the metadata device is full",
            )
        })
    }

    fn split<'a>(&'a mut self, reader: &'a Reader) -> (MetadataSource<'a>, &'a mut Counts) {
        let source = MetadataSource {
            reader,
            index: &self.index,
            large_root: self.large_root,
        };
        (source, &mut self.counts)
    }

    /// A home for the next changed bitmap, or the index, that has none in this transaction.
    fn place_one(&mut self, reader: &Reader) -> Result<bool> {
        let homeless = |(at, chunk): (&u64, &Chunk)| (chunk.dirty && !chunk.placed).then_some(*at);
        let old = if let Some(at) = self.counts.chunks.iter().find_map(homeless) {
            let old = self.index[at as usize].block;
            let new = self.alloc(reader)?;
            if let Some(chunk) = self.counts.chunks.get_mut(&at) {
                chunk.placed = true;
                chunk.entry.block = new;
            }
            self.index[at as usize].block = new;
            self.index_dirty = true;
            old
        } else if self.index_dirty && !self.index_placed {
            let old = self.index_block;
            self.index_block = self.alloc(reader)?;
            self.index_placed = true;
            old
        } else {
            return Ok(false);
        };
        // Block 0 is the superblock: an entry that names it has no home yet.
        if old != 0 {
            self.dec(reader, old)?;
        }
        Ok(true)
    }
}

/// Moves all changes of the metadata space map into blocks of the transaction.
pub(crate) fn prepare(tm: &mut TransactionManager) -> Result<()> {
    loop {
        while let Some((block, count)) = tm.space_map().counts.large.next_step() {
            let root = tm.space_map().large_root;
            let root = store_large(tm, root, block, count)?;
            let map = tm.space_map_mut();
            map.large_root = root;
            map.counts.large.step_done();
        }
        tm.space_map_mut().counts.large.forget();
        let (map, reader) = tm.space_map_and_reader();
        if !map.place_one(reader)? && map.counts.large.is_empty() {
            break;
        }
    }
    let (map, reader) = tm.space_map_and_reader();
    if !map.is_changed() {
        return Ok(());
    }
    for (at, chunk) in map.counts.chunks.iter().filter(|(_, chunk)| chunk.dirty) {
        let mut bytes = [0; META_BLOCK_SIZE];
        chunk.store(&mut bytes);
        map.index[*at as usize] = chunk.entry;
        reader.put_dirty(chunk.entry.block, BlockKind::Bitmap, bytes);
    }
    let mut bytes = [0; META_BLOCK_SIZE];
    for (at, entry) in map.index.iter().enumerate() {
        put_index_entry(&mut bytes, at, entry);
    }
    reader.put_dirty(map.index_block, BlockKind::Index, bytes);
    map.counts.committed();
    map.index_dirty = false;
    map.index_placed = false;
    Ok(())
}

/// Puts a count above two into the tree, or takes the block out of it.
pub(super) fn store_large(
    tm: &mut TransactionManager,
    root: u64,
    block: u64,
    count: Option<u32>,
) -> Result<u64> {
    let ops = &mut Plain::<4>;
    let (root, _) = match count {
        Some(count) => btree::insert(tm, ops, root, block, &count.to_le_bytes())?,
        None => btree::remove(tm, ops, root, block)?,
    };
    Ok(root)
}
