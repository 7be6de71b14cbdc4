//! The metadata: which block was last written in which era.
//!
//! The blocks written in the current era are a bitset, its *writeset*. An era that has ended lies in a tree of writesets until it
//! is *digested*: written into the array that has the era of each block, and removed from the tree.
//!
//! Calls wait for the device: for the worker and control threads only. Nothing is durable before [`Metadata::commit`].
//!
//! COMPAT: blocks are allocated and freed in the kernel's order, because their number shows in the status.

use std::sync::Arc;

use thinmap_persistent_data::btree::{self, ValueOps};
use thinmap_persistent_data::{
    BlockCache, BlockKind, ErrorKind, METADATA_BLOCKS_MAX, MayRead, MetadataDevice, MetadataError,
    Result, TransactionManager, array, bitset, seal,
};

use super::disk::{SuperblockDisk, WRITESET_BYTES, WritesetDisk};
use crate::thin_pool::BlockMetadataDevice;

/// Clean metadata blocks kept in memory: 4 MiB.
const CACHE_BLOCKS_MAX: usize = 1024;
/// Bits looked at in one step of a digestion.
const DIGEST_BITS: u64 = 1 << 16;

/// Values of the tree of writesets: each refers to a bitset.
struct Writesets;

impl ValueOps for Writesets {
    const SIZE: usize = WRITESET_BYTES;

    fn inc(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        roots(values).try_for_each(|root| tm.inc(root))
    }

    fn dec(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        roots(values).try_for_each(|root| bitset::delete(tm, root))
    }
}

fn roots(values: &[u8]) -> impl Iterator<Item = u64> + '_ {
    values.chunks_exact(WRITESET_BYTES).map(|value| {
        let mut bytes = [0; WRITESET_BYTES];
        bytes.copy_from_slice(value);
        WritesetDisk::unpack(&bytes).root
    })
}

/// See the module.
pub(super) struct Metadata {
    tm: TransactionManager,
    /// As the open transaction would write it, the space map's root aside.
    now: SuperblockDisk,
    digest: Digest,
    /// A change or a commit failed: no more of them.
    broken: bool,
}

/// How far the digestion of the oldest era in the tree is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Digest {
    /// Nothing to do, as far as is known.
    Done,
    Next,
    Transcribe {
        era: u64,
        writeset: WritesetDisk,
        bit: u64,
    },
}

/// What the status tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stats {
    pub used: u64,
    pub total: u64,
    pub era: u32,
    pub metadata_snap: Option<u64>,
}

impl Metadata {
    /// Opens the metadata on a device, or makes some where the first block is all zeroes.
    pub fn open(device: Arc<BlockMetadataDevice>, block_sectors: u32) -> Result<Self> {
        if device.size().raw() == 0 {
            return Err(MetadataError::new(
                ErrorKind::Inval,
                "the metadata device is smaller than one block",
            ));
        }
        let cache = Arc::new(BlockCache::new(device.clone(), CACHE_BLOCKS_MAX));
        let failed = |e| MetadataError::io(e, "cannot read the superblock");
        let first = device.superblock().map_err(failed)?;
        if first.0.iter().all(|byte| *byte == 0) {
            return Self::format(cache, device.size().raw(), block_sectors);
        }
        let now = SuperblockDisk::unpack(0, &first.0)?;
        if now.block_sectors != block_sectors {
            let what = format!(
                "changing the data block size (from {} to {block_sectors}) is not supported",
                now.block_sectors
            );
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        Ok(Self {
            tm: TransactionManager::open(cache, &now.metadata_space_map)?,
            now,
            digest: Digest::Next,
            broken: false,
        })
    }

    fn format(cache: Arc<BlockCache>, blocks: u64, block_sectors: u32) -> Result<Self> {
        let mut tm = TransactionManager::create(cache, blocks.min(METADATA_BLOCKS_MAX))?;
        let writeset_tree = btree::empty::<Writesets>(&mut tm)?;
        let era_array = array::empty(&mut tm)?;
        let mut metadata = Self {
            tm,
            now: SuperblockDisk {
                block_sectors,
                writeset_tree,
                era_array,
                ..SuperblockDisk::default()
            },
            digest: Digest::Done,
            broken: false,
        };
        metadata.commit()?;
        Ok(metadata)
    }

    /// Runs a change, and takes note if it fails half-way.
    fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.broken {
            return Err(MetadataError::new(
                ErrorKind::Poisoned,
                "an earlier change of the metadata failed: load the table again",
            ));
        }
        let result = change(self);
        if let Err(error) = &result {
            // Refusals come before the first change; these may come after it.
            self.broken |= matches!(
                error.kind(),
                ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NoSpace(_)
            );
        }
        result
    }

    /// Makes everything so far durable.
    pub fn commit(&mut self) -> Result<()> {
        self.change(|m| {
            m.now.metadata_space_map = m.tm.prepare()?;
            let mut superblock = m.now.pack();
            seal(BlockKind::EraSuperblock, 0, &mut superblock.0);
            let commit = m.tm.freeze(superblock);
            commit.write()?;
            m.tm.finish(&commit);
            Ok(())
        })
    }

    /// Blocks of the origin that the metadata knows of.
    pub fn blocks(&self) -> u64 {
        u64::from(self.now.blocks)
    }

    /// Tells how many blocks the origin has, and makes that durable; in steps, since all that a step adds is in memory until then.
    pub fn resize(&mut self, blocks: u64) -> Result<()> {
        if blocks >= BLOCKS_END {
            let what = format!("Invalid number of origin blocks {blocks}");
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        loop {
            let old = self.blocks();
            let step = blocks.min(old.saturating_add(RESIZE_BLOCKS));
            self.change(|m| {
                m.now.era_array = array::resize(&mut m.tm, m.now.era_array, (old, step), &[0; 4])?;
                m.now.blocks = step as u32;
                Ok(())
            })?;
            self.commit()?;
            if step == blocks {
                return Ok(());
            }
        }
    }

    /// Puts the current era's writeset into the tree.
    pub fn archive(&mut self) -> Result<()> {
        self.change(|m| {
            if m.now.writeset.root == 0 {
                return Ok(());
            }
            let value = m.now.writeset.pack();
            let era = u64::from(m.now.era);
            let tree = m.now.writeset_tree;
            (m.now.writeset_tree, _) = btree::insert(&mut m.tm, &mut Writesets, tree, era, &value)?;
            m.now.writeset.root = 0;
            if m.digest == Digest::Done {
                m.digest = Digest::Next;
            }
            Ok(())
        })
    }

    /// Ends the current era and begins another one, in which nothing is written yet.
    pub fn roll_over(&mut self) -> Result<()> {
        self.archive()?;
        self.change(|m| {
            let root = bitset::empty(&mut m.tm)?;
            let bits = m.now.blocks;
            let root = bitset::resize(&mut m.tm, root, (0, u64::from(bits)))?;
            m.now.writeset = WritesetDisk { bits, root };
            m.now.era = m.now.era.wrapping_add(1);
            Ok(())
        })
    }

    /// Notes that a block is written in the current era.
    pub fn mark(&mut self, block: u64) -> Result<()> {
        self.change(|m| {
            m.now.writeset.root = bitset::set(&mut m.tm, m.now.writeset.root, block)?;
            Ok(())
        })
    }

    /// Whether there is a metadata snapshot.
    pub fn has_snap(&self) -> bool {
        self.now.metadata_snap != 0
    }

    /// Blocks that the open transaction holds in memory.
    pub fn dirty_blocks(&self) -> usize {
        self.tm.reader().dirty_blocks()
    }

    /// No more digestion, until another era is put into the tree.
    pub fn stop_digest(&mut self) {
        self.digest = Digest::Done;
    }

    /// Takes a metadata snapshot, for a commit to follow.
    pub fn take_snap(&mut self) -> Result<()> {
        if self.now.metadata_snap != 0 {
            let what = "metadata snapshot already exists";
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        self.roll_over()?;
        self.commit()?;
        self.change(|m| {
            let copy = m.tm.new_block(BlockKind::EraSuperblock)?;
            *m.tm.write(copy)? = m.now.pack().0;
            m.tm.inc(m.now.writeset_tree)?;
            m.tm.inc(m.now.era_array)?;
            m.now.metadata_snap = copy;
            Ok(())
        })
    }

    /// Gives up the metadata snapshot.
    pub fn drop_snap(&mut self) -> Result<()> {
        let block = self.now.metadata_snap;
        if block == 0 {
            return Err(MetadataError::new(ErrorKind::Inval, "no snap to drop"));
        }
        self.change(|m| {
            let kind = BlockKind::EraSuperblock;
            let bytes = m.tm.reader().read(block, kind, MayRead::Yes)?;
            let held = SuperblockDisk::unpack(block, &bytes)?;
            m.now.metadata_snap = 0;
            btree::delete_tree(&mut m.tm, &mut Writesets, held.writeset_tree)?;
            array::delete(&mut m.tm, held.era_array)?;
            m.tm.dec(block)
        })
    }

    /// One step of the digestion; whether there is more to do.
    pub fn digest(&mut self) -> Result<bool> {
        if self.digest == Digest::Done {
            return Ok(false);
        }
        self.change(|m| {
            m.digest = match m.digest {
                Digest::Done => Digest::Done,
                Digest::Next => m.next_to_digest()?,
                Digest::Transcribe { era, writeset, bit } => m.transcribe(era, writeset, bit)?,
            };
            Ok(m.digest != Digest::Done)
        })
    }

    fn next_to_digest(&self) -> Result<Digest> {
        let tree = self.now.writeset_tree;
        let found = btree::find_ge::<WRITESET_BYTES>(self.tm.reader(), tree, 0, MayRead::Yes)?;
        Ok(match found {
            None => Digest::Done,
            Some((era, value)) => Digest::Transcribe {
                era,
                writeset: WritesetDisk::unpack(&value),
                bit: 0,
            },
        })
    }

    fn transcribe(&mut self, era: u64, writeset: WritesetDisk, from: u64) -> Result<Digest> {
        let bits = u64::from(writeset.bits.min(self.now.blocks));
        let to = from.saturating_add(DIGEST_BITS).min(bits);
        // An era that does not fit was never made here: its low bits, as in the kernel.
        let value = (era as u32).to_le_bytes();
        for index in from / bitset::WORD_BITS..to.div_ceil(bitset::WORD_BITS) {
            let reader = self.tm.reader();
            let word = bitset::word(reader, writeset.root, index, MayRead::Yes)?;
            let mut word = word.ok_or_else(|| {
                MetadataError::corrupt(writeset.root, "a writeset is shorter than it should be")
            })?;
            while word != 0 {
                let block = index * bitset::WORD_BITS + u64::from(word.trailing_zeros());
                word &= word - 1;
                if block < bits {
                    let array = self.now.era_array;
                    self.now.era_array = array::set(&mut self.tm, array, block, &value)?;
                }
            }
        }
        if to < bits {
            let bit = to;
            return Ok(Digest::Transcribe { era, writeset, bit });
        }
        let tree = self.now.writeset_tree;
        (self.now.writeset_tree, _) = btree::remove(&mut self.tm, &mut Writesets, tree, era)?;
        Ok(Digest::Next)
    }

    /// What the status tells.
    pub fn stats(&self) -> Result<Stats> {
        if self.broken {
            let what = "an earlier change of the metadata failed";
            return Err(MetadataError::new(ErrorKind::Poisoned, what));
        }
        let total = self.tm.nr_blocks();
        let snap = self.now.metadata_snap;
        Ok(Stats {
            used: total - self.tm.nr_free(),
            total,
            era: self.now.era,
            metadata_snap: (snap != 0).then_some(snap),
        })
    }
}

/// More blocks than bits can be tested of in a kernel.
const BLOCKS_END: u64 = 1 << 31;
/// Blocks that the array grows by in one commit: 16 MiB of it.
const RESIZE_BLOCKS: u64 = 1 << 22;
