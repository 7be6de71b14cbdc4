//! Volumes: every one has both a tree and details, the details count its mappings, and what damage lost of it.

use std::collections::BTreeMap;

use thinmap_persistent_data::btree::Node;
use thinmap_thin_metadata::{DeviceDetails, Superblock};

use super::{Area, Check, Depth, Finding};
use crate::walk::{MissingRanges, RangeMap, Role, Summaries, Walk, read_node};

impl Check<'_> {
    /// Compares the volumes of a superblock; gives how many there are and their mappings.
    pub(super) fn volumes(
        &self,
        walk: &Walk<'_>,
        superblock: &Superblock,
        depth: Depth,
    ) -> (u64, u64) {
        let sums = Summaries::new(walk);
        sums.of(superblock.device_details_root);
        let details = collect_details(walk, superblock.device_details_root);
        sums.of(superblock.data_mapping_root);
        let roots = collect_roots(walk, superblock.data_mapping_root);
        let has_all_details = !walk.blocks.is_damaged(superblock.device_details_root);
        let has_all_roots = !walk.blocks.is_damaged(superblock.data_mapping_root);
        let (mut mappings, mut missing) = (0_u64, MissingRanges::default());
        for (id, root) in &roots {
            let is_walked = depth == Depth::All;
            let mapped = match is_walked {
                true => sums.of(*root).entries,
                false => 0,
            };
            mappings = mappings.saturating_add(mapped);
            if is_walked && walk.blocks.is_damaged(*root) {
                self.damaged_volume(*id, &missing.of(walk, *root));
                continue;
            }
            let what = match details.get(id) {
                None if has_all_details => "has mappings but no details".to_owned(),
                Some(d) if is_walked && d.mapped_blocks != mapped => {
                    let recorded = d.mapped_blocks;
                    format!("has {mapped} mappings, its details say {recorded}")
                }
                _ => continue,
            };
            let finding = Finding::fatal(Area::Details, what);
            self.findings.add(finding.of_volume(*id));
        }
        for id in details.keys().filter(|id| !roots.contains_key(id)) {
            let what = match has_all_roots {
                true => "has details but no mapping tree",
                false => "cannot be reached: the tree of volumes is damaged",
            };
            let finding = Finding::fatal(Area::Mappings, what);
            self.findings.add(finding.of_volume(*id));
        }
        (roots.len() as u64, mappings)
    }

    fn damaged_volume(&self, id: u64, missing: &RangeMap) {
        for (first, end) in missing.iter() {
            let finding = Finding::fatal(Area::Mappings, "cannot be reached because of damage");
            self.findings
                .add(finding.of_volume(id).at_blocks(first, end));
        }
    }
}

/// The volumes of a top tree: id to root of the mapping tree. Damaged parts are left out.
pub(crate) fn collect_roots(walk: &Walk<'_>, top: u64) -> BTreeMap<u64, u64> {
    let mut roots = BTreeMap::new();
    collect(walk, top, Role::Top, 0, &mut |node, at| {
        roots.insert(node.key(at), node.child(at));
    });
    roots
}

/// The details in a details tree. Damaged parts are left out.
pub(crate) fn collect_details(walk: &Walk<'_>, top: u64) -> BTreeMap<u64, DeviceDetails> {
    let mut details = BTreeMap::new();
    collect(walk, top, Role::Details, 0, &mut |node, at| {
        let mut bytes = [0; DeviceDetails::SIZE];
        bytes.copy_from_slice(node.value(at));
        details.insert(node.key(at), DeviceDetails::unpack(&bytes));
    });
    details
}

/// Calls `each` with every entry of a walked tree that lies where its parents say.
fn collect(
    walk: &Walk<'_>,
    block: u64,
    role: Role,
    depth: usize,
    each: &mut impl FnMut(Node<'_>, usize),
) {
    if !walk.blocks.is_good(block) || walk.blocks.role(block) != Some(role) || depth > 16 {
        return;
    }
    let Some(bytes) = read_node(walk.image, block) else {
        return;
    };
    let node = Node(&bytes);
    for at in 0..node.len() {
        if node.is_leaf() {
            each(node, at);
            continue;
        }
        let end = (at + 1 < node.len()).then(|| node.key(at + 1));
        let child = node.child(at);
        // An empty child would let a crafted tree lead on forever.
        if walk.blocks.is_in_place(child, node.key(at), end)
            && walk.blocks.summary(child).entries > 0
        {
            collect(walk, child, role, depth + 1, each);
        }
    }
}
