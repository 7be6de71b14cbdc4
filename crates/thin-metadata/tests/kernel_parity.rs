//! The number of metadata blocks in use is the kernel's, operation by operation.
//!
//! `scripts/parity.ops` says what is done, `scripts/parity.kernel-6.1.txt` what the status of a
//! Linux 6.1 pool said at each of its `status` lines (recorded with `scripts/kernel_parity.py`).

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use support::*;
use thinmap_thin_metadata::{Lookup, MayRead, PoolMetadata, check};
use thinmap_units::{DataBlock, VirtBlock};

const OPS: &str = include_str!("scripts/parity.ops");
const KERNEL: &str = include_str!("scripts/parity.kernel-6.1.txt");
const METADATA_BLOCKS: u64 = 16_384;
const DATA_BLOCKS: u64 = 100_000;

/// Blocks as `chosen` in `kernel_parity.py` gives them.
fn chosen(count: u64, limit: u64, seed: u64) -> impl Iterator<Item = u64> {
    let next = |seed: &u64| {
        let product = seed.wrapping_mul(6_364_136_223_846_793_005);
        Some(product.wrapping_add(1_442_695_040_888_963_407))
    };
    let seeds = std::iter::successors(Some(seed), next).skip(1);
    seeds
        .take(usize::try_from(count).unwrap())
        .map(move |seed| (seed >> 33) % limit)
}

/// What a write of a whole block does to the metadata.
fn write(pool: &mut PoolMetadata, volume: u64, block: u64) {
    let found = pool
        .lookup(id(volume), VirtBlock(block), MayRead::Yes)
        .unwrap();
    if !matches!(found, Lookup::Mapped { shared: false, .. }) {
        map(pool, volume, block);
    }
}

fn discard(pool: &mut PoolMetadata, volume: u64, begin: u64, end: u64) {
    pool.remove_range(id(volume), VirtBlock(begin), VirtBlock(end))
        .unwrap();
}

/// Does one line of the script; gives what its status would say.
fn step(pool: &mut PoolMetadata, verb: &str, n: &[u64]) -> Option<String> {
    match verb {
        "status" => {
            pool.commit().unwrap();
            return Some(status(pool));
        }
        "creates" => (n[0]..=n[1]).for_each(|v| message(pool, |p| p.create_thin(id(v)))),
        "snaps" => (n[0]..=n[1]).for_each(|v| message(pool, |p| p.create_snap(id(v), id(n[2])))),
        "deletes" => (n[0]..=n[1]).for_each(|v| message(pool, |p| p.delete_thin(id(v)))),
        "create" => message(pool, |p| p.create_thin(id(n[0]))),
        "snap" => message(pool, |p| p.create_snap(id(n[0]), id(n[1]))),
        "delete" => message(pool, |p| p.delete_thin(id(n[0]))),
        "reserve" => message(pool, PoolMetadata::reserve_metadata_snap),
        "release" => message(pool, PoolMetadata::release_metadata_snap),
        "grow" => message(pool, |p| p.resize_data(DataBlock(n[0]))),
        "discard" => discard(pool, n[0], n[1], n[2]),
        "punch" => chosen(n[1], n[2], n[3]).for_each(|b| discard(pool, n[0], b, b + 1)),
        "random" => chosen(n[1], n[2], n[3]).for_each(|b| write(pool, n[0], b)),
        "up" | "down" => {
            let stride = usize::try_from(n[3]).unwrap();
            let mut blocks: Vec<u64> = (n[1]..n[2]).step_by(stride).collect();
            if verb == "down" {
                blocks.reverse();
            }
            blocks.into_iter().for_each(|b| write(pool, n[0], b));
        }
        verb => panic!("{verb}?"),
    }
    None
}

/// A message to the pool commits.
fn message(
    pool: &mut PoolMetadata,
    work: impl FnOnce(&mut PoolMetadata) -> thinmap_thin_metadata::Result<()>,
) {
    work(pool).unwrap();
    pool.commit().unwrap();
}

fn status(pool: &PoolMetadata) -> String {
    let metadata = pool.metadata_blocks().raw();
    let data = pool.data_blocks().raw();
    format!(
        "{}/{metadata} {}/{data}",
        metadata - pool.free_metadata_blocks().raw(),
        data - pool.free_data_blocks().raw(),
    )
}

#[test]
fn metadata_blocks_in_use_are_the_kernels() {
    let (disk, mut pool) = new_pool(METADATA_BLOCKS, DATA_BLOCKS);
    let mut kernel = KERNEL.lines();
    let mut different = String::new();
    let mut compared = 0;
    for (number, line) in OPS.lines().enumerate() {
        let words = line.split('#').next().unwrap_or_default();
        let mut words = words.split_whitespace();
        let Some(verb) = words.next() else { continue };
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let Some(ours) = step(&mut pool, verb, &numbers) else {
            continue;
        };
        let theirs = kernel.next().expect("the kernel said less");
        compared += 1;
        if ours != theirs {
            different += &format!("line {}: kernel {theirs}, here {ours}\n", number + 1);
        }
    }
    assert_eq!(kernel.next(), None, "the kernel said more");
    assert!(compared > 40);
    assert!(different.is_empty(), "{different}");
    assert!(check(disk).unwrap().is_empty());
}
