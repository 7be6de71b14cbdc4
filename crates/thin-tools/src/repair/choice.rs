//! Which scanned trees make up the pool when its superblock is lost.
//!
//! Every tree of volumes is laid beside every tree of details. Two of one state of the pool do not contradict
//! each other, whatever damage took from them; what is left of an older state mostly does, because its blocks
//! were used again. Damage itself does not count against a pair: an older state that is whole is worse than
//! the newest one with a hole, since its data blocks may be other volumes' by now.

use std::collections::{BTreeSet, HashMap};

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{ErrorKind, MetadataError, Result};
use thinmap_thin_metadata::DeviceDetails;

use super::candidates::{self, Candidates};
use super::scan::{Content, Scan};
use crate::check::{collect_details, collect_roots};
use crate::walk::{MissingRanges, RangeMap, Role, Summaries, Walk, read_node};

/// Trees of each kind that are compared with those of the other: the newest.
const TREES_MAX: usize = 512;
/// Volumes that the trees of a kind may list together.
const VOLUMES_MAX: usize = 8 << 20;
/// Volumes that are listed on the way to these, of all candidates of a kind.
const LISTED_MAX: usize = 1 << 28;
/// Volumes looked at in comparisons.
const COMPARED_MAX: usize = 1 << 31;

/// Transaction id and time. Both are the least that the pool can have had.
type Age = (u64, u32);

/// The roots that were chosen.
pub(super) struct Choice {
    pub(super) top: u64,
    /// 0, which is no node, when there is no tree of details.
    pub(super) details: u64,
    pub(super) age: Age,
    /// Ids that any tree of details names, or the tree of volumes chosen.
    pub(super) known: BTreeSet<u64>,
}

/// A tree of volumes or of details, and what it says of each volume.
struct Tree {
    root: u64,
    /// Volumes by id: mappings below its tree or by its details; `None` where its tree is damaged.
    volumes: Vec<(u64, Option<u64>)>,
    /// Ids that damage hides.
    missing: RangeMap,
    age: Age,
    /// Volumes that were made last, in the same transaction and at the same time.
    youngest: usize,
    mappings: u64,
    /// Nodes below which lies what was written there later.
    reused: usize,
}

impl Tree {
    /// The newest first.
    fn order(&self) -> impl Ord + use<> {
        std::cmp::Reverse((self.age, self.youngest, self.mappings, self.volumes.len()))
    }
}

/// How two trees go together, the strongest reason first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Score {
    /// Nothing that both say differs.
    fits: bool,
    /// How many more volumes agree than contradict, where some do.
    balance: i64,
    /// At least of the transaction that the user names.
    is_of_transaction: bool,
    age: Age,
    /// Of two states of one age, the one with more volumes made then came later.
    youngest: usize,
    mapped: u64,
    /// Volumes that are not whole, the fewest best.
    damaged: std::cmp::Reverse<usize>,
}

/// The roots of the newest pool that the scanned blocks make up.
pub(super) fn best_roots(
    walk: &mut Walk<'_>,
    scan: &Scan,
    transaction: Option<u64>,
) -> Result<Choice> {
    let (mut tops, mut details) = candidates::find(walk, scan);
    walk.keep_times();
    for root in &details.roots {
        walk.add_root(*root, Role::Details);
    }
    for root in &tops.roots {
        walk.add_root(*root, Role::Top);
    }
    walk.run();
    let sums = Summaries::new(walk);
    for root in tops.roots.iter().chain(&details.roots) {
        sums.of(*root);
    }
    tops.retain_in_place(walk);
    details.retain_in_place(walk);
    let mut trees = Trees {
        walk,
        scan,
        missing: MissingRanges::default(),
        reused: HashMap::new(),
    };
    let top_trees = newest(&tops.roots, |root| trees.of_volumes(root));
    let details_trees = newest(&details.roots, |root| trees.of_details(root));
    let mut known: BTreeSet<u64> = ids(&details_trees).collect();
    let Some((top, details)) = best_pair(&tops, &details, &top_trees, &details_trees, transaction)
    else {
        // No tree of details at all: the longest list of volumes.
        let top = top_trees.iter().max_by_key(|tree| {
            let is_part = tops.with_ancestors(tree.root).len() > 1;
            (!is_part, tree.volumes.len(), tree.age, tree.mappings)
        });
        let top = top.ok_or_else(|| {
            let what =
                "no tree of volumes was found: this is no thin metadata, or nothing is left of it";
            MetadataError::new(ErrorKind::Corrupt, what)
        })?;
        known.extend(ids(&top_trees[..]));
        return Ok(Choice {
            top: top.root,
            details: 0,
            age: top.age,
            known,
        });
    };
    known.extend(top.volumes.iter().map(|(id, _)| *id));
    Ok(Choice {
        top: top.root,
        details: details.root,
        age: age_of(top, details),
        known,
    })
}

fn ids(trees: &[Tree]) -> impl Iterator<Item = u64> {
    trees
        .iter()
        .flat_map(|tree| tree.volumes.iter().map(|(id, _)| *id))
}

/// The newest trees, and no more than fit the bounds.
fn newest(roots: &[u64], mut tree: impl FnMut(u64) -> Tree) -> Vec<Tree> {
    let mut kept: Vec<Tree> = Vec::new();
    let (mut listed, mut volumes) = (0, 0);
    for root in roots {
        let tree = tree(*root);
        listed += tree.volumes.len();
        volumes += tree.volumes.len();
        if !tree.volumes.is_empty() {
            kept.push(tree);
        }
        if kept.len() > 2 * TREES_MAX || volumes > 2 * VOLUMES_MAX {
            volumes = keep_newest(&mut kept);
        }
        if listed > LISTED_MAX {
            break;
        }
    }
    keep_newest(&mut kept);
    kept
}

fn keep_newest(kept: &mut Vec<Tree>) -> usize {
    kept.sort_by_key(Tree::order);
    let mut volumes = 0;
    let fits = |tree: &&Tree| {
        volumes += tree.volumes.len();
        volumes <= VOLUMES_MAX
    };
    let len = kept.iter().take(TREES_MAX).take_while(fits).count();
    kept.truncate(len);
    volumes
}

struct Trees<'w, 'a> {
    walk: &'w Walk<'a>,
    scan: &'w Scan,
    missing: MissingRanges,
    /// Damaged nodes that were looked below, and whether something lies there that does not belong there.
    reused: HashMap<u64, bool>,
}

impl Trees<'_, '_> {
    fn of_volumes(&mut self, top: u64) -> Tree {
        let sums = Summaries::new(self.walk);
        let roots = collect_roots(self.walk, top);
        let (mut time, mut mappings) = (0, 0_u64);
        let mut reused = usize::from(self.is_reused(top, Role::Top, 0));
        let mut volumes = Vec::with_capacity(roots.len());
        for (id, root) in roots {
            let mapped = sums.of(root).entries;
            mappings = mappings.saturating_add(mapped);
            time = time.max(self.walk.blocks.time(root));
            let is_damaged = self.walk.blocks.is_damaged(root);
            if is_damaged && self.is_reused(root, Role::Mappings, 0) {
                reused += 1;
            }
            volumes.push((id, (!is_damaged).then_some(mapped)));
        }
        Tree {
            root: top,
            volumes,
            missing: self.missing.of(self.walk, top),
            age: (0, time),
            youngest: 0,
            mappings,
            reused,
        }
    }

    fn of_details(&mut self, root: u64) -> Tree {
        let details = collect_details(self.walk, root);
        let transaction = details.values().map(|d| d.transaction_id).max();
        let time = details
            .values()
            .map(|d| d.creation_time.max(d.snapshotted_time))
            .max();
        let mapped = details.values().map(|d| d.mapped_blocks);
        let made = |d: &DeviceDetails| (d.transaction_id, d.creation_time);
        let last = details.values().map(made).max();
        let is_youngest = |d: &&DeviceDetails| Some(made(d)) == last;
        Tree {
            root,
            mappings: mapped.fold(0, u64::saturating_add),
            age: (transaction.unwrap_or(0), time.unwrap_or(0)),
            youngest: details.values().filter(is_youngest).count(),
            missing: self.missing.of(self.walk, root),
            reused: usize::from(self.is_reused(root, Role::Details, 0)),
            volumes: details
                .into_iter()
                .map(|(id, d)| (id, Some(d.mapped_blocks)))
                .collect(),
        }
    }

    /// Whether a damaged tree leads to a sound block of another use: that was written later, so the tree is old.
    /// What a disk loses is no sound block of anything.
    fn is_reused(&mut self, block: u64, role: Role, depth: usize) -> bool {
        let blocks = &self.walk.blocks;
        if block == 0 || block >= blocks.len() || depth > 16 {
            return false;
        }
        if !blocks.is_good(block) {
            return self.scan.content(block) != Content::None;
        }
        if blocks.role(block) != Some(role) {
            return true;
        }
        if !blocks.is_damaged(block) || blocks.is_leaf(block) {
            return false;
        }
        if let Some(known) = self.reused.get(&block) {
            return *known;
        }
        // For a tree that contains itself.
        self.reused.insert(block, false);
        let found = read_node(self.walk.image, block).is_some_and(|bytes| {
            let node = Node(&bytes);
            (0..node.len()).any(|at| {
                let end = (at + 1 < node.len()).then(|| node.key(at + 1));
                let child = node.child(at);
                let is_elsewhere = self.walk.blocks.is_good(child)
                    && !self.walk.blocks.is_in_place(child, node.key(at), end);
                is_elsewhere || self.is_reused(child, role, depth + 1)
            })
        });
        self.reused.insert(block, found);
        found
    }
}

/// The best pair. A pair of parts of another one never wins over that one, unless that one contradicts itself more.
fn best_pair<'t>(
    tops: &Candidates,
    details: &Candidates,
    top_trees: &'t [Tree],
    details_trees: &'t [Tree],
    transaction: Option<u64>,
) -> Option<(&'t Tree, &'t Tree)> {
    let mut scored: Vec<(Score, usize, (usize, usize))> = Vec::new();
    let mut contradictions: HashMap<(u64, u64), usize> = HashMap::new();
    let mut compared = 0;
    for (d, of) in details_trees.iter().enumerate() {
        for (t, top) in top_trees.iter().enumerate() {
            compared += top.volumes.len() + of.volumes.len();
            if compared > COMPARED_MAX {
                break;
            }
            let (score, against) = score(top, of, transaction);
            contradictions.insert((top.root, of.root), against);
            scored.push((score, against, (t, d)));
        }
    }
    // Of equals, the first.
    scored.sort_by_key(|(score, _, at)| (std::cmp::Reverse(*score), *at));
    let is_part = |(_, against, (t, d)): &&(Score, usize, (usize, usize))| {
        let (top, of) = (top_trees[*t].root, details_trees[*d].root);
        let above = details.with_ancestors(of);
        tops.with_ancestors(top).iter().any(|top_above| {
            above.iter().any(|of_above| {
                let is_other = (*top_above, *of_above) != (top, of);
                let known = contradictions.get(&(*top_above, *of_above));
                is_other && known.is_some_and(|known| known <= against)
            })
        })
    };
    let best = scored.iter().find(|pair| !is_part(pair));
    let (_, _, (t, d)) = best.or(scored.first())?;
    Some((&top_trees[*t], &details_trees[*d]))
}

fn age_of(top: &Tree, details: &Tree) -> Age {
    (details.age.0, details.age.1.max(top.age.1))
}

/// How a tree of volumes and one of details go together, and how many contradictions there are.
fn score(top: &Tree, details: &Tree, transaction: Option<u64>) -> (Score, usize) {
    let (mut against, mut matching, mut damaged) = (top.reused + details.reused, 0, 0);
    let (mut roots, mut others) = (top.volumes.iter(), details.volumes.iter());
    let (mut root, mut other) = (roots.next(), others.next());
    loop {
        match (root, other) {
            (Some((id, mapped)), Some((known, expected))) if id == known => {
                match mapped {
                    None => damaged += 1,
                    Some(_) if mapped == expected => matching += 1,
                    Some(_) => against += 1,
                }
                (root, other) = (roots.next(), others.next());
            }
            (Some((id, _)), known) if known.is_none_or(|(known, _)| id < known) => {
                match details.missing.has(*id) {
                    true => damaged += 1,
                    false => against += 1,
                }
                root = roots.next();
            }
            (_, Some((id, _))) => {
                match top.missing.has(*id) {
                    true => damaged += 1,
                    false => against += 1,
                }
                other = others.next();
            }
            _ => break,
        }
    }
    let age = age_of(top, details);
    let score = Score {
        fits: against == 0,
        balance: match against {
            0 => 0,
            against => matching - against as i64,
        },
        is_of_transaction: transaction.is_some_and(|wanted| age.0 >= wanted),
        age,
        youngest: details.youngest,
        mapped: details.mappings,
        damaged: std::cmp::Reverse(damaged),
    };
    (score, against)
}
