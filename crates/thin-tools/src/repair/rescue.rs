//! The volumes that survive: where each one's mapping tree is, and what is known of it.
//!
//! What the live roots lead to is live. Only for what they do not lead to any more, the scanned blocks are
//! asked; and of these only such are taken as the metadata space map has in use, as far as it can be read:
//! a node that is not in use is of an older transaction, and the data blocks it names may be another
//! volume's by now.

use std::collections::{BTreeMap, BTreeSet};

use thinmap_persistent_data::btree::Node;
use thinmap_thin_metadata::{DeviceDetails, Superblock};

use super::in_use::InUse;
use super::scan::{Content, Scan};
use super::{add_trees, superblock};
use crate::check::{Findings, collect_details, collect_roots};
use crate::walk::{MissingRanges, RangeMap, Role, Summaries, Walk, broken_rule, read_node};

/// Ids that a volume can have.
const ID_END: u64 = 1 << 24;
/// Roots that are tried for one volume.
const CANDIDATES_MAX: usize = 64;

/// How a part was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// By the live roots.
    Live,
    /// By a block that nothing live refers to any more.
    Scanned,
    /// Made up.
    Invented,
}

/// A leaf of a mapping tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Leaf {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) block: u64,
    pub(super) entries: u64,
}

/// A volume that survives, wholly or in part.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) id: u64,
    /// Its mapping tree, as far as it can be reached.
    pub(super) root: u64,
    pub(super) root_found: Found,
    pub(super) details: DeviceDetails,
    pub(super) details_found: Found,
    /// Its tree and its details may be of different transactions: their numbers of mappings differ, and no damage
    /// accounts for it.
    pub(super) details_differ: bool,
    /// Leaves in order, when the tree is damaged.
    pub(super) leaves: Option<Vec<Leaf>>,
    /// What is lost of it.
    pub(super) lost: RangeMap,
    /// Mappings that survive.
    pub(super) mapped: u64,
    /// Mappings that its details count, when those are its own.
    pub(super) expected: Option<u64>,
    /// Leaves that were found though nothing refers to them.
    pub(super) adopted: u64,
}

impl Volume {
    /// Whether nothing says which of its mappings are shared, so that all must be taken for it: details that were made
    /// up, or are older than the mappings.
    pub(super) fn is_all_shared(&self) -> bool {
        self.details_found != Found::Live || self.details_differ
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Rescued {
    pub(super) volumes: Vec<Volume>,
    /// Volumes that are known to have been but cannot be found.
    pub(super) lost: Vec<(u64, Option<DeviceDetails>)>,
    /// Not all ids could be learnt: volumes may be missing that nothing names.
    pub(super) ids_in_doubt: bool,
}

struct Rescue<'w, 'a> {
    walk: &'w mut Walk<'a>,
    scan: &'w Scan,
    in_use: InUse,
    roots: BTreeMap<u64, (u64, Found)>,
    details: BTreeMap<u64, (DeviceDetails, Found)>,
    /// The tree of details is whole, so it names all volumes there are.
    all_details: bool,
    all_roots: bool,
    /// Leaves of mappings that something lost refers to.
    orphans: Vec<Leaf>,
    missing: MissingRanges,
    visits: u64,
}

/// Finds what survives below `superblock`.
pub(super) fn rescue<'a>(
    walk: &mut Walk<'a>,
    scan: &Scan,
    superblock: &Superblock,
    scratch: &'a Findings,
) -> Rescued {
    add_trees(walk, superblock);
    let sums = Summaries::new(walk);
    sums.of(superblock.device_details_root);
    sums.of(superblock.data_mapping_root);
    let live = |found: BTreeMap<u64, u64>| -> BTreeMap<u64, (u64, Found)> {
        found
            .into_iter()
            .map(|(id, root)| (id, (root, Found::Live)))
            .collect()
    };
    let mut roots = live(collect_roots(walk, superblock.data_mapping_root));
    // What is something else too is no volume's tree.
    roots.retain(|_, (root, _)| walk.blocks.role(*root) == Some(Role::Mappings));
    roots.values().for_each(|(root, _)| {
        sums.of(*root);
    });
    let details: BTreeMap<u64, DeviceDetails> =
        collect_details(walk, superblock.device_details_root);
    let all_details = !walk.blocks.is_damaged(superblock.device_details_root);
    let all_roots = !walk.blocks.is_damaged(superblock.data_mapping_root);
    let is_whole = all_details
        && all_roots
        && roots
            .values()
            .all(|(root, _)| !walk.blocks.is_damaged(*root));
    let mut in_use = InUse::read(walk, superblock);
    // What is found from here on is no damage of the live metadata.
    walk.findings = scratch;
    if !is_whole && let Some(held) = superblock::held(walk, superblock) {
        add_trees(walk, &held);
    }
    if !is_whole {
        in_use.read_large(walk, superblock);
    }
    let mut rescue = Rescue {
        walk,
        scan,
        in_use,
        roots,
        details: details
            .into_iter()
            .map(|(id, d)| (id, (d, Found::Live)))
            .collect(),
        all_details,
        all_roots,
        orphans: Vec::new(),
        missing: MissingRanges::default(),
        visits: 0,
    };
    if !is_whole {
        rescue.find_orphans();
        rescue.find_details();
        rescue.find_roots();
    }
    rescue.settle(superblock)
}

impl Rescue<'_, '_> {
    /// Leaves of mappings that are counted more often than surviving trees lead to them: a lost node does.
    fn find_orphans(&mut self) {
        for block in self.scan.all(Content::Leaf8) {
            let found = self.walk.blocks.refs(block);
            if self
                .in_use
                .count(block)
                .is_none_or(|counted| counted <= found)
            {
                continue;
            }
            let Some(bytes) = read_node(self.walk.image, block) else {
                continue;
            };
            let node = Node(&bytes);
            if !node.is_empty() && broken_rule(node, Role::Mappings, true).is_none() {
                self.orphans.push(Leaf {
                    first: node.key(0),
                    last: node.key(node.len() - 1),
                    block,
                    entries: node.len() as u64,
                });
            }
        }
        self.orphans.sort_unstable();
    }

    /// Details of volumes that the live tree lost.
    fn find_details(&mut self) {
        if self.all_details {
            return;
        }
        let mut found: BTreeMap<u64, (bool, DeviceDetails)> = BTreeMap::new();
        for leaf in self.scan.all(Content::LeafDetails) {
            if !self.in_use.may_be(leaf) || self.walk.blocks.is_good(leaf) {
                continue;
            }
            let Some(bytes) = read_node(self.walk.image, leaf) else {
                continue;
            };
            let node = Node(&bytes);
            for at in (0..node.len()).filter(|at| node.key(*at) < ID_END) {
                let mut value = [0; DeviceDetails::SIZE];
                value.copy_from_slice(node.value(at));
                let details = DeviceDetails::unpack(&value);
                let is_certain = self.in_use.is(leaf) == Some(true);
                let mapped = self.mapped_when_whole(node.key(at));
                let age = |d: &DeviceDetails| {
                    (
                        mapped == Some(d.mapped_blocks),
                        d.transaction_id,
                        d.creation_time,
                        d.snapshotted_time,
                        d.mapped_blocks,
                    )
                };
                let better = found.get(&node.key(at)).is_none_or(|(certain, known)| {
                    (is_certain, age(&details)) > (*certain, age(known))
                });
                if better {
                    found.insert(node.key(at), (is_certain, details));
                }
            }
        }
        for (id, (_, details)) in found {
            // A whole tree of roots names all volumes: any other one was deleted.
            if !self.all_roots || self.roots.contains_key(&id) {
                self.details.entry(id).or_insert((details, Found::Scanned));
            }
        }
    }

    /// How many mappings the undamaged tree of a volume has.
    fn mapped_when_whole(&self, id: u64) -> Option<u64> {
        let (root, _) = self.roots.get(&id)?;
        let is_whole = !self.walk.blocks.is_damaged(*root);
        is_whole.then(|| Summaries::new(self.walk).of(*root).entries)
    }

    /// Roots of volumes that the live tree lost.
    fn find_roots(&mut self) {
        if self.all_roots {
            return;
        }
        let hints = self.root_hints();
        let candidates: BTreeSet<u64> = hints.values().flatten().copied().collect();
        for root in &candidates {
            self.walk.add_root(*root, Role::Mappings);
        }
        self.walk.run();
        for (id, roots) in hints {
            let expected = self.details.get(&id).map(|(d, _)| d.mapped_blocks);
            let sums = Summaries::new(self.walk);
            let best = roots
                .into_iter()
                .filter(|root| self.walk.blocks.role(*root) == Some(Role::Mappings))
                .max_by_key(|root| {
                    let below = sums.of(*root).entries;
                    let whole = !self.walk.blocks.is_damaged(*root);
                    (whole && expected == Some(below), whole, below)
                });
            if let Some(root) = best {
                self.roots.insert(id, (root, Found::Scanned));
            }
        }
    }

    /// Roots that scanned leaves name for volumes without one.
    fn root_hints(&self) -> BTreeMap<u64, Vec<u64>> {
        let mut hints: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for leaf in self.scan.all(Content::Leaf8) {
            let Some(bytes) = read_node(self.walk.image, leaf) else {
                continue;
            };
            let node = Node(&bytes);
            if !self.is_leaf_of_roots(node) {
                continue;
            }
            for at in 0..node.len() {
                let (id, root) = (node.key(at), node.child(at));
                let is_wanted = match self.all_details {
                    true => self.details.contains_key(&id),
                    false => true,
                };
                if self.roots.contains_key(&id) || !is_wanted || !self.in_use.may_be(root) {
                    continue;
                }
                let known = hints.entry(id).or_default();
                if !known.contains(&root) && known.len() < CANDIDATES_MAX {
                    known.push(root);
                }
            }
        }
        hints
    }

    /// Whether all that a leaf holds could be volumes' roots. A mapping could only to data block 0.
    fn is_leaf_of_roots(&self, node: Node<'_>) -> bool {
        !node.is_empty()
            && (0..node.len()).all(|at| {
                let content = self.scan.content(node.child(at));
                let is_tree = matches!(content, Content::Internal | Content::Leaf8 | Content::None);
                node.key(at) < ID_END
                    && node.child(at) < self.walk.blocks.len()
                    && is_tree
                    && node.child(at) > 0
            })
    }

    /// Puts together what is known of each volume. One that the tree of volumes names is kept without details too.
    fn settle(mut self, superblock: &Superblock) -> Rescued {
        let mut rescued = Rescued {
            ids_in_doubt: !self.all_details && !self.all_roots,
            ..Rescued::default()
        };
        let details = std::mem::take(&mut self.details);
        for (id, (root, root_found)) in std::mem::take(&mut self.roots) {
            let known = details.get(&id).copied();
            let volume = self.volume(id, (root, root_found), known, superblock);
            rescued.volumes.push(volume);
        }
        let there: BTreeSet<u64> = rescued.volumes.iter().map(|v| v.id).collect();
        for (id, (details, _)) in details {
            if !there.contains(&id) {
                rescued.lost.push((id, Some(details)));
            }
        }
        rescued
    }

    fn volume(
        &mut self,
        id: u64,
        (root, root_found): (u64, Found),
        known: Option<(DeviceDetails, Found)>,
        superblock: &Superblock,
    ) -> Volume {
        let mapped = Summaries::new(self.walk).of(root).entries;
        let expected = known.map(|(d, _)| d.mapped_blocks);
        let (details, details_found) = known.unwrap_or((
            DeviceDetails {
                mapped_blocks: mapped,
                transaction_id: superblock.transaction_id,
                creation_time: superblock.time,
                snapshotted_time: superblock.time,
            },
            Found::Invented,
        ));
        let mut volume = Volume {
            id,
            root,
            root_found,
            details,
            details_found,
            details_differ: false,
            leaves: None,
            lost: RangeMap::default(),
            mapped,
            expected,
            adopted: 0,
        };
        let is_damaged = self.walk.blocks.is_damaged(root);
        if is_damaged {
            self.take_leaves(&mut volume);
        }
        let differ = expected.is_some_and(|expected| expected != volume.mapped);
        volume.details_differ = differ && (!is_damaged || root_found != Found::Live);
        volume.details.mapped_blocks = volume.mapped;
        volume
    }

    /// The leaves of a damaged tree that can be reached, and those that fit its gaps if they fill them.
    fn take_leaves(&mut self, volume: &mut Volume) {
        let mut leaves = Vec::new();
        gather_leaves(self.walk, volume.root, 0, &mut self.visits, &mut leaves);
        volume.mapped = leaves.iter().map(|leaf| leaf.entries).sum();
        volume.lost = self.missing.of(self.walk, volume.root);
        if let Some(adopted) = self.adoptable(volume) {
            volume.adopted = adopted.len() as u64;
            volume.mapped += adopted.iter().map(|leaf| leaf.entries).sum::<u64>();
            volume.lost = RangeMap::default();
            leaves.extend(adopted);
            leaves.sort_unstable();
        }
        volume.leaves = Some(leaves);
    }

    /// Orphans that lie in a volume's gaps, if they make up for exactly what it lacks.
    fn adoptable(&self, volume: &Volume) -> Option<Vec<Leaf>> {
        let lacking = volume.expected?.checked_sub(volume.mapped)?;
        let fits = |leaf: &&Leaf| {
            let inside = |(from, end): (u64, Option<u64>)| {
                leaf.first >= from && end.is_none_or(|end| leaf.last < end)
            };
            volume.lost.iter().any(inside)
        };
        let found: Vec<Leaf> = self.orphans.iter().filter(fits).copied().collect();
        let overlaps = found.windows(2).any(|pair| pair[0].last >= pair[1].first);
        let total: u64 = found.iter().map(|leaf| leaf.entries).sum();
        (!overlaps && total == lacking && total > 0).then_some(found)
    }
}

/// Nodes of damaged volumes that are looked into, all together.
const VISITS_MAX: u64 = 64 << 20;

/// The good leaves below `block` that lie where their parents say.
fn gather_leaves(
    walk: &Walk<'_>,
    block: u64,
    depth: usize,
    visits: &mut u64,
    leaves: &mut Vec<Leaf>,
) {
    let is_node = walk.blocks.role(block) == Some(Role::Mappings) && walk.blocks.is_good(block);
    *visits += 1;
    if !is_node || depth > 16 || *visits > VISITS_MAX {
        return;
    }
    let below = walk.blocks.summary(block);
    if below.entries == 0 {
        return;
    }
    if walk.blocks.is_leaf(block) {
        leaves.push(Leaf {
            first: below.first,
            last: below.last,
            block,
            entries: below.entries,
        });
        return;
    }
    let Some(bytes) = read_node(walk.image, block) else {
        return;
    };
    let node = Node(&bytes);
    for at in 0..node.len() {
        let end = (at + 1 < node.len()).then(|| node.key(at + 1));
        if walk.blocks.is_in_place(node.child(at), node.key(at), end) {
            gather_leaves(walk, node.child(at), depth + 1, visits, leaves);
        }
    }
}
