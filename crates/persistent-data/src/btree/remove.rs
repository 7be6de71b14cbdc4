//! Removing keys, or a whole tree.
//!
//! Keys go one at a time, each with a descent that merges or evens out the children it passes
//! before it steps into one of them, so that no node on the way falls below a third.
//!
//! COMPAT: this is what the kernel does for each key of a range (dm-btree-remove.c). Dropping whole
//! leaves would be quicker and leave another tree, whose number of nodes shows in a pool's status.

use super::balance::{
    check_entry, lengths, move_left, note_first_key, own_child, settle2, settle3,
};
use super::node::{Node, NodeMut, entries_min};
use super::{DEPTH_MAX, ValueOps, check_value_size, find_any_ge, shadow, too_deep};
use crate::block::{BlockBytes, BlockKind};
use crate::cache::MayRead;
use crate::error::Result;
use crate::transaction_manager::TransactionManager;

/// Removes `key`; gives the new root and whether the key was there.
pub fn remove<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
) -> Result<(u64, bool)> {
    // Nothing there: do not copy the path for nothing.
    if find_any_ge(tm.reader(), root, key)? != Some(key) {
        return Ok((root, false));
    }
    let root = shadow(tm, ops, root)?;
    let Some(leaf) = descend(tm, ops, root, key)? else {
        return Err(too_deep(root));
    };
    let at = Node(tm.write(leaf)?).find(key).ok_or_else(|| {
        crate::MetadataError::corrupt(leaf, "a key is not where its btree leads to")
    })?;
    take_out(tm, ops, leaf, at)?;
    Ok((root, true))
}

/// Removes all keys in `begin..end`; gives the new root and how many keys there were.
///
/// Time goes with the number of keys in the range.
pub fn remove_range<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    begin: u64,
    end: u64,
) -> Result<(u64, u64)> {
    let (mut root, mut key, mut removed) = (root, begin, 0);
    // What a damaged tree could make of this is bounded by what the range can hold.
    while key < end {
        match find_any_ge(tm.reader(), root, key)? {
            Some(next) if next < end && next >= key => key = next,
            _ => break,
        }
        root = shadow(tm, ops, root)?;
        let before = removed;
        // One more descent than there are keys in a row, as in the kernel: it evens out too.
        while let Some(found) = remove_next(tm, ops, root, key, end)? {
            removed += 1;
            key = found + 1;
        }
        if removed == before {
            return Err(crate::MetadataError::corrupt(
                root,
                "a key is not where its btree leads to",
            ));
        }
    }
    Ok((root, removed))
}

/// Gives up one reference to the tree at `root`, and to all it alone refers to.
pub fn delete_tree<V: ValueOps>(tm: &mut TransactionManager, ops: &mut V, root: u64) -> Result<()> {
    drop_subtree(tm, ops, root, 0)
}

/// Removes the entry at `key`, or a later one that is next in the same leaf; gives its key.
fn remove_next<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
    end: u64,
) -> Result<Option<u64>> {
    let Some(leaf) = descend(tm, ops, root, key)? else {
        return Ok(None);
    };
    let node = Node(tm.write(leaf)?);
    // COMPAT: looks no further than the last entry at or before the key.
    let at = node.floor(key).unwrap_or(0);
    if at >= node.len() || node.key(at) < key || node.key(at) >= end {
        return Ok(None);
    }
    let found = node.key(at);
    take_out(tm, ops, leaf, at)?;
    Ok(Some(found))
}

fn take_out<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    leaf: u64,
    at: usize,
) -> Result<()> {
    let mut node = NodeMut(tm.write(leaf)?);
    let mut value = [0; 64];
    let value = &mut value[..V::SIZE];
    value.copy_from_slice(node.view().value(at));
    node.remove(at, at + 1);
    ops.dec(tm, value)
}

/// The leaf for `key`, writable, with the way to it evened out; `None` when all keys are above.
fn descend<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
) -> Result<Option<u64>> {
    let mut block = root;
    for _ in 0..2 * DEPTH_MAX {
        let node = Node(tm.write(block)?);
        check_value_size::<V>(block, node)?;
        if node.is_leaf() {
            return Ok(Some(block));
        }
        if node.len() == 1 {
            pull_up(tm, ops, block)?;
        } else if let Some(at) = node.floor(key) {
            let last = node.len() - 1;
            match at {
                0 => balance2(tm, ops, block, 0)?,
                at if at == last => balance2(tm, ops, block, at - 1)?,
                at => balance3(tm, ops, block, at - 1)?,
            }
        }
        let node = Node(tm.write(block)?);
        if node.is_leaf() {
            check_value_size::<V>(block, node)?;
            return Ok(Some(block));
        }
        let Some(at) = node.floor(key) else {
            return Ok(None);
        };
        block = own_child(tm, ops, block, at)?;
    }
    Err(too_deep(root))
}

/// Puts the content of the only child of `parent` into `parent`.
pub(super) fn pull_up<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
) -> Result<()> {
    let child = own_child(tm, ops, parent, 0)?;
    let bytes: BlockBytes = *tm.reader().dirty_block(child)?;
    *tm.write(parent)? = bytes;
    tm.dec(child)
}

/// Merges children `at` and `at + 1` of `parent` if one node then still has room for removals
/// below it, or shares their entries evenly.
pub(super) fn balance2<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let nodes = [
        own_child(tm, ops, parent, at)?,
        own_child(tm, ops, parent, at + 1)?,
    ];
    let (has, max) = lengths(tm, nodes)?;
    merge_or_share(tm, parent, at, nodes, has, max)
}

fn merge_or_share(
    tm: &mut TransactionManager,
    parent: u64,
    at: usize,
    nodes: [u64; 2],
    has: [usize; 2],
    max: usize,
) -> Result<()> {
    let total = has[0] + has[1];
    // Half of this is one more than a node must have, so either can lose an entry.
    if total < 2 * (entries_min(max) + 1) && total <= max {
        move_left(tm, nodes[0], nodes[1], has[1])?;
        let mut node = NodeMut(tm.write(parent)?);
        check_entry(parent, node.view(), at + 1)?;
        node.remove(at + 1, at + 2);
        return tm.dec(nodes[1]);
    }
    settle2(tm, nodes, has, total / 2)?;
    note_first_key(tm, parent, at + 1, nodes[1])
}

/// Makes two nodes of children `at` to `at + 2` of `parent` if they hold little, or shares their
/// entries evenly.
fn balance3<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let nodes = [
        own_child(tm, ops, parent, at)?,
        own_child(tm, ops, parent, at + 1)?,
        own_child(tm, ops, parent, at + 2)?,
    ];
    let [left, center, right] = nodes;
    let (has, max) = lengths(tm, nodes)?;
    let total: usize = has.iter().sum();
    if total > 4 * entries_min(max) {
        let target_right = total / 3;
        let target_left = target_right + usize::from(!total.is_multiple_of(3));
        settle3(tm, nodes, has, [target_left, target_right])?;
        note_first_key(tm, parent, at + 1, center)?;
        return note_first_key(tm, parent, at + 2, right);
    }
    let to_left = has[1].min(max - has[0]);
    let to_right = has[1] - to_left;
    if has[2] + to_right > max {
        return Err(too_deep(center));
    }
    super::balance::move_right(tm, center, right, to_right)?;
    move_left(tm, left, center, to_left)?;
    let mut node = NodeMut(tm.write(parent)?);
    check_entry(parent, node.view(), at + 1)?;
    node.remove(at + 1, at + 2);
    tm.dec(center)?;
    let has = [has[0] + to_left, has[2] + to_right];
    merge_or_share(tm, parent, at, [left, right], has, max)
}

/// Gives up a reference to `block`.
fn drop_subtree<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    block: u64,
    depth: usize,
) -> Result<()> {
    if depth == DEPTH_MAX {
        return Err(too_deep(block));
    }
    if tm.count(block)? > 1 {
        return tm.dec(block);
    }
    let bytes = tm.reader().read(block, BlockKind::Node, MayRead::Yes)?;
    let node = Node(&bytes);
    check_value_size::<V>(block, node)?;
    // The block first: an image in which it is its own descendant then fails on count zero.
    tm.dec(block)?;
    if node.is_leaf() {
        return ops.dec(tm, node.values(0, node.len()));
    }
    (0..node.len()).try_for_each(|at| drop_subtree(tm, ops, node.child(at), depth + 1))
}
