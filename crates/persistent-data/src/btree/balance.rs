//! Moving entries between neighbouring nodes: what inserting and removing have in common.
//!
//! How entries are shared out decides how many nodes a tree has, and a pool's status line shows
//! that number. So the shares are the kernel's, to the entry (dm-btree.c, dm-btree-remove.c).
//!
//! All nodes here are children of one writable parent and writable themselves.

use super::node::{Node, NodeMut};
use super::{ValueOps, shadow};
use crate::error::{MetadataError, Result};
use crate::transaction_manager::TransactionManager;

/// Makes child `at` of `parent` writable, and gives its block.
pub(super) fn own_child<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<u64> {
    let old = Node(tm.write(parent)?).child(at);
    let owned = shadow(tm, ops, old)?;
    if owned == parent {
        return Err(super::too_deep(parent));
    }
    if owned != old {
        let mut node = NodeMut(tm.write(parent)?);
        check_entry(parent, node.view(), at)?;
        node.set_child(at, owned);
    }
    Ok(owned)
}

/// In a crafted image a node may be its own descendant and shrink while its entries are walked.
pub(super) fn check_entry(block: u64, node: Node<'_>, at: usize) -> Result<()> {
    if node.is_leaf() || at >= node.len() {
        return Err(super::too_deep(block));
    }
    Ok(())
}

/// Entries in each of `nodes`, which must be different blocks of one shape, and the capacity.
pub(super) fn lengths<const N: usize>(
    tm: &mut TransactionManager,
    nodes: [u64; N],
) -> Result<([usize; N], usize)> {
    let mut lengths = [0; N];
    let mut first_shape = None;
    for (at, block) in nodes.into_iter().enumerate() {
        let node = Node(tm.write(block)?);
        lengths[at] = node.len();
        let shape = (node.is_leaf(), node.value_size(), node.max());
        let same = *first_shape.get_or_insert(shape) == shape;
        if !same || nodes[..at].contains(&block) {
            return Err(MetadataError::corrupt(
                block,
                "btree node differs in shape from its neighbour",
            ));
        }
    }
    Ok((lengths, first_shape.map_or(0, |(_, _, max)| max)))
}

/// Moves entries until `left` has `target` of them and `right` the rest; both must have room.
pub(super) fn settle2(
    tm: &mut TransactionManager,
    [left, right]: [u64; 2],
    [has, _]: [usize; 2],
    target: usize,
) -> Result<()> {
    if has < target {
        move_left(tm, left, right, target - has)
    } else {
        move_right(tm, left, right, has - target)
    }
}

/// Moves entries until `left` and `right` have what `targets` say and `center` the rest; all three
/// must have room.
pub(super) fn settle3(
    tm: &mut TransactionManager,
    [left, center, right]: [u64; 3],
    [has_left, has_center, has_right]: [usize; 3],
    [target_left, target_right]: [usize; 2],
) -> Result<()> {
    // The outer node with less in it first: then the one in the middle always has room.
    if has_left < has_right {
        let wanted = target_left.saturating_sub(has_left);
        let near = wanted.min(has_center);
        move_left(tm, left, center, near)?;
        move_left(tm, left, right, wanted - near)?;
        move_right(tm, left, center, has_left.saturating_sub(target_left))?;
        let has_right = has_right - (wanted - near);
        move_left(tm, center, right, has_right.saturating_sub(target_right))?;
        move_right(tm, center, right, target_right.saturating_sub(has_right))
    } else {
        let wanted = target_right.saturating_sub(has_right);
        let near = wanted.min(has_center);
        move_right(tm, center, right, near)?;
        move_right(tm, left, right, wanted - near)?;
        move_left(tm, center, right, has_right.saturating_sub(target_right))?;
        let has_left = has_left - (wanted - near);
        move_right(tm, left, center, has_left.saturating_sub(target_left))?;
        move_left(tm, left, center, target_left.saturating_sub(has_left))
    }
}

/// Tells `parent` the first key of its child `at`, which is `child`.
pub(super) fn note_first_key(
    tm: &mut TransactionManager,
    parent: u64,
    at: usize,
    child: u64,
) -> Result<()> {
    let node = Node(tm.write(child)?);
    if node.is_empty() {
        return Err(MetadataError::corrupt(child, "btree node is empty"));
    }
    let key = node.key(0);
    let mut node = NodeMut(tm.write(parent)?);
    check_entry(parent, node.view(), at)?;
    node.set_key(at, key);
    Ok(())
}

/// Moves the first `count` entries of `right` to the end of `left`.
pub(super) fn move_left(
    tm: &mut TransactionManager,
    left: u64,
    right: u64,
    count: usize,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let source = tm.reader().dirty_block(right)?;
    let mut target = NodeMut(tm.write(left)?);
    let len = target.view().len();
    target.insert_from(len, Node(&source), 0, count);
    drop(source);
    NodeMut(tm.write(right)?).remove(0, count);
    Ok(())
}

/// Moves the last `count` entries of `left` to the start of `right`.
pub(super) fn move_right(
    tm: &mut TransactionManager,
    left: u64,
    right: u64,
    count: usize,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let source = tm.reader().dirty_block(left)?;
    let len = Node(&source).len();
    NodeMut(tm.write(right)?).insert_from(0, Node(&source), len - count, len);
    drop(source);
    NodeMut(tm.write(left)?).remove(len - count, len);
    Ok(())
}
