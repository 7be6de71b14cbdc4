//! Removing a range of keys, or a whole tree.
//!
//! A range is removed in two steps. First a descent drops every subtree that lies wholly inside
//! the range (a shared one just loses a reference) and trims the two nodes of each level on its
//! edges. Then a second descent along each edge merges what the first left less than a third full.

use super::node::{Node, NodeMut, entries_min};
use super::{DEPTH_MAX, ValueOps, check_value_size, find_any_ge, shadow, too_deep};
use crate::block::BlockKind;
use crate::cache::MayRead;
use crate::error::{MetadataError, Result};
use crate::transaction_manager::TransactionManager;

/// Extra entries kept above the minimum in nodes on the way down, because merging two of a node's
/// children takes an entry from it.
const SLACK: usize = 4;

/// Removes `key`; gives the new root and whether the key was there.
pub fn remove<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    key: u64,
) -> Result<(u64, bool)> {
    let Some(end) = key.checked_add(1) else {
        return Err(MetadataError::new(
            crate::ErrorKind::Inval,
            "no entry can have the highest possible key",
        ));
    };
    let (root, removed) = remove_range(tm, ops, root, key, end)?;
    Ok((root, removed > 0))
}

/// Removes all keys in `begin..end`; gives the new root and how many keys there were.
///
/// Time goes with the number of unshared nodes in the range, plus reading the shared ones.
pub fn remove_range<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    root: u64,
    begin: u64,
    end: u64,
) -> Result<(u64, u64)> {
    // Nothing there: do not copy the path for nothing.
    match find_any_ge(tm.reader(), root, begin)? {
        Some(first) if first < end => {}
        _ => return Ok((root, 0)),
    }
    let root = shadow(tm, ops, root)?;
    let mut pass = Removal {
        tm,
        ops,
        begin,
        end,
        removed: 0,
        reads_left: 0,
    };
    pass.reads_left = pass.tm.nr_blocks();
    pass.trim(root, None, 0)?;
    let removed = pass.removed;
    if Node(tm.write(root)?).len() == 0 {
        NodeMut(tm.write(root)?).init(true, V::SIZE);
        return Ok((root, removed));
    }
    let root = mend(tm, ops, root, begin)?;
    let root = match find_any_ge(tm.reader(), root, end)? {
        Some(right) => mend(tm, ops, root, right)?,
        None => root,
    };
    Ok((root, removed))
}

/// Gives up one reference to the tree at `root`, and to all it alone refers to.
pub fn delete_tree<V: ValueOps>(tm: &mut TransactionManager, ops: &mut V, root: u64) -> Result<()> {
    let mut pass = Removal {
        tm,
        ops,
        begin: 0,
        end: u64::MAX,
        removed: 0,
        reads_left: 0,
    };
    pass.drop_subtree(root, 0, false)
}

/// Siblings must be of one shape before entries move between them.
pub(crate) fn check_siblings(block: u64, a: Node<'_>, b: Node<'_>) -> Result<()> {
    if a.is_leaf() != b.is_leaf() || a.value_size() != b.value_size() || a.max() != b.max() {
        return Err(MetadataError::corrupt(
            block,
            "btree node differs in shape from its neighbour",
        ));
    }
    Ok(())
}

/// In a crafted image a node may be its own descendant and shrink while its entries are walked.
fn check_entry(block: u64, node: Node<'_>, at: usize) -> Result<()> {
    if node.is_leaf() || at >= node.len() {
        return Err(too_deep(block));
    }
    Ok(())
}

struct Removal<'a, V> {
    tm: &'a mut TransactionManager,
    ops: &'a mut V,
    begin: u64,
    end: u64,
    removed: u64,
    /// Bounds the reading of shared subtrees, which in a crafted image may be entangled.
    reads_left: u64,
}

impl<V: ValueOps> Removal<'_, V> {
    /// Removes the range from the writable node `block`, all of whose keys are below `limit`.
    fn trim(&mut self, block: u64, limit: Option<u64>, depth: usize) -> Result<()> {
        if depth == DEPTH_MAX {
            return Err(too_deep(block));
        }
        let mut node = NodeMut(self.tm.write(block)?);
        check_value_size::<V>(block, node.view())?;
        let (begin, end) = (self.begin, self.end);
        if node.view().is_leaf() {
            let (from, to) = (node.view().lower_bound(begin), node.view().lower_bound(end));
            if to > from {
                let values = node.view().values(from, to).to_vec();
                node.remove(from, to);
                self.removed += (to - from) as u64;
                self.ops.dec(self.tm, &values)?;
            }
            return Ok(());
        }
        let first = node.view().floor(begin).unwrap_or(0);
        let last = node.view().lower_bound(end);
        // Backwards, so that removing an entry does not move those still to come.
        for at in (first..last).rev() {
            let node = Node(self.tm.write(block)?);
            check_entry(block, node, at)?;
            let (low, child) = (node.key(at), node.child(at));
            let high = if at + 1 < node.len() {
                Some(node.key(at + 1))
            } else {
                limit
            };
            let whole = begin <= low && high.is_some_and(|high| high <= end);
            if whole {
                self.drop_subtree(child, depth + 1, true)?;
                let mut node = NodeMut(self.tm.write(block)?);
                check_entry(block, node.view(), at)?;
                node.remove(at, at + 1);
                continue;
            }
            let child = shadow(self.tm, self.ops, child)?;
            self.trim(child, high, depth + 1)?;
            let trimmed = Node(self.tm.write(child)?);
            let first_key = (trimmed.len() > 0).then(|| trimmed.key(0));
            let mut node = NodeMut(self.tm.write(block)?);
            check_entry(block, node.view(), at)?;
            match first_key {
                Some(key) => {
                    node.set_child(at, child);
                    node.set_key(at, key);
                }
                None => {
                    node.remove(at, at + 1);
                    self.tm.dec(child)?;
                }
            }
        }
        Ok(())
    }

    /// Gives up a reference to `block`; counts the entries below it if `count_entries`.
    fn drop_subtree(&mut self, block: u64, depth: usize, count_entries: bool) -> Result<()> {
        if depth == DEPTH_MAX {
            return Err(too_deep(block));
        }
        if self.tm.count(block)? > 1 {
            if count_entries {
                self.count_entries(block, depth)?;
            }
            return self.tm.dec(block);
        }
        let bytes = self
            .tm
            .reader()
            .read(block, BlockKind::Node, MayRead::Yes)?;
        let node = Node(&bytes);
        check_value_size::<V>(block, node)?;
        // The block first: an image in which it is its own descendant then fails on count zero.
        self.tm.dec(block)?;
        if node.is_leaf() {
            self.removed += node.len() as u64;
            return self.ops.dec(self.tm, node.values(0, node.len()));
        }
        for at in 0..node.len() {
            self.drop_subtree(node.child(at), depth + 1, count_entries)?;
        }
        Ok(())
    }

    fn count_entries(&mut self, block: u64, depth: usize) -> Result<()> {
        if depth == DEPTH_MAX || self.reads_left == 0 {
            return Err(too_deep(block));
        }
        self.reads_left -= 1;
        let bytes = self
            .tm
            .reader()
            .read(block, BlockKind::Node, MayRead::Yes)?;
        let node = Node(&bytes);
        if node.is_leaf() {
            self.removed += node.len() as u64;
            return Ok(());
        }
        for at in 0..node.len() {
            self.count_entries(node.child(at), depth + 1)?;
        }
        Ok(())
    }
}

/// Merges or refills the nodes on the way to `key` that hold too little; gives the new root.
fn mend<V: ValueOps>(tm: &mut TransactionManager, ops: &mut V, root: u64, key: u64) -> Result<u64> {
    let mut root = shadow(tm, ops, root)?;
    let mut parent = root;
    for _ in 0..2 * DEPTH_MAX {
        let node = Node(tm.write(parent)?);
        if node.is_leaf() {
            return Ok(root);
        }
        let at = node.floor(key).unwrap_or(0);
        let (len, child) = (node.len(), node.child(at));
        if parent == root && len == 1 {
            // A root with one child is no use: the child becomes the root.
            let child = shadow(tm, ops, child)?;
            tm.dec(root)?;
            root = child;
            parent = child;
            continue;
        }
        if needs_mending(tm, child)? && len > 1 {
            let left = at.saturating_sub(1);
            balance(tm, ops, parent, left)?;
            continue;
        }
        let shadowed = shadow(tm, ops, child)?;
        if shadowed != child {
            NodeMut(tm.write(parent)?).set_child(at, shadowed);
        }
        parent = shadowed;
    }
    Err(too_deep(root))
}

fn needs_mending(tm: &mut TransactionManager, block: u64) -> Result<bool> {
    let bytes = tm.reader().read(block, BlockKind::Node, MayRead::Yes)?;
    let node = Node(&bytes);
    let slack = if node.is_leaf() { 0 } else { SLACK };
    Ok(node.len() < entries_min(node.max()) + slack)
}

/// Merges children `at` and `at + 1` of `parent`, or shares their entries evenly.
fn balance<V: ValueOps>(
    tm: &mut TransactionManager,
    ops: &mut V,
    parent: u64,
    at: usize,
) -> Result<()> {
    let node = Node(tm.write(parent)?);
    let (left, right) = (node.child(at), node.child(at + 1));
    let left = shadow(tm, ops, left)?;
    let right = shadow(tm, ops, right)?;
    let mut node = NodeMut(tm.write(parent)?);
    node.set_child(at, left);
    node.set_child(at + 1, right);

    let source = tm.reader().dirty_block(right)?;
    let from = Node(&source);
    let mut into = NodeMut(tm.write(left)?);
    check_siblings(left, into.view(), from)?;
    let (left_len, right_len) = (into.view().len(), from.len());
    let total = left_len + right_len;
    if total <= into.view().max() {
        into.insert_from(left_len, from, 0, right_len);
        NodeMut(tm.write(parent)?).remove(at + 1, at + 2);
        drop(source);
        return tm.dec(right);
    }
    let left_wanted = total / 2;
    if left_len < left_wanted {
        let count = left_wanted - left_len;
        into.insert_from(left_len, from, 0, count);
        drop(source);
        NodeMut(tm.write(right)?).remove(0, count);
    } else {
        drop(source);
        let source = tm.reader().dirty_block(left)?;
        NodeMut(tm.write(right)?).insert_from(0, Node(&source), left_wanted, left_len);
        drop(source);
        NodeMut(tm.write(left)?).remove(left_wanted, left_len);
    }
    let first_key = Node(tm.write(right)?).key(0);
    NodeMut(tm.write(parent)?).set_key(at + 1, first_key);
    Ok(())
}
