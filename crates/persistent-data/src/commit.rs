//! The part of a commit that does I/O, cut loose from the structures it came from.
//!
//! Order, and why it is safe, is in `docs/internals/commit.md`.

use std::sync::Arc;

use thinmap_units::MetaBlock;

use crate::block::{BlockBytes, BlockKind};
use crate::device::{Block4k, MetadataDevice};
use crate::error::{MetadataError, Result};

/// Blocks handed to the device at once: 1 MiB of aligned buffer.
const BATCH_BLOCKS: usize = 256;

/// Where the superblock lives.
const SUPERBLOCK: MetaBlock = MetaBlock(0);

/// A frozen transaction, ready to be written. Independent of the engine, so that readers go on
/// while [`write`](Self::write) waits for the device.
pub struct Commit {
    pub(crate) device: Arc<dyn MetadataDevice>,
    /// Sealed, sorted by address; no superblock among them.
    pub(crate) blocks: Vec<(u64, BlockKind, Arc<BlockBytes>)>,
    pub(crate) superblock: Option<Box<Block4k>>,
}

impl Commit {
    /// Whether there is anything to write.
    pub fn is_empty(&self) -> bool {
        self.superblock.is_none()
    }

    /// How many blocks this commit writes, the superblock not counted.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Writes the transaction: blocks, flush, superblock, flush. Does nothing when empty.
    ///
    /// The data device must have been flushed before this is called.
    pub fn write(&self) -> Result<()> {
        let Some(superblock) = &self.superblock else {
            return Ok(());
        };
        // CRASH: until the superblock is overwritten all that it reaches is intact, because no
        // block reachable from it is among `blocks`; the first flush keeps the new superblock from
        // becoming durable before what it points to.
        let failed = |what| move |e| MetadataError::io(e, what);
        self.write_blocks()?;
        self.device
            .flush()
            .map_err(failed("cannot flush the metadata device"))?;
        self.device
            .write(&[(SUPERBLOCK, superblock)])
            .map_err(failed("cannot write the superblock"))?;
        self.device.flush().map_err(failed(
            "cannot flush the metadata device after the superblock",
        ))
    }

    fn write_blocks(&self) -> Result<()> {
        let mut buffer = Block4k::row(BATCH_BLOCKS.min(self.blocks.len()));
        for chunk in self.blocks.chunks(BATCH_BLOCKS) {
            for (aligned, (_, _, bytes)) in buffer.iter_mut().zip(chunk) {
                aligned.0 = **bytes;
            }
            let batch: Vec<_> = buffer
                .iter()
                .zip(chunk)
                .map(|(aligned, (block, _, _))| (MetaBlock(*block), aligned))
                .collect();
            self.device.write(&batch).map_err(|e| {
                let first = chunk[0].0;
                MetadataError::io(e, format!("cannot write metadata blocks from {first} on"))
            })?;
        }
        Ok(())
    }
}
