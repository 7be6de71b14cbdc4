//! What the next daemon needs when this one dies, in memory that outlives the process: whoever wrote was told that it is done, and the
//! device stays. See `docs/internals/continuity.md`.
//!
//! J: blocks that no commit has made durable. D: which stretches have tags that are only in memory; their tags are made anew
//! from the data, which are on the device. B needs nothing: its bitmap says the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thinmap_dm::MemoryKeeper;

use super::layout::Layout;
use crate::kept::Named;

const STATE_AT: usize = 2;
const HEAD_WORDS: usize = 3;
const JOURNAL_MAGIC: u64 = u64::from_le_bytes(*b"integ-J1");
const MARKS_MAGIC: u64 = u64::from_le_bytes(*b"integ-D1");
/// Instead of a sector: a slot that a commit has left empty.
const EMPTY: u64 = u64::MAX;
/// log2 of the blocks of a stretch.
const LOG2_STRETCH: u8 = 7;

/// Blocks in the journal that are not committed: a ring with a slot for each of the journal's entries.
///
/// INVARIANT: a slot counts once the state says so; where the ring begins and how long it is are one word, stored at once.
pub(super) struct KeptJournal {
    named: Named,
    slots: u64,
    slot_words: usize,
}

impl KeptJournal {
    pub fn open(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        layout: &Layout,
    ) -> std::io::Result<Self> {
        let slots = layout.shape.all_entries();
        let slot_words = 1 + layout.block_bytes() / 8;
        let words = HEAD_WORDS + slots as usize * slot_words;
        let form = slots << 8 | u64::from(layout.log2_block);
        let named = Named::open(keeper, name, (JOURNAL_MAGIC, form, words))?;
        Ok(Self {
            named,
            slots,
            slot_words,
        })
    }

    /// First slot, and how many.
    fn state(&self) -> (u64, u64) {
        let state = self.named.word(STATE_AT).load(SeqCst);
        (state >> 32, state & u64::from(u32::MAX))
    }

    fn set_state(&self, first: u64, count: u64) {
        self.named.word(STATE_AT).store(first << 32 | count, SeqCst);
    }

    fn slot(&self, number: u64) -> &[AtomicU64] {
        let at = HEAD_WORDS + (number % self.slots) as usize * self.slot_words;
        &self.named.words()[at..at + self.slot_words]
    }

    /// Blocks that the last process answered and did not commit: the last one of each.
    pub fn left(&self) -> BTreeMap<u64, Vec<u8>> {
        let (first, count) = self.state();
        let mut left = BTreeMap::new();
        for number in first..first + count.min(self.slots) {
            let slot = self.slot(number);
            let sector = slot[0].load(SeqCst);
            if sector != EMPTY {
                let words = slot[1..].iter().map(|word| word.load(SeqCst));
                left.insert(sector, words.flat_map(u64::to_le_bytes).collect());
            }
        }
        left
    }

    /// Nothing is kept; the journal goes on at this entry.
    pub fn reset(&self, position: u32) {
        self.set_state(position.into(), 0);
    }

    /// Blocks were put into the journal's next entries.
    pub fn put(&self, sector: u64, blocks: &[u8]) {
        let (first, count) = self.state();
        let block_bytes = (self.slot_words - 1) * 8;
        let unit = block_bytes as u64 / 512;
        let mut number = 0;
        for block in blocks.chunks(block_bytes) {
            let slot = self.slot(first + count + number);
            slot[0].store(sector + number * unit, SeqCst);
            let (words, _) = block.as_chunks::<8>();
            for (to, word) in slot[1..].iter().zip(words) {
                to.store(
                    u64::from_le_bytes(*word),
                    std::sync::atomic::Ordering::Relaxed,
                );
            }
            number += 1;
        }
        self.set_state(first, count + number);
    }

    /// A commit has closed a section: so many entries stay empty.
    pub fn skip(&self, entries: u64) {
        let (first, count) = self.state();
        for number in 0..entries {
            self.slot(first + count + number)[0].store(EMPTY, SeqCst);
        }
        self.set_state(first, count + entries);
    }

    /// So many of the oldest entries are durable.
    pub fn committed(&self, entries: u64) {
        let (first, count) = self.state();
        self.set_state((first + entries) % self.slots, count - entries);
    }

    /// The line ends in good order.
    pub fn forget(self) {
        self.named.forget();
    }
}

/// A bit for each stretch of blocks that has a tag which is only in memory.
pub(super) struct Marks {
    named: Named,
    log2_stretch: u8,
    blocks: u64,
}

impl Marks {
    pub fn open(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        layout: &Layout,
    ) -> std::io::Result<Self> {
        // No stretch is in two runs.
        let log2_stretch = match layout.separate {
            true => LOG2_STRETCH,
            false => LOG2_STRETCH.min(layout.log2_interleave - layout.log2_block),
        };
        let blocks = layout.provided >> layout.log2_block;
        let words = HEAD_WORDS + (blocks >> log2_stretch) as usize / 64 + 1;
        let form = blocks << 8 | u64::from(log2_stretch);
        let named = Named::open(keeper, name, (MARKS_MAGIC, form, words))?;
        Ok(Self {
            named,
            log2_stretch,
            blocks,
        })
    }

    fn bit(&self, stretch: u64) -> (&AtomicU64, u64) {
        let word = self.named.word(HEAD_WORDS + (stretch / 64) as usize);
        (word, 1 << (stretch % 64))
    }

    /// The stretches that any of these blocks is in.
    fn touched(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start >> self.log2_stretch..((blocks.end - 1) >> self.log2_stretch) + 1
    }

    /// Tags of these blocks are only in memory from now on.
    pub fn set(&self, blocks: &Range<u64>) {
        for stretch in self.touched(blocks) {
            let (word, bit) = self.bit(stretch);
            if word.load(SeqCst) & bit == 0 {
                word.fetch_or(bit, SeqCst);
            }
        }
    }

    /// Tags of these blocks have been written, and no others of `whole`, in which the marks are, are only in memory. A stretch
    /// that reaches beyond `whole` stays marked.
    pub fn clear(&self, blocks: &Range<u64>, whole: &Range<u64>) {
        for stretch in self.touched(blocks) {
            let (start, end) = (
                stretch << self.log2_stretch,
                (stretch + 1) << self.log2_stretch,
            );
            if whole.start <= start && end <= whole.end {
                let (word, bit) = self.bit(stretch);
                word.fetch_and(!bit, SeqCst);
            }
        }
    }

    /// The blocks of stretches that are marked.
    pub fn left(&self) -> Vec<Range<u64>> {
        let stretches = 0..(self.blocks >> self.log2_stretch) + 1;
        let marked = stretches.filter(|stretch| {
            let (word, bit) = self.bit(*stretch);
            word.load(SeqCst) & bit != 0
        });
        let blocks = marked.map(|stretch| {
            let end = (stretch + 1) << self.log2_stretch;
            stretch << self.log2_stretch..end.min(self.blocks)
        });
        blocks.filter(|blocks| !blocks.is_empty()).collect()
    }

    /// Nothing is marked.
    pub fn reset(&self) {
        for word in &self.named.words()[HEAD_WORDS..] {
            word.store(0, SeqCst);
        }
    }

    /// The line ends in good order.
    pub fn forget(&self) {
        self.named.forget();
    }
}
