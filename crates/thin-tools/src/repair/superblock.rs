//! The superblock to repair by: the live one, or one put together from what is left.

use std::collections::BTreeMap;

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{ErrorKind, MetadataError, Result, SpaceMapRoot};
use thinmap_thin_metadata::{DeviceDetails, Superblock};

use super::RepairOptions;
use super::rescue::{Found, Rescued};
use super::scan::{Content, Scan};
use crate::check::{collect_details, collect_roots};
use crate::roots::superblock_at;
use crate::walk::{Role, Summaries, Walk, read_node};

/// Trees of each kind that are compared with those of the other.
const CANDIDATES_MAX: usize = 512;
/// Volumes that all candidates together may list, to bound memory and time.
const VOLUMES_MAX: usize = 8 << 20;

/// Where the superblock came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Live,
    /// Its roots were found by a scan.
    Scanned,
}

/// The copy of the superblock that a metadata snapshot holds.
pub(super) fn held(walk: &Walk<'_>, superblock: &Superblock) -> Option<Superblock> {
    let block = superblock.held_root;
    if block == 0 || block >= walk.blocks.len() {
        return None;
    }
    superblock_at(walk.image, block).ok()
}

/// The live superblock, or the best that can be made up for it.
pub(super) fn find(
    walk: &mut Walk<'_>,
    scan: &Scan,
    options: &RepairOptions,
) -> Result<(Superblock, Origin)> {
    if let Ok(superblock) = superblock_at(walk.image, 0)
        && (1..=2).contains(&superblock.version)
    {
        // What they mean for the trees only whoever has set them knows.
        if superblock.incompat_flags != 0 {
            let flags = superblock.incompat_flags;
            return Err(MetadataError::new(
                ErrorKind::Unsupported,
                format!(
                    "the superblock has unknown features ({flags:#x}): such metadata cannot be repaired"
                ),
            ));
        }
        let data_block_size = match Some(superblock.data_block_size).filter(is_possible) {
            Some(size) => size,
            None => {
                let copy = newest_copy(walk, scan);
                data_block_size(options, copy.as_ref()).ok_or_else(|| {
                    let what = format!(
                        "the superblock has data blocks of {} sectors, which no pool can have; give --data-block-size \
                         (sectors, as in the pool's table line)",
                        superblock.data_block_size
                    );
                    MetadataError::new(ErrorKind::Inval, what)
                })?
            }
        };
        let superblock = Superblock {
            data_block_size,
            ..superblock
        };
        return Ok((superblock, Origin::Live));
    }
    let copy = newest_copy(walk, scan);
    let data_block_size = data_block_size(options, copy.as_ref()).ok_or_else(|| {
        let what = "the superblock is lost and with it the data block size; give --data-block-size \
                    (sectors, as in the pool's table line), and --transaction-id and --nr-data-blocks if known";
        MetadataError::new(ErrorKind::Inval, what)
    })?;
    let (top, details) = best_roots(walk, scan)?;
    let age = age_of(&collect_details(walk, details));
    Ok((
        Superblock {
            flags: 0,
            uuid: copy.map_or([0; 16], |c| c.uuid),
            version: 2,
            time: age.1,
            transaction_id: age.0,
            held_root: 0,
            data_space_map: SpaceMapRoot::default(),
            metadata_space_map: SpaceMapRoot::default(),
            data_mapping_root: top,
            device_details_root: details,
            data_block_size,
            metadata_nr_blocks: walk.image.blocks(),
            compat_flags: 0,
            compat_ro_flags: 0,
            incompat_flags: 0,
        },
        Origin::Scanned,
    ))
}

/// What stands in for a data block size that is lost, in sectors.
fn data_block_size(options: &RepairOptions, copy: Option<&Superblock>) -> Option<u32> {
    let copied = copy.map(|copy| copy.data_block_size).filter(is_possible);
    options.data_block_size.or(copied)
}

fn is_possible(data_block_size: &u32) -> bool {
    Superblock::is_data_block_size(*data_block_size)
}

fn newest_copy(walk: &Walk<'_>, scan: &Scan) -> Option<Superblock> {
    scan.all(Content::Superblock)
        .into_iter()
        .filter_map(|block| superblock_at(walk.image, block).ok())
        .max_by_key(|copy| (copy.transaction_id, copy.time))
}

/// Highest transaction id and time that volumes tell of.
fn age_of(details: &BTreeMap<u64, DeviceDetails>) -> (u64, u32) {
    let transaction = details.values().map(|d| d.transaction_id).max();
    let time = details
        .values()
        .map(|d| d.creation_time.max(d.snapshotted_time))
        .max();
    (transaction.unwrap_or(0), time.unwrap_or(0))
}

/// A pair of roots and what speaks for it, the strongest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Volumes whose details count exactly the mappings that their tree has.
    is_consistent: bool,
    age: (u64, u32),
    matching: usize,
    mapped: u64,
}

/// The roots of the newest pool that the scanned blocks make up: a tree of volumes and a tree of details that
/// name the same volumes and agree on their mappings.
fn best_roots(walk: &mut Walk<'_>, scan: &Scan) -> Result<(u64, u64)> {
    let (tops, details) = candidate_roots(walk, scan);
    for root in &details {
        walk.add_root(*root, Role::Details);
    }
    for root in &tops {
        walk.add_root(*root, Role::Top);
    }
    walk.run();
    let sums = Summaries::new(walk);
    tops.iter().chain(&details).for_each(|root| {
        sums.of(*root);
    });
    let mut details = bounded(details, |root| collect_details(walk, root), BTreeMap::len);
    details.sort_by_key(|(_, found)| std::cmp::Reverse((age_of(found), found.len())));
    let tops = bounded(tops, |root| collect_roots(walk, root), BTreeMap::len);
    let mut best: Option<(Score, u64, u64)> = None;
    for (details_root, volumes) in &details {
        for (top, roots) in &tops {
            if !roots.keys().eq(volumes.keys()) {
                continue;
            }
            let score = score(walk, &sums, volumes, roots);
            if best.as_ref().is_none_or(|(known, _, _)| score > *known) {
                best = Some((score, *top, *details_root));
            }
        }
    }
    // Without a pair that names the same volumes: the longest list of volumes, details by chance.
    let alone = || {
        let top = tops.iter().max_by_key(|(_, roots)| roots.len())?;
        let details = details.first().map_or(top.0, |(root, _)| *root);
        Some((top.0, details))
    };
    best.map(|(_, top, details)| (top, details))
        .or_else(alone)
        .ok_or_else(|| {
            let what =
                "no tree of volumes was found: this is no thin metadata, or nothing is left of it";
            MetadataError::new(ErrorKind::Corrupt, what)
        })
}

/// The first candidates, with what they list.
fn bounded<T>(
    roots: Vec<u64>,
    list: impl Fn(u64) -> T,
    len: impl Fn(&T) -> usize,
) -> Vec<(u64, T)> {
    let mut volumes = 0;
    roots
        .into_iter()
        .map(|root| (root, list(root)))
        .take_while(|(_, listed)| {
            volumes += len(listed);
            volumes <= VOLUMES_MAX
        })
        .filter(|(_, listed)| len(listed) > 0)
        .take(CANDIDATES_MAX)
        .collect()
}

fn score(
    walk: &Walk<'_>,
    sums: &Summaries<'_>,
    details: &BTreeMap<u64, DeviceDetails>,
    roots: &BTreeMap<u64, u64>,
) -> Score {
    let matches = |(id, root): &(&u64, &u64)| {
        let mapped = sums.of(**root).entries;
        !walk.blocks.is_damaged(**root)
            && details.get(*id).is_some_and(|d| d.mapped_blocks == mapped)
    };
    let matching = roots.iter().filter(matches).count();
    Score {
        is_consistent: matching == roots.len(),
        age: age_of(details),
        matching,
        mapped: details
            .values()
            .fold(0, |sum, d| sum.saturating_add(d.mapped_blocks)),
    }
}

/// Nodes that could be the root of a tree of volumes, and of one of details.
fn candidate_roots(walk: &Walk<'_>, scan: &Scan) -> (Vec<u64>, Vec<u64>) {
    let mut tops = Vec::new();
    for leaf in scan.all(Content::Leaf8) {
        let could_be = |node: Node<'_>| {
            // An empty leaf is an empty volume's far more often than an empty pool's.
            !node.is_empty()
                && (0..node.len()).all(|at| {
                    let content = scan.content(node.child(at));
                    node.key(at) < 1 << 24 && matches!(content, Content::Leaf8 | Content::Internal)
                })
        };
        if read_node(walk.image, leaf).is_some_and(|bytes| could_be(Node(&bytes))) {
            tops.push(leaf);
        }
    }
    let mut details = scan.all(Content::LeafDetails);
    // Parents of such, level by level; a tree of 2^24 volumes has at most four.
    let internal: Vec<(u64, Vec<u64>)> = scan
        .all(Content::Internal)
        .into_iter()
        .filter_map(|block| {
            let bytes = read_node(walk.image, block)?;
            let node = Node(&bytes);
            let is_of_volumes = (0..node.len()).all(|at| node.key(at) < 1 << 24);
            is_of_volumes.then(|| (block, (0..node.len()).map(|at| node.child(at)).collect()))
        })
        .collect();
    for found in [&mut tops, &mut details] {
        let mut known: std::collections::HashSet<u64> = found.iter().copied().collect();
        for _ in 0..3 {
            let parents: Vec<u64> = internal
                .iter()
                .filter(|(block, children)| {
                    !known.contains(block) && children.iter().all(|child| known.contains(child))
                })
                .map(|(block, _)| *block)
                .collect();
            known.extend(&parents);
            // The newest candidates are the tallest trees; leaves come last.
            found.splice(0..0, parents);
        }
    }
    (tops, details)
}

/// Puts in what the user says.
pub(super) fn adjust(superblock: &mut Superblock, options: &RepairOptions) {
    if let Some(id) = options.transaction_id {
        superblock.transaction_id = id;
    }
    if let Some(size) = options.data_block_size {
        superblock.data_block_size = size;
    }
    if let Some(blocks) = options.nr_data_blocks {
        superblock.data_space_map.nr_blocks = blocks;
    }
}

/// The highest time that fits into a mapping, and so the highest of a pool.
pub(super) const TIME_MAX: u32 = (1 << 24) - 1;

/// Sets the times that tell which mappings are shared. `newest` is the highest one of any mapping in the output.
///
/// A mapping is shared when it is older than the volume was last made a snapshot of. So a pool whose time is
/// below a mapping's would take blocks of its next snapshots for unshared and overwrite them; and a volume of
/// which that time is lost must have one above all of its mappings.
///
/// `true` when the pool's time is the last one there is: no snapshot can be made of its volumes any more.
pub(super) fn settle_times(
    superblock: &mut Superblock,
    rescued: &mut Rescued,
    newest: Option<u32>,
) -> bool {
    let mut time = superblock.time.max(newest.unwrap_or(0));
    let volumes = &mut rescued.volumes;
    for volume in volumes.iter().filter(|volume| !volume.is_all_shared()) {
        let details = &volume.details;
        // A condemned volume is marked by a creation time one above the other, which is no pool's time.
        if details.creation_time <= details.snapshotted_time {
            time = time.max(details.snapshotted_time);
        }
    }
    for volume in volumes.iter_mut().filter(|volume| volume.is_all_shared()) {
        let above = newest.map_or(0, |newest| newest + 1);
        let details = &mut volume.details;
        details.snapshotted_time = details.snapshotted_time.max(superblock.time).max(above);
        if volume.details_found == Found::Invented {
            volume.details.creation_time = volume.details.snapshotted_time;
        }
        time = time.max(volume.details.snapshotted_time);
    }
    // Details hold 32 bits, so beyond the end a volume keeps its mappings shared for good: slow, never wrong.
    superblock.time = time.min(TIME_MAX);
    time >= TIME_MAX
}

/// Sees to it that all mapped data blocks are counted: one past the highest is `data_end`.
///
/// # Errors
/// `Inval` when the superblock or the user says that there are fewer.
pub(super) fn cover(
    superblock: &mut Superblock,
    data_end: u64,
    origin: Origin,
    options: &RepairOptions,
) -> Result<()> {
    let blocks = &mut superblock.data_space_map.nr_blocks;
    if data_end <= *blocks {
        return Ok(());
    }
    if origin == Origin::Scanned && options.nr_data_blocks.is_none() {
        // A pool grows to its data device when it is opened.
        *blocks = data_end;
        return Ok(());
    }
    Err(MetadataError::new(
        ErrorKind::Inval,
        format!(
            "data block {} is mapped, but the data device is said to have {blocks} blocks; give \
             --nr-data-blocks {data_end} or more if that is wrong",
            data_end - 1
        ),
    ))
}
