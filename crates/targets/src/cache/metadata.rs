//! The metadata: which block of the origin lies in each block of the cache, and what a clean shutdown leaves beside that. See
//! `docs/internals/cache.md`.
//!
//! Calls wait for the device: for the worker and control threads only. Nothing is durable before [`Metadata::commit`].
//!
//! COMPAT: blocks are allocated and freed in the kernel's order, because their number shows in the status.

use std::ops::Range;
use std::sync::Arc;

use thinmap_persistent_data::{
    BlockCache, ErrorKind, METADATA_BLOCKS_MAX, MayRead, MetadataDevice, MetadataError, Result,
    TransactionManager, array, bitset,
};
use thinmap_units::MetaBlock;

use super::bits::Bits;
use super::disk::{MappingDisk, PolicyDisk, SuperblockDisk};
use crate::thin_pool::BlockMetadataDevice;

/// Clean metadata blocks kept in memory: 4 MiB.
const CACHE_BLOCKS_MAX: usize = 1024;

/// See the module.
pub(super) struct Metadata {
    device: Arc<BlockMetadataDevice>,
    tm: TransactionManager,
    /// As the open transaction would write it, the space map's root aside.
    now: SuperblockDisk,
    /// It was shut down in order before it was opened, or is new.
    was_clean: bool,
    /// A change or a commit failed: no more of them.
    broken: bool,
    /// The superblock may say that all is in order.
    may_say_clean: bool,
}

/// What a block of the cache holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Loaded {
    pub cblock: u32,
    pub oblock: u64,
    pub dirty: bool,
    /// The policy's, if it is the same that left it.
    pub hint: Option<u32>,
}

/// What a clean shutdown leaves.
pub(super) struct Leaving<'a> {
    pub dirty: &'a Bits,
    pub discards: &'a Bits,
    /// Sectors.
    pub discard_block: u64,
    pub policy: PolicyDisk,
    /// One for each block of the cache.
    pub hints: &'a [u32],
    pub counts: [u32; 4],
}

impl Metadata {
    /// Opens the metadata on a device, or makes some where the first block is all zeroes.
    pub fn open(device: Arc<BlockMetadataDevice>, block: u32, version: u32) -> Result<Self> {
        if device.size().raw() == 0 {
            let what = "the metadata device is smaller than one block";
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        let failed = |e| MetadataError::io(e, "cannot read the superblock");
        let first = device.superblock().map_err(failed)?;
        if first.0.iter().all(|byte| *byte == 0) {
            return Self::format(device, block, version);
        }
        let now = SuperblockDisk::unpack(&first)?;
        if now.block != block {
            let what = format!(
                "changing the data block size (from {} to {block}) is not supported",
                now.block
            );
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        Ok(Self {
            tm: TransactionManager::open(block_cache(&device), &now.metadata_space_map)?,
            device,
            was_clean: now.clean_shutdown,
            may_say_clean: now.clean_shutdown,
            now,
            broken: false,
        })
    }

    fn format(device: Arc<BlockMetadataDevice>, block: u32, version: u32) -> Result<Self> {
        let blocks = device.size().raw().min(METADATA_BLOCKS_MAX);
        let mut tm = TransactionManager::create(block_cache(&device), blocks)?;
        let mappings = array::empty(&mut tm)?;
        let dirty = match version {
            1 => 0,
            _ => bitset::empty(&mut tm)?,
        };
        let discards = bitset::empty(&mut tm)?;
        let mut metadata = Self {
            device,
            tm,
            now: SuperblockDisk {
                version,
                mappings,
                discards,
                block,
                dirty,
                ..SuperblockDisk::default()
            },
            was_clean: true,
            may_say_clean: false,
            broken: false,
        };
        metadata.commit(false)?;
        Ok(metadata)
    }

    /// Runs a change, and takes note if it fails half-way.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.broken {
            let what = "an earlier change of the metadata failed: they are read-only";
            return Err(MetadataError::new(ErrorKind::Poisoned, what));
        }
        let result = change(self);
        self.broken |= result.is_err();
        result
    }

    /// Makes everything so far durable; `clean`: and that it was shut down in order.
    pub fn commit(&mut self, clean: bool) -> Result<()> {
        self.change(|m| {
            m.now.clean_shutdown = clean;
            m.may_say_clean |= clean;
            m.now.metadata_space_map = m.tm.prepare()?;
            let commit = m.tm.freeze(m.now.pack());
            commit.write()?;
            m.tm.finish(&commit);
            m.may_say_clean = clean;
            Ok(())
        })
    }

    /// Sees to it that no superblock says any more that all is in order, also after a failure.
    pub fn begin(&mut self) -> Result<()> {
        match self.broken {
            false => self.commit(false),
            true if self.may_say_clean => self.abort(),
            true => Ok(()),
        }
    }

    /// After a failure: back to the last commit, with a mark that it is to be checked, and read-only.
    pub fn abort(&mut self) -> Result<()> {
        let mut last = Self::open(self.device.clone(), self.now.block, self.now.version)?;
        last.now.needs_check = true;
        last.now.clean_shutdown = false;
        last.broken = true;
        let superblock = last.now.pack();
        let write = || {
            self.device.write(&[(MetaBlock(0), &superblock)])?;
            self.device.flush()
        };
        write().map_err(|e| MetadataError::io(e, "cannot mark the metadata as to be checked"))?;
        last.may_say_clean = false;
        *self = last;
        Ok(())
    }

    /// Whether they must be checked before they are used.
    pub fn needs_check(&self) -> bool {
        self.now.needs_check
    }

    /// Read hits and misses, write hits and misses.
    pub fn counts(&self) -> [u32; 4] {
        self.now.counts
    }

    /// Metadata blocks in use, and all of them.
    pub fn used(&self) -> (u64, u64) {
        let total = self.tm.nr_blocks();
        (total - self.tm.nr_free(), total)
    }

    /// Changes the number of blocks of the cache. Refused before the first change when that would drop dirty ones.
    pub fn resize(&mut self, blocks: u32) -> Result<()> {
        let old = self.now.cache_blocks;
        for cblock in blocks..old.max(blocks) {
            if let Some(mapping) = self.mapping(cblock)?
                && (mapping.dirty || !self.was_clean)
            {
                let what = format!("unable to shrink cache; cache block {cblock} is dirty");
                return Err(MetadataError::new(ErrorKind::Inval, what));
            }
        }
        let sizes = (u64::from(old), u64::from(blocks));
        self.change(|m| {
            let none = MappingDisk::pack(None);
            m.now.mappings = array::resize(&mut m.tm, m.now.mappings, sizes, &none)?;
            if m.now.version >= 2 {
                m.now.dirty = bitset::resize(&mut m.tm, m.now.dirty, sizes)?;
            }
            m.now.cache_blocks = blocks;
            Ok(())
        })
    }

    /// Mapping `cblock`, dirty as the last clean shutdown noted.
    fn mapping(&self, cblock: u32) -> Result<Option<MappingDisk>> {
        let reader = self.tm.reader();
        let at = u64::from(cblock);
        let bytes = array::get::<8>(reader, self.now.mappings, at, MayRead::Yes)?;
        let bytes = bytes.ok_or_else(|| short(self.now.mappings, "mappings"))?;
        let mapping = MappingDisk::unpack(bytes);
        if self.now.version == 1 {
            return Ok(mapping);
        }
        let word = bitset::word(reader, self.now.dirty, at / 64, MayRead::Yes)?;
        let word = word.ok_or_else(|| short(self.now.dirty, "dirty bits"))?;
        let dirty = word >> (at % 64) & 1 == 1;
        Ok(mapping.map(|mapping| MappingDisk { dirty, ..mapping }))
    }

    /// Tells all mappings.
    pub fn load(
        &self,
        policy: &PolicyDisk,
        mut found: impl FnMut(Loaded) -> Result<()>,
    ) -> Result<()> {
        let of = &self.now.policy;
        let same = (of.name, of.version[0], of.hint_size)
            == (policy.name, policy.version[0], policy.hint_size);
        let hints = (self.was_clean && same && self.now.hints != 0).then_some(self.now.hints);
        for cblock in 0..self.now.cache_blocks {
            let Some(mapping) = self.mapping(cblock)? else {
                continue;
            };
            let hint = match hints {
                None => None,
                Some(root) => {
                    let reader = self.tm.reader();
                    array::get::<4>(reader, root, u64::from(cblock), MayRead::Yes)?
                }
            };
            found(Loaded {
                cblock,
                oblock: mapping.oblock,
                dirty: mapping.dirty || !self.was_clean,
                hint: hint.map(u32::from_le_bytes),
            })?;
        }
        Ok(())
    }

    /// Which sectors of the origin were discarded.
    pub fn discarded(&self) -> Result<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let (root, blocks) = (self.now.discards, self.now.discard_blocks);
        // Also when they do not count: the next shutdown takes this number of them for granted.
        if let Some(last) = blocks.checked_sub(1) {
            let word = last / bitset::WORD_BITS;
            let word = bitset::word(self.tm.reader(), root, word, MayRead::Yes)?;
            word.ok_or_else(|| short(root, "discard bits"))?;
        }
        if !self.was_clean {
            return Ok(ranges);
        }
        for index in 0..blocks.div_ceil(bitset::WORD_BITS) {
            let word = bitset::word(self.tm.reader(), root, index, MayRead::Yes)?;
            let mut word = word.ok_or_else(|| short(root, "discard bits"))?;
            while word != 0 {
                let block = index * bitset::WORD_BITS + u64::from(word.trailing_zeros());
                word &= word - 1;
                let sectors = |block: u64| block.saturating_mul(self.now.discard_block);
                let (begin, end) = (sectors(block), sectors(block + 1));
                match ranges.last_mut() {
                    _ if block >= blocks => break,
                    Some(last) if last.end == begin => last.end = end,
                    _ => ranges.push(begin..end),
                }
            }
        }
        Ok(ranges)
    }

    /// Block `cblock` of the cache holds this block of the origin from now on, or none.
    pub fn map(&mut self, cblock: u32, oblock: Option<u64>) -> Result<()> {
        self.change(|m| {
            let mapping = oblock.map(|oblock| MappingDisk {
                oblock,
                dirty: false,
            });
            let value = MappingDisk::pack(mapping);
            m.now.mappings = array::set(&mut m.tm, m.now.mappings, u64::from(cblock), &value)?;
            Ok(())
        })
    }

    /// Writes what a clean shutdown leaves, for a clean commit to follow.
    pub fn leave(&mut self, leaving: &Leaving<'_>) -> Result<()> {
        self.change(|m| {
            match m.now.version {
                1 => m.write_dirty_flags(leaving.dirty)?,
                _ => m.write_dirty_bits(leaving.dirty)?,
            }
            m.write_discards(leaving)?;
            m.now.counts = leaving.counts;
            m.write_hints(leaving)
        })
    }

    fn write_dirty_flags(&mut self, dirty: &Bits) -> Result<()> {
        for cblock in 0..self.now.cache_blocks {
            let Some(mapping) = self.mapping(cblock)? else {
                continue;
            };
            let dirty = dirty.has(u64::from(cblock));
            if mapping.dirty != dirty {
                let value = MappingDisk::pack(Some(MappingDisk { dirty, ..mapping }));
                let at = u64::from(cblock);
                self.now.mappings = array::set(&mut self.tm, self.now.mappings, at, &value)?;
            }
        }
        Ok(())
    }

    fn write_dirty_bits(&mut self, dirty: &Bits) -> Result<()> {
        bitset::delete(&mut self.tm, self.now.dirty)?;
        let root = bitset::empty(&mut self.tm)?;
        let blocks = u64::from(self.now.cache_blocks);
        self.now.dirty = bitset::resize(&mut self.tm, root, (0, blocks))?;
        for (index, word) in (0..).zip(dirty.words()) {
            self.now.dirty = bitset::set_word(&mut self.tm, self.now.dirty, index, *word)?;
        }
        Ok(())
    }

    fn write_discards(&mut self, leaving: &Leaving<'_>) -> Result<()> {
        let sizes = (self.now.discard_blocks, leaving.discards.count());
        self.now.discards = bitset::resize(&mut self.tm, self.now.discards, sizes)?;
        self.now.discard_block = leaving.discard_block;
        self.now.discard_blocks = leaving.discards.count();
        for (index, word) in (0..).zip(leaving.discards.words()) {
            self.now.discards = bitset::set_word(&mut self.tm, self.now.discards, index, *word)?;
        }
        Ok(())
    }

    fn write_hints(&mut self, leaving: &Leaving<'_>) -> Result<()> {
        self.now.policy = leaving.policy;
        if self.now.hints != 0 {
            array::delete(&mut self.tm, self.now.hints)?;
        }
        let root = array::empty(&mut self.tm)?;
        let sizes = (0, u64::from(self.now.cache_blocks));
        self.now.hints = array::resize(&mut self.tm, root, sizes, &[0; 4])?;
        for (at, hint) in (0..).zip(leaving.hints).filter(|(_, hint)| **hint != 0) {
            let value = hint.to_le_bytes();
            self.now.hints = array::set(&mut self.tm, self.now.hints, at, &value)?;
        }
        Ok(())
    }
}

fn block_cache(device: &Arc<BlockMetadataDevice>) -> Arc<BlockCache> {
    Arc::new(BlockCache::new(device.clone(), CACHE_BLOCKS_MAX))
}

fn short(root: u64, what: &str) -> MetadataError {
    MetadataError::corrupt(root, format!("there are fewer {what} than blocks"))
}
