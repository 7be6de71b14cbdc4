//! Counts above two on their way to their btree.
//!
//! COMPAT: they go there in the order in which blocks crossed the border between two and three,
//! because that order decides how many nodes the btree has, and the kernel changes it at once.

use std::collections::VecDeque;

use crate::cache::BlockMap;

/// What waits for the btree of large counts.
#[derive(Default)]
pub(crate) struct LargeCounts {
    /// The newest count of each block that changed; one below 3 means that it left the btree.
    counts: BlockMap<u32>,
    /// Blocks that came (`true`) or went, and blocks that were in the btree and stay.
    steps: VecDeque<(u64, bool)>,
}

impl LargeCounts {
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Steps that wait.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn get(&self, block: u64) -> Option<u32> {
        self.counts.get(&block).copied()
    }

    /// Notes that the count of `block` changed from `old` to `new`, one of which is above two.
    pub(crate) fn set(&mut self, block: u64, old: u32, new: u32) {
        let is_known = self.counts.insert(block, new).is_some();
        if !is_known || (old > 2) != (new > 2) {
            self.steps.push_back((block, new > 2));
        }
    }

    /// The next change to make in the btree: the block, and its count or `None` to take it out.
    pub(crate) fn next_step(&self) -> Option<(u64, Option<u32>)> {
        let (block, stays) = *self.steps.front()?;
        // A count that has gone meanwhile has a later step of its own; any will do until then.
        let count = self.counts.get(&block).map_or(3, |count| (*count).max(3));
        Some((block, stays.then_some(count)))
    }

    /// Notes that the step that [`next_step`](Self::next_step) gave is in the btree, which may have
    /// brought new ones.
    pub(crate) fn step_done(&mut self) {
        self.steps.pop_front();
    }

    /// Forgets the counts, all of which are in the btree.
    pub(crate) fn forget(&mut self) {
        if self.steps.is_empty() {
            self.counts.clear();
        }
    }
}
