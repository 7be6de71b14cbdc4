//! What lies below a node: its keys, how many entries, whether anything is damaged; and whether children
//! keep to the range that their parent has for them.

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{BlockBytes, BlockKind, META_BLOCK_SIZE, verify};

use super::{Blocks, DAMAGED, GOOD, SUMMED, Walk};
use crate::check::Finding;
use crate::image::Image;

/// A tree of 2^64 keys with nodes a third full needs 11 levels; anything deeper is a loop.
const DEPTH_MAX: usize = 16;

/// What lies below a node. Without entries the keys mean nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Summary {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) entries: u64,
}

/// Sums up nodes that a walk has seen; each once.
pub(crate) struct Summaries<'a> {
    walk: &'a Walk<'a>,
}

impl<'a> Summaries<'a> {
    pub(crate) fn new(walk: &'a Walk<'a>) -> Self {
        Self { walk }
    }

    fn blocks(&self) -> &'a Blocks {
        &self.walk.blocks
    }

    /// What lies below `root`; what is damaged is left out, and marks all above it.
    pub(crate) fn of(&self, root: u64) -> Summary {
        self.sum(root, 0)
    }

    fn sum(&self, block: u64, depth: usize) -> Summary {
        let blocks = self.blocks();
        if !blocks.is_good(block) {
            return Summary::default();
        }
        if blocks.state(block) & SUMMED != 0 {
            return blocks.span(block);
        }
        let role = blocks.role(block);
        let report = |block: u64, what: String| {
            let area = role.map_or(crate::check::Area::Mappings, super::Role::area);
            let finding = Finding::fatal(area, what).in_block(block);
            self.walk.findings.add(finding);
        };
        if depth == DEPTH_MAX {
            report(
                block,
                "lies deeper than any tree can be: a tree contains itself".to_owned(),
            );
            blocks.mark(block, DAMAGED);
            return Summary::default();
        }
        let Some(bytes) = read_node(self.walk.image, block) else {
            blocks.mark(block, DAMAGED);
            return Summary::default();
        };
        let node = Node(&bytes);
        let mut total = Summary::default();
        for at in 0..node.len() {
            let child = node.child(at);
            let below = self.sum(child, depth + 1);
            if blocks.is_damaged(child) {
                blocks.mark(block, DAMAGED);
            }
            if below.entries == 0 {
                continue;
            }
            let end = (at + 1 < node.len()).then(|| node.key(at + 1));
            if below.first < node.key(at) || end.is_some_and(|end| below.last >= end) {
                let (first, last) = (below.first, below.last);
                let what =
                    format!("holds keys {first} to {last}, other ones than node {block} says");
                report(child, what);
                blocks.mark(block, DAMAGED);
                continue;
            }
            if total.entries == 0 {
                total.first = below.first;
            }
            total.last = below.last;
            blocks.raise_time(block, blocks.time(child));
            total.entries = total.entries.saturating_add(below.entries);
        }
        blocks.set_span(block, total);
        blocks.mark(block, SUMMED);
        total
    }
}

/// A node that was good when it was walked; `None` if it no longer is.
pub(crate) fn read_node(image: &Image, block: u64) -> Option<Box<BlockBytes>> {
    let mut bytes = Box::new([0; META_BLOCK_SIZE]);
    image.read_run(block, &mut bytes[..]).ok()?;
    verify(BlockKind::Node, block, &bytes).ok()?;
    Some(bytes)
}

impl Blocks {
    /// Whether the keys of `child` lie where its parent says: not below `key`, not at or above `end`.
    pub(crate) fn is_in_place(&self, child: u64, key: u64, end: Option<u64>) -> bool {
        if child >= self.len() || self.state(child) & GOOD == 0 {
            return false;
        }
        let below = self.span(child);
        below.entries == 0 || (below.first >= key && end.is_none_or(|end| below.last < end))
    }

    /// What is known to lie below a block.
    pub(crate) fn summary(&self, block: u64) -> Summary {
        self.span(block)
    }
}
