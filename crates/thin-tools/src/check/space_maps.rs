//! The space maps: read as trees, and compared with the references found.

use std::collections::{BTreeMap, HashMap};

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{
    BlockBytes, BlockKind, ENTRIES_PER_BITMAP, IndexEntry, META_BLOCK_SIZE, METADATA_BITMAPS_MAX,
    index_entry, small_count, verify,
};

use super::{Area, Check, Finding, Severity};
use crate::walk::{CHUNK_BLOCKS, DataCounts, Role, Summaries, WINDOW_CHUNKS, Walk};

/// Leaks that are kept for a repair; more are found by the next check.
const LEAKS_MAX: usize = 1 << 20;

/// A block that is counted higher than it is used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leak {
    /// Of the metadata device: block, and references too many.
    Metadata(u64, u32),
    /// Of the data device.
    Data(u64, u32),
    /// Blocks that the metadata space map's root counts too many.
    MetadataTotal(u64),
    /// Blocks that the data space map's root counts too many.
    DataTotal(u64),
}

/// One of the two space maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Metadata,
    Data,
}

impl Space {
    fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Data => "data",
        }
    }
}

/// What the bitmaps and the tree of a space map say of a stretch of blocks.
struct Recorded<'a> {
    /// Blocks marked "more", with the count of the tree.
    large: &'a HashMap<u64, u32>,
    /// Blocks with a count above zero.
    allocated: u64,
}

impl Check<'_> {
    /// Walks the space maps' own trees; gives the metadata bitmaps.
    pub(super) fn space_map_trees(&self, walk: &mut Walk<'_>) -> Vec<IndexEntry> {
        let (metadata, data) = (
            &self.superblock.metadata_space_map,
            &self.superblock.data_space_map,
        );
        let index = self.metadata_index(walk, metadata.bitmap_root);
        for entry in &index {
            walk.add_root(entry.block, Role::Bitmap);
        }
        walk.add_root(metadata.ref_count_root, Role::Counts);
        walk.add_root(data.bitmap_root, Role::Index);
        walk.add_root(data.ref_count_root, Role::Counts);
        walk.run();
        let sums = Summaries::new(walk);
        for root in [
            metadata.ref_count_root,
            data.bitmap_root,
            data.ref_count_root,
        ] {
            sums.of(root);
        }
        let bitmaps = data.nr_blocks.div_ceil(ENTRIES_PER_BITMAP);
        let found = walk.bitmaps.iter().filter(|(at, _)| *at < bitmaps).count() as u64;
        if found < bitmaps && !walk.blocks.is_damaged(data.bitmap_root) {
            let what = format!("the data space map has {found} bitmaps, it needs {bitmaps}");
            self.findings.add(Finding::fatal(Area::SpaceMaps, what));
        }
        index
    }

    fn metadata_index(&self, walk: &Walk<'_>, block: u64) -> Vec<IndexEntry> {
        let fatal = |what: String| {
            let finding = Finding::fatal(Area::SpaceMaps, what);
            self.findings.add(finding.in_block(block));
            Vec::new()
        };
        if block == 0 || block >= walk.blocks.len() {
            return fatal("is named as the metadata space map's index".to_owned());
        }
        walk.refer_single(block);
        let mut bytes: BlockBytes = [0; META_BLOCK_SIZE];
        if let Err(error) = self.image.read_run(block, &mut bytes) {
            let what = format!("cannot be read: {error}");
            let finding = Finding::fatal(Area::SpaceMaps, what).in_block(block);
            self.findings.add(finding.unreadable(true));
            return Vec::new();
        }
        if let Err(error) = verify(BlockKind::Index, block, &bytes) {
            return fatal(error.context().to_owned());
        }
        let bitmaps = walk.blocks.len().div_ceil(ENTRIES_PER_BITMAP);
        (0..bitmaps.min(METADATA_BITMAPS_MAX))
            .map(|at| index_entry(&bytes, at))
            .collect()
    }

    /// Compares both space maps with what was found.
    pub(super) fn compare(&mut self, walk: &mut Walk<'_>, index: &[IndexEntry], chunks: u64) {
        let metadata = self.superblock.metadata_space_map;
        let data = self.superblock.data_space_map;
        let bitmaps: BTreeMap<u64, u64> = (0..).zip(index.iter().map(|e| e.block)).collect();
        let found = |block| walk.blocks.refs(block);
        let large = large_counts(walk, metadata.ref_count_root, 0..u64::MAX);
        let mut recorded = Recorded {
            large: &large,
            allocated: 0,
        };
        let is_used = |_| true;
        self.bitmaps(
            walk,
            Space::Metadata,
            &bitmaps,
            metadata.nr_blocks,
            &found,
            &is_used,
            &mut recorded,
        );
        let allocated = recorded.allocated;
        self.total(Space::Metadata, metadata.nr_allocated, allocated);

        let bitmaps: BTreeMap<u64, u64> =
            walk.bitmaps.iter().map(|(at, e)| (*at, e.block)).collect();
        let (mut allocated, mut first) = (0, 0);
        while first < chunks {
            if first > 0 {
                self.count_window(walk, first, chunks);
            }
            let end = (first + WINDOW_CHUNKS).min(chunks);
            let large = large_counts(
                walk,
                data.ref_count_root,
                first * CHUNK_BLOCKS..end * CHUNK_BLOCKS,
            );
            let mut recorded = Recorded {
                large: &large,
                allocated: 0,
            };
            if let Some(counts) = &walk.data {
                let window: BTreeMap<u64, u64> =
                    bitmaps.range(first..end).map(|(a, b)| (*a, *b)).collect();
                let found = |block| counts.count(block);
                let is_used = |chunk| counts.has_chunk(chunk);
                self.bitmaps(
                    walk,
                    Space::Data,
                    &window,
                    data.nr_blocks,
                    &found,
                    &is_used,
                    &mut recorded,
                );
            }
            allocated += recorded.allocated;
            first = end;
        }
        self.total(Space::Data, data.nr_allocated, allocated);
    }

    /// Counts the mappings once more, for the next window of the data device.
    fn count_window(&self, walk: &mut Walk<'_>, first: u64, chunks: u64) {
        let data = DataCounts::new(self.superblock.data_space_map.nr_blocks, first, chunks);
        let leaves = walk.blocks.leaves(Role::Mappings);
        walk.in_parallel(&leaves, |_, bytes, (): &mut ()| {
            if let Ok(bytes) = bytes {
                data.add_leaf(Node(bytes));
            }
        });
        walk.data = Some(data);
    }

    #[allow(clippy::too_many_arguments, reason = "two space maps, one comparison")]
    fn bitmaps(
        &mut self,
        walk: &Walk<'_>,
        space: Space,
        bitmaps: &BTreeMap<u64, u64>,
        nr_blocks: u64,
        found: &(dyn Fn(u64) -> u32 + Sync),
        is_used: &(dyn Fn(u64) -> bool + Sync),
        recorded: &mut Recorded<'_>,
    ) {
        // By block, so that the device is read in order.
        let numbers: HashMap<u64, u64> = bitmaps.iter().map(|(at, block)| (*block, *at)).collect();
        let mut blocks: Vec<u64> = numbers.keys().copied().collect();
        blocks.sort_unstable();
        let large = recorded.large;
        let harvests = walk.in_parallel(&blocks, |block, bytes, harvest: &mut BitmapHarvest| {
            let (Ok(bytes), Some(at)) = (bytes, numbers.get(&block)) else {
                return;
            };
            let first = at * ENTRIES_PER_BITMAP;
            let end = nr_blocks.saturating_sub(first).min(ENTRIES_PER_BITMAP);
            if !is_used(*at) && bytes[16..].iter().all(|byte| *byte == 0) {
                return;
            }
            for at in 0..end {
                let block = first + at;
                let small = small_count(bytes, at);
                let found = found(block);
                harvest.allocated += u64::from(small > 0);
                let recorded = match (small, large.get(&block)) {
                    (3, None) => {
                        harvest.untold.push(block);
                        continue;
                    }
                    (3, Some(count)) => *count,
                    (small, _) => small,
                };
                if recorded != found {
                    harvest.wrong.push((block, recorded, found));
                }
            }
            // They would be in use when the device grows.
            let is_counted = |at: &u64| small_count(bytes, *at) > 0;
            let beyond = (end..ENTRIES_PER_BITMAP).find(is_counted);
            harvest.beyond.extend(beyond.map(|at| (block, first + at)));
        });
        let name = space.name();
        for harvest in harvests {
            recorded.allocated += harvest.allocated;
            for (bitmap, block) in harvest.beyond {
                let what =
                    format!("counts {name} block {block}, which is beyond the end of the device");
                let finding = Finding::fatal(Area::SpaceMaps, what);
                self.findings.add(finding.in_block(bitmap));
            }
            for block in harvest.untold {
                let what =
                    format!("has no count for {name} block {block}, which has one above two");
                self.findings.add(Finding::fatal(Area::SpaceMaps, what));
            }
            for (block, counted, found) in harvest.wrong {
                self.wrong_count(space, block, counted, found);
            }
        }
    }

    fn wrong_count(&mut self, space: Space, block: u64, recorded: u32, found: u32) {
        let severity = match recorded > found {
            true => Severity::Leak,
            false => Severity::Fatal,
        };
        let name = space.name();
        let what = format!("{name} block {block} is used {found} times, its count is {recorded}");
        self.findings
            .add(Finding::new(severity, Area::SpaceMaps, what));
        if severity == Severity::Leak && self.leaks.len() < LEAKS_MAX {
            let excess = recorded - found;
            self.leaks.push(match space {
                Space::Metadata => Leak::Metadata(block, excess),
                Space::Data => Leak::Data(block, excess),
            });
        }
    }

    /// thin_restore 0.9 claims one metadata block too many, so this alone is no reason to refuse a pool.
    fn total(&mut self, space: Space, claimed: u64, allocated: u64) {
        if claimed == allocated {
            return;
        }
        let name = space.name();
        let what = format!(
            "the {name} space map has {allocated} blocks in use, its root claims {claimed}"
        );
        self.findings
            .add(Finding::new(Severity::Note, Area::SpaceMaps, what));
        if let Some(excess) = claimed.checked_sub(allocated) {
            self.leaks.push(match space {
                Space::Metadata => Leak::MetadataTotal(excess),
                Space::Data => Leak::DataTotal(excess),
            });
        }
    }
}

#[derive(Default)]
struct BitmapHarvest {
    allocated: u64,
    /// Block, recorded count, references found.
    wrong: Vec<(u64, u32, u32)>,
    /// Blocks whose count should be in the tree, and is not.
    untold: Vec<u64>,
    /// Bitmaps that count what does not exist, and the first such block.
    beyond: Vec<(u64, u64)>,
}

/// The counts above two that a walked tree has for blocks of `range`.
pub(crate) fn large_counts(
    walk: &Walk<'_>,
    root: u64,
    range: std::ops::Range<u64>,
) -> HashMap<u64, u32> {
    let mut counts = HashMap::new();
    large_counts_below(walk, root, &range, 0, &mut counts);
    counts
}

fn large_counts_below(
    walk: &Walk<'_>,
    block: u64,
    range: &std::ops::Range<u64>,
    depth: usize,
    counts: &mut HashMap<u64, u32>,
) {
    // A root that is wrong may name a node of another tree, with values of another size.
    let is_counts = walk.blocks.is_good(block) && walk.blocks.role(block) == Some(Role::Counts);
    if !is_counts || depth > 16 {
        return;
    }
    let below = walk.blocks.summary(block);
    if below.entries == 0 || below.last < range.start || below.first >= range.end {
        return;
    }
    let Some(bytes) = crate::walk::read_node(walk.image, block) else {
        return;
    };
    let node = Node(&bytes);
    for at in 0..node.len() {
        if !node.is_leaf() {
            large_counts_below(walk, node.child(at), range, depth + 1, counts);
        } else if range.contains(&node.key(at)) {
            let mut le = [0; 4];
            le.copy_from_slice(node.value(at));
            counts.insert(node.key(at), u32::from_le_bytes(le));
        }
    }
}
