//! Taking a tree down in steps, from its lowest keys on.
//!
//! INVARIANT: after a step the tree is one that insertions and removals could have made, so a commit
//! may come between any two steps. Whole leaves go; the nodes above them are evened out on the way
//! down, as for a removal, and so never fall below a third.

use super::balance::own_child;
use super::node::{Node, NodeMut, entries_min};
use super::remove::{balance2, pull_up};
use super::{DEPTH_MAX, ValueOps, check_value_size, expect_value_size, shadow, too_deep};
use crate::block::BlockKind;
use crate::cache::MayRead;
use crate::error::{MetadataError, Result};
use crate::transaction_manager::{Reader, TransactionManager};

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The tree's root now.
    pub root: u64,
    /// Entries that are no longer in the tree.
    pub entries: u64,
    /// Leaves that are no longer in the tree.
    pub leaves: u64,
}

/// Drops up to `leaves_max` leaves with the lowest keys; shared ones lose a reference only. The
/// last leaf stays: what is left then is dropped with [`delete_tree`](super::delete_tree).
///
/// Copies the nodes on the left edge and their right neighbours, and reads every leaf that goes.
///
/// # Errors
/// `Corrupt`, `Io`, `NoSpace(Metadata)`: the transaction must be aborted.
pub fn drop_front<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    leaves_max: u64,
) -> Result<Dropped> {
    let root = shadow(tm, ops, root)?;
    let mut dropped = Dropped {
        root,
        entries: 0,
        leaves: 0,
    };
    while dropped.leaves < leaves_max {
        let Some(parent) = parent_of_first_leaf(tm, ops, root)? else {
            break;
        };
        let node = Node(tm.write(parent)?);
        let keep = match parent == root {
            true => 1,
            false => entries_min(node.max()),
        };
        let spare = node.len().saturating_sub(keep);
        if spare == 0 && parent == root {
            break;
        }
        if spare == 0 {
            return Err(MetadataError::corrupt(
                parent,
                "btree node holds less than a third",
            ));
        }
        let left = leaves_max - dropped.leaves;
        let count = spare.min(usize::try_from(left).unwrap_or(usize::MAX));
        let leaves: Vec<u64> = (0..count).map(|at| node.child(at)).collect();
        NodeMut(tm.write(parent)?).remove(0, count);
        for leaf in leaves {
            dropped.entries += drop_leaf(tm, ops, leaf)?;
        }
        dropped.leaves += count as u64;
    }
    Ok(dropped)
}

/// The node above the first leaf, writable and able to lose a child, with the way to it evened out;
/// `None` when the root is a leaf.
fn parent_of_first_leaf<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
) -> Result<Option<u64>> {
    let mut block = root;
    for _ in 0..2 * DEPTH_MAX {
        let node = Node(tm.write(block)?);
        if node.is_leaf() {
            return match block == root {
                true => Ok(None),
                false => Err(uneven(block)),
            };
        }
        let (first, len) = (node.child(0), node.len());
        let bytes = tm.reader().read(first, BlockKind::Node, MayRead::Yes)?;
        if Node(&bytes).is_leaf() {
            return Ok(Some(block));
        }
        drop(bytes);
        if len > 1 {
            balance2(tm, ops, block, 0)?;
        }
        if Node(tm.write(block)?).len() == 1 {
            pull_up(tm, ops, block)?;
            continue;
        }
        block = own_child(tm, ops, block, 0)?;
    }
    Err(too_deep(root))
}

/// Gives up a reference to a leaf; gives the entries in it.
fn drop_leaf<V: ValueOps>(tm: &mut TransactionManager, ops: &mut V, leaf: u64) -> Result<u64> {
    let bytes = tm.reader().read(leaf, BlockKind::Node, MayRead::Yes)?;
    let node = Node(&bytes);
    if !node.is_leaf() {
        return Err(uneven(leaf));
    }
    check_value_size::<V>(leaf, node)?;
    let shared = tm.count(leaf)? > 1;
    tm.dec(leaf)?;
    if !shared {
        ops.dec(tm, node.values(0, node.len()))?;
    }
    Ok(node.len() as u64)
}

fn uneven(block: u64) -> MetadataError {
    MetadataError::corrupt(block, "btree leaves are not all at one depth")
}

/// Brings the first `leaves` leaves and the nodes above them into memory, the leaves of a node at
/// once.
///
/// # Errors
/// `Io`, `Corrupt`: of the nodes above.
pub fn read_front(reader: &Reader, root: u64, leaves: u64) -> Result<()> {
    let levels = levels_below(reader, root)?;
    let mut left = usize::try_from(leaves).unwrap_or(usize::MAX);
    read_front_at(reader, root, levels, &mut left)
}

fn read_front_at(reader: &Reader, block: u64, levels: usize, left: &mut usize) -> Result<()> {
    if levels == 0 {
        return Ok(());
    }
    let bytes = reader.read(block, BlockKind::Node, MayRead::Yes)?;
    let node = Node(&bytes);
    if node.is_leaf() {
        return Err(uneven(block));
    }
    if levels == 1 {
        let leaves = node.len().min(*left);
        *left -= leaves;
        let leaves = (0..leaves).map(|at| node.child(at)).collect();
        reader.read_ahead(leaves, BlockKind::Node);
        return Ok(());
    }
    for at in 0..node.len() {
        if *left == 0 {
            break;
        }
        read_front_at(reader, node.child(at), levels - 1, left)?;
    }
    Ok(())
}

/// How many nodes only this tree refers to, counted up to one more than `max`.
///
/// Reads no leaves, and no more than `max` nodes above them.
pub fn exclusive_nodes(tm: &TransactionManager, root: u64, max: u64) -> Result<u64> {
    let levels = levels_below(tm.reader(), root)?;
    let mut found = 0;
    count_exclusive(tm, root, levels, max, &mut found)?;
    Ok(found)
}

fn levels_below(reader: &Reader, root: u64) -> Result<usize> {
    let mut block = root;
    for level in 0..DEPTH_MAX {
        let bytes = reader.read(block, BlockKind::Node, MayRead::Yes)?;
        let node = Node(&bytes);
        if node.is_leaf() {
            return Ok(level);
        }
        block = node.child(0);
    }
    Err(too_deep(root))
}

fn count_exclusive(
    tm: &TransactionManager,
    block: u64,
    levels: usize,
    max: u64,
    found: &mut u64,
) -> Result<()> {
    if *found > max || tm.count(block)? > 1 {
        return Ok(());
    }
    *found += 1;
    if levels == 0 {
        return Ok(());
    }
    let bytes = tm.reader().read(block, BlockKind::Node, MayRead::Yes)?;
    let node = Node(&bytes);
    if node.is_leaf() {
        return Err(uneven(block));
    }
    for at in 0..node.len() {
        if *found > max {
            break;
        }
        count_exclusive(tm, node.child(at), levels - 1, max, found)?;
    }
    Ok(())
}

/// Calls `visit` with each entry that only this tree holds: what dropping `root` would drop.
///
/// # Errors
/// As of `visit`; `Corrupt` (a damaged tree cannot make this run for long); `Io`.
pub fn visit_exclusive<F>(
    tm: &TransactionManager,
    root: u64,
    value_size: usize,
    visit: &mut F,
) -> Result<()>
where
    F: FnMut(u64, &[u8]) -> Result<()>,
{
    let mut walk = ExclusiveWalk {
        tm,
        value_size,
        next: Some(0),
        visit,
    };
    walk.node(root, 0)
}

struct ExclusiveWalk<'a, F> {
    tm: &'a TransactionManager,
    value_size: usize,
    /// The lowest key that may come next; `None` once the highest possible was seen.
    next: Option<u64>,
    visit: &'a mut F,
}

impl<F: FnMut(u64, &[u8]) -> Result<()>> ExclusiveWalk<'_, F> {
    fn node(&mut self, block: u64, depth: usize) -> Result<()> {
        if depth == DEPTH_MAX {
            return Err(too_deep(block));
        }
        if self.tm.count(block)? > 1 {
            return Ok(());
        }
        let reader = self.tm.reader();
        let bytes = reader.read(block, BlockKind::Node, MayRead::Yes)?;
        let node = Node(&bytes);
        expect_value_size(block, node, self.value_size)?;
        if !node.is_leaf() {
            return (0..node.len()).try_for_each(|at| self.node(node.child(at), depth + 1));
        }
        if node.is_empty() && depth > 0 {
            return Err(MetadataError::corrupt(block, "leaf is empty"));
        }
        for at in 0..node.len() {
            let key = node.key(at);
            if self.next.is_none_or(|next| key < next) {
                return Err(MetadataError::corrupt(block, "btree keys do not ascend"));
            }
            self.next = key.checked_add(1);
            (self.visit)(key, node.value(at))?;
        }
        Ok(())
    }
}
