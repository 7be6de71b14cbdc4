//! The current era's writeset in memory: read by every write, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A bit for each block of the origin: set once it is durable that the block is written in this era.
#[derive(Default)]
pub(super) struct Writeset(Vec<AtomicU64>);

impl Writeset {
    /// No block is written; `None` without memory.
    pub fn new(blocks: u64) -> Option<Self> {
        let words = usize::try_from(blocks.div_ceil(u64::from(u64::BITS))).ok()?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).ok()?;
        bits.resize_with(words, AtomicU64::default);
        Some(Self(bits))
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(block / 64).ok()?)
    }

    pub fn has(&self, block: u64) -> bool {
        let word = self.word(block).map_or(0, |word| word.load(Relaxed));
        word >> (block % 64) & 1 == 1
    }

    pub fn set(&self, block: u64) {
        if let Some(word) = self.word(block) {
            word.fetch_or(1 << (block % 64), Relaxed);
        }
    }
}
