//! Ranges of blocks, and which of them a damaged tree lost.

use std::collections::BTreeMap;

use thinmap_persistent_data::btree::Node;

use super::Walk;
use super::summary::read_node;

/// Ranges that touch or overlap become one.
#[derive(Default, Debug)]
pub(crate) struct RangeMap {
    /// First to one past the last; `None` is no end.
    ranges: BTreeMap<u64, Option<u64>>,
}

impl RangeMap {
    /// Adds `first..end`, in order of `first`.
    pub(crate) fn add(&mut self, first: u64, end: Option<u64>) {
        if let Some(mut last) = self.ranges.last_entry()
            && last.get().is_none_or(|known| known >= first)
        {
            let longer = match (*last.get(), end) {
                (Some(known), Some(end)) => Some(known.max(end)),
                _ => None,
            };
            last.insert(longer);
            return;
        }
        self.ranges.insert(first, end);
    }

    /// Whether `key` lies in one of them.
    pub(crate) fn has(&self, key: u64) -> bool {
        let before = self.ranges.range(..=key).next_back();
        before.is_some_and(|(_, end)| end.is_none_or(|end| key < end))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Option<u64>)> + '_ {
        self.ranges.iter().map(|(first, end)| (*first, *end))
    }
}

/// Nodes that are looked into for all volumes; a crafted image could lead on forever.
const VISITS_MAX: u32 = 4_000_000;

/// Finds the keys that cannot be reached because of damage.
#[derive(Default)]
pub(crate) struct MissingRanges {
    visits: u32,
}

impl MissingRanges {
    /// Those of the tree at `root`.
    pub(crate) fn of(&mut self, walk: &Walk<'_>, root: u64) -> RangeMap {
        let mut missing = RangeMap::default();
        self.node(walk, root, (0, None), 0, &mut missing);
        missing
    }

    fn node(
        &mut self,
        walk: &Walk<'_>,
        block: u64,
        (first, end): (u64, Option<u64>),
        depth: usize,
        missing: &mut RangeMap,
    ) {
        let blocks = &walk.blocks;
        if blocks.is_good(block) && !blocks.is_damaged(block) {
            return;
        }
        self.visits += 1;
        let may_go_on = depth < 16 && self.visits < VISITS_MAX && blocks.is_good(block);
        let node = may_go_on.then(|| read_node(walk.image, block));
        let Some(bytes) = node.flatten() else {
            missing.add(first, end);
            return;
        };
        let node = Node(&bytes);
        if node.is_leaf() {
            return;
        }
        for at in 0..node.len() {
            let next = (at + 1 < node.len()).then(|| node.key(at + 1));
            let (child, key) = (node.child(at), node.key(at));
            let range = (key, next.or(end));
            if blocks.is_good(child) && !blocks.is_in_place(child, key, next) {
                missing.add(range.0, range.1);
            } else {
                self.node(walk, child, range, depth + 1, missing);
            }
        }
    }
}
