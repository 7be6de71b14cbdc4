//! What each block of an image is, going by its own content alone.

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{BlockBytes, BlockKind, IndexEntry, kind_of, verify};
use thinmap_thin_metadata::{DeviceDetails, SUPERBLOCK_MAGIC};

use crate::walk::Walk;

/// A block's content, by its checksum and, for nodes, the size of its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Content {
    /// Nothing that the format knows.
    None,
    Internal,
    /// A leaf of mappings, or of roots of volumes.
    Leaf8,
    /// A leaf of device details.
    LeafDetails,
    /// A leaf of index entries or of counts.
    LeafOther,
    Bitmap,
    Index,
    /// A superblock or the copy of one.
    Superblock,
}

/// The contents of all blocks; one byte each.
pub(super) struct Scan {
    contents: Vec<Content>,
}

impl Scan {
    /// Reads all blocks that `walk` is about.
    pub(super) fn of(walk: &Walk<'_>) -> Self {
        let all: Vec<u64> = (0..walk.blocks.len()).collect();
        let found = walk.in_parallel(&all, |block, bytes, found: &mut Vec<(u64, Content)>| {
            let content = bytes.map_or(Content::None, |bytes| content_of(block, bytes));
            if content != Content::None {
                found.push((block, content));
            }
        });
        let mut contents = vec![Content::None; all.len()];
        for (block, content) in found.into_iter().flatten() {
            contents[block as usize] = content;
        }
        Self { contents }
    }

    pub(super) fn content(&self, block: u64) -> Content {
        self.contents
            .get(block as usize)
            .copied()
            .unwrap_or(Content::None)
    }

    /// Blocks with that content, ascending.
    pub(super) fn all(&self, wanted: Content) -> Vec<u64> {
        let found = |(at, content): (usize, &Content)| (*content == wanted).then_some(at as u64);
        self.contents.iter().enumerate().filter_map(found).collect()
    }
}

fn content_of(block: u64, bytes: &BlockBytes) -> Content {
    match kind_of(block, bytes) {
        // A pool has no such blocks.
        None
        | Some(
            BlockKind::Array
            | BlockKind::EraSuperblock
            | BlockKind::CloneSuperblock
            | BlockKind::CacheSuperblock,
        ) => Content::None,
        Some(BlockKind::Bitmap) => Content::Bitmap,
        Some(BlockKind::Index) => Content::Index,
        Some(BlockKind::Superblock) => {
            let magic = bytes[32..40] == SUPERBLOCK_MAGIC.to_le_bytes();
            if magic {
                Content::Superblock
            } else {
                Content::None
            }
        }
        Some(BlockKind::Node) => {
            if verify(BlockKind::Node, block, bytes).is_err() {
                return Content::None;
            }
            let node = Node(bytes);
            match (node.is_leaf(), node.value_size()) {
                (false, _) => Content::Internal,
                (true, 8) => Content::Leaf8,
                (true, DeviceDetails::SIZE) => Content::LeafDetails,
                (true, IndexEntry::SIZE | 4) => Content::LeafOther,
                _ => Content::None,
            }
        }
    }
}
