//! How fast the engine is: printed, never judged; what it leaves behind is checked.
//!
//! Run with `--release -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_thin_metadata::{MayRead, check};
use thinmap_units::VirtBlock;

const MAPPINGS: u64 = 200_000;

fn report(what: &str, count: u64, start: Instant) {
    let each = start.elapsed().as_nanos() / u128::from(count);
    eprintln!("{what}: {each} ns each");
}

#[test]
fn speed_of_the_usual_operations() {
    let mut rng = SmallRng::seed_from_u64(6);
    let (disk, mut pool) = new_pool(40_000, 1_000_000);
    pool.create_thin(id(1)).unwrap();
    pool.create_thin(id(2)).unwrap();
    pool.commit().unwrap();
    let start = Instant::now();
    for v in 0..MAPPINGS {
        map(&mut pool, 1, v);
    }
    report("insert ascending", MAPPINGS, start);
    let start = Instant::now();
    let dirty = pool.cached_blocks().1;
    pool.commit().unwrap();
    report(
        &format!("commit of {dirty} blocks, block"),
        dirty as u64,
        start,
    );
    let start = Instant::now();
    for _ in 0..MAPPINGS {
        map(&mut pool, 2, rng.random_range(0..MAPPINGS * 10));
    }
    report("insert random", MAPPINGS, start);
    pool.commit().unwrap();
    let start = Instant::now();
    for _ in 0..MAPPINGS {
        let v = VirtBlock(rng.random_range(0..MAPPINGS));
        pool.lookup(id(1), v, MayRead::No).unwrap();
    }
    report("lookup", MAPPINGS, start);
    let start = Instant::now();
    for snap in 10..1010 {
        pool.create_snap(id(snap), id(1)).unwrap();
    }
    report("create_snap", 1000, start);
    pool.commit().unwrap();
    let start = Instant::now();
    for snap in 10..1010 {
        map(&mut pool, snap, 500);
    }
    report("break sharing in a leaf", 1000, start);
    pool.commit().unwrap();
    let start = Instant::now();
    for snap in 10..1010 {
        pool.delete_thin(id(snap)).unwrap();
    }
    report("delete_thin of a snapshot", 1000, start);
    pool.commit().unwrap();
    let start = Instant::now();
    for n in 0..1000 {
        let (v, end) = (VirtBlock(n * 100), VirtBlock(n * 100 + 90));
        pool.remove_range(id(1), v, end).unwrap();
    }
    report("remove_range of 90 blocks", 1000, start);
    pool.commit().unwrap();
    assert!(check(disk).unwrap().is_empty());
}
