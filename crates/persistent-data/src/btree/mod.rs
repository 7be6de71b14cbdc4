//! Copy-on-write btrees: `u64` keys, values of a fixed size, any number of roots in one device.
//!
//! A tree is its root's block number; changing it gives a new root. Nodes may belong to several
//! trees (a snapshot is a root counted twice); the count of a shared node is lowered and those of
//! its children raised when a change has to copy it. What "raising the count" means for the values
//! in a leaf is told by [`ValueOps`].
//!
//! INVARIANT (what thin_check demands): keys ascend; a node other than the root is at least a third
//! full; an internal node's key is not above the first key of its child.

mod balance;
mod front;
mod insert;
mod lookup;
pub(crate) mod node;
mod remove;

pub use front::{Dropped, drop_front, exclusive_nodes, read_front, visit_exclusive};
pub use insert::{insert, replace};
pub(crate) use lookup::find_any_ge;
pub use lookup::{
    Entry, NodeView, committed_node, find_ge, highest_key, lookup, lookup_u64, read_node,
    visit_entries,
};
pub use node::{Node, NodeMut, capacity};
pub use remove::{delete_tree, remove, remove_range};

use crate::block::BlockKind;
use crate::error::{MetadataError, Result};
use crate::transaction_manager::TransactionManager;

/// The deepest tree that is followed. A tree of 2^64 keys with nodes a third full needs 11 levels;
/// anything deeper is a loop.
pub(crate) const DEPTH_MAX: usize = 16;

/// What values mean for reference counts.
pub trait ValueOps {
    /// Bytes in a value.
    const SIZE: usize;

    /// One more leaf holds these values (several, one after another).
    fn inc(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()>;

    /// One leaf less holds these values.
    fn dec(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()>;
}

/// Values that refer to nothing.
pub struct Plain<const SIZE: usize>;

impl<const SIZE: usize> ValueOps for Plain<SIZE> {
    const SIZE: usize = SIZE;

    fn inc(&mut self, _: &mut TransactionManager, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn dec(&mut self, _: &mut TransactionManager, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A new tree without entries.
pub fn empty<V: ValueOps>(tm: &mut TransactionManager) -> Result<u64> {
    let root = tm.new_block(BlockKind::Node)?;
    node::NodeMut(tm.write(root)?).init(true, V::SIZE);
    Ok(root)
}

/// Makes node `block` writable, as its own block or as a copy, and gives that block's number.
pub fn shadow<V: ValueOps>(tm: &mut TransactionManager, ops: &mut V, block: u64) -> Result<u64> {
    let (shadow, was_shared) = tm.shadow(block, BlockKind::Node)?;
    if was_shared {
        let bytes = tm.reader().dirty_block(shadow)?;
        let node = node::Node(&bytes);
        check_value_size::<V>(block, node)?;
        if node.is_leaf() {
            ops.inc(tm, node.values(0, node.len()))?;
        } else {
            for at in 0..node.len() {
                tm.inc(node.child(at))?;
            }
        }
    }
    Ok(shadow)
}

/// A leaf of another tree's kind must not be read with this tree's value size.
pub(crate) fn check_value_size<V: ValueOps>(block: u64, node: node::Node<'_>) -> Result<()> {
    expect_value_size(block, node, V::SIZE)
}

pub(crate) fn expect_value_size(block: u64, node: node::Node<'_>, wanted: usize) -> Result<()> {
    if node.is_leaf() && node.value_size() != wanted {
        return Err(MetadataError::corrupt(
            block,
            format!(
                "leaf has values of {} bytes where {wanted} are expected",
                node.value_size()
            ),
        ));
    }
    Ok(())
}

pub(crate) fn too_deep(block: u64) -> MetadataError {
    MetadataError::corrupt(block, "btree is too deep: it must contain itself")
}
