//! One btree node: the layout on disk and access to it.
//!
//! A node is 32 bytes of header, `max_entries` keys of 8 bytes, then `max_entries` values. In an
//! internal node the values are the children's block numbers, and key `i` is a lower bound of all
//! keys below child `i`. (dm-btree-internal.h)
//!
//! | byte | field | byte | field |
//! | --- | --- | --- | --- |
//! | 0 | checksum `u32` | 16 | `nr_entries` `u32` |
//! | 4 | flags `u32` (1 internal, 2 leaf) | 20 | `max_entries` `u32` |
//! | 8 | own block number `u64` | 24 | `value_size` `u32`, then 4 bytes of padding |
//!
//! INVARIANT: every node that is reached through [`Reader`](crate::Reader) passed [`verify`], so
//! `nr_entries <= max_entries`, all entries lie inside the block, and internal nodes are not empty.

use crate::block::{BlockBytes, META_BLOCK_SIZE, put_u32, put_u64, u32_at, u64_at};
use crate::error::{MetadataError, Result};

const HEADER_BYTES: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// The number of entries that the kernel gives a node: a multiple of three, because it splits in
/// thirds.
pub const fn capacity(value_size: usize) -> usize {
    let fit = (META_BLOCK_SIZE - HEADER_BYTES) / (8 + value_size);
    fit - fit % 3
}

/// The fewest entries that a node other than the root may hold (thin_check demands it).
pub(crate) const fn entries_min(max_entries: usize) -> usize {
    max_entries / 3
}

/// Checks everything that later access relies on. Called once, when the block is read.
pub(crate) fn verify(block: u64, bytes: &BlockBytes) -> Result<()> {
    let bad = |what: String| Err(MetadataError::corrupt(block, what));
    let node = Node(bytes);
    let (nr, max) = (u64::from(u32_at(bytes, 16)), u64::from(u32_at(bytes, 20)));
    let value_size = u64::from(u32_at(bytes, 24));
    if nr > max || max < 3 {
        return bad(format!("btree node holds {nr} entries of at most {max}"));
    }
    let entries_bytes = max.saturating_mul(8 + value_size);
    if entries_bytes > (META_BLOCK_SIZE - HEADER_BYTES) as u64 {
        return bad(format!(
            "btree node's {max} entries with values of {value_size} bytes exceed the block"
        ));
    }
    match node.flags() & (INTERNAL | LEAF) {
        INTERNAL if value_size != 8 => bad("internal btree node has wide values".to_owned()),
        INTERNAL if nr == 0 => bad("internal btree node is empty".to_owned()),
        INTERNAL | LEAF => Ok(()),
        flags => bad(format!("btree node is neither internal nor leaf ({flags})")),
    }
}

/// Shared view of a node.
///
/// # Panics
/// Methods may panic on bytes that did not pass [`crate::verify`] as a node, or past the last entry.
#[derive(Clone, Copy)]
pub struct Node<'a>(pub &'a BlockBytes);

impl<'a> Node<'a> {
    fn flags(self) -> u32 {
        u32_at(self.0, 4)
    }

    /// Whether values are the tree's values rather than children.
    pub fn is_leaf(self) -> bool {
        self.flags() & LEAF != 0
    }

    /// How many entries there are.
    pub fn len(self) -> usize {
        u32_at(self.0, 16) as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// How many entries there is room for.
    pub fn max(self) -> usize {
        u32_at(self.0, 20) as usize
    }

    /// Bytes in a value.
    pub fn value_size(self) -> usize {
        u32_at(self.0, 24) as usize
    }

    /// Key of entry `at`.
    pub fn key(self, at: usize) -> u64 {
        u64_at(self.0, HEADER_BYTES + 8 * at)
    }

    fn value_at(self, at: usize) -> usize {
        HEADER_BYTES + 8 * self.max() + self.value_size() * at
    }

    /// Value of entry `at`.
    pub fn value(self, at: usize) -> &'a [u8] {
        self.values(at, at + 1)
    }

    /// The values of entries `from..to`, one after another.
    pub fn values(self, from: usize, to: usize) -> &'a [u8] {
        &self.0[self.value_at(from)..self.value_at(to)]
    }

    /// The first eight bytes of the value of entry `at`, as a number: a child, a root, a mapping.
    pub fn child(self, at: usize) -> u64 {
        u64_at(self.0, self.value_at(at))
    }

    /// The first entry whose key is `>= key`; `len()` when there is none.
    pub(crate) fn lower_bound(self, key: u64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The entry that holds `key`.
    pub(crate) fn find(self, key: u64) -> Option<usize> {
        let at = self.lower_bound(key);
        (at < self.len() && self.key(at) == key).then_some(at)
    }

    /// The last entry whose key is `<= key`: in an internal node the way to `key`.
    pub(crate) fn floor(self, key: u64) -> Option<usize> {
        let at = self.lower_bound(key);
        if at < self.len() && self.key(at) == key {
            return Some(at);
        }
        at.checked_sub(1)
    }
}

/// Exclusive view of a node. Address and checksum are set at commit, by [`crate::seal`].
pub struct NodeMut<'a>(pub &'a mut BlockBytes);

impl NodeMut<'_> {
    /// The same, shared.
    pub fn view(&self) -> Node<'_> {
        Node(self.0)
    }

    /// Makes an empty node out of a new block.
    pub fn init(&mut self, leaf: bool, value_size: usize) {
        self.0.fill(0);
        put_u32(self.0, 4, if leaf { LEAF } else { INTERNAL });
        put_u32(self.0, 20, capacity(value_size) as u32);
        put_u32(self.0, 24, value_size as u32);
    }

    /// Makes an empty node of the shape of `model` out of a new block.
    pub(crate) fn init_like(&mut self, model: Node<'_>) {
        self.init(model.is_leaf(), model.value_size());
        put_u32(self.0, 20, model.max() as u32);
    }

    /// Sets all entries of an empty node, which must have room for them.
    pub(crate) fn fill<const SIZE: usize>(&mut self, entries: &[(u64, [u8; SIZE])]) {
        assert!(entries.len() <= self.view().max() && SIZE == self.view().value_size());
        for (at, (key, value)) in entries.iter().enumerate() {
            self.set_key(at, *key);
            self.set_value(at, value);
        }
        self.set_len(entries.len());
    }

    fn set_len(&mut self, len: usize) {
        put_u32(self.0, 16, len as u32);
    }

    pub(crate) fn set_key(&mut self, at: usize, key: u64) {
        put_u64(self.0, HEADER_BYTES + 8 * at, key);
    }

    pub(crate) fn set_value(&mut self, at: usize, value: &[u8]) {
        let start = self.view().value_at(at);
        self.0[start..start + value.len()].copy_from_slice(value);
    }

    /// Makes `child` the value of entry `at` of an internal node.
    pub fn set_child(&mut self, at: usize, child: u64) {
        self.set_value(at, &child.to_le_bytes());
    }

    /// Inserts before entry `at`. The node must not be full.
    pub fn insert(&mut self, at: usize, key: u64, value: &[u8]) {
        let len = self.view().len();
        assert!(len < self.view().max() && value.len() == self.view().value_size());
        let (first, last) = (self.view().value_at(at), self.view().value_at(len));
        let keys = HEADER_BYTES + 8 * at..HEADER_BYTES + 8 * len;
        self.0.copy_within(keys, HEADER_BYTES + 8 * (at + 1));
        self.0.copy_within(first..last, first + value.len());
        self.set_key(at, key);
        self.set_value(at, value);
        self.set_len(len + 1);
    }

    /// Removes entries `from..to`.
    pub(crate) fn remove(&mut self, from: usize, to: usize) {
        let len = self.view().len();
        let keys = HEADER_BYTES + 8 * to..HEADER_BYTES + 8 * len;
        self.0.copy_within(keys, HEADER_BYTES + 8 * from);
        let values = self.view().value_at(to)..self.view().value_at(len);
        let target = self.view().value_at(from);
        self.0.copy_within(values, target);
        self.set_len(len - (to - from));
    }

    /// Inserts entries `from..to` of `source` before entry `at`. There must be room.
    pub(crate) fn insert_from(&mut self, at: usize, source: Node<'_>, from: usize, to: usize) {
        let (len, count) = (self.view().len(), to - from);
        assert!(len + count <= self.view().max());
        assert!(source.value_size() == self.view().value_size());
        let keys = HEADER_BYTES + 8 * at..HEADER_BYTES + 8 * len;
        self.0.copy_within(keys, HEADER_BYTES + 8 * (at + count));
        let values = self.view().value_at(at)..self.view().value_at(len);
        let target = self.view().value_at(at + count);
        self.0.copy_within(values, target);
        let key_start = HEADER_BYTES + 8 * at;
        self.0[key_start..key_start + 8 * count]
            .copy_from_slice(&source.0[HEADER_BYTES + 8 * from..HEADER_BYTES + 8 * to]);
        let value_start = self.view().value_at(at);
        let moved = source.values(from, to);
        self.0[value_start..value_start + moved.len()].copy_from_slice(moved);
        self.set_len(len + count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_whose_product_is_beyond_64_bits_exceed_the_block() {
        let mut bytes = [0; META_BLOCK_SIZE];
        for (max, value_size) in [(u32::MAX, u32::MAX), (1 << 31, u32::MAX - 7), (3, u32::MAX)] {
            bytes[20..24].copy_from_slice(&max.to_le_bytes());
            bytes[24..28].copy_from_slice(&value_size.to_le_bytes());
            let refused = verify(1, &bytes).unwrap_err();
            assert!(
                refused.to_string().contains("exceed the block"),
                "{refused}"
            );
        }
    }
}
