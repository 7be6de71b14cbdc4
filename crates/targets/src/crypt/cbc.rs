//! CBC over many sectors in one run.
//!
//! A sector's blocks can only be encrypted one after the other, so encryption goes through many sectors side by side: the
//! first block of each, then the second of each. Decryption has no such chain.

use aes::cipher::consts::U16;
use aes::cipher::inout::InOut;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
    BlockSizeUser, ParBlocks,
};

use super::aes::BLOCK_BYTES;

/// Sectors to encrypt; as many as there are `chains`.
pub(super) struct Encrypt<'a> {
    pub(super) src: &'a [u8],
    pub(super) dst: &'a mut [u8],
    /// Each sector's initial vector.
    pub(super) chains: &'a mut [[u8; BLOCK_BYTES]],
    pub(super) sector_bytes: usize,
}

impl BlockSizeUser for Encrypt<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Encrypt<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let width = B::ParBlocksSize::USIZE;
        let group = self.sector_bytes * width;
        let groups = self.dst.chunks_mut(group).zip(self.src.chunks(group));
        for ((dst, src), chains) in groups.zip(self.chains.chunks_mut(width)) {
            let mut work = ParBlocks::<B>::default();
            for (work, chain) in work.iter_mut().zip(chains.iter()) {
                work.0 = *chain;
            }
            for at in (0..self.sector_bytes).step_by(BLOCK_BYTES) {
                let sources = src[at..].chunks(self.sector_bytes);
                for (work, from) in work.iter_mut().zip(sources) {
                    if let Some(block) = from.first_chunk() {
                        work.0 = xor(&work.0, block);
                    }
                }
                // Few sectors do not fill a batch; processors overlap single blocks well.
                if chains.len() * 4 >= width {
                    backend.encrypt_par_blocks(InOut::from(&mut work));
                } else {
                    for work in work.iter_mut().take(chains.len()) {
                        backend.encrypt_block(InOut::from(work));
                    }
                }
                let places = dst[at..].chunks_mut(self.sector_bytes);
                for (work, to) in work.iter().zip(places) {
                    if let Some(block) = to.first_chunk_mut() {
                        *block = work.0;
                    }
                }
            }
        }
    }
}

/// One sector to decrypt in place.
pub(super) struct Decrypt<'a> {
    pub(super) data: &'a mut [u8],
    /// Each sector's initial vector.
    pub(super) chains: &'a [[u8; BLOCK_BYTES]],
    pub(super) sector_blocks: usize,
}

impl BlockSizeUser for Decrypt<'_> {
    type BlockSize = U16;
}

impl BlockCipherDecClosure for Decrypt<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        let width = B::ParBlocksSize::USIZE;
        let mut before = [0; BLOCK_BYTES];
        let mut block_nr = 0;
        for batch in self.data.as_chunks_mut::<BLOCK_BYTES>().0.chunks_mut(width) {
            let mut work = ParBlocks::<B>::default();
            for (work, block) in work.iter_mut().zip(batch.iter()) {
                work.0 = *block;
            }
            backend.decrypt_par_blocks(InOut::from(&mut work));
            for (work, block) in work.iter().zip(batch) {
                if block_nr % self.sector_blocks == 0 {
                    let sector = block_nr / self.sector_blocks;
                    before = self.chains.get(sector).copied().unwrap_or_default();
                }
                let plain = xor(&work.0, &before);
                before = std::mem::replace(block, plain);
                block_nr += 1;
            }
        }
    }
}

#[inline(always)]
fn xor(a: &[u8; BLOCK_BYTES], b: &[u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    (u128::from_le_bytes(*a) ^ u128::from_le_bytes(*b)).to_le_bytes()
}
