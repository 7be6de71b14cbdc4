//! Arrays and bitsets against plain vectors, with copies that share blocks; and no block lost.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_persistent_data::{BlockCache, MayRead, TransactionManager, array, bitset};
use thinmap_sim::SimMetadataDisk;

fn new_tm() -> TransactionManager {
    let disk = SimMetadataDisk::new(20_000);
    let cache = Arc::new(BlockCache::new(disk, 1000));
    TransactionManager::create(cache, 20_000).unwrap()
}

fn check<const SIZE: usize>(tm: &TransactionManager, root: u64, model: &[[u8; SIZE]]) {
    let get = |index| array::get::<SIZE>(tm.reader(), root, index, MayRead::Yes).unwrap();
    for (index, value) in model.iter().enumerate() {
        assert_eq!(get(index as u64), Some(*value), "{index}");
    }
    assert_eq!(get(model.len() as u64), None);
}

fn run_seed<const SIZE: usize>(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut tm = new_tm();
    let free = tm.nr_free();
    let mut root = array::empty(&mut tm).unwrap();
    let mut model: Vec<[u8; SIZE]> = Vec::new();
    let mut copies: Vec<(u64, Vec<[u8; SIZE]>)> = Vec::new();
    let room = array::capacity(SIZE);
    for _ in 0..30 {
        match rng.random_range(0..6) {
            0..3 => {
                for _ in 0..rng.random_range(0..50) {
                    if model.is_empty() {
                        break;
                    }
                    let index = rng.random_range(0..model.len());
                    let value = [rng.random(); SIZE];
                    model[index] = value;
                    root = array::set(&mut tm, root, index as u64, &value).unwrap();
                }
            }
            3 => {
                let near = rng.random_range(0..5) * room;
                let new = (near + rng.random_range(0..4)).saturating_sub(2);
                let value = [rng.random(); SIZE];
                let lengths = (model.len() as u64, new as u64);
                root = array::resize(&mut tm, root, lengths, &value).unwrap();
                model.resize(new, value);
            }
            4 => {
                tm.inc(root).unwrap();
                copies.push((root, model.clone()));
            }
            _ => {
                if let Some((root, _)) = copies.pop() {
                    array::delete(&mut tm, root).unwrap();
                }
            }
        }
        check(&tm, root, &model);
        for (root, model) in &copies {
            check(&tm, *root, model);
        }
    }
    for (root, _) in copies {
        array::delete(&mut tm, root).unwrap();
    }
    array::delete(&mut tm, root).unwrap();
    assert_eq!(tm.nr_free(), free, "every block came back");
}

#[test]
fn arrays_are_what_plain_vectors_are() {
    for seed in 0..30 {
        run_seed::<4>(seed);
        run_seed::<8>(seed);
        run_seed::<100>(seed);
    }
}

#[test]
fn bits_are_set_where_they_should_be() {
    let mut tm = new_tm();
    let bits = 100_000;
    let root = bitset::empty(&mut tm).unwrap();
    let mut root = bitset::resize(&mut tm, root, (0, bits)).unwrap();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut model = vec![0_u64; bits.div_ceil(64) as usize];
    for _ in 0..2000 {
        let bit = rng.random_range(0..bits);
        model[bit as usize / 64] |= 1 << (bit % 64);
        root = bitset::set(&mut tm, root, bit).unwrap();
    }
    for (index, word) in model.iter().enumerate() {
        let found = bitset::word(tm.reader(), root, index as u64, MayRead::Yes).unwrap();
        assert_eq!(found, Some(*word));
    }
    assert!(bitset::set(&mut tm, root, bits + 64).is_err());
}
