//! XTS (IEEE 1619) over many sectors in one run.
//!
//! The sectors' blocks go through the cipher in batches as wide as its backend is, across the borders of sectors: a
//! sector of 512 bytes alone would fill half a batch of a processor that does 64 blocks at once. The code runs inside
//! the backend's closure, so it is compiled for the same instructions.

use aes::cipher::consts::U16;
use aes::cipher::inout::InOut;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
    BlockSizeUser, ParBlocks,
};

use super::aes::BLOCK_BYTES;

/// A run of whole sectors.
pub(super) struct Run<'a> {
    /// `None`: in place.
    pub(super) src: Option<&'a [u8]>,
    pub(super) dst: &'a mut [u8],
    /// Each sector's first tweak, encrypted.
    pub(super) tweaks: &'a [[u8; BLOCK_BYTES]],
    pub(super) sector_blocks: usize,
}

impl BlockSizeUser for Run<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &B) {
        let mut batch = Batch::<ParBlocks<B>>::default();
        let mut tweaks = Tweaks::new(self.tweaks, self.sector_blocks);
        let width = B::ParBlocksSize::USIZE * BLOCK_BYTES;
        for at in (0..self.dst.len()).step_by(width) {
            let bytes = width.min(self.dst.len() - at);
            self.load(at, bytes, &mut tweaks, &mut batch.tweaks, &mut batch.work);
            backend.encrypt_par_blocks(InOut::from(&mut batch.work));
            self.store(at, bytes, &batch.tweaks, &batch.work);
        }
    }
}

impl BlockCipherDecClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(mut self, backend: &B) {
        let mut batch = Batch::<ParBlocks<B>>::default();
        let mut tweaks = Tweaks::new(self.tweaks, self.sector_blocks);
        let width = B::ParBlocksSize::USIZE * BLOCK_BYTES;
        for at in (0..self.dst.len()).step_by(width) {
            let bytes = width.min(self.dst.len() - at);
            self.load(at, bytes, &mut tweaks, &mut batch.tweaks, &mut batch.work);
            backend.decrypt_par_blocks(InOut::from(&mut batch.work));
            self.store(at, bytes, &batch.tweaks, &batch.work);
        }
    }
}

#[derive(Default)]
struct Batch<P> {
    work: P,
    tweaks: P,
}

impl Run<'_> {
    /// Makes the tweaks of a batch, and its blocks with them.
    #[inline(always)]
    fn load(
        &self,
        at: usize,
        bytes: usize,
        tweaks: &mut Tweaks<'_>,
        used: &mut [aes::Block],
        work: &mut [aes::Block],
    ) {
        for used in used.iter_mut().take(bytes / BLOCK_BYTES) {
            used.0 = tweaks.next().to_le_bytes();
        }
        let src = match self.src {
            Some(src) => &src[at..at + bytes],
            None => &self.dst[at..at + bytes],
        };
        let blocks = src.as_chunks::<BLOCK_BYTES>().0;
        for ((work, block), tweak) in work.iter_mut().zip(blocks).zip(used.iter()) {
            work.0 = xor(block, &tweak.0);
        }
    }

    #[inline(always)]
    fn store(&mut self, at: usize, bytes: usize, used: &[aes::Block], work: &[aes::Block]) {
        let blocks = self.dst[at..at + bytes].as_chunks_mut::<BLOCK_BYTES>().0;
        for ((block, work), tweak) in blocks.iter_mut().zip(work).zip(used) {
            *block = xor(&work.0, &tweak.0);
        }
    }
}

/// The tweaks of a run's blocks, one after the other.
struct Tweaks<'a> {
    sectors: std::slice::Iter<'a, [u8; BLOCK_BYTES]>,
    sector_blocks: usize,
    left: usize,
    next: u128,
}

impl<'a> Tweaks<'a> {
    #[inline(always)]
    fn new(sectors: &'a [[u8; BLOCK_BYTES]], sector_blocks: usize) -> Self {
        Self {
            sectors: sectors.iter(),
            sector_blocks,
            left: 0,
            next: 0,
        }
    }

    #[inline(always)]
    fn next(&mut self) -> u128 {
        if self.left == 0 {
            let first = self.sectors.next().copied().unwrap_or_default();
            self.next = u128::from_le_bytes(first);
            self.left = self.sector_blocks;
        }
        let tweak = self.next;
        self.next = doubled(tweak);
        self.left -= 1;
        tweak
    }
}

/// Times x in GF(2^128), without a branch.
#[inline(always)]
pub(super) fn doubled(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak.cast_signed() >> 127).cast_unsigned() & 0x87)
}

#[inline(always)]
fn xor(a: &[u8; BLOCK_BYTES], b: &[u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    (u128::from_le_bytes(*a) ^ u128::from_le_bytes(*b)).to_le_bytes()
}
