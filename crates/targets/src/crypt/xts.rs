//! XTS (IEEE 1619) over many sectors in one run.
//!
//! The sectors' blocks go through the cipher in spans of [`SPAN`] blocks, across the borders of sectors: a sector of 512 bytes
//! alone would fill half a batch of a processor that does 64 blocks at once. Tweaks are made in vectors of four, four vectors
//! at a time, so that none waits for the one before it. All in words of a vector's size and without branches, for the
//! compiler; the code runs inside the backend's closure, so it is compiled for the same instructions.

use aes::Block;
use aes::cipher::array::Array;
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
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut rest = ParBlocks::<B>::default();
        self.each_span(|blocks| {
            for blocks in blocks.chunks_mut(B::ParBlocksSize::USIZE) {
                if let Ok(batch) = <&mut ParBlocks<B>>::try_from(&mut *blocks) {
                    backend.encrypt_par_blocks(InOut::from(batch));
                } else if blocks.len() * 4 >= B::ParBlocksSize::USIZE {
                    rest[..blocks.len()].copy_from_slice(blocks);
                    backend.encrypt_par_blocks(InOut::from(&mut rest));
                    blocks.copy_from_slice(&rest[..blocks.len()]);
                } else {
                    for block in blocks {
                        backend.encrypt_block(InOut::from(block));
                    }
                }
            }
        });
    }
}

impl BlockCipherDecClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        let mut rest = ParBlocks::<B>::default();
        self.each_span(|blocks| {
            for blocks in blocks.chunks_mut(B::ParBlocksSize::USIZE) {
                if let Ok(batch) = <&mut ParBlocks<B>>::try_from(&mut *blocks) {
                    backend.decrypt_par_blocks(InOut::from(batch));
                } else if blocks.len() * 4 >= B::ParBlocksSize::USIZE {
                    rest[..blocks.len()].copy_from_slice(blocks);
                    backend.decrypt_par_blocks(InOut::from(&mut rest));
                    blocks.copy_from_slice(&rest[..blocks.len()]);
                } else {
                    for block in blocks {
                        backend.decrypt_block(InOut::from(block));
                    }
                }
            }
        });
    }
}

impl Run<'_> {
    /// Puts the tweaks on before and after `cipher`, which is given up to [`SPAN`] blocks at a time.
    #[inline(always)]
    fn each_span(self, mut cipher: impl FnMut(&mut [Block])) {
        let mut tweaks = Tweaks::new(self.tweaks, self.sector_blocks);
        let mut used: [Vector; VECTORS] = [[0; 8]; VECTORS];
        for (index, dst) in self.dst.chunks_mut(SPAN * BLOCK_BYTES).enumerate() {
            let used = &mut used[..dst.len().div_ceil(VECTOR_BYTES)];
            tweaks.fill(used);
            match self.src {
                Some(src) => put_on(used, &src[index * SPAN * BLOCK_BYTES..], dst),
                None => put_on_in_place(used, dst),
            }
            cipher(Array::cast_slice_from_core_mut(dst.as_chunks_mut().0));
            put_on_in_place(used, dst);
        }
    }
}

/// Four tweaks, each as its low and its high half.
type Vector = [u64; 8];

#[inline(always)]
fn put_on(tweaks: &[Vector], src: &[u8], dst: &mut [u8]) {
    let src = src.as_chunks::<VECTOR_BYTES>().0;
    let dst = dst.as_chunks_mut::<VECTOR_BYTES>().0;
    for ((tweak, src), dst) in tweaks.iter().zip(src).zip(dst) {
        *dst = xor(tweak, src);
    }
}

#[inline(always)]
fn put_on_in_place(tweaks: &[Vector], dst: &mut [u8]) {
    let dst = dst.as_chunks_mut::<VECTOR_BYTES>().0;
    for (tweak, dst) in tweaks.iter().zip(dst) {
        *dst = xor(tweak, dst);
    }
}

#[inline(always)]
fn xor(tweak: &Vector, blocks: &[u8; VECTOR_BYTES]) -> [u8; VECTOR_BYTES] {
    let mut out = [0; VECTOR_BYTES];
    let words = blocks.as_chunks::<8>().0;
    for ((out, word), tweak) in out.as_chunks_mut::<8>().0.iter_mut().zip(words).zip(tweak) {
        *out = (u64::from_le_bytes(*word) ^ tweak).to_le_bytes();
    }
    out
}

/// The tweaks of a run's blocks, one after the other.
struct Tweaks<'a> {
    sectors: std::slice::Iter<'a, [u8; BLOCK_BYTES]>,
    sector_blocks: usize,
    /// Of the sector begun.
    left: usize,
    /// The next sixteen.
    next: [Vector; 4],
}

impl<'a> Tweaks<'a> {
    #[inline(always)]
    fn new(sectors: &'a [[u8; BLOCK_BYTES]], sector_blocks: usize) -> Self {
        Self {
            sectors: sectors.iter(),
            sector_blocks,
            left: 0,
            next: [[0; 8]; 4],
        }
    }

    /// A sector has a multiple of sixteen blocks, and so has a span.
    #[inline(always)]
    fn fill(&mut self, used: &mut [Vector]) {
        for used in used.as_chunks_mut::<4>().0 {
            if self.left == 0 {
                let first = self.sectors.next().copied().unwrap_or_default();
                self.begin(u128::from_le_bytes(first));
                self.left = self.sector_blocks;
            }
            *used = self.next;
            for vector in &mut self.next {
                *vector = times::<16>(vector);
            }
            self.left -= 16;
        }
    }

    #[inline(always)]
    fn begin(&mut self, first: u128) {
        let mut tweak = first;
        let mut vector = [0; 8];
        for half in vector.as_chunks_mut::<2>().0 {
            *half = [tweak as u64, (tweak >> 64) as u64];
            tweak = doubled(tweak);
        }
        for next in &mut self.next {
            *next = vector;
            vector = times::<4>(&vector);
        }
    }
}

/// Times x^BITS in GF(2^128), each of the four.
#[inline(always)]
fn times<const BITS: u32>(tweaks: &Vector) -> Vector {
    let mut product = [0; 8];
    for i in 0..8 {
        // What a half loses goes to the other one; what the high half loses comes back as 0x87 times itself.
        let over = tweaks[i ^ 1] >> (64 - BITS);
        let folded = (over << 1) ^ (over << 2) ^ (over << 7);
        product[i] = (tweaks[i] << BITS) ^ over ^ (folded & LOW_HALVES[i]);
    }
    product
}

/// Times x in GF(2^128), without a branch.
#[inline(always)]
pub(super) fn doubled(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak.cast_signed() >> 127).cast_unsigned() & 0x87)
}

const LOW_HALVES: Vector = [u64::MAX, 0, u64::MAX, 0, u64::MAX, 0, u64::MAX, 0];
const VECTOR_BYTES: usize = 64;
/// Blocks.
const SPAN: usize = 64;
const VECTORS: usize = SPAN * BLOCK_BYTES / VECTOR_BYTES;
