//! Inserting: one pass from the root down that makes room on its way, so it never has to go back.
//!
//! COMPAT: where room comes from is the kernel's choice in every case (dm-btree.c), because the
//! number of nodes shows in a pool's status.

use super::balance::{lengths, note_first_key, own_child, settle2, settle3};
use super::node::{Node, NodeMut};
use super::{DEPTH_MAX, ValueOps, check_value_size, shadow, too_deep};
use crate::block::BlockKind;
use crate::error::Result;
use crate::transaction_manager::TransactionManager;

/// A sibling takes entries only when it has at least this many free: moving fewer would soon have
/// to be repeated.
const SIBLING_FREE_MIN: usize = 8;

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
    let root = shadow(tm, ops, root)?;
    if needs_room(tm, root, key)? {
        split_root(tm, root)?;
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
        let mut child = own_child(tm, ops, block, at)?;
        if needs_room(tm, child, key)? {
            make_room(tm, ops, block, at)?;
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

/// Moves the entries of `root`, half each, to two new nodes below it.
fn split_root(tm: &mut TransactionManager, root: u64) -> Result<()> {
    let source = tm.reader().dirty_block(root)?;
    let node = Node(&source);
    let middle = node.len() / 2;
    let mut halves = [(0, 0); 2];
    for (half, (from, to)) in halves.iter_mut().zip([(0, middle), (middle, node.len())]) {
        let block = tm.new_block(BlockKind::Node)?;
        let mut target = NodeMut(tm.write(block)?);
        target.init_like(node);
        target.insert_from(0, node, from, to);
        *half = (node.key(from), block);
    }
    drop(source);
    let mut node = NodeMut(tm.write(root)?);
    node.init(false, 8);
    for (at, (key, block)) in halves.into_iter().enumerate() {
        node.insert(at, key, &block.to_le_bytes());
    }
    Ok(())
}

/// Gives child `at` of `parent`, which is full, room for an entry. `parent` has room for one.
///
/// Takes room from a sibling when it can. Otherwise splits this child in two, or, in the midst of
/// others, this one and its left sibling in three, which leaves fuller nodes; at either end keys
/// are likely to come in order, and three would be no better than two.
fn make_room<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let node = Node(tm.write(parent)?);
    let len = node.len();
    let left = at.checked_sub(1).map(|at| node.child(at));
    let right = (at + 1 < len).then(|| node.child(at + 1));
    let mut a_sibling_is_shared = false;
    for (sibling, left_at) in [(left, at.wrapping_sub(1)), (right, at)] {
        let Some(sibling) = sibling else { continue };
        match sibling_room(tm, sibling)? {
            None => a_sibling_is_shared = true,
            Some(free) if free >= SIBLING_FREE_MIN => return even_out(tm, ops, parent, left_at),
            Some(_) => {}
        }
    }
    if a_sibling_is_shared || len <= 2 || at == 0 || at + 1 == len {
        split_in_two(tm, parent, at)
    } else {
        split_in_three(tm, ops, parent, at - 1)
    }
}

/// How many entries `sibling` can take; `None` when it is shared and so better left alone: copying
/// it costs more than a split.
fn sibling_room(tm: &mut TransactionManager, sibling: u64) -> Result<Option<usize>> {
    if tm.count(sibling)? > 1 {
        return Ok(None);
    }
    let bytes = tm
        .reader()
        .read(sibling, BlockKind::Node, crate::MayRead::Yes)?;
    let node = Node(&bytes);
    Ok(Some(node.max() - node.len()))
}

/// Shares the entries of children `at` and `at + 1` of `parent` evenly between them.
fn even_out<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let nodes = [
        own_child(tm, ops, parent, at)?,
        own_child(tm, ops, parent, at + 1)?,
    ];
    let (has, _) = lengths(tm, nodes)?;
    settle2(tm, nodes, has, (has[0] + has[1]) / 2)?;
    note_first_key(tm, parent, at + 1, nodes[1])
}

/// Moves half of child `at` of `parent` to a new node on its right.
fn split_in_two(tm: &mut TransactionManager, parent: u64, at: usize) -> Result<()> {
    let left = Node(tm.write(parent)?).child(at);
    let right = new_sibling(tm, left)?;
    let (has, _) = lengths(tm, [left, right])?;
    settle2(tm, [left, right], has, has[0] / 2)?;
    link(tm, parent, at + 1, right)
}

/// Makes three nodes of children `at` and `at + 1` of `parent`, both about full.
fn split_in_three<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let left = own_child(tm, ops, parent, at)?;
    let right = own_child(tm, ops, parent, at + 1)?;
    let center = new_sibling(tm, left)?;
    let nodes = [left, center, right];
    let (has, _) = lengths(tm, nodes)?;
    let total = has[0] + has[2];
    let target_left = total / 3;
    let target_center = (total - target_left) / 2;
    let target_right = total - target_left - target_center;
    settle3(tm, nodes, has, [target_left, target_right])?;
    note_first_key(tm, parent, at + 1, right)?;
    link(tm, parent, at + 1, center)
}

/// A new empty node of the same shape as `node`.
fn new_sibling(tm: &mut TransactionManager, node: u64) -> Result<u64> {
    let block = tm.new_block(BlockKind::Node)?;
    let model = tm.reader().dirty_block(node)?;
    NodeMut(tm.write(block)?).init_like(Node(&model));
    Ok(block)
}

/// Makes `child` the child `at` of `parent`.
fn link(tm: &mut TransactionManager, parent: u64, at: usize, child: u64) -> Result<()> {
    let key = Node(tm.write(child)?).key(0);
    NodeMut(tm.write(parent)?).insert(at, key, &child.to_le_bytes());
    Ok(())
}
