//! Inserting: one pass from the root down that makes room on its way, so it never has to go back.

use super::node::{Node, NodeMut, entries_min};
use super::{DEPTH_MAX, ValueOps, check_value_size, shadow, too_deep};
use crate::block::BlockKind;
use crate::error::Result;
use crate::transaction_manager::TransactionManager;

/// A sibling takes entries only when it has more than this share of its capacity free (1/n):
/// moving less would soon have to be repeated.
const SHIFT_SHARE_MIN: usize = 8;
/// And never when it has less than this free, so that it has room left for the key itself.
const SHIFT_FREE_MIN: usize = 4;

/// Sets `key` to `value`; gives the tree's new root and whether the key is new.
///
/// The value replaced, if any, has its count lowered; the count of the new one is the caller's.
pub fn insert<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
    value: &[u8],
) -> Result<(u64, bool)> {
    put(tm, ops, root, key, value, true)
}

/// Like [`insert`], but the value replaced keeps its count: for a value that stands for the same
/// thing as the one before, such as the new root of the same subtree.
pub fn replace<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
    value: &[u8],
) -> Result<u64> {
    put(tm, ops, root, key, value, false).map(|(root, _)| root)
}

fn put<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
    value: &[u8],
    dec_old: bool,
) -> Result<(u64, bool)> {
    let mut root = shadow(tm, ops, root)?;
    if needs_room(tm, root, key)? {
        root = grow(tm, root)?;
    }
    let mut block = root;
    for _ in 0..=DEPTH_MAX {
        let mut node = NodeMut(tm.write(block)?);
        check_value_size::<V>(block, node.view())?;
        if node.view().is_leaf() {
            let at = node.view().lower_bound(key);
            if at < node.view().len() && node.view().key(at) == key {
                let mut old = [0; 64];
                let old = &mut old[..V::SIZE];
                old.copy_from_slice(node.view().value(at));
                node.set_value(at, value);
                if dec_old {
                    ops.dec(tm, old)?;
                }
                return Ok((root, false));
            }
            node.insert(at, key, value);
            return Ok((root, true));
        }
        let at = node.view().floor(key).unwrap_or_else(|| {
            node.set_key(0, key);
            0
        });
        let old_child = node.view().child(at);
        let mut child = shadow(tm, ops, old_child)?;
        if child != old_child {
            NodeMut(tm.write(block)?).set_child(at, child);
        }
        if child == block {
            return Err(too_deep(block));
        }
        if needs_room(tm, child, key)? {
            make_room(tm, ops, block, at, key)?;
            let parent = tm.write(block)?;
            let parent = Node(parent);
            child = parent.child(parent.floor(key).unwrap_or(0));
        }
        block = child;
    }
    Err(too_deep(root))
}

/// Whether `block` is full and `key` would add to it.
fn needs_room(tm: &mut TransactionManager, block: u64, key: u64) -> Result<bool> {
    let node = Node(tm.write(block)?);
    let full = node.len() == node.max();
    Ok(full && !(node.is_leaf() && node.find(key).is_some()))
}

/// Puts a new root above `root` and splits `root` below it.
fn grow(tm: &mut TransactionManager, root: u64) -> Result<u64> {
    let first_key = Node(tm.write(root)?).key(0);
    let new_root = tm.new_block(BlockKind::Node)?;
    let mut node = NodeMut(tm.write(new_root)?);
    node.init(false, 8);
    node.insert(0, first_key, &root.to_le_bytes());
    let middle = Node(tm.write(root)?).len() / 2;
    split(tm, new_root, 0, middle)?;
    Ok(new_root)
}

/// Gives child `at` of `parent`, which is full, room for `key`. `parent` has room for an entry.
fn make_room<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
    key: u64,
) -> Result<()> {
    let node = Node(tm.write(parent)?);
    let (len, child) = (node.len(), node.child(at));
    let left = at.checked_sub(1).map(|at| node.child(at));
    let right = (at + 1 < len).then(|| node.child(at + 1));
    let node = Node(tm.write(child)?);
    let (child_len, child_max) = (node.len(), node.max());
    let appends = key > node.key(child_len - 1);
    if let Some(left) = left
        && let Some(free) = shift_room(tm, left)?
    {
        // Ascending inserts fill the left node to the brim and leave the room on the right.
        let share = if appends { free } else { free.div_ceil(2) };
        let count = share.min(child_len - entries_min(child_max));
        return shift_left(tm, ops, parent, at, count);
    }
    if !appends
        && let Some(right) = right
        && let Some(free) = shift_room(tm, right)?
    {
        let count = free.div_ceil(2).min(child_len - entries_min(child_max));
        return shift_right(tm, ops, parent, at, count);
    }
    let third = entries_min(child_max);
    let keep = match () {
        () if appends => child_len - third,
        () if key < Node(tm.write(child)?).key(0) => third,
        () => child_len / 2,
    };
    split(tm, parent, at, keep)
}

/// How many entries `sibling` can take, if it is worth it. A shared one is left alone: copying it
/// costs more than a split.
fn shift_room(tm: &mut TransactionManager, sibling: u64) -> Result<Option<usize>> {
    if tm.count(sibling)? != 1 {
        return Ok(None);
    }
    let bytes = tm
        .reader()
        .read(sibling, BlockKind::Node, crate::MayRead::Yes)?;
    let node = Node(&bytes);
    let free = node.max() - node.len();
    let worth_it = free >= SHIFT_FREE_MIN && free > node.max() / SHIFT_SHARE_MIN;
    Ok(worth_it.then_some(free))
}

/// Moves the first `count` entries of child `at` to its left neighbour.
fn shift_left<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
    count: usize,
) -> Result<()> {
    let node = Node(tm.write(parent)?);
    let (left, child) = (node.child(at - 1), node.child(at));
    let left = shadow(tm, ops, left)?;
    let source = tm.reader().dirty_block(child)?;
    let mut target = NodeMut(tm.write(left)?);
    let len = target.view().len();
    super::remove::check_siblings(left, target.view(), Node(&source))?;
    target.insert_from(len, Node(&source), 0, count);
    drop(source);
    let mut node = NodeMut(tm.write(child)?);
    node.remove(0, count);
    let first_key = node.view().key(0);
    let mut node = NodeMut(tm.write(parent)?);
    node.set_child(at - 1, left);
    node.set_key(at, first_key);
    Ok(())
}

/// Moves the last `count` entries of child `at` to its right neighbour.
fn shift_right<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
    count: usize,
) -> Result<()> {
    let node = Node(tm.write(parent)?);
    let (child, right) = (node.child(at), node.child(at + 1));
    let right = shadow(tm, ops, right)?;
    let source = tm.reader().dirty_block(child)?;
    let len = Node(&source).len();
    let mut target = NodeMut(tm.write(right)?);
    super::remove::check_siblings(right, target.view(), Node(&source))?;
    target.insert_from(0, Node(&source), len - count, len);
    let first_key = target.view().key(0);
    drop(source);
    NodeMut(tm.write(child)?).remove(len - count, len);
    let mut node = NodeMut(tm.write(parent)?);
    node.set_child(at + 1, right);
    node.set_key(at + 1, first_key);
    Ok(())
}

/// Splits child `at` of `parent` in two, the left of which keeps `keep` entries.
fn split(tm: &mut TransactionManager, parent: u64, at: usize, keep: usize) -> Result<()> {
    let child = Node(tm.write(parent)?).child(at);
    let right = tm.new_block(BlockKind::Node)?;
    let source = tm.reader().dirty_block(child)?;
    let node = Node(&source);
    let (len, first_key) = (node.len(), node.key(keep));
    let mut target = NodeMut(tm.write(right)?);
    target.init(node.is_leaf(), node.value_size());
    target.insert_from(0, node, keep, len);
    drop(source);
    NodeMut(tm.write(child)?).remove(keep, len);
    NodeMut(tm.write(parent)?).insert(at + 1, first_key, &right.to_le_bytes());
    Ok(())
}
