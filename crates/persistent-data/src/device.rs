//! The seam between the metadata engine and whatever stores its blocks.

use std::io;

use thinmap_units::MetaBlock;

use crate::block::{BlockBytes, META_BLOCK_SIZE};

/// One block's bytes at an address that direct I/O accepts.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Block4k(pub BlockBytes);

const _: () = assert!(size_of::<Block4k>() == META_BLOCK_SIZE);

impl Block4k {
    /// A block of zeroes.
    pub const fn zeroed() -> Self {
        Self([0; META_BLOCK_SIZE])
    }

    /// A block of zeroes on the heap, where all of them should be.
    ///
    /// A value aligned to a page must not be a local of a function that may return before it uses
    /// it: rustc 1.95 (LLVM) then leaves out the function's prologue when it optimises, and
    /// returning crashes. Hence a function of its own that does nothing else.
    #[inline(never)]
    pub fn boxed() -> Box<Self> {
        Box::new(Self::zeroed())
    }

    /// `count` blocks of zeroes, one after another in memory; on the heap as [`boxed`](Self::boxed).
    #[inline(never)]
    pub fn row(count: usize) -> Vec<Self> {
        vec![Self::zeroed(); count]
    }
}

impl Default for Block4k {
    fn default() -> Self {
        Self::zeroed()
    }
}

impl std::fmt::Debug for Block4k {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block4k({:02x?}...)", &self.0[..16])
    }
}

/// A device that holds metadata: blocks of 4096 bytes, addressed from zero.
///
/// The calls may block. What the engine assumes of the device:
/// - a write that returned is seen by later reads;
/// - after a power cut each 512-byte sector of a write that was not yet flushed holds either its old
///   or its new content, independently of all others;
/// - what was written before a [`flush`](Self::flush) that returned `Ok` survives a power cut.
pub trait MetadataDevice: Send + Sync {
    /// The device's size in whole blocks. It may be more than the format can use
    /// ([`METADATA_BLOCKS_MAX`](crate::METADATA_BLOCKS_MAX)); the excess is left alone.
    fn size(&self) -> MetaBlock;

    /// Reads one block into `buf`.
    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()>;

    /// Reads several blocks, at once if the device can; `None` for those that cannot be read.
    fn read_many(&self, blocks: &[MetaBlock]) -> Vec<Option<Box<Block4k>>> {
        let one = |block: &MetaBlock| {
            let mut buf = Block4k::boxed();
            self.read(*block, &mut buf).ok().map(|()| buf)
        };
        blocks.iter().map(one).collect()
    }

    /// Writes blocks, in any order; durable only after [`flush`](Self::flush).
    ///
    /// The engine passes batches sorted by address whose buffers lie one after another in memory,
    /// so neighbours can be written with one request.
    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()>;

    /// Makes all completed writes durable.
    fn flush(&self) -> io::Result<()>;
}
