//! Clean blocks in memory: what the last commit wrote, verified once when read.
//!
//! INVARIANT: a block in the cache equals the block on the device, or is unreachable from the
//! last commit (its number was freed and will be overwritten by a commit, which then replaces it
//! here). Changed blocks never live here, so anything may be evicted at any time.
//!
//! Eviction is second chance (clock) within each shard.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_units::MetaBlock;

use crate::block::{BlockBytes, BlockKind, verify};
use crate::device::{Block4k, MetadataDevice};
use crate::error::{MetadataError, Result};

const SHARDS: usize = 16;
/// The least number of blocks a shard keeps, so that a path from root to leaf always fits.
const SHARD_BLOCKS_MIN: usize = 4;

/// Whether a lookup may wait for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayRead {
    /// Read from the device what is not in memory.
    Yes,
    /// Fail with [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock) instead of reading.
    No,
}

/// A map keyed by block numbers.
pub(crate) type BlockMap<T> = HashMap<u64, T, BuildHasherDefault<BlockHasher>>;

/// A hash for block numbers: one multiplication, high bits folded down.
///
/// Keys come from a space of at most a few million metadata blocks, which bounds what a crafted
/// image could gain from collisions.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

struct Slot {
    block: u64,
    kind: BlockKind,
    bytes: Arc<BlockBytes>,
    used: bool,
}

struct Shard {
    index: BlockMap<usize>,
    slots: Vec<Slot>,
    hand: usize,
    slots_max: usize,
}

impl Shard {
    fn hit(&mut self, block: u64) -> Option<(BlockKind, Arc<BlockBytes>)> {
        let slot = &mut self.slots[*self.index.get(&block)?];
        slot.used = true;
        Some((slot.kind, Arc::clone(&slot.bytes)))
    }

    fn put(&mut self, block: u64, kind: BlockKind, bytes: Arc<BlockBytes>) {
        let slot = Slot {
            block,
            kind,
            bytes,
            used: true,
        };
        if let Some(at) = self.index.get(&block) {
            self.slots[*at] = slot;
            return;
        }
        if self.slots.len() < self.slots_max {
            self.index.insert(block, self.slots.len());
            self.slots.push(slot);
            return;
        }
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % self.slots.len();
        }
        self.index.remove(&self.slots[self.hand].block);
        self.index.insert(block, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % self.slots.len();
    }
}

/// The clean blocks of one metadata device. Shared by readers on any thread.
pub struct BlockCache {
    device: Arc<dyn MetadataDevice>,
    shards: Vec<Mutex<Shard>>,
}

impl BlockCache {
    /// A cache that keeps at most about `blocks_max` blocks (never fewer than 64).
    pub fn new(device: Arc<dyn MetadataDevice>, blocks_max: usize) -> Self {
        let slots_max = (blocks_max / SHARDS).max(SHARD_BLOCKS_MIN);
        let shards = (0..SHARDS)
            .map(|_| {
                Mutex::new(Shard {
                    index: BlockMap::default(),
                    slots: Vec::new(),
                    hand: 0,
                    slots_max,
                })
            })
            .collect();
        Self { device, shards }
    }

    /// The device behind the cache.
    pub fn device(&self) -> &Arc<dyn MetadataDevice> {
        &self.device
    }

    /// How many blocks are held now.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().slots.len()).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything, for a reload from the device.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.index.clear();
            shard.slots.clear();
            shard.hand = 0;
        }
    }

    /// Block `block`, verified as `kind`.
    pub fn read(&self, block: u64, kind: BlockKind, may_read: MayRead) -> Result<Arc<BlockBytes>> {
        let hit = self.shard(block).lock().hit(block);
        match hit {
            Some((found, bytes)) if found == kind => return Ok(bytes),
            // Two structures point at one block as different kinds: one of them is wrong.
            Some((_, bytes)) => verify(kind, block, &bytes)?,
            None => {}
        }
        if may_read == MayRead::No {
            return Err(MetadataError::would_block());
        }
        if block >= self.device.size().raw() {
            return Err(MetadataError::corrupt(
                block,
                "a reference points past the end of the metadata device",
            ));
        }
        let mut buf = Block4k::boxed();
        self.device
            .read(MetaBlock(block), &mut buf)
            .map_err(|e| MetadataError::io(e, format!("cannot read metadata block {block}")))?;
        verify(kind, block, &buf.0)?;
        let bytes = Arc::new(buf.0);
        self.shard(block)
            .lock()
            .put(block, kind, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Brings those of `blocks` into memory that are not there and turn out to be of `kind`.
    /// Failures are left for [`read`](Self::read) to tell.
    pub fn read_ahead(&self, blocks: &[u64], kind: BlockKind) {
        let end = self.device.size().raw();
        let missing: Vec<MetaBlock> = blocks
            .iter()
            .filter(|block| **block < end && self.shard(**block).lock().hit(**block).is_none())
            .map(|block| MetaBlock(*block))
            .collect();
        if missing.is_empty() {
            return;
        }
        for (block, buf) in missing.iter().zip(self.device.read_many(&missing)) {
            if let Some(buf) = buf
                && verify(kind, block.raw(), &buf.0).is_ok()
            {
                self.put(block.raw(), kind, Arc::new(buf.0));
            }
        }
    }

    /// Takes over a block that a commit has just made durable.
    pub(crate) fn put(&self, block: u64, kind: BlockKind, bytes: Arc<BlockBytes>) {
        self.shard(block).lock().put(block, kind, bytes);
    }

    fn shard(&self, block: u64) -> &Mutex<Shard> {
        // Neighbouring blocks go to different shards, so threads reading a run do not meet.
        &self.shards[(block % SHARDS as u64) as usize]
    }
}
