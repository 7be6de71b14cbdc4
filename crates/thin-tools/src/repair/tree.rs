//! Trees built from below: entries in order, spread evenly over as few nodes as hold them.

use thinmap_persistent_data::btree::{NodeMut, capacity};
use thinmap_persistent_data::{BlockKind, META_BLOCK_SIZE, Result};

use super::copy::Output;

/// An entry of a node: key and value.
type Entry<const SIZE: usize> = (u64, [u8; SIZE]);

/// Writes a tree of `entries`, whose keys ascend; gives its root.
pub(super) fn build<const SIZE: usize>(
    output: &mut Output<'_>,
    entries: &[Entry<SIZE>],
) -> Result<u64> {
    if entries.is_empty() {
        return node::<SIZE>(output, true, &[]).map(|(_, root)| u64::from_le_bytes(root));
    }
    let leaves = level(output, true, entries)?;
    build_above(output, leaves)
}

/// Writes the internal nodes above `children`, of which there is at least one; gives the root.
pub(super) fn build_above(output: &mut Output<'_>, children: Vec<Entry<8>>) -> Result<u64> {
    let mut children = children;
    while children.len() > 1 {
        children = level(output, false, &children)?;
    }
    Ok(u64::from_le_bytes(children[0].1))
}

fn level<const SIZE: usize>(
    output: &mut Output<'_>,
    is_leaf: bool,
    entries: &[Entry<SIZE>],
) -> Result<Vec<Entry<8>>> {
    let nodes = entries.len().div_ceil(capacity(SIZE));
    let mut written = Vec::with_capacity(nodes);
    let mut rest = entries;
    for left in (1..=nodes).rev() {
        // Even, so that no node is under half full where there are several.
        let (now, later) = rest.split_at(rest.len().div_ceil(left));
        written.push(node(output, is_leaf, now)?);
        rest = later;
    }
    Ok(written)
}

fn node<const SIZE: usize>(
    output: &mut Output<'_>,
    is_leaf: bool,
    entries: &[Entry<SIZE>],
) -> Result<Entry<8>> {
    let mut bytes = Box::new([0; META_BLOCK_SIZE]);
    let mut node = NodeMut(&mut bytes);
    node.init(is_leaf, SIZE);
    for (at, (key, value)) in entries.iter().enumerate() {
        node.insert(at, *key, value);
    }
    let block = output.put(BlockKind::Node, &mut bytes)?;
    Ok((
        entries.first().map_or(0, |(key, _)| *key),
        block.to_le_bytes(),
    ))
}
