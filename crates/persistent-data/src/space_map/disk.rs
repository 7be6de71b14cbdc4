//! A space map for blocks that are not metadata: the data device's.

use std::sync::Arc;

use super::metadata::store_large;
use super::{Counts, IndexEntry, Source, SpaceMapRoot, check_root};
use crate::block::{BlockBytes, BlockKind};
use crate::btree::{self, Plain, ValueOps};
use crate::cache::MayRead;
use crate::error::{ErrorKind, MetadataError, Result};
use crate::transaction_manager::{Reader, TransactionManager};

/// Large counts kept in memory before they go to their tree.
const LARGE_MAX: usize = 1 << 16;
/// More blocks than any data device has: 2^40 is what a mapping can address.
const BLOCKS_MAX: u64 = 1 << 40;

/// Reference counts of the data device's blocks.
pub struct DiskSpaceMap {
    counts: Counts,
    index_root: u64,
    large_root: u64,
}

struct DiskSource<'a> {
    reader: &'a Reader,
    index_root: u64,
    large_root: u64,
}

impl Source for DiskSource<'_> {
    fn entry(&self, at: u64) -> Result<IndexEntry> {
        btree::lookup(self.reader, self.index_root, at, MayRead::Yes)?
            .map(|bytes| IndexEntry::unpack(&bytes))
            .ok_or_else(|| {
                MetadataError::new(
                    ErrorKind::Corrupt,
                    format!("bitmap {at} is missing from the data space map"),
                )
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

impl DiskSpaceMap {
    /// A map of no blocks; [`extend`](Self::extend) gives it some.
    pub fn create(tm: &mut TransactionManager) -> Result<Self> {
        Ok(Self {
            counts: Counts::new(0, 0),
            index_root: btree::empty::<Plain<{ IndexEntry::SIZE }>>(tm)?,
            large_root: btree::empty::<Plain<4>>(tm)?,
        })
    }

    /// Opens the map with `root`. Reads nothing yet.
    pub fn open(root: &SpaceMapRoot) -> Result<Self> {
        check_root(root, BLOCKS_MAX)?;
        Ok(Self {
            counts: Counts::new(root.nr_blocks, root.nr_allocated),
            index_root: root.bitmap_root,
            large_root: root.ref_count_root,
        })
    }

    /// Blocks described.
    pub fn nr_blocks(&self) -> u64 {
        self.counts.nr_blocks()
    }

    /// Blocks that can still be allocated before the next commit.
    pub fn nr_free(&self) -> u64 {
        self.counts.nr_free()
    }

    /// Metadata blocks that [`prepare`](Self::prepare) will take; rather too many than too few.
    pub fn commit_estimate(&self) -> u64 {
        self.counts.commit_estimate()
    }

    /// No less than [`commit_estimate`](Self::commit_estimate), and counted in no time.
    pub fn commit_estimate_max(&self) -> u64 {
        self.counts.commit_estimate_max()
    }

    /// Whether the open transaction changed any count.
    pub fn is_changed(&self) -> bool {
        self.counts.is_changed()
    }

    fn split<'a>(&'a mut self, reader: &'a Reader) -> (DiskSource<'a>, &'a mut Counts) {
        let source = DiskSource {
            reader,
            index_root: self.index_root,
            large_root: self.large_root,
        };
        (source, &mut self.counts)
    }

    /// The count of `block`.
    pub fn count(&self, reader: &Reader, block: u64) -> Result<u32> {
        let source = DiskSource {
            reader,
            index_root: self.index_root,
            large_root: self.large_root,
        };
        self.counts.count(&source, block)
    }

    /// Raises the count of `block`.
    pub fn inc(&mut self, tm: &mut TransactionManager, block: u64) -> Result<()> {
        self.bound_large(tm)?;
        let (source, counts) = self.split(tm.reader());
        counts.inc(&source, block)
    }

    /// Lowers the count of `block`.
    pub fn dec(&mut self, tm: &mut TransactionManager, block: u64) -> Result<()> {
        self.bound_large(tm)?;
        let (source, counts) = self.split(tm.reader());
        counts.dec(&source, block).map(|_| ())
    }

    /// A free block, now with count one; `None` when there is none that was free at the last
    /// commit too.
    pub fn alloc(&mut self, tm: &mut TransactionManager) -> Result<Option<u64>> {
        let (source, counts) = self.split(tm.reader());
        counts.alloc(&source)
    }

    /// Grows the map to `nr_blocks`, which must not be less than before.
    pub fn extend(&mut self, tm: &mut TransactionManager, nr_blocks: u64) -> Result<()> {
        if nr_blocks > BLOCKS_MAX || nr_blocks < self.nr_blocks() {
            return Err(MetadataError::new(
                ErrorKind::Inval,
                format!(
                    "the data space map cannot go from {} to {nr_blocks} blocks",
                    self.nr_blocks()
                ),
            ));
        }
        // Before the first of them is made: they are pinned in memory until the commit.
        let bitmaps = |blocks: u64| blocks.div_ceil(super::ENTRIES_PER_BITMAP);
        if bitmaps(nr_blocks) - bitmaps(self.nr_blocks()) > tm.nr_free() {
            return Err(MetadataError::new(
                ErrorKind::NoSpace(crate::Space::Metadata),
                "the metadata device is too small for a data device of that size",
            ));
        }
        let (source, counts) = self.split(tm.reader());
        let new = counts.extend(&source, nr_blocks)?;
        for at in insertion_order(new) {
            let entry = IndexEntry {
                block: tm.new_block(BlockKind::Bitmap)?,
                nr_free: super::ENTRIES_PER_BITMAP as u32,
                none_free_before: 0,
            };
            self.set_entry(tm, at, &entry)?;
        }
        Ok(())
    }

    fn set_entry(&mut self, tm: &mut TransactionManager, at: u64, e: &IndexEntry) -> Result<()> {
        let ops = &mut Plain::<{ IndexEntry::SIZE }>;
        (self.index_root, _) = btree::insert(tm, ops, self.index_root, at, &e.pack())?;
        Ok(())
    }

    fn bound_large(&mut self, tm: &mut TransactionManager) -> Result<()> {
        if self.counts.large.len() < LARGE_MAX {
            return Ok(());
        }
        self.store_large(tm)
    }

    fn store_large(&mut self, tm: &mut TransactionManager) -> Result<()> {
        while let Some((block, count)) = self.counts.large.next_step() {
            self.large_root = store_large(tm, self.large_root, block, count)?;
            self.counts.large.step_done();
        }
        self.counts.large.forget();
        Ok(())
    }

    /// Moves all changes into blocks of the transaction; gives what the superblock must store.
    pub fn prepare(&mut self, tm: &mut TransactionManager) -> Result<SpaceMapRoot> {
        self.store_large(tm)?;
        let chunks = std::mem::take(&mut self.counts.chunks);
        let mut dirty: Vec<_> = chunks.into_iter().filter(|(_, c)| c.dirty).collect();
        dirty.sort_unstable_by_key(|(at, _)| *at);
        for (at, mut chunk) in dirty {
            (chunk.entry.block, _) = tm.shadow(chunk.entry.block, BlockKind::Bitmap)?;
            chunk.store(tm.write(chunk.entry.block)?);
            self.set_entry(tm, at, &chunk.entry)?;
        }
        self.counts.committed();
        Ok(self.root())
    }

    fn root(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.counts.nr_blocks(),
            nr_allocated: self.counts.nr_allocated(),
            bitmap_root: self.index_root,
            ref_count_root: self.large_root,
        }
    }
}

/// The order in which the kernel puts the index entries `new` into their btree.
///
/// COMPAT: it keeps 64 of them in a cache. One goes to the btree when another needs its slot, so
/// that those before the last 64 go in order; a commit writes what is left, slot by slot. The slot
/// of an entry is the low bits of its number times a prime (dm-space-map-common.c).
fn insertion_order(new: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    let slot = |at: &u64| at.wrapping_mul(SLOT_PRIME) % SLOTS;
    let last = new.end.saturating_sub(SLOTS).max(new.start);
    let mut cached: Vec<u64> = (last..new.end).collect();
    cached.sort_unstable_by_key(slot);
    (new.start..last).chain(cached)
}

/// Index entries that the kernel caches.
const SLOTS: u64 = 64;
const SLOT_PRIME: u64 = 4_294_967_291;

const _: () = assert!(<Plain<16> as ValueOps>::SIZE == IndexEntry::SIZE);
