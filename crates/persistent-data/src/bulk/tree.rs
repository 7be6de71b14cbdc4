//! A tree from entries that come in ascending order.

use super::BulkWriter;
use crate::block::BlockKind;
use crate::btree::node::{NodeMut, capacity};
use crate::error::{ErrorKind, MetadataError, Result};

/// A tree being made. Holds back up to two nodes of entries at each level, so that the last two can be made
/// of one size and none falls below a third.
pub struct BulkTree<const SIZE: usize> {
    leaves: Level<SIZE>,
    /// The level above the leaves first.
    internal: Vec<Level<8>>,
    last_key: Option<u64>,
}

struct Level<const SIZE: usize> {
    entries: Vec<(u64, [u8; SIZE])>,
    /// Nodes already written.
    nodes: u64,
}

impl<const SIZE: usize> Level<SIZE> {
    const NODE_ENTRIES: usize = capacity(SIZE);

    fn new() -> Self {
        Self {
            entries: Vec::with_capacity(2 * Self::NODE_ENTRIES),
            nodes: 0,
        }
    }

    fn is_due(&self) -> bool {
        self.entries.len() == 2 * Self::NODE_ENTRIES
    }

    /// Writes a node of the first `count` entries; gives the entry that its parent needs.
    fn write(
        &mut self,
        out: &mut BulkWriter<'_>,
        leaf: bool,
        count: usize,
    ) -> Result<(u64, [u8; 8])> {
        let first_key = self.entries.first().map_or(0, |(key, _)| *key);
        let block = out.put(BlockKind::Node, |bytes| {
            let mut node = NodeMut(bytes);
            node.init(leaf, SIZE);
            node.fill(&self.entries[..count]);
        })?;
        self.entries.drain(..count);
        self.nodes += 1;
        Ok((first_key, block.to_le_bytes()))
    }

    /// How many entries the next node gets when no more come.
    fn last_node_entries(&self) -> usize {
        match self.entries.len() {
            all if all > Self::NODE_ENTRIES => all.div_ceil(2),
            all => all,
        }
    }
}

impl<const SIZE: usize> Default for BulkTree<SIZE> {
    fn default() -> Self {
        Self {
            leaves: Level::new(),
            internal: Vec::new(),
            last_key: None,
        }
    }
}

impl<const SIZE: usize> BulkTree<SIZE> {
    /// Adds an entry.
    ///
    /// # Errors
    /// `Inval`: `key` is not above the one before. `NoSpace(Metadata)`, `Io`.
    pub fn push(&mut self, out: &mut BulkWriter<'_>, key: u64, value: [u8; SIZE]) -> Result<()> {
        if let Some(last) = self.last_key.filter(|last| *last >= key) {
            return Err(MetadataError::new(
                ErrorKind::Inval,
                format!("key {key} comes after key {last}"),
            ));
        }
        self.last_key = Some(key);
        self.leaves.entries.push((key, value));
        if self.leaves.is_due() {
            let entry = self.leaves.write(out, true, Level::<SIZE>::NODE_ENTRIES)?;
            self.push_internal(out, 0, entry)?;
        }
        Ok(())
    }

    fn push_internal(
        &mut self,
        out: &mut BulkWriter<'_>,
        mut at: usize,
        mut entry: (u64, [u8; 8]),
    ) -> Result<()> {
        loop {
            if at == self.internal.len() {
                self.internal.push(Level::new());
            }
            let level = &mut self.internal[at];
            level.entries.push(entry);
            if !level.is_due() {
                return Ok(());
            }
            entry = level.write(out, false, Level::<8>::NODE_ENTRIES)?;
            at += 1;
        }
    }

    /// Writes the rest; gives the root. A tree without entries is an empty leaf.
    ///
    /// # Errors
    /// `NoSpace(Metadata)`, `Io`.
    pub fn finish(mut self, out: &mut BulkWriter<'_>) -> Result<u64> {
        let mut root;
        loop {
            let count = self.leaves.last_node_entries();
            root = self.leaves.write(out, true, count)?;
            if self.leaves.nodes == 1 && self.leaves.entries.is_empty() {
                return Ok(u64::from_le_bytes(root.1));
            }
            self.push_internal(out, 0, root)?;
            if self.leaves.entries.is_empty() {
                break;
            }
        }
        let mut at = 0;
        while at < self.internal.len() {
            while !self.internal[at].entries.is_empty() {
                let count = self.internal[at].last_node_entries();
                root = self.internal[at].write(out, false, count)?;
                if self.internal[at].nodes == 1 && self.internal[at].entries.is_empty() {
                    return Ok(u64::from_le_bytes(root.1));
                }
                self.push_internal(out, at + 1, root)?;
            }
            at += 1;
        }
        Ok(u64::from_le_bytes(root.1))
    }
}
