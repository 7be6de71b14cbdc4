//! A check of the whole image: every tree is walked, every reference counted and compared with
//! both space maps.
//!
//! Works on what is committed on the device, with memory for a counter for each block in use, so it
//! is for tests and offline use. Damage becomes a [`Finding`], not an error; only a superblock or
//! an index that cannot be used at all is an error.

mod finding;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use thinmap_persistent_data::btree::{self, NodeView};
use thinmap_persistent_data::{
    BlockCache, BlockKind, DiskSpaceMap, ENTRIES_PER_BITMAP, IndexEntry, METADATA_BITMAPS_MAX,
    MayRead, MetadataDevice, MetadataError, Reader, Result, SpaceMapRoot, TransactionManager,
    index_entry,
};
use thinmap_units::{DataBlock, MetaBlock};

use crate::device_details::DeviceDetails;
use crate::mapping::unpack;
use crate::pool_metadata::read_superblock;
use crate::superblock::Superblock;

pub use finding::Finding;

/// Blocks kept in memory while checking.
const CACHE_BLOCKS: usize = 4096;
/// A tree deeper than this contains itself.
const DEPTH_MAX: usize = 16;
/// More findings than this are only counted.
const FINDINGS_MAX: usize = 1000;

/// Checks the committed metadata on `device`; an empty list means that nothing is wrong.
///
/// # Errors
/// When the superblock or the metadata space map's index cannot be used.
pub fn check(device: Arc<dyn MetadataDevice>) -> Result<Vec<Finding>> {
    let superblock = Superblock::unpack(0, &read_superblock(&*device)?.0)?;
    let cache = Arc::new(BlockCache::new(device, CACHE_BLOCKS));
    let tm = TransactionManager::open(cache, &superblock.metadata_space_map)?;
    let data_sm = DiskSpaceMap::open(&superblock.data_space_map)?;
    let mut check = Check {
        reader: tm.reader(),
        metadata: References::new(tm.nr_blocks()),
        data: References::new(data_sm.nr_blocks()),
        entries: HashMap::new(),
        findings: Vec::new(),
        more: 0,
    };
    check.refer(0);
    check.volumes(&superblock);
    check.held(&superblock);
    check.space_map_trees(&superblock);

    let metadata_root = &superblock.metadata_space_map;
    let count = |block| tm.count(block);
    check.compare(metadata_root, count, |c| &c.metadata, metadata_count);
    let data_root = &superblock.data_space_map;
    let count = |block| data_sm.count(tm.reader(), block);
    check.compare(data_root, count, |c| &c.data, data_count);
    if check.more > 0 {
        check.findings.push(Finding::More(check.more));
    }
    Ok(check.findings)
}

fn metadata_count(block: u64, recorded: u32, found: u32) -> Finding {
    Finding::MetadataCount {
        block: MetaBlock(block),
        recorded,
        found,
    }
}

fn data_count(block: u64, recorded: u32, found: u32) -> Finding {
    Finding::DataCount {
        block: DataBlock(block),
        recorded,
        found,
    }
}

/// Reference counts as found. Sparse, because a device may be huge and almost empty.
struct References {
    nr_blocks: u64,
    counts: HashMap<u64, u32>,
}

impl References {
    fn new(nr_blocks: u64) -> Self {
        Self {
            nr_blocks,
            counts: HashMap::new(),
        }
    }

    /// Adds a reference; gives how many there were, `None` when the block does not exist.
    fn add(&mut self, block: u64) -> Option<u32> {
        if block >= self.nr_blocks {
            return None;
        }
        let count = self.counts.entry(block).or_insert(0);
        *count += 1;
        Some(*count - 1)
    }
}

/// What the leaves of a tree hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// Roots of volumes' trees.
    Subtrees,
    /// Mappings.
    Mappings,
    /// Index entries of the data space map.
    Bitmaps,
    /// Values of this size that refer to nothing.
    Plain(usize),
}

impl Leaves {
    fn value_size(self) -> usize {
        match self {
            Self::Subtrees | Self::Mappings => 8,
            Self::Bitmaps => IndexEntry::SIZE,
            Self::Plain(size) => size,
        }
    }
}

struct Check<'a> {
    reader: &'a Reader,
    metadata: References,
    data: References,
    /// Entries below nodes already walked.
    entries: HashMap<u64, u64>,
    findings: Vec<Finding>,
    more: u64,
}

impl Check<'_> {
    fn report(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    fn bad_node(&mut self, block: u64, what: impl Into<String>) {
        let (block, what) = (MetaBlock(block), what.into());
        self.report(Finding::Node { block, what });
    }

    fn unreadable(&mut self, block: u64, error: &MetadataError) {
        let (block, what) = (MetaBlock(block), error.to_string());
        self.report(Finding::Unreadable { block, what });
    }

    /// Counts a reference to a metadata block; `true` when it is the first.
    fn refer(&mut self, block: u64) -> bool {
        let before = self.metadata.add(block);
        if before.is_none() {
            self.bad_node(block, "a reference points past the end");
        }
        before == Some(0)
    }

    /// The two trees of volumes: the live ones, or those of a held superblock.
    fn volumes(&mut self, superblock: &Superblock) {
        self.tree(superblock.data_mapping_root, Leaves::Subtrees);
        let details = Leaves::Plain(DeviceDetails::SIZE);
        self.tree(superblock.device_details_root, details);
        self.compare_volumes(superblock);
    }

    fn held(&mut self, superblock: &Superblock) {
        let block = superblock.held_root;
        if block == 0 || !self.refer(block) {
            return;
        }
        let held = self
            .reader
            .read(block, BlockKind::Superblock, MayRead::Yes)
            .and_then(|bytes| Superblock::unpack(block, &bytes));
        match held {
            Ok(held) => self.volumes(&held),
            Err(e) => self.unreadable(block, &e),
        }
    }

    fn space_map_trees(&mut self, superblock: &Superblock) {
        let (metadata, data) = (superblock.metadata_space_map, superblock.data_space_map);
        let index_block = metadata.bitmap_root;
        self.refer(index_block);
        match self
            .reader
            .read(index_block, BlockKind::Index, MayRead::Yes)
        {
            Ok(index) => {
                let bitmaps = metadata.nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
                for at in 0..bitmaps.min(METADATA_BITMAPS_MAX) {
                    self.refer(index_entry(&index, at).block);
                }
            }
            Err(e) => self.unreadable(index_block, &e),
        }
        self.tree(metadata.ref_count_root, Leaves::Plain(4));
        self.tree(data.bitmap_root, Leaves::Bitmaps);
        self.tree(data.ref_count_root, Leaves::Plain(4));
    }

    fn tree(&mut self, root: u64, leaves: Leaves) {
        self.node(root, leaves, None, &mut None, 0);
    }

    /// Walks the node unless it was walked before; gives the entries below it.
    fn node(
        &mut self,
        block: u64,
        leaves: Leaves,
        parent_key: Option<u64>,
        last_key: &mut Option<u64>,
        depth: usize,
    ) -> u64 {
        if !self.refer(block) {
            return self.entries.get(&block).copied().unwrap_or(0);
        }
        if depth == DEPTH_MAX {
            self.bad_node(block, "the tree is too deep");
            return 0;
        }
        let node = match btree::read_node(self.reader, block) {
            Ok(node) => node,
            Err(e) => {
                self.unreadable(block, &e);
                return 0;
            }
        };
        if !self.node_rules(block, &node, leaves, parent_key, depth) {
            return 0;
        }
        let mut entries = 0;
        for at in 0..node.len() {
            let key = node.key(at);
            if !node.is_leaf() {
                let child = node.value_u64(at);
                entries += self.node(child, leaves, Some(key), last_key, depth + 1);
                continue;
            }
            if last_key.is_some_and(|last| key <= last) {
                self.bad_node(block, format!("key {key} is not above the one before"));
            }
            *last_key = Some(key);
            entries += 1;
            self.value(block, key, node.value_u64(at), leaves);
        }
        self.entries.insert(block, entries);
        entries
    }

    fn node_rules(
        &mut self,
        block: u64,
        node: &NodeView,
        leaves: Leaves,
        parent_key: Option<u64>,
        depth: usize,
    ) -> bool {
        let (len, max) = (node.len(), node.max());
        if node.is_leaf() && node.value_size() != leaves.value_size() {
            let (found, wanted) = (node.value_size(), leaves.value_size());
            self.bad_node(block, format!("values of {found} bytes, not {wanted}"));
            return false;
        }
        if max % 3 != 0 {
            self.bad_node(block, "room for a number of entries not divisible by 3");
        }
        if depth > 0 && len < max / 3 {
            self.bad_node(block, format!("only {len} entries of {max}"));
        }
        if (1..len).any(|at| node.key(at - 1) >= node.key(at)) {
            self.bad_node(block, "keys do not ascend");
        }
        if len > 0 && parent_key.is_some_and(|key| key > node.key(0)) {
            self.bad_node(block, "the first key is below the parent's");
        }
        true
    }

    fn value(&mut self, block: u64, key: u64, value: u64, leaves: Leaves) {
        match leaves {
            Leaves::Plain(_) => {}
            Leaves::Subtrees => self.tree(value, Leaves::Mappings),
            Leaves::Bitmaps => {
                self.refer(value);
            }
            Leaves::Mappings => {
                let (data, _) = unpack(value);
                if self.data.add(data.raw()).is_none() {
                    self.bad_node(
                        block,
                        format!("block {key} is mapped to {data}, past the end of the data device"),
                    );
                }
            }
        }
    }

    /// Every volume has both a tree and details, and the details count its mappings.
    fn compare_volumes(&mut self, superblock: &Superblock) {
        let (roots, details) = match self.list_volumes(superblock) {
            Ok(lists) => lists,
            Err(e) => {
                let block = e.block().map_or(0, MetaBlock::raw);
                self.unreadable(block, &e);
                return;
            }
        };
        for (id, root) in &roots {
            let mapped = self.entries.get(root).copied().unwrap_or(0);
            let what = match details.get(id) {
                None => "has mappings but no details".to_owned(),
                Some(d) if d.mapped_blocks != mapped => {
                    let recorded = d.mapped_blocks;
                    format!("has {mapped} mappings, its details say {recorded}")
                }
                Some(_) => continue,
            };
            self.report(Finding::Volume { id: *id, what });
        }
        for id in details.keys().filter(|id| !roots.contains_key(id)) {
            let what = "has details but no mapping tree".to_owned();
            self.report(Finding::Volume { id: *id, what });
        }
    }

    fn list_volumes(
        &self,
        superblock: &Superblock,
    ) -> Result<(HashMap<u64, u64>, HashMap<u64, DeviceDetails>)> {
        let (mut roots, mut details) = (HashMap::new(), HashMap::new());
        let top = superblock.data_mapping_root;
        self.collect(top, 8, |key, value| {
            let mut le = [0; 8];
            le.copy_from_slice(value);
            roots.insert(key, u64::from_le_bytes(le));
        })?;
        let top = superblock.device_details_root;
        self.collect(top, DeviceDetails::SIZE, |key, value| {
            let mut bytes = [0; DeviceDetails::SIZE];
            bytes.copy_from_slice(value);
            details.insert(key, DeviceDetails::unpack(&bytes));
        })?;
        Ok((roots, details))
    }

    fn collect(&self, root: u64, size: usize, mut each: impl FnMut(u64, &[u8])) -> Result<()> {
        let mut visit = |key, value: &[u8]| {
            each(key, value);
            Ok(ControlFlow::Continue(()))
        };
        btree::visit_entries(self.reader, root, size, 0, MayRead::Yes, &mut visit)
    }

    /// Compares recorded counts with those found.
    fn compare(
        &mut self,
        root: &SpaceMapRoot,
        count: impl Fn(u64) -> Result<u32>,
        references: impl Fn(&Self) -> &References,
        finding: impl Fn(u64, u32, u32) -> Finding,
    ) {
        let mut allocated = 0;
        for block in 0..root.nr_blocks {
            let recorded = match count(block) {
                Ok(count) => count,
                Err(e) => {
                    let what = e.to_string();
                    self.report(Finding::SpaceMap { what });
                    return;
                }
            };
            let found = references(self).counts.get(&block).copied().unwrap_or(0);
            allocated += u64::from(recorded > 0);
            if recorded != found {
                self.report(finding(block, recorded, found));
            }
        }
        if allocated != root.nr_allocated {
            self.report(Finding::Allocated {
                claimed: root.nr_allocated,
                found: allocated,
            });
        }
    }
}
