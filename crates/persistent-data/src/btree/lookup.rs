//! Reading a tree: one key, the next key, the highest, or all from a key on.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::node::Node;
use super::{DEPTH_MAX, expect_value_size, too_deep};
use crate::block::{BlockBytes, BlockKind, u64_at};
use crate::cache::{BlockCache, MayRead};
use crate::error::{MetadataError, Result};
use crate::transaction_manager::Reader;

/// A key and its value.
pub type Entry<const SIZE: usize> = (u64, [u8; SIZE]);

fn value_of<const SIZE: usize>(block: u64, node: Node<'_>, at: usize) -> Result<[u8; SIZE]> {
    expect_value_size(block, node, SIZE)?;
    let mut value = [0; SIZE];
    value.copy_from_slice(node.value(at));
    Ok(value)
}

/// The value of `key`. Allocates nothing when all nodes on the way are in memory.
pub fn lookup<const SIZE: usize>(
    reader: &Reader,
    root: u64,
    key: u64,
    may_read: MayRead,
) -> Result<Option<[u8; SIZE]>> {
    let mut block = root;
    for _ in 0..DEPTH_MAX {
        let bytes = reader.read(block, BlockKind::Node, may_read)?;
        let node = Node(&bytes);
        if node.is_leaf() {
            return node
                .find(key)
                .map(|at| value_of(block, node, at))
                .transpose();
        }
        match node.floor(key) {
            Some(at) => block = node.child(at),
            None => return Ok(None),
        }
    }
    Err(too_deep(root))
}

/// [`lookup`] for values that are one `u64`.
pub fn lookup_u64(reader: &Reader, root: u64, key: u64, may_read: MayRead) -> Result<Option<u64>> {
    let value = lookup::<8>(reader, root, key, may_read)?;
    Ok(value.map(u64::from_le_bytes))
}

/// The entry with the smallest key `>= key`.
pub fn find_ge<const SIZE: usize>(
    reader: &Reader,
    root: u64,
    key: u64,
    may_read: MayRead,
) -> Result<Option<Entry<SIZE>>> {
    let Some(found) = seek_ge(reader, root, key, may_read)? else {
        return Ok(None);
    };
    let (block, bytes, at) = found;
    let node = Node(&bytes);
    Ok(Some((node.key(at), value_of(block, node, at)?)))
}

/// The smallest key `>= key`, whatever the values are.
pub(crate) fn find_any_ge(reader: &Reader, root: u64, key: u64) -> Result<Option<u64>> {
    let found = seek_ge(reader, root, key, MayRead::Yes)?;
    Ok(found.map(|(_, bytes, at)| Node(&bytes).key(at)))
}

fn seek_ge(
    reader: &Reader,
    root: u64,
    key: u64,
    may_read: MayRead,
) -> Result<Option<(u64, Arc<BlockBytes>, usize)>> {
    let mut block = root;
    let mut right = None;
    let mut key = Some(key);
    for _ in 0..2 * DEPTH_MAX {
        let bytes = reader.read(block, BlockKind::Node, may_read)?;
        match step_ge(Node(&bytes), key, &mut right) {
            Step::Down(child) => block = child,
            Step::Found(at) => return Ok(Some((block, bytes, at))),
            Step::Past => match right.take() {
                Some(next) => (block, key) = (next, None),
                None => return Ok(None),
            },
        }
    }
    Err(too_deep(root))
}

enum Step {
    Down(u64),
    Found(usize),
    Past,
}

/// One step of the search for the first key `>= key` (or the very first). `right` remembers the
/// nearest subtree to the right of the way: where the next key is when the leaf has none.
fn step_ge(node: Node<'_>, key: Option<u64>, right: &mut Option<u64>) -> Step {
    if node.is_leaf() {
        let at = key.map_or(0, |key| node.lower_bound(key));
        return if at < node.len() {
            Step::Found(at)
        } else {
            Step::Past
        };
    }
    let at = key.and_then(|key| node.floor(key)).unwrap_or(0);
    if at + 1 < node.len() {
        *right = Some(node.child(at + 1));
    }
    Step::Down(node.child(at))
}

/// The highest key in the tree.
pub fn highest_key(reader: &Reader, root: u64, may_read: MayRead) -> Result<Option<u64>> {
    let mut block = root;
    for _ in 0..DEPTH_MAX {
        let bytes = reader.read(block, BlockKind::Node, may_read)?;
        let node = Node(&bytes);
        let Some(last) = node.len().checked_sub(1) else {
            return Ok(None);
        };
        if node.is_leaf() {
            return Ok(Some(node.key(last)));
        }
        block = node.child(last);
    }
    Err(too_deep(root))
}

/// Calls `visit` with each entry from `start` on, in order, until it breaks.
///
/// A damaged tree cannot make this run forever: keys must ascend from entry to entry and only the
/// root may be empty.
pub fn visit_entries<F>(
    reader: &Reader,
    root: u64,
    value_size: usize,
    start: u64,
    may_read: MayRead,
    visit: &mut F,
) -> Result<()>
where
    F: FnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
{
    let mut walk = Walk {
        reader,
        value_size,
        may_read,
        next: Some(start),
        visit,
    };
    walk.node(root, 0).map(|_| ())
}

struct Walk<'a, F> {
    reader: &'a Reader,
    value_size: usize,
    may_read: MayRead,
    /// The lowest key that may come next; `None` once the highest possible was seen.
    next: Option<u64>,
    visit: &'a mut F,
}

impl<F: FnMut(u64, &[u8]) -> Result<ControlFlow<()>>> Walk<'_, F> {
    fn node(&mut self, block: u64, depth: usize) -> Result<ControlFlow<()>> {
        if depth == DEPTH_MAX {
            return Err(too_deep(block));
        }
        let bytes = self.reader.read(block, BlockKind::Node, self.may_read)?;
        let node = Node(&bytes);
        expect_value_size(block, node, self.value_size)?;
        if node.is_leaf() {
            return self.leaf(block, node, depth);
        }
        let Some(start) = self.next else {
            return Err(MetadataError::corrupt(block, "btree keys do not ascend"));
        };
        for at in node.floor(start).unwrap_or(0)..node.len() {
            if self.node(node.child(at), depth + 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn leaf(&mut self, block: u64, node: Node<'_>, depth: usize) -> Result<ControlFlow<()>> {
        if node.is_empty() && depth > 0 {
            return Err(MetadataError::corrupt(block, "leaf is empty"));
        }
        // The first leaf may begin below the start; in all others every key must be new.
        let Some(start) = self.next else {
            return Err(MetadataError::corrupt(block, "btree keys do not ascend"));
        };
        for at in node.lower_bound(start)..node.len() {
            let key = node.key(at);
            if self.next.is_none_or(|next| key < next) {
                return Err(MetadataError::corrupt(block, "btree keys do not ascend"));
            }
            self.next = key.checked_add(1);
            if (self.visit)(key, node.value(at))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A verified node, for those who examine trees rather than use them (the checker).
pub struct NodeView(Arc<BlockBytes>);

/// Reads node `block`.
pub fn read_node(reader: &Reader, block: u64) -> Result<NodeView> {
    reader
        .read(block, BlockKind::Node, MayRead::Yes)
        .map(NodeView)
}

/// Node `block` as the last commit left it.
///
/// # Errors
/// `Io`, `Corrupt`.
pub fn committed_node(cache: &BlockCache, block: u64) -> Result<NodeView> {
    cache
        .read(block, BlockKind::Node, MayRead::Yes)
        .map(NodeView)
}

impl NodeView {
    /// Whether values are the tree's values rather than children.
    pub fn is_leaf(&self) -> bool {
        Node(&self.0).is_leaf()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        Node(&self.0).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries there is room for.
    pub fn max(&self) -> usize {
        Node(&self.0).max()
    }

    /// Bytes in a value.
    pub fn value_size(&self) -> usize {
        Node(&self.0).value_size()
    }

    /// Key of entry `at`, which must be below [`len`](Self::len).
    pub fn key(&self, at: usize) -> u64 {
        Node(&self.0).key(at)
    }

    /// Value of entry `at`.
    pub fn value(&self, at: usize) -> &[u8] {
        Node(&self.0).value(at)
    }

    /// The first eight bytes of the value of entry `at` as a number: a child, a root, a mapping.
    ///
    /// Values narrower than that give 0.
    pub fn value_u64(&self, at: usize) -> u64 {
        let value = self.value(at);
        if value.len() < 8 { 0 } else { u64_at(value, 0) }
    }
}
