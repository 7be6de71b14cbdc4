//! Which regions have come that no commit holds, in memory that outlives the process: whoever wrote to them was told that it is done,
//! and finds the device again. See `docs/internals/clone.md`.
//!
//! INVARIANT: a region's bit is set here before anybody is told of a write to it, and cleared when a durable commit holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thinmap_dm::MemoryKeeper;

use crate::kept::Named;

const MAGIC: u64 = u64::from_le_bytes(*b"clone-R1");
const BITS_AT: usize = 2;

/// See the module.
pub(super) struct Kept(Named);

impl Kept {
    /// What is kept for a line of `count` regions of `region` sectors, under its name.
    pub fn open(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        (count, region): (u64, u64),
    ) -> std::io::Result<Self> {
        let words = BITS_AT + count.div_ceil(64) as usize;
        Named::open(keeper, name, (MAGIC, count << 32 | region, words)).map(Self)
    }

    fn bits(&self) -> &[AtomicU64] {
        &self.0.words()[BITS_AT..]
    }

    /// Word `index` of the bits.
    pub fn word(&self, index: u64) -> u64 {
        self.bits()
            .get(index as usize)
            .map_or(0, |word| word.load(SeqCst))
    }

    /// The region has come.
    pub fn set(&self, region: u64) {
        if let Some(word) = self.bits().get((region / 64) as usize) {
            word.fetch_or(1 << (region % 64), SeqCst);
        }
    }

    /// These bits of a word are in a durable commit.
    pub fn committed(&self, index: u64, bits: u64) {
        if let Some(word) = self.bits().get(index as usize) {
            word.fetch_and(!bits, SeqCst);
        }
    }

    /// The line ends in good order.
    pub fn forget(&self) {
        self.0.forget();
    }
}
