//! Volumes deleted in steps: random lives against plain maps, with every commit clean; ids, marks, sharing.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_thin_metadata::{Deletion, DeletionStep, ErrorKind, PoolMetadata, check};
use thinmap_units::{DataBlock, ThinId, VirtBlock};

/// The highest id, the first that a condemned volume gets.
const LAST: u64 = 0xff_ffff;
/// The lowest one that it may get.
const FIRST: u64 = 0xff_f000;

fn finish(pool: &mut PoolMetadata, nodes: u64) {
    while pool.continue_deletion(nodes).unwrap() == DeletionStep::More {}
    assert_eq!(pool.deletions().unwrap(), 0);
}

/// A volume of `blocks` blocks in a row.
fn filled(pool: &mut PoolMetadata, volume: u64, blocks: u64) {
    pool.create_thin(id(volume)).unwrap();
    for v in 0..blocks {
        map(pool, volume, v);
    }
}

fn used(pool: &PoolMetadata) -> u64 {
    pool.data_blocks().raw() - pool.free_data_blocks().raw()
}

type Model = BTreeMap<ThinId, BTreeMap<u64, u64>>;

struct Life {
    pool: PoolMetadata,
    model: Model,
    held: bool,
    rng: SmallRng,
}

impl Life {
    /// Ids at both ends, so that users and condemned volumes want the same ones.
    fn any_id(&mut self) -> ThinId {
        let n = self.rng.random_range(0..8);
        id(if n < 5 { n } else { LAST - (n - 5) })
    }

    fn any_volume(&mut self) -> Option<ThinId> {
        let ids: Vec<ThinId> = self.model.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.rng.random_range(0..ids.len())])
    }

    fn step(&mut self) {
        let new = self.any_id();
        let Some(volume) = self.any_volume() else {
            self.pool.create_thin(new).unwrap();
            self.model.insert(new, BTreeMap::new());
            return;
        };
        let nodes = self.rng.random_range(0..8);
        match self.rng.random_range(0..12) {
            0 => {
                let made = self.pool.create_thin(new).map_err(|e| e.kind());
                match self.model.contains_key(&new) {
                    true => assert_eq!(made, Err(ErrorKind::Exists)),
                    false => {
                        made.unwrap();
                        self.model.insert(new, BTreeMap::new());
                    }
                }
            }
            1 | 2 => {
                let made = self.pool.create_snap(new, volume).map_err(|e| e.kind());
                match self.model.contains_key(&new) {
                    true => assert_eq!(made, Err(ErrorKind::Exists)),
                    false => {
                        made.unwrap();
                        self.model.insert(new, self.model[&volume].clone());
                    }
                }
            }
            3 => {
                self.pool.begin_deletion(volume, nodes).unwrap();
                self.model.remove(&volume);
                assert!(!self.pool.device_exists(volume).unwrap());
                let again = self.pool.begin_deletion(volume, nodes).unwrap_err();
                assert_eq!(again.kind(), ErrorKind::NotFound);
            }
            4 => {
                self.pool.continue_deletion(nodes.max(1)).unwrap();
            }
            5 => {
                let mappings = self.rng.random_range(1..400);
                self.pool.continue_deletion_by_mappings(mappings).unwrap();
            }
            6 if self.held => {
                self.pool.begin_release(nodes).unwrap();
                self.held = false;
            }
            6 => {
                self.pool.reserve_metadata_snap().unwrap();
                self.held = true;
            }
            7 => {
                let begin = self.rng.random_range(0..12_000);
                let end = begin + self.rng.random_range(0..4000);
                let (from, to) = (VirtBlock(begin), VirtBlock(end));
                self.pool.remove_range(volume, from, to).unwrap();
                let map = self.model.get_mut(&volume).unwrap();
                map.retain(|v, _| !(begin..end).contains(v));
            }
            n => {
                let begin = self.rng.random_range(0..10_000);
                let stride = if n == 8 { 37 } else { 1 };
                for i in 0..self.rng.random_range(1..2500) {
                    let Ok(data) = self.pool.alloc_data_block() else {
                        return;
                    };
                    let v = (begin + i * stride) % 12_000;
                    self.pool.insert(volume, VirtBlock(v), data).unwrap();
                    let map = self.model.get_mut(&volume).unwrap();
                    map.insert(v, data.raw());
                }
            }
        }
    }

    fn compare(&self) {
        let ids: Vec<ThinId> = self.model.keys().copied().collect();
        assert_eq!(self.pool.device_ids().unwrap(), ids);
        for (volume, map) in &self.model {
            let found: BTreeMap<u64, u64> = mappings(&self.pool, *volume)
                .into_iter()
                .map(|(v, (data, _))| (v, data))
                .collect();
            assert!(found == *map, "volume {volume} differs");
            assert_eq!(self.pool.mapped_blocks(*volume).unwrap(), map.len() as u64);
        }
    }
}

fn run_seed(seed: u64, steps: usize) {
    let (disk, pool) = new_pool(4000, 60_000);
    let mut life = Life {
        pool,
        model: Model::new(),
        held: false,
        rng: SmallRng::seed_from_u64(seed),
    };
    let mut committed = (life.model.clone(), life.held);
    for _ in 0..steps {
        life.step();
        match life.rng.random_range(0..20) {
            0..6 => {
                life.pool.commit().unwrap();
                committed = (life.model.clone(), life.held);
                let findings = check(disk.clone()).unwrap();
                assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
            }
            6 => {
                life.pool.commit().unwrap();
                committed = (life.model.clone(), life.held);
                thin_check(&disk);
                life.pool = reopen(&disk);
                life.compare();
            }
            7 => {
                life.pool.abort().unwrap();
                (life.model, life.held) = committed.clone();
                life.compare();
            }
            _ => {}
        }
    }
    if life.held {
        life.pool.begin_release(1).unwrap();
    }
    finish(&mut life.pool, 5);
    life.pool.commit().unwrap();
    life.compare();
    let owned: BTreeSet<u64> = life
        .model
        .values()
        .flat_map(|m| m.values().copied())
        .collect();
    assert_eq!(used(&life.pool), owned.len() as u64, "seed {seed}");
    let findings = check(disk.clone()).unwrap();
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    thin_check(&disk);
}

#[test]
fn volumes_deleted_in_steps_agree_with_plain_maps() {
    for seed in 0..12 {
        eprintln!("seed {seed}");
        run_seed(seed, 120);
    }
}

#[test]
fn slow_volumes_deleted_in_steps_many_seeds() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(40, |n| n.parse().unwrap());
    for seed in 1000..1000 + seeds {
        eprintln!("seed {seed}");
        run_seed(seed, 200);
    }
}

/// A tree of three levels and 200,000 mappings, every commit of its way down looked at by both checks.
#[test]
fn a_deep_tree_goes_down_clean_and_leaves_what_a_plain_delete_leaves() {
    let (plain_disk, mut plain) = new_pool(4000, 300_000);
    let (disk, mut pool) = new_pool(4000, 300_000);
    for pool in [&mut plain, &mut pool] {
        filled(pool, 1, 200_000);
        pool.create_thin(id(2)).unwrap();
        for v in 0..3000 {
            map(pool, 2, v * 11);
        }
        pool.commit().unwrap();
    }
    plain.delete_thin(id(1)).unwrap();
    plain.commit().unwrap();

    let before = pool.free_metadata_blocks();
    assert_eq!(pool.begin_deletion(id(1), 256).unwrap(), Deletion::Begun);
    assert_eq!(pool.continue_deletion(16).unwrap(), DeletionStep::More);
    pool.commit().unwrap();
    assert!(pool.free_metadata_blocks() >= before);
    let (mut steps, mut last) = (1, used(&pool));
    loop {
        let step = pool.continue_deletion(16).unwrap();
        pool.commit().unwrap();
        steps += 1;
        assert!(used(&pool) < last, "each step frees something");
        last = used(&pool);
        if steps % 8 == 0 {
            assert_eq!(check(disk.clone()).unwrap(), []);
            thin_check(&disk);
            // Whoever opens it now goes on.
            pool = reopen(&disk);
        }
        if step == DeletionStep::Last {
            break;
        }
    }
    assert!(steps > 40, "{steps}");
    assert_eq!(pool.continue_deletion(16).unwrap(), DeletionStep::Nothing);
    assert!(!pool.changed());
    assert_eq!(check(disk.clone()).unwrap(), []);
    thin_check(&disk);
    assert_eq!(state_of(&pool).volumes, state_of(&plain).volumes);
    assert_eq!(pool.free_data_blocks(), plain.free_data_blocks());
    assert_eq!(pool.free_metadata_blocks(), plain.free_metadata_blocks());
    assert_eq!(thin_dump(&disk), thin_dump(&plain_disk));
}

#[test]
fn an_origin_goes_and_its_snapshots_stay() {
    let (disk, mut pool) = new_pool(4000, 300_000);
    filled(&mut pool, 1, 100_000);
    pool.create_snap(id(2), id(1)).unwrap();
    // The origin gets a tree of its own, all of whose leaves but a few are shared still.
    for v in 0..300 {
        map(&mut pool, 1, v * 317);
    }
    pool.commit().unwrap();
    let snapshot = mappings(&pool, id(2));
    assert_eq!(pool.begin_deletion(id(1), 100).unwrap(), Deletion::Begun);
    let mut last = false;
    while !last {
        last = pool.continue_deletion(7).unwrap() == DeletionStep::Last;
        pool.commit().unwrap();
        let findings = check(disk.clone()).unwrap();
        assert!(findings.is_empty(), "{findings:#?}");
    }
    thin_check(&disk);
    assert_eq!(used(&pool), 100_000);
    assert_eq!(mappings(&reopen(&disk), id(2)), snapshot);
}

#[test]
fn a_metadata_snapshot_gives_up_deleted_volumes_in_steps_too() {
    let (disk, mut pool) = new_pool(4000, 300_000);
    filled(&mut pool, 1, 100_000);
    filled(&mut pool, 2, 100);
    pool.commit().unwrap();
    pool.reserve_metadata_snap().unwrap();
    pool.commit().unwrap();
    // The metadata snapshot has it still.
    assert_eq!(pool.begin_deletion(id(1), 10).unwrap(), Deletion::Done);
    pool.commit().unwrap();
    assert_eq!(used(&pool), 100_100);
    assert_eq!(pool.begin_release(10).unwrap(), Deletion::Begun);
    pool.commit().unwrap();
    assert_eq!(used(&pool), 100_100, "in steps");
    assert_eq!(check(disk.clone()).unwrap(), []);
    thin_check(&disk);
    finish(&mut pool, 10);
    pool.commit().unwrap();
    assert_eq!(used(&pool), 100);
    assert_eq!(check(disk.clone()).unwrap(), []);
    thin_check(&disk);
}

#[test]
fn a_condemned_volume_makes_way_for_whoever_wants_its_id() {
    let (disk, mut pool) = new_pool(4000, 100_000);
    for volume in [5, 6] {
        filled(&mut pool, volume, 3000);
        assert_eq!(pool.begin_deletion(id(volume), 2).unwrap(), Deletion::Begun);
    }
    pool.commit().unwrap();
    let dump = thin_dump(&disk);
    for hidden in [LAST, LAST - 1] {
        assert!(dump.contains(&format!("dev_id=\"{hidden}\"")), "{dump}");
        assert!(!pool.device_exists(id(hidden)).unwrap());
        let kind = |e: thinmap_thin_metadata::MetadataError| e.kind();
        let unseen = Err(ErrorKind::NotFound);
        assert_eq!(pool.details(id(hidden)).map(|_| ()).map_err(kind), unseen);
        assert_eq!(pool.delete_thin(id(hidden)).map_err(kind), unseen);
        let snap = pool.create_snap(id(9), id(hidden));
        assert_eq!(snap.map_err(kind), unseen);
        assert_eq!(pool.device_ids().unwrap(), []);
    }
    pool.create_thin(id(5)).unwrap();
    pool.create_thin(id(LAST)).unwrap();
    map(&mut pool, LAST, 0);
    pool.create_snap(id(LAST - 1), id(LAST)).unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.deletions().unwrap(), 2);
    assert_eq!(reopen(&disk).deletions().unwrap(), 2);
    assert_eq!(check(disk.clone()).unwrap(), []);
    thin_check(&disk);
    finish(&mut pool, 3);
    pool.commit().unwrap();
    let left = [id(5), id(LAST - 1), id(LAST)];
    assert_eq!(pool.device_ids().unwrap(), left);
    assert_eq!(used(&pool), 1);
    assert_eq!(check(disk.clone()).unwrap(), []);
}

#[test]
fn ordinary_volumes_with_high_ids_are_left_alone_and_without_a_free_id_it_is_done_at_once() {
    let (disk, mut pool) = new_pool(8000, 100_000);
    filled(&mut pool, LAST, 10);
    for volume in FIRST..LAST {
        pool.create_snap(id(volume), id(LAST)).unwrap();
    }
    filled(&mut pool, 1, 3000);
    pool.commit().unwrap();
    let mut pool = reopen(&disk);
    assert_eq!(pool.deletions().unwrap(), 0);
    assert_eq!(pool.begin_deletion(id(1), 2).unwrap(), Deletion::Done);
    pool.commit().unwrap();
    assert_eq!(used(&pool), 10);
    assert_eq!(pool.device_ids().unwrap().len(), 4096);
    // With one free again there is one more try, and the id is not to be had until its volume is gone.
    pool.delete_thin(id(FIRST + 7)).unwrap();
    filled(&mut pool, 1, 3000);
    assert_eq!(pool.begin_deletion(id(1), 2).unwrap(), Deletion::Begun);
    let refused = pool.create_thin(id(FIRST + 7)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exists);
    finish(&mut pool, 3);
    pool.create_thin(id(FIRST + 7)).unwrap();
    pool.commit().unwrap();
    assert_eq!(check(disk.clone()).unwrap(), []);
    thin_check(&disk);
}

#[test]
fn a_dump_and_a_restore_keep_the_marks() {
    let (disk, mut pool) = new_pool(4000, 100_000);
    filled(&mut pool, 1, 5000);
    filled(&mut pool, 2, 10);
    pool.create_snap(id(3), id(2)).unwrap();
    pool.begin_deletion(id(1), 2).unwrap();
    pool.continue_deletion(2).unwrap();
    pool.commit().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (xml, image) = (dir.path().join("xml"), dir.path().join("image"));
    std::fs::write(&xml, thin_dump(&disk)).unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(4000 * 4096)
        .unwrap();
    run("thin_restore", &["-i", path(&xml), "-o", path(&image)]);
    let disk = thinmap_sim::SimMetadataDisk::from_file(&image).unwrap();
    let mut pool = reopen(&disk);
    assert_eq!(pool.device_ids().unwrap(), [id(2), id(3)]);
    assert_eq!(pool.deletions().unwrap(), 1);
    finish(&mut pool, 3);
    pool.commit().unwrap();
    assert_eq!(pool.free_data_blocks(), pool.data_blocks() - DataBlock(10));
    thin_check(&disk);
}
