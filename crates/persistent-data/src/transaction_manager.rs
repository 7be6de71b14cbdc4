//! The open transaction: which blocks it made, and the metadata device's own reference counts.
//!
//! INVARIANT: a block that the last commit can reach is never changed in place. The only ways to
//! get a writable block are [`new_block`](TransactionManager::new_block) and
//! [`shadow`](TransactionManager::shadow).
//!
//! Order of use: changes; [`prepare`](TransactionManager::prepare), after which nothing may change;
//! [`Commit::write`]; [`finish`](TransactionManager::finish). To abort, drop the manager
//! and open another one from the superblock.

use std::sync::Arc;

use crate::block::{BlockBytes, BlockKind, META_BLOCK_SIZE, seal};
use crate::cache::{BlockCache, BlockMap, MayRead};
use crate::commit::Commit;
use crate::device::Block4k;
use crate::error::{MetadataError, Result};
use crate::space_map::{MetadataSpaceMap, SpaceMapRoot, metadata};

struct Dirty {
    kind: BlockKind,
    bytes: Arc<BlockBytes>,
}

/// Reads blocks as the open transaction sees them.
pub struct Reader {
    cache: Arc<BlockCache>,
    dirty: BlockMap<Dirty>,
}

impl Reader {
    /// Block `block`, which must be of `kind`.
    pub fn read(&self, block: u64, kind: BlockKind, may_read: MayRead) -> Result<Arc<BlockBytes>> {
        match self.dirty.get(&block) {
            Some(dirty) if dirty.kind == kind => Ok(Arc::clone(&dirty.bytes)),
            Some(dirty) => Err(wrong_kind(block, dirty.kind, kind)),
            None => self.cache.read(block, kind, may_read),
        }
    }

    /// Brings blocks of `kind` into memory, as far as the device gives them.
    pub(crate) fn read_ahead(&self, mut blocks: Vec<u64>, kind: BlockKind) {
        blocks.retain(|block| !self.dirty.contains_key(block));
        self.cache.read_ahead(&blocks, kind);
    }

    /// The block cache below.
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// Blocks that the open transaction made.
    pub fn dirty_blocks(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn dirty_block(&self, block: u64) -> Result<Arc<BlockBytes>> {
        let dirty = self.dirty.get(&block).ok_or_else(|| not_writable(block))?;
        Ok(Arc::clone(&dirty.bytes))
    }

    pub(crate) fn put_dirty(&mut self, block: u64, kind: BlockKind, bytes: BlockBytes) {
        let bytes = Arc::new(bytes);
        self.dirty.insert(block, Dirty { kind, bytes });
    }
}

fn wrong_kind(block: u64, found: BlockKind, wanted: BlockKind) -> MetadataError {
    MetadataError::corrupt(
        block,
        format!("block is referred to as {wanted:?} and as {found:?}"),
    )
}

fn not_writable(block: u64) -> MetadataError {
    MetadataError::corrupt(
        block,
        "a block is in use twice in one transaction: the space map is wrong",
    )
}

/// The open transaction of one metadata device.
pub struct TransactionManager {
    reader: Reader,
    map: MetadataSpaceMap,
}

impl TransactionManager {
    /// A manager for a device that holds nothing yet. `nr_blocks` is the device's size; block 0 is
    /// kept for the superblock.
    pub fn create(cache: Arc<BlockCache>, nr_blocks: u64) -> Result<Self> {
        let mut tm = Self {
            reader: Reader {
                cache,
                dirty: BlockMap::default(),
            },
            map: MetadataSpaceMap::new(nr_blocks),
        };
        let superblock = tm.map.alloc(&tm.reader)?;
        assert!(superblock == 0, "the first block allocated is the first");
        let root = crate::btree::empty::<crate::btree::Plain<4>>(&mut tm)?;
        tm.map.set_large_root(root);
        Ok(tm)
    }

    /// A manager for the device whose metadata space map has `root`.
    pub fn open(cache: Arc<BlockCache>, root: &SpaceMapRoot) -> Result<Self> {
        let reader = Reader {
            cache,
            dirty: BlockMap::default(),
        };
        let map = MetadataSpaceMap::open(&reader, root)?;
        Ok(Self { reader, map })
    }

    /// For reading blocks.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Blocks of the device that the space map describes.
    pub fn nr_blocks(&self) -> u64 {
        self.map.counts.nr_blocks()
    }

    /// Blocks that can still be allocated before the next commit.
    pub fn nr_free(&self) -> u64 {
        self.map.counts.nr_free()
    }

    /// Blocks in use as the open transaction leaves them.
    pub fn nr_allocated(&self) -> u64 {
        self.map.counts.nr_allocated()
    }

    /// Blocks that [`prepare`](Self::prepare) will take; rather too many than too few.
    pub fn commit_estimate(&self) -> u64 {
        self.map.counts.commit_estimate()
    }

    /// No less than [`commit_estimate`](Self::commit_estimate), and counted in no time.
    pub fn commit_estimate_max(&self) -> u64 {
        self.map.counts.commit_estimate_max()
    }

    /// Whether anything was changed since the last commit.
    pub fn is_changed(&self) -> bool {
        !self.reader.dirty.is_empty() || self.map.is_changed()
    }

    /// A new block full of zeroes, with count one.
    pub fn new_block(&mut self, kind: BlockKind) -> Result<u64> {
        let block = self.map.alloc(&self.reader)?;
        self.reader.put_dirty(block, kind, [0; META_BLOCK_SIZE]);
        Ok(block)
    }

    /// A writable stand-in for `block`: the block itself if this transaction made it and nothing
    /// else refers to it, else a copy, for which `block` loses a reference.
    ///
    /// `true` means that `block` lives on elsewhere, so whatever it refers to is now referred to
    /// once more, and the caller has to raise those counts.
    pub fn shadow(&mut self, block: u64, kind: BlockKind) -> Result<(u64, bool)> {
        let count = self.map.count(&self.reader, block)?;
        if count == 0 {
            return Err(MetadataError::corrupt(
                block,
                "a block in use has reference count zero",
            ));
        }
        if count == 1
            && let Some(dirty) = self.reader.dirty.get(&block)
        {
            return match dirty.kind == kind {
                true => Ok((block, false)),
                false => Err(wrong_kind(block, dirty.kind, kind)),
            };
        }
        let bytes = self.reader.read(block, kind, MayRead::Yes)?;
        let copy = self.map.alloc(&self.reader)?;
        self.reader.dirty.insert(
            copy,
            Dirty {
                kind,
                bytes: Arc::new(*bytes),
            },
        );
        self.dec(block)?;
        Ok((copy, count > 1))
    }

    /// The bytes of a block that came from [`new_block`](Self::new_block) or
    /// [`shadow`](Self::shadow) in this transaction.
    pub fn write(&mut self, block: u64) -> Result<&mut BlockBytes> {
        match self.reader.dirty.get_mut(&block) {
            Some(dirty) => Ok(Arc::make_mut(&mut dirty.bytes)),
            None => Err(not_writable(block)),
        }
    }

    /// Whether `block` was made by this transaction and only one thing refers to it, so that
    /// [`shadow`](Self::shadow) would give it back as it is.
    pub fn is_exclusive(&self, block: u64) -> Result<bool> {
        Ok(self.reader.dirty.contains_key(&block) && self.count(block)? == 1)
    }

    /// How often `block` is referred to.
    pub fn count(&self, block: u64) -> Result<u32> {
        self.map.count(&self.reader, block)
    }

    /// Raises the count of `block`, which must not be free.
    pub fn inc(&mut self, block: u64) -> Result<()> {
        if self.count(block)? == 0 {
            return Err(MetadataError::corrupt(
                block,
                "a free block is referred to by a node in use",
            ));
        }
        self.map.inc(&self.reader, block)
    }

    /// Lowers the count of `block`; at zero the block's content is forgotten.
    pub fn dec(&mut self, block: u64) -> Result<()> {
        if self.map.dec(&self.reader, block)? {
            self.reader.dirty.remove(&block);
        }
        Ok(())
    }

    /// Grows the metadata space map to `nr_blocks`, which must be more than before and not more
    /// than [`METADATA_BLOCKS_MAX`](crate::METADATA_BLOCKS_MAX).
    pub fn extend(&mut self, nr_blocks: u64) -> Result<()> {
        self.map.extend(&self.reader, nr_blocks)
    }

    pub(crate) fn space_map(&self) -> &MetadataSpaceMap {
        &self.map
    }

    pub(crate) fn space_map_mut(&mut self) -> &mut MetadataSpaceMap {
        &mut self.map
    }

    pub(crate) fn space_map_and_reader(&mut self) -> (&mut MetadataSpaceMap, &mut Reader) {
        (&mut self.map, &mut self.reader)
    }

    /// Moves the metadata space map into blocks; gives its root for the superblock. The last change
    /// of a transaction. Reads and allocates, but does not write to the device.
    pub fn prepare(&mut self) -> Result<SpaceMapRoot> {
        metadata::prepare(self)?;
        Ok(self.map.root())
    }

    /// Freezes the transaction. `superblock` must be sealed.
    pub fn freeze(&mut self, superblock: Box<Block4k>) -> Commit {
        let mut blocks = Vec::with_capacity(self.reader.dirty.len());
        for (block, dirty) in &mut self.reader.dirty {
            seal(dirty.kind, *block, Arc::make_mut(&mut dirty.bytes));
            blocks.push((*block, dirty.kind, Arc::clone(&dirty.bytes)));
        }
        blocks.sort_unstable_by_key(|(block, _, _)| *block);
        Commit {
            device: Arc::clone(self.reader.cache.device()),
            blocks,
            superblock: Some(superblock),
        }
    }

    /// A commit with nothing in it.
    pub fn freeze_nothing(&self) -> Commit {
        Commit {
            device: Arc::clone(self.reader.cache.device()),
            blocks: Vec::new(),
            superblock: None,
        }
    }

    /// Takes note that `commit` was written: its blocks are clean from here on.
    pub fn finish(&mut self, commit: &Commit) {
        for (block, kind, bytes) in &commit.blocks {
            self.reader.cache.put(*block, *kind, Arc::clone(bytes));
        }
        self.reader.dirty.clear();
    }
}
