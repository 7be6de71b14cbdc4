//! How often each data block is mapped: a byte for each, and a table for those mapped 255 times or more.
//!
//! Bytes come in chunks of as many blocks as a bitmap describes, made when something in them is mapped. Only
//! chunks that the data space map has a bitmap for are counted, and only a window of them at a time: pools
//! larger than a window (64 TiB with data blocks of 64 KiB) are counted in several passes over the leaves.
//! So memory is at most 1 GiB for bytes, and for the table 16 bytes for each 255 mappings that a leaf holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use thinmap_persistent_data::ENTRIES_PER_BITMAP;
use thinmap_persistent_data::btree::Node;

/// Blocks in a chunk.
pub(crate) const CHUNK_BLOCKS: u64 = ENTRIES_PER_BITMAP;
/// Chunks in a window.
pub(crate) const WINDOW_CHUNKS: u64 = 65_536;
const SHARDS: usize = 64;
/// A byte of this value is continued in the table.
const FULL: u8 = u8::MAX;

type Chunk = Box<[AtomicU8]>;

/// See the module.
pub(crate) struct DataCounts {
    nr_blocks: u64,
    first_chunk: u64,
    chunks: Vec<OnceLock<Chunk>>,
    more: Vec<Mutex<HashMap<u64, u32>>>,
}

impl DataCounts {
    /// Counts for the window from chunk `first_chunk` on, of a device of `nr_blocks` blocks.
    pub(crate) fn new(nr_blocks: u64, first_chunk: u64, chunks: u64) -> Self {
        let chunks = chunks.saturating_sub(first_chunk).min(WINDOW_CHUNKS);
        Self {
            nr_blocks,
            first_chunk,
            chunks: std::iter::repeat_with(OnceLock::new)
                .take(chunks as usize)
                .collect(),
            more: std::iter::repeat_with(Mutex::default)
                .take(SHARDS)
                .collect(),
        }
    }

    /// Counts the mappings of a leaf; gives the first that is past the end of the data device.
    pub(crate) fn add_leaf(&self, leaf: Node<'_>) -> Option<(u64, u64)> {
        let mut past = None;
        for at in 0..leaf.len() {
            let data = leaf.child(at) >> 24;
            if data >= self.nr_blocks {
                past = past.or(Some((leaf.key(at), data)));
                continue;
            }
            self.add(data);
        }
        past
    }

    fn add(&self, block: u64) {
        let Some(chunk) = (block / CHUNK_BLOCKS).checked_sub(self.first_chunk) else {
            return;
        };
        let Some(chunk) = self.chunks.get(chunk as usize) else {
            return;
        };
        let chunk = chunk.get_or_init(|| (0..CHUNK_BLOCKS).map(|_| AtomicU8::new(0)).collect());
        let byte = &chunk[(block % CHUNK_BLOCKS) as usize];
        let raise = |count: u8| count.checked_add(1);
        let raised = byte.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise);
        if raised.is_err() {
            *self.shard(block).entry(block).or_insert(0) += 1;
        }
    }

    fn shard(&self, block: u64) -> std::sync::MutexGuard<'_, HashMap<u64, u32>> {
        self.more[block as usize % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How often `block`, which lies in the window, is mapped.
    pub(crate) fn count(&self, block: u64) -> u32 {
        let byte = (block / CHUNK_BLOCKS)
            .checked_sub(self.first_chunk)
            .and_then(|chunk| self.chunks.get(chunk as usize)?.get())
            .map_or(0, |chunk| {
                chunk[(block % CHUNK_BLOCKS) as usize].load(Ordering::Relaxed)
            });
        match byte {
            FULL => u32::from(FULL) + self.shard(block).get(&block).copied().unwrap_or(0),
            count => u32::from(count),
        }
    }

    /// Whether anything in chunk `chunk` is mapped.
    pub(crate) fn has_chunk(&self, chunk: u64) -> bool {
        chunk
            .checked_sub(self.first_chunk)
            .and_then(|at| self.chunks.get(at as usize))
            .is_some_and(|chunk| chunk.get().is_some())
    }
}
