//! Trimming a data file: what no volume uses becomes a hole, all else stays.

#[path = "support/pools.rs"]
mod pools;

use std::fs::File;
use std::os::unix::fs::FileExt;

use thinmap_thin_tools::trim::trim;
use thinmap_thin_tools::{RootChoice, Source};
use thinmap_units::VirtBlock;

const BLOCK_BYTES: u64 = pools::BLOCK_SECTORS * 512;
/// More than one bitmap of the space map describes, so that a free range goes over its border.
const DATA_BLOCKS: u64 = 16_320 + 500;

fn no_discard(_: &File, _: u64, _: u64) -> std::io::Result<()> {
    panic!("a file gets holes, no discards")
}

#[test]
fn free_blocks_become_holes_and_used_ones_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let (image, path) = (directory.path().join("meta"), directory.path().join("data"));
    let mut pool = pools::new_pool(&image, 1024, DATA_BLOCKS).expect("a pool");
    pool.create_thin(pools::id(1)).expect("a volume");
    let used: Vec<u64> = (0..40)
        .map(|n| pools::map(&mut pool, 1, n * 3).expect("mapped").raw())
        .collect();
    pool.remove_range(pools::id(1), VirtBlock(9), VirtBlock(60))
        .expect("a hole");
    pool.commit().expect("committed");
    drop(pool);
    let used: Vec<u64> = used
        .into_iter()
        .enumerate()
        .filter(|(n, _)| !(9..60).contains(&(n * 3)))
        .map(|(_, block)| block)
        .collect();

    let data = File::create_new(&path).expect("data");
    data.set_len(DATA_BLOCKS * BLOCK_BYTES).expect("its size");
    let marked = [0, 7, 39, 16_319, 16_320, DATA_BLOCKS - 1];
    for block in used.iter().chain(&marked) {
        data.write_all_at(&[0xa5; 4096], block * BLOCK_BYTES)
            .expect("content");
    }
    let source = Source::open(&image, RootChoice::Live).expect("a good pool");
    let mut ranges = Vec::new();
    let mut each = |begin, end| ranges.push((begin, end));
    let done = trim(&source, &path, &no_discard, true, &mut each).expect("trimmed");

    let free = |block: u64| !used.contains(&block);
    let told = |block: u64| ranges.iter().any(|(b, e)| (*b..*e).contains(&block));
    assert!((0..DATA_BLOCKS).all(|block| free(block) == told(block)));
    assert_eq!(done.blocks, DATA_BLOCKS - used.len() as u64);
    assert_eq!(done.ranges, ranges.len() as u64);
    for block in used.iter().chain(&marked) {
        let mut byte = [0];
        data.read_exact_at(&mut byte, block * BLOCK_BYTES)
            .expect("read");
        let wanted = if free(*block) { 0 } else { 0xa5 };
        assert_eq!(byte[0], wanted, "block {block}");
    }
}

#[test]
fn another_pools_data_device_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (image, path) = (directory.path().join("meta"), directory.path().join("data"));
    drop(pools::new_pool(&image, 1024, 100).expect("a pool"));
    let data = File::create_new(&path).expect("data");
    data.set_len(100 * BLOCK_BYTES - 1).expect("its size");
    let source = Source::open(&image, RootChoice::Live).expect("a good pool");
    let refused = trim(&source, &path, &no_discard, true, &mut |_, _| {});
    let error = refused.expect_err("too small").to_string();
    assert!(error.contains("data") && error.contains("fewer"), "{error}");
    data.set_len(100 * BLOCK_BYTES).expect("its size");
    rustix::fs::flock(&data, rustix::fs::FlockOperation::LockShared).expect("locked");
    let refused = trim(&source, &path, &no_discard, true, &mut |_, _| {});
    let error = refused.expect_err("in use").to_string();
    assert!(error.contains("in use"), "{error}");
}
