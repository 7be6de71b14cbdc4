//! Btrees against `BTreeMap`, with values of every size the format uses, several trees sharing nodes,
//! and node invariants checked as thin_check would.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_persistent_data::btree::{self, Plain};
use thinmap_persistent_data::{BlockCache, MayRead, TransactionManager};
use thinmap_sim::SimMetadataDisk;

type Model<const SIZE: usize> = BTreeMap<u64, [u8; SIZE]>;

fn new_tm() -> TransactionManager {
    let disk = SimMetadataDisk::new(20_000);
    let cache = Arc::new(BlockCache::new(disk, 1000));
    TransactionManager::create(cache, 20_000).unwrap()
}

/// Walks a tree: every node a third full, keys ascending and not below the parent's; gives how
/// deep it is.
fn check_nodes(tm: &TransactionManager, block: u64, parent_key: Option<u64>) -> usize {
    let node = btree::read_node(tm.reader(), block).unwrap();
    if let Some(key) = parent_key {
        assert!(node.len() >= node.max() / 3, "{} entries", node.len());
        assert!(node.key(0) >= key);
    }
    for at in 1..node.len() {
        assert!(node.key(at - 1) < node.key(at));
    }
    if node.is_leaf() {
        return 1;
    }
    let depth = |at| check_nodes(tm, node.value_u64(at), Some(node.key(at)));
    let depths: Vec<_> = (0..node.len()).map(depth).collect();
    assert!(depths.iter().all(|depth| *depth == depths[0]));
    depths[0] + 1
}

fn check_tree<const SIZE: usize>(tm: &TransactionManager, root: u64, model: &Model<SIZE>) {
    let reader = tm.reader();
    let mut found = Model::<SIZE>::new();
    btree::visit_entries(reader, root, SIZE, 0, MayRead::Yes, &mut |key, value| {
        found.insert(key, value.try_into().unwrap());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert!(found == *model);
    let highest = btree::highest_key(reader, root, MayRead::Yes).unwrap();
    assert_eq!(highest, model.keys().next_back().copied());
    check_nodes(tm, root, None);
}

fn run_seed<const SIZE: usize>(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut tm = new_tm();
    let free = tm.nr_free();
    let ops = &mut Plain::<SIZE>;
    let mut root = btree::empty::<Plain<SIZE>>(&mut tm).unwrap();
    let mut model = Model::<SIZE>::new();
    let mut snapshots: Vec<(u64, Model<SIZE>)> = Vec::new();
    let keys = [1000, 100_000, u64::MAX][rng.random_range(0..3)];
    let removals = rng.random_range(0..40);
    for _ in 0..60 {
        let start = rng.random_range(0..keys);
        let step = [1, 1, 3, keys / 500 + 1][rng.random_range(0..4)];
        for n in 0..rng.random_range(1..900) {
            let key = match seed % 3 {
                0 => start.wrapping_add(step.wrapping_mul(n)),
                1 => start.wrapping_sub(step.wrapping_mul(n)),
                _ => rng.random_range(0..keys),
            } % keys;
            let value: [u8; SIZE] = std::array::from_fn(|_| rng.random());
            let (new_root, is_new) = btree::insert(&mut tm, ops, root, key, &value).unwrap();
            assert_eq!(is_new, model.insert(key, value).is_none());
            root = new_root;
        }
        for _ in 0..rng.random_range(0..=removals) {
            let begin = rng.random_range(0..keys);
            let length = if rng.random() {
                1
            } else {
                rng.random_range(0..keys / 5)
            };
            let end = begin.saturating_add(length);
            let (new_root, removed) = btree::remove_range(&mut tm, ops, root, begin, end).unwrap();
            root = new_root;
            let before = model.len();
            model.retain(|key, _| !(begin..end).contains(key));
            assert_eq!(removed, (before - model.len()) as u64);
        }
        for _ in 0..20 {
            let key = rng.random_range(0..keys);
            let reader = tm.reader();
            let found = btree::lookup::<SIZE>(reader, root, key, MayRead::Yes).unwrap();
            assert_eq!(found, model.get(&key).copied());
            let next = btree::find_ge::<SIZE>(reader, root, key, MayRead::Yes).unwrap();
            assert_eq!(next, model.range(key..).next().map(|(k, v)| (*k, *v)));
        }
        match rng.random_range(0..6) {
            0 => {
                tm.inc(root).unwrap();
                snapshots.push((root, model.clone()));
            }
            1 if !snapshots.is_empty() => {
                let (root, _) = snapshots.remove(rng.random_range(0..snapshots.len()));
                btree::delete_tree(&mut tm, ops, root).unwrap();
            }
            _ => {}
        }
        check_tree(&tm, root, &model);
        for (root, model) in &snapshots {
            check_tree(&tm, *root, model);
        }
    }
    for (root, _) in snapshots {
        btree::delete_tree(&mut tm, ops, root).unwrap();
    }
    let (root, _) = btree::remove_range(&mut tm, ops, root, 0, u64::MAX).unwrap();
    check_tree(&tm, root, &Model::<SIZE>::new());
    btree::delete_tree(&mut tm, ops, root).unwrap();
    assert_eq!(tm.nr_free(), free, "blocks leaked");
}

#[test]
fn model_btree_values_of_8_bytes() {
    (0..40).for_each(run_seed::<8>);
}

#[test]
fn model_btree_values_of_24_bytes() {
    (0..6).for_each(run_seed::<24>);
}

#[test]
fn model_btree_values_of_16_bytes() {
    (0..6).for_each(run_seed::<16>);
}

#[test]
fn model_btree_values_of_4_bytes() {
    (0..6).for_each(run_seed::<4>);
}

#[test]
fn ascending_inserts_fill_leaves_nearly() {
    let mut tm = new_tm();
    let mut root = btree::empty::<Plain<8>>(&mut tm).unwrap();
    let free = tm.nr_free();
    for key in 0..100_000 {
        let value = [0; 8];
        (root, _) = btree::insert(&mut tm, &mut Plain::<8>, root, key, &value).unwrap();
    }
    let used = free - tm.nr_free();
    // A full last leaf shares with its left neighbour until that has fewer than 8 places left.
    assert!(used < 100_000 / 245, "{used} blocks");
}
