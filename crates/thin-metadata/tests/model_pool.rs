//! The pool against volumes kept in plain maps: random operations with weights that differ
//! wildly from seed to seed, compared as they go, and as a whole after every commit and reopening.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::{BTreeMap, HashMap};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_thin_metadata::{ErrorKind, Lookup, MayRead, PoolMetadata, check};
use thinmap_units::{DataBlock, ThinId, VirtBlock};

const METADATA_BLOCKS: u64 = 6000;
const DATA_BLOCKS: u64 = 40_000;
const BLOCKS: u64 = 30_000;

#[derive(Clone, Default)]
struct Model {
    volumes: BTreeMap<ThinId, BTreeMap<u64, u64>>,
    held: bool,
    transaction_id: u64,
}

/// How likely each operation is in one run: some never happen, others all the time.
struct Weights([u32; 10]);

impl Weights {
    fn new(rng: &mut SmallRng) -> Self {
        Self(std::array::from_fn(|_| match rng.random_range(0..4) {
            0 => 0,
            1 => 1,
            2 => 10,
            _ => 100,
        }))
    }

    fn pick(&self, rng: &mut SmallRng) -> usize {
        let total: u32 = self.0.iter().sum();
        let mut at = rng.random_range(0..total.max(1));
        for (n, weight) in self.0.iter().enumerate() {
            if at < *weight {
                return n;
            }
            at -= weight;
        }
        0
    }
}

fn any_volume(model: &Model, rng: &mut SmallRng) -> Option<ThinId> {
    let count = model.volumes.len();
    (count > 0).then(|| {
        *model
            .volumes
            .keys()
            .nth(rng.random_range(0..count))
            .unwrap()
    })
}

fn step(pool: &mut PoolMetadata, model: &mut Model, weights: &Weights, rng: &mut SmallRng) {
    let new = id(rng.random_range(0..12));
    let Some(volume) = any_volume(model, rng) else {
        pool.create_thin(new).unwrap();
        model.volumes.insert(new, BTreeMap::new());
        return;
    };
    match weights.pick(rng) {
        0 => match pool.create_thin(new) {
            Ok(()) => assert!(model.volumes.insert(new, BTreeMap::new()).is_none()),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Exists);
                assert!(model.volumes.contains_key(&new));
            }
        },
        1 => match pool.create_snap(new, volume) {
            Ok(()) => {
                let copy = model.volumes[&volume].clone();
                assert!(model.volumes.insert(new, copy).is_none());
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Exists);
                assert!(model.volumes.contains_key(&new));
            }
        },
        2 if rng.random_range(0..5) == 0 => {
            pool.delete_thin(volume).unwrap();
            model.volumes.remove(&volume);
        }
        3 | 4 => write_run(pool, model, volume, rng),
        5 => write_scattered(pool, model, volume, rng),
        6 => {
            let begin = rng.random_range(0..BLOCKS);
            let end = begin + rng.random_range(0..BLOCKS / 4);
            let removed = pool.remove_range(volume, VirtBlock(begin), VirtBlock(end));
            let map = model.volumes.get_mut(&volume).unwrap();
            let before = map.len();
            map.retain(|v, _| !(begin..end).contains(v));
            assert_eq!(removed.unwrap(), (before - map.len()) as u64);
        }
        7 if model.held => {
            pool.release_metadata_snap().unwrap();
            model.held = false;
        }
        7 => {
            pool.reserve_metadata_snap().unwrap();
            model.held = true;
        }
        8 => {
            let next = rng.random();
            pool.set_transaction_id(model.transaction_id, next).unwrap();
            model.transaction_id = next;
        }
        _ => check_lookups(pool, model, volume, rng),
    }
}

fn write_block(pool: &mut PoolMetadata, model: &mut Model, volume: ThinId, v: u64) -> bool {
    let data = match pool.alloc_data_block() {
        Ok(data) => data,
        Err(e) => {
            assert!(matches!(e.kind(), ErrorKind::NoSpace(_)), "{e}");
            return false;
        }
    };
    pool.insert(volume, VirtBlock(v), data).unwrap();
    let map = model.volumes.get_mut(&volume).unwrap();
    map.insert(v, data.raw());
    true
}

fn write_run(pool: &mut PoolMetadata, model: &mut Model, volume: ThinId, rng: &mut SmallRng) {
    let begin = rng.random_range(0..BLOCKS);
    let len = rng.random_range(1..600);
    if rng.random() {
        let _ = (begin..begin + len).all(|v| write_block(pool, model, volume, v));
    } else {
        let _ = (begin..begin + len)
            .rev()
            .all(|v| write_block(pool, model, volume, v));
    }
}

fn write_scattered(pool: &mut PoolMetadata, model: &mut Model, volume: ThinId, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..300) {
        if !write_block(pool, model, volume, rng.random_range(0..BLOCKS)) {
            return;
        }
    }
}

fn check_lookups(pool: &PoolMetadata, model: &Model, volume: ThinId, rng: &mut SmallRng) {
    let map = &model.volumes[&volume];
    for _ in 0..50 {
        let v = rng.random_range(0..BLOCKS);
        let found = match pool.lookup(volume, VirtBlock(v), MayRead::Yes).unwrap() {
            Lookup::Unmapped => None,
            Lookup::Mapped { data, .. } => Some(data.raw()),
        };
        assert_eq!(found, map.get(&v).copied());
    }
}

/// Everything, by runs, with the counts of all data blocks and the sharing that must be reported.
fn check_all(pool: &PoolMetadata, model: &Model) {
    let ids: Vec<_> = model.volumes.keys().copied().collect();
    assert_eq!(pool.device_ids().unwrap(), ids);
    assert_eq!(pool.transaction_id(), model.transaction_id);
    assert_eq!(pool.held_root().is_some(), model.held);
    let mut owners: HashMap<u64, u32> = HashMap::new();
    for map in model.volumes.values() {
        for data in map.values() {
            *owners.entry(*data).or_default() += 1;
        }
    }
    for (volume, map) in &model.volumes {
        assert_eq!(pool.mapped_blocks(*volume).unwrap(), map.len() as u64);
        let highest = pool.highest_mapped(*volume).unwrap();
        assert_eq!(highest.map(VirtBlock::raw), map.keys().next_back().copied());
        let mut found = BTreeMap::new();
        let mut at = 0;
        while at < BLOCKS * 2 {
            let max = BLOCKS * 2 - at;
            let run = pool
                .lookup_run(*volume, VirtBlock(at), max, MayRead::Yes)
                .unwrap();
            assert!(run.blocks >= 1 && run.blocks <= max);
            if let Lookup::Mapped { data, shared } = run.first {
                for n in 0..run.blocks {
                    found.insert(at + n, data.raw() + n);
                    if owners[&(data.raw() + n)] > 1 {
                        assert!(shared, "volume {volume} block {}", at + n);
                    }
                }
            }
            at += run.blocks;
        }
        assert!(found == *map, "volume {volume} differs");
    }
    if !model.held {
        let in_use = pool.data_blocks().raw() - pool.free_data_blocks().raw();
        assert_eq!(in_use, owners.len() as u64);
    }
    for data in owners.keys().take(200) {
        assert!(pool.data_ref_count(DataBlock(*data)).unwrap() >= 1);
    }
}

fn run_seed(seed: u64, steps: usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let weights = Weights::new(&mut rng);
    let (disk, mut pool) = new_pool(METADATA_BLOCKS, DATA_BLOCKS);
    let mut model = Model::default();
    let mut committed = model.clone();
    for _ in 0..steps {
        step(&mut pool, &mut model, &weights, &mut rng);
        for min in [1, 64, 4096] {
            assert_eq!(pool.is_slack_below(min), pool.metadata_slack() < min);
        }
        // A metadata snapshot commits on its own.
        if !pool.changed() || model.held != committed.held {
            pool.commit().unwrap();
            committed = model.clone();
        }
        match rng.random_range(0..40) {
            0..4 => {
                pool.commit().unwrap();
                committed = model.clone();
            }
            4 => {
                pool.abort().unwrap();
                model = committed.clone();
                check_all(&pool, &model);
            }
            5 => {
                pool.commit().unwrap();
                committed = model.clone();
                drop(pool);
                let findings = check(disk.clone()).unwrap();
                assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
                pool = reopen(&disk);
                check_all(&pool, &model);
            }
            _ => {}
        }
    }
    pool.commit().unwrap();
    check_all(&pool, &model);
    let findings = check(disk.clone()).unwrap();
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    thin_check(&disk);
}

#[test]
fn model_pool_agrees_with_plain_maps() {
    for seed in 0..12 {
        eprintln!("seed {seed}");
        run_seed(seed, 120);
    }
}

#[test]
fn slow_model_pool_many_seeds() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(40, |n| n.parse().unwrap());
    for seed in 1000..1000 + seeds {
        eprintln!("seed {seed}");
        run_seed(seed, 150);
    }
}
