//! Damaged images, with checksums made right again so that the damage is reached: errors are fine,
//! panics, endless loops and unbounded memory are not.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_persistent_data::{BlockKind, seal};
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{Deletion, MayRead, PoolMetadata, Result, check};
use thinmap_units::{DataBlock, VirtBlock};

fn good_image() -> Arc<SimMetadataDisk> {
    let (disk, mut pool) = new_pool(2000, 30_000);
    pool.create_thin(id(1)).unwrap();
    for v in 0..2000 {
        map(&mut pool, 1, v * 3);
    }
    pool.commit().unwrap();
    for snap in 2..8 {
        pool.create_snap(id(snap), id(1)).unwrap();
        for v in 0..40 {
            map(&mut pool, snap, v * 50);
        }
    }
    pool.commit().unwrap();
    pool.create_thin(id(8)).unwrap();
    for v in 0..3000 {
        map(&mut pool, 8, v);
    }
    assert_eq!(pool.begin_deletion(id(8), 2).unwrap(), Deletion::Begun);
    pool.continue_deletion(3).unwrap();
    pool.reserve_metadata_snap().unwrap();
    pool.commit().unwrap();
    for v in 0..300 {
        map(&mut pool, 1, v * 7);
    }
    pool.commit().unwrap();
    disk
}

fn kind_of(block: u64, bytes: &[u8; 4096]) -> Option<BlockKind> {
    use BlockKind::{Bitmap, Index, Node, Superblock};
    [Superblock, Node, Bitmap, Index].into_iter().find(|kind| {
        let mut sealed = *bytes;
        seal(*kind, block, &mut sealed);
        sealed == *bytes
    })
}

fn damage(disk: &SimMetadataDisk, blocks: &[u64], rng: &mut SmallRng) {
    let block = blocks[rng.random_range(0..blocks.len())];
    let other = blocks[rng.random_range(0..blocks.len())];
    disk.damage(block, |bytes| {
        let kind = kind_of(block, bytes);
        for _ in 0..rng.random_range(1..4) {
            let header = rng.random_range(0..3) == 0;
            let at = rng.random_range(0..if header { 8 } else { 512 }) * 8;
            let value = match rng.random_range(0..6) {
                0 => rng.random(),
                5 => block,
                1 => other,
                2 => rng.random_range(0..300),
                3 => u64::MAX,
                _ => 1 << rng.random_range(0..64),
            };
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(kind) = kind {
            seal(kind, block, bytes);
        }
    });
}

fn use_everything(pool: &mut PoolMetadata, rng: &mut SmallRng) {
    let _ = pool.device_ids();
    let _ = pool.deletions();
    pool.read_for_deletion(20);
    for volume in 0..9 {
        let _ = pool.details(id(volume));
        let _ = pool.highest_mapped(id(volume));
        for _ in 0..20 {
            let v = VirtBlock(rng.random_range(0..7000));
            let _ = pool.lookup(id(volume), v, MayRead::Yes);
            let _ = pool.lookup_run(id(volume), v, 10_000, MayRead::Yes);
        }
    }
    for _ in 0..30 {
        let volume = id(rng.random_range(0..9));
        let v = rng.random_range(0..7000);
        let done: Result<()> = match rng.random_range(0..11) {
            0 => pool.create_thin(volume),
            1 => pool.create_snap(id(rng.random_range(0..20)), volume),
            2 => pool.delete_thin(volume),
            3 => pool
                .remove_range(volume, VirtBlock(v), VirtBlock(v + 1500))
                .map(|_| ()),
            4 => pool.release_metadata_snap(),
            5 => pool.resize_data(DataBlock(60_000)),
            6 => pool.commit(),
            7 => pool.begin_deletion(volume, 1).map(|_| ()),
            8 => pool.continue_deletion(2).map(|_| ()),
            9 => pool.begin_release(1).map(|_| ()),
            _ => (0..50).try_for_each(|n| {
                let data = pool.alloc_data_block()?;
                pool.insert(volume, VirtBlock(v + n), data)
            }),
        };
        if done.is_err() && pool.abort().is_err() {
            return;
        }
    }
}

fn run_seeds(seeds: std::ops::Range<u64>) {
    let good = good_image();
    assert!(check(good.clone()).unwrap().is_empty());
    let blocks = good.written_blocks();
    let mut found = 0;
    for seed in seeds.clone() {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = good.copy();
        damage(&disk, &blocks, &mut rng);
        found += usize::from(check(disk.clone()).map_or(true, |f| !f.is_empty()));
        let mut o = options();
        o.format_if_zeroed = false;
        if let Ok(mut pool) = PoolMetadata::open(disk.clone(), &o) {
            use_everything(&mut pool, &mut rng);
        }
        let _ = check(disk);
    }
    // The canary: the damage must be such that a check sees it more often than not.
    assert!(
        found as u64 * 2 > seeds.end - seeds.start,
        "only {found} seen"
    );
}

#[test]
fn damaged_images_never_panic() {
    run_seeds(0..400);
}

#[test]
fn slow_damaged_images_never_panic_many_seeds() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(400, |n| n.parse().unwrap());
    run_seeds(10_000..10_000 + seeds);
}

#[test]
fn a_data_block_beyond_the_pool_is_damage_and_nobody_is_sent_there() {
    let (disk, mut pool) = new_pool(64, 100);
    pool.create_thin(id(1)).unwrap();
    for v in 0..4 {
        map(&mut pool, 1, v);
    }
    pool.commit().unwrap();
    drop(pool);
    // The only leaf whose values are data blocks: the third of four goes to the last block that a mapping can name.
    let changed = disk.written_blocks().into_iter().filter(|block| {
        let mut found = false;
        disk.damage(*block, |bytes| {
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let max = u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
            let values = 32 + 8 * max;
            found = kind_of(*block, bytes) == Some(BlockKind::Node)
                && bytes[16] == 4
                && (0..4).all(|n| word(values + 8 * n) >> 24 == n as u64);
            if found {
                let wild = u64::MAX << 24;
                bytes[values + 16..values + 24].copy_from_slice(&wild.to_le_bytes());
                seal(BlockKind::Node, *block, bytes);
            }
        });
        found
    });
    assert_eq!(changed.count(), 1);
    let pool = reopen(&disk);
    let run = pool
        .lookup_run(id(1), VirtBlock(0), 4, MayRead::Yes)
        .unwrap();
    assert_eq!(run.blocks, 2);
    let wild = VirtBlock(2);
    for error in [
        pool.lookup(id(1), wild, MayRead::Yes).unwrap_err(),
        pool.lookup_run(id(1), wild, 2, MayRead::Yes).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the pool has 100"), "{error}");
    }
    assert!(pool.lookup(id(1), VirtBlock(3), MayRead::Yes).is_ok());
}
