//! Space maps against plain counts: over commits, reopenings, growth, counts far above two.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_persistent_data::{
    Block4k, BlockCache, BlockKind, DiskSpaceMap, ErrorKind, TransactionManager,
};
use thinmap_sim::SimMetadataDisk;

struct Rig {
    cache: Arc<BlockCache>,
    tm: TransactionManager,
    sm: DiskSpaceMap,
}

impl Rig {
    fn new(nr_blocks: u64) -> Self {
        let cache = Arc::new(BlockCache::new(SimMetadataDisk::new(30_000), 64));
        let mut tm = TransactionManager::create(Arc::clone(&cache), 30_000).unwrap();
        let mut sm = DiskSpaceMap::create(&mut tm).unwrap();
        sm.extend(&mut tm, nr_blocks).unwrap();
        Self { cache, tm, sm }
    }

    fn commit(&mut self, reopen: bool) {
        let data_root = self.sm.prepare(&mut self.tm).unwrap();
        let metadata_root = self.tm.prepare().unwrap();
        let commit = self.tm.freeze(Box::new(Block4k::zeroed()));
        commit.write().unwrap();
        self.tm.finish(&commit);
        if reopen {
            self.cache.clear();
            self.tm = TransactionManager::open(Arc::clone(&self.cache), &metadata_root).unwrap();
            self.sm = DiskSpaceMap::open(&data_root).unwrap();
        }
    }
}

fn run_seed(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut blocks = [100, 16_320, 40_000][rng.random_range(0..3)];
    let mut rig = Rig::new(blocks);
    let mut counts = BTreeMap::<u64, u32>::new();
    let mut committed = counts.clone();
    for _ in 0..40 {
        for _ in 0..rng.random_range(0..300) {
            let near = rng.random_range(0..blocks);
            let used = counts.range(near..).next().map(|(b, _)| *b);
            match (rng.random_range(0..10), used) {
                (0..4, _) => {
                    let free = (0..blocks)
                        .filter(|b| !counts.contains_key(b) && !committed.contains_key(b));
                    match rig.sm.alloc(&mut rig.tm).unwrap() {
                        Some(block) => {
                            assert!(!committed.contains_key(&block), "freed block reused");
                            assert!(counts.insert(block, 1).is_none());
                        }
                        None => assert_eq!(free.count(), 0),
                    }
                }
                (4..7, Some(block)) => {
                    for _ in 0..rng.random_range(1..6) {
                        rig.sm.inc(&mut rig.tm, block).unwrap();
                        *counts.entry(block).or_default() += 1;
                    }
                }
                (_, Some(block)) => {
                    rig.sm.dec(&mut rig.tm, block).unwrap();
                    let count = counts.get_mut(&block).unwrap();
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&block);
                    }
                }
                (_, None) => {}
            }
        }
        let blocked = |b: &&u64| !counts.contains_key(b);
        let frozen = committed.keys().filter(blocked).count() as u64;
        assert_eq!(rig.sm.nr_free(), blocks - counts.len() as u64 - frozen);
        if rng.random_range(0..3) == 0 {
            rig.commit(rng.random());
            committed = counts.clone();
        }
        if rng.random_range(0..20) == 0 {
            blocks += rng.random_range(0..20_000);
            rig.sm.extend(&mut rig.tm, blocks).unwrap();
        }
        for _ in 0..100 {
            let block = rng.random_range(0..blocks);
            let found = rig.sm.count(rig.tm.reader(), block).unwrap();
            assert_eq!(found, counts.get(&block).copied().unwrap_or(0));
        }
    }
    rig.commit(true);
    for block in 0..blocks {
        let found = rig.sm.count(rig.tm.reader(), block).unwrap();
        assert_eq!(found, counts.get(&block).copied().unwrap_or(0), "{block}");
    }
}

#[test]
fn model_disk_space_map() {
    (0..10).for_each(run_seed);
}

#[test]
fn metadata_space_map_keeps_large_counts_over_commits() {
    let mut rig = Rig::new(10);
    let blocks: Vec<_> = (0..2000)
        .map(|_| rig.tm.new_block(BlockKind::Bitmap).unwrap())
        .collect();
    for (n, block) in blocks.iter().enumerate() {
        for _ in 0..n % 9 {
            rig.tm.inc(*block).unwrap();
        }
    }
    rig.commit(true);
    for (n, block) in blocks.iter().enumerate() {
        assert_eq!(rig.tm.count(*block).unwrap() as usize, n % 9 + 1);
        for _ in 0..(n % 9).min(4) {
            rig.tm.dec(*block).unwrap();
        }
    }
    rig.commit(true);
    for (n, block) in blocks.iter().enumerate() {
        let expected = n % 9 + 1 - (n % 9).min(4);
        assert_eq!(rig.tm.count(*block).unwrap() as usize, expected);
        for _ in 0..expected {
            rig.tm.dec(*block).unwrap();
        }
    }
    let before = rig.tm.nr_free();
    rig.commit(true);
    assert!(rig.tm.nr_free() >= before + 2000);
}

#[test]
fn a_count_below_zero_or_a_block_past_the_end_is_corruption() {
    let mut rig = Rig::new(10);
    let below = rig.sm.dec(&mut rig.tm, 3).unwrap_err();
    assert_eq!(below.kind(), ErrorKind::Corrupt);
    let past = rig.sm.inc(&mut rig.tm, 10).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::Corrupt);
    let past = rig.tm.inc(30_000).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::Corrupt);
    let shrunk = rig.sm.extend(&mut rig.tm, 9).unwrap_err();
    assert_eq!(shrunk.kind(), ErrorKind::Inval);
}

#[test]
fn metadata_blocks_freed_are_not_reused_before_the_commit() {
    let mut rig = Rig::new(10);
    let mut blocks = Vec::new();
    // Leaves room for the commit itself.
    while rig.tm.nr_free() > 20 {
        blocks.push(rig.tm.new_block(BlockKind::Bitmap).unwrap());
    }
    rig.commit(false);
    for block in &blocks[..100] {
        rig.tm.dec(*block).unwrap();
    }
    let mut fresh = Vec::new();
    let full = loop {
        match rig.tm.new_block(BlockKind::Bitmap) {
            Ok(block) => fresh.push(block),
            Err(e) => break e,
        }
    };
    assert!(matches!(full.kind(), ErrorKind::NoSpace(_)));
    assert!(fresh.len() <= 20);
    assert!(fresh.iter().all(|block| !blocks.contains(block)));
    // Made and freed in one transaction: free at once.
    let last = fresh.pop().unwrap();
    rig.tm.dec(last).unwrap();
    assert_eq!(rig.tm.new_block(BlockKind::Bitmap).unwrap(), last);
    for block in &fresh {
        rig.tm.dec(*block).unwrap();
    }
    rig.commit(true);
    let reused = rig.tm.new_block(BlockKind::Bitmap).unwrap();
    assert!(blocks[..100].contains(&reused));
}
