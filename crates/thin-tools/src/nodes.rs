//! Reading trees: leaves in order, without asking for more memory than a path and a cache.

use std::sync::Arc;

use thinmap_persistent_data::btree::{self, NodeView};
use thinmap_persistent_data::{BlockCache, BlockKind, MetadataDevice, MetadataError, Result};

use crate::runs::{Run, Times, decode};

/// Clean blocks kept in memory (64 MiB).
const CACHE_BLOCKS: usize = 1 << 14;
/// A tree deeper than this contains itself.
const DEPTH_MAX: usize = 16;

/// The nodes of one device, read on any thread.
pub struct Nodes {
    cache: BlockCache,
}

impl Nodes {
    /// The nodes of `device`.
    pub fn new(device: Arc<dyn MetadataDevice>) -> Self {
        Self {
            cache: BlockCache::new(device, CACHE_BLOCKS),
        }
    }

    /// Node `block`, verified.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn node(&self, block: u64) -> Result<NodeView> {
        btree::committed_node(&self.cache, block)
    }

    /// The cache below.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Brings nodes into memory with few requests.
    pub fn read_ahead(&self, blocks: &[u64]) {
        self.cache.read_ahead(blocks, BlockKind::Node);
    }

    /// The leaves of the tree at `root`, in the order of their keys.
    pub fn leaves(&self, root: u64) -> Leaves<'_> {
        self.leaves_of(Some(root))
    }

    /// The leaves of the tree at `root`; none without one.
    pub fn leaves_of(&self, root: Option<u64>) -> Leaves<'_> {
        Leaves {
            nodes: self,
            root,
            path: Vec::new(),
            levels: 0,
        }
    }

    /// The mappings in some leaves of one tree, in order.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn runs(&self, leaves: &[u64], times: Times) -> Result<Vec<Run>> {
        if leaves.len() > 1 {
            self.read_ahead(leaves);
        }
        let mut runs = Vec::new();
        for block in leaves {
            decode(&self.node(*block)?, *block, times, &mut runs)?;
        }
        Ok(runs)
    }

    /// How many levels are below the node at `root`.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn levels_below(&self, root: u64) -> Result<usize> {
        let mut block = root;
        for level in 0..DEPTH_MAX {
            let node = self.node(block)?;
            if node.is_leaf() {
                return Ok(level);
            }
            block = node.value_u64(0);
        }
        let what = "btree is too deep: it must contain itself";
        Err(MetadataError::corrupt(root, what))
    }

    /// All entries of a small tree: details, roots, index entries.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, also when values are not of `SIZE` bytes.
    pub fn entries<const SIZE: usize>(
        &self,
        root: u64,
        mut visit: impl FnMut(u64, [u8; SIZE]) -> Result<()>,
    ) -> Result<()> {
        let mut next = Some(0);
        for leaf in self.leaves(root) {
            let block = leaf?;
            let node = self.node(block)?;
            if !node.is_leaf() || node.value_size() != SIZE {
                let what = format!("a leaf with values of {SIZE} bytes is expected here");
                return Err(MetadataError::corrupt(block, what));
            }
            for at in 0..node.len() {
                let key = node.key(at);
                if next.is_none_or(|next| key < next) {
                    return Err(crate::runs::out_of_order(block));
                }
                next = key.checked_add(1);
                let mut value = [0; SIZE];
                value.copy_from_slice(node.value(at));
                visit(key, value)?;
            }
        }
        Ok(())
    }
}

/// Leaves of a tree in order; reads the nodes above them only.
///
/// A damaged tree may make this long: the keys in the leaves tell, so nobody must go through many without
/// reading them.
pub struct Leaves<'a> {
    nodes: &'a Nodes,
    /// The root, until it has been looked at.
    root: Option<u64>,
    /// Nodes from the root to the one above the next leaf, and the next child of each.
    path: Vec<(NodeView, usize)>,
    /// Levels below the root.
    levels: usize,
}

impl Leaves<'_> {
    /// The next node above leaves, or leaf when the root is one.
    fn step(&mut self) -> Result<Option<u64>> {
        if let Some(root) = self.root.take() {
            self.levels = self.nodes.levels_below(root)?;
            if self.levels == 0 {
                return Ok(Some(root));
            }
            self.enter(root)?;
        }
        loop {
            let depth = self.path.len();
            let Some((node, next)) = self.path.last_mut() else {
                return Ok(None);
            };
            if *next == node.len() {
                self.path.pop();
                continue;
            }
            let child = node.value_u64(*next);
            *next += 1;
            if depth == self.levels {
                return Ok(Some(child));
            }
            self.enter(child)?;
        }
    }

    fn enter(&mut self, block: u64) -> Result<()> {
        let node = self.nodes.node(block)?;
        if node.is_leaf() {
            let what = "btree leaves are not all at one depth";
            return Err(MetadataError::corrupt(block, what));
        }
        self.path.push((node, 0));
        Ok(())
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.path.clear();
        }
        step.transpose()
    }
}
