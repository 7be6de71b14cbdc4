//! Where the hash tree's blocks lie, and where in them the digest of what.
//!
//! Levels count from 0, whose blocks hold the data blocks' digests; the top level is one block. On disk the top comes first.

use std::ops::Range;

/// A block of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct NodeId {
    pub(super) level: usize,
    /// Within its level.
    pub(super) nr: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Geometry {
    /// log2 of the digests in a block.
    fan_out_bits: u32,
    /// From one digest to the next, in bytes.
    stride: usize,
    digest_bytes: usize,
    /// First block of each level, in hash blocks of the hash device. Empty when there is one data block: the root hash is its digest.
    levels: Vec<u64>,
    /// The hash block after the tree's last one.
    end: u64,
}

impl Geometry {
    /// `None` when the tree would reach beyond what a device can have.
    pub(super) fn new(
        version: u32,
        data_blocks: u64,
        hash_start: u64,
        hash_block_bytes: usize,
        digest_bytes: usize,
    ) -> Option<Self> {
        let fan_out_bits = (hash_block_bytes / digest_bytes).ilog2();
        let stride = match version {
            0 => digest_bytes,
            _ => hash_block_bytes >> fan_out_bits,
        };
        let mut counts = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(1 << fan_out_bits);
            counts.push(below);
        }
        let mut levels = vec![0; counts.len()];
        let mut end = hash_start;
        for (level, count) in counts.into_iter().enumerate().rev() {
            levels[level] = end;
            end = end.checked_add(count)?;
        }
        Some(Self {
            fan_out_bits,
            stride,
            digest_bytes,
            levels,
            end,
        })
    }

    /// The hash block after the tree's last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How many blocks the tree has.
    pub(super) fn blocks(&self) -> u64 {
        self.end - self.levels.last().copied().unwrap_or(self.end)
    }

    /// Who holds a data block's digest; `None`: the root hash is it.
    pub(super) fn leaf_of(&self, data_block: u64) -> Option<NodeId> {
        (!self.levels.is_empty()).then_some(NodeId {
            level: 0,
            nr: data_block >> self.fan_out_bits,
        })
    }

    /// Who holds a node's digest; `None`: the root hash is it.
    pub(super) fn parent_of(&self, node: NodeId) -> Option<NodeId> {
        (node.level + 1 < self.levels.len()).then_some(NodeId {
            level: node.level + 1,
            nr: node.nr >> self.fan_out_bits,
        })
    }

    /// The node's place, in hash blocks of the hash device.
    pub(super) fn block_of(&self, node: NodeId) -> u64 {
        self.levels[node.level] + node.nr
    }

    /// Where in its parent the digest of the `nr`th block of a level (or of the data) lies.
    pub(super) fn digest_of(&self, nr: u64) -> Range<usize> {
        let index = nr & ((1 << self.fan_out_bits) - 1);
        let at = usize::try_from(index).expect("below the fan-out") * self.stride;
        at..at + self.digest_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_lie_top_first() {
        let tree = Geometry::new(1, 128 * 128 + 1, 5, 4096, 32).expect("a tree");
        let leaf = tree.leaf_of(128 * 128).expect("a leaf");
        assert_eq!((leaf.level, leaf.nr), (0, 128));
        let middle = tree.parent_of(leaf).expect("a parent");
        let top = tree.parent_of(middle).expect("a parent");
        assert_eq!(tree.parent_of(top), None);
        let places = [top, middle, leaf].map(|node| tree.block_of(node));
        assert_eq!(places, [5, 7, 8 + 128]);
        assert_eq!((tree.end(), tree.blocks()), (8 + 129, 3 + 129));
        assert_eq!(tree.digest_of(129), 32..64);
    }

    #[test]
    fn digests_are_padded_since_version_1() {
        let [old, new] = [0, 1].map(|version| Geometry::new(version, 9, 0, 4096, 20));
        assert_eq!(old.expect("a tree").digest_of(3), 60..80);
        assert_eq!(new.expect("a tree").digest_of(3), 96..116);
    }

    #[test]
    fn one_block_needs_no_tree() {
        let tree = Geometry::new(1, 1, 7, 4096, 32).expect("no tree");
        assert_eq!(tree.leaf_of(0), None);
        assert_eq!((tree.end(), tree.blocks()), (7, 0));
    }

    #[test]
    fn a_tree_does_not_wrap() {
        assert!(Geometry::new(1, 1 << 50, u64::MAX - 9, 4096, 32).is_none());
        let largest = Geometry::new(1, u64::MAX, 0, 512, 32).expect("a tree");
        assert!(largest.leaf_of(u64::MAX - 1).is_some());
    }
}
