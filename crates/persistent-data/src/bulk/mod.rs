//! Making metadata at one go: trees and space maps written front to back, once, without a transaction.
//!
//! For tools that fill a whole device: nothing is there that a crash could hurt until the caller writes the
//! superblock. Nodes are as full as they can be and lie in the order of their keys.
//!
//! INVARIANT: blocks are handed out in ascending order from 1 on; block 0 is the caller's superblock. So
//! the metadata space map is known when the last block but its own is out.

mod counts;
mod tree;

pub use counts::{BulkCounts, write_metadata_space_map};
pub use tree::BulkTree;

use crate::block::{BlockBytes, BlockKind, META_BLOCK_SIZE, seal};
use crate::device::{Block4k, MetadataDevice};
use crate::error::{ErrorKind, MetadataError, Result, Space};
use crate::space_map::METADATA_BLOCKS_MAX;
use thinmap_units::MetaBlock;

/// Blocks written with one call (1 MiB).
const RUN_BLOCKS: usize = 256;

/// Hands out blocks in a row and writes them in large pieces.
pub struct BulkWriter<'a> {
    device: &'a dyn MetadataDevice,
    /// Blocks that may be used.
    nr_blocks: u64,
    /// The block that the next one written gets.
    next: u64,
    run: Vec<Block4k>,
    /// Blocks of `run` that hold something.
    filled: usize,
}

impl<'a> BulkWriter<'a> {
    /// A writer from block 1 of `device` on.
    pub fn new(device: &'a dyn MetadataDevice) -> Self {
        Self {
            device,
            nr_blocks: device.size().raw().min(METADATA_BLOCKS_MAX),
            next: 1,
            run: Block4k::row(RUN_BLOCKS),
            filled: 0,
        }
    }

    /// Blocks of the device that the format can use.
    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// The block that the next one written gets: how many are in use, block 0 included.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// Writes a block of `kind`; `fill` gets it zeroed. Gives its number.
    ///
    /// # Errors
    /// `NoSpace(Metadata)`: the device is full. `Io`.
    pub fn put(&mut self, kind: BlockKind, fill: impl FnOnce(&mut BlockBytes)) -> Result<u64> {
        if self.next >= self.nr_blocks {
            return Err(MetadataError::new(
                ErrorKind::NoSpace(Space::Metadata),
                format!(
                    "the metadata does not fit in {} blocks of {META_BLOCK_SIZE} bytes",
                    self.nr_blocks
                ),
            ));
        }
        if self.filled == RUN_BLOCKS {
            self.write_out()?;
        }
        let block = self.next;
        let bytes = &mut self.run[self.filled].0;
        bytes.fill(0);
        fill(bytes);
        seal(kind, block, bytes);
        self.filled += 1;
        self.next += 1;
        Ok(block)
    }

    /// Writes what is still in memory. Nothing is durable before the device is flushed.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_out(&mut self) -> Result<()> {
        let first = self.next - self.filled as u64;
        let blocks = self.run[..self.filled].iter().enumerate();
        let batch: Vec<(MetaBlock, &Block4k)> = blocks
            .map(|(at, bytes)| (MetaBlock(first + at as u64), bytes))
            .collect();
        self.device
            .write(&batch)
            .map_err(|e| MetadataError::io(e, format!("cannot write metadata block {first}")))?;
        self.filled = 0;
        Ok(())
    }
}
