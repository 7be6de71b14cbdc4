//! Scanned nodes that could be the root of a tree of volumes, or of one of details.

use std::collections::{HashMap, HashSet};

use thinmap_persistent_data::btree::Node;

use super::scan::{Content, Scan};
use crate::walk::{Walk, read_node};

/// Ids that a volume can have.
const ID_END: u64 = 1 << 24;
/// Internal nodes above each other: a tree of all ids has at most four levels.
const LEVELS_MAX: usize = 3;

/// A node's entries: key and child.
type Children = Vec<(u64, u64)>;

/// The candidates of one kind.
pub(super) struct Candidates {
    /// Parents before their children.
    pub(super) roots: Vec<u64>,
    /// The candidates that a node is a child of, by place and key.
    parents: HashMap<u64, Vec<u64>>,
}

impl Candidates {
    /// The candidates above `block` and itself.
    pub(super) fn with_ancestors(&self, block: u64) -> HashSet<u64> {
        let mut found = HashSet::from([block]);
        let mut level = vec![block];
        for _ in 0..=LEVELS_MAX {
            let above = level.iter().filter_map(|block| self.parents.get(block));
            level = above
                .flatten()
                .copied()
                .filter(|parent| found.insert(*parent))
                .collect();
        }
        found
    }

    /// Forgets parents in which a node lies out of place: its block was used again since.
    pub(super) fn retain_in_place(&mut self, walk: &Walk<'_>) {
        for (child, parents) in &mut self.parents {
            parents.retain(|parent| {
                read_node(walk.image, *parent).is_some_and(|bytes| {
                    let node = Node(&bytes);
                    let is_there = |at: usize| {
                        let end = (at + 1 < node.len()).then(|| node.key(at + 1));
                        node.child(at) == *child
                            && walk.blocks.is_in_place(*child, node.key(at), end)
                    };
                    (0..node.len()).any(is_there)
                })
            });
        }
        self.parents.retain(|_, parents| !parents.is_empty());
    }
}

/// Candidates for trees of volumes and for trees of details.
pub(super) fn find(walk: &Walk<'_>, scan: &Scan) -> (Candidates, Candidates) {
    let internal: Vec<(u64, Children)> = scan
        .all(Content::Internal)
        .into_iter()
        .filter_map(|block| {
            let bytes = read_node(walk.image, block)?;
            let children = children_of(Node(&bytes));
            let could_be =
                |(key, child): &(u64, u64)| *key < ID_END && (1..walk.blocks.len()).contains(child);
            let is_of_volumes = children.iter().all(could_be);
            is_of_volumes.then_some((block, children))
        })
        .collect();
    let tops = with_parents(leaves_of_roots(walk, scan), &internal, scan);
    let details = with_parents(scan.all(Content::LeafDetails), &internal, scan);
    (tops, details)
}

fn children_of(node: Node<'_>) -> Children {
    (0..node.len())
        .map(|at| (node.key(at), node.child(at)))
        .collect()
}

/// Leaves that name volumes and the roots of their trees.
fn leaves_of_roots(walk: &Walk<'_>, scan: &Scan) -> Vec<u64> {
    let blocks = walk.blocks.len();
    let mut sure: HashSet<u64> = HashSet::new();
    let (mut found, mut unsure) = (Vec::new(), Vec::new());
    for leaf in scan.all(Content::Leaf8) {
        let Some(bytes) = read_node(walk.image, leaf) else {
            continue;
        };
        let roots = children_of(Node(&bytes));
        let is_tree = |root: u64| matches!(scan.content(root), Content::Leaf8 | Content::Internal);
        // A root may be lost, which leaves nothing of its block.
        let could_be = |(key, root): &(u64, u64)| {
            let is_lost = scan.content(*root) == Content::None;
            *key < ID_END && (1..blocks).contains(root) && (is_tree(*root) || is_lost)
        };
        if !roots.iter().all(could_be) {
            continue;
        }
        match roots[..] {
            // An empty leaf is an empty volume's far more often than an empty pool's.
            [] => {}
            // A mapping to data block 0 looks like a root too, and a leaf of mappings has at most one.
            [(_, root)] => {
                if is_tree(root) {
                    unsure.push(leaf);
                }
            }
            _ => {
                sure.extend(roots.iter().map(|(_, root)| *root));
                found.push(leaf);
            }
        }
    }
    found.extend(unsure.into_iter().filter(|leaf| !sure.contains(leaf)));
    found.sort_unstable();
    found
}

/// The leaves with the nodes above them, level by level. A child may be damaged, not something else.
fn with_parents(leaves: Vec<u64>, internal: &[(u64, Children)], scan: &Scan) -> Candidates {
    let mut known: HashSet<u64> = leaves.iter().copied().collect();
    let mut roots = leaves;
    for _ in 0..LEVELS_MAX {
        let is_parent = |(block, children): &&(u64, Children)| {
            let is_known = |child: &u64| known.contains(child);
            !known.contains(block)
                && children.iter().any(|(_, child)| is_known(child))
                && children
                    .iter()
                    .all(|(_, child)| is_known(child) || scan.content(*child) == Content::None)
        };
        let parents: Vec<u64> = internal
            .iter()
            .filter(is_parent)
            .map(|(block, _)| *block)
            .collect();
        known.extend(&parents);
        roots.splice(0..0, parents);
    }
    let mut parents: HashMap<u64, Vec<u64>> = HashMap::new();
    for (block, children) in internal.iter().filter(|(block, _)| known.contains(block)) {
        for (_, child) in children.iter().filter(|(_, child)| known.contains(child)) {
            parents.entry(*child).or_default().push(*block);
        }
    }
    Candidates { roots, parents }
}
