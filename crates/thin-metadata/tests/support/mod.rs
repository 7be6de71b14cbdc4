//! What several tests need: pools on simulated disks, and Debian's thin tools.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{OpenOptions, PoolMetadata};
use thinmap_units::{DataBlock, Sector, ThinId, VirtBlock};

pub const BLOCK_SECTORS: u64 = 128;

pub fn options() -> OpenOptions {
    OpenOptions {
        data_block_size: Sector(BLOCK_SECTORS),
        format_if_zeroed: true,
        read_only: false,
        cache_blocks_max: 4096,
    }
}

pub fn new_pool(metadata_blocks: u64, data_blocks: u64) -> (Arc<SimMetadataDisk>, PoolMetadata) {
    let disk = SimMetadataDisk::new(metadata_blocks);
    let mut pool = PoolMetadata::open(disk.clone(), &options()).unwrap();
    pool.resize_data(DataBlock(data_blocks)).unwrap();
    pool.commit().unwrap();
    (disk, pool)
}

pub fn reopen(disk: &Arc<SimMetadataDisk>) -> PoolMetadata {
    let mut o = options();
    o.format_if_zeroed = false;
    PoolMetadata::open(disk.clone(), &o).unwrap()
}

pub fn id(n: u64) -> ThinId {
    ThinId::new(n).unwrap()
}

pub fn map(pool: &mut PoolMetadata, volume: u64, block: u64) -> DataBlock {
    let data = pool.alloc_data_block().unwrap();
    pool.insert(id(volume), VirtBlock(block), data).unwrap();
    data
}

/// Runs a program, panics with its output if it fails, gives what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn thin_check(disk: &SimMetadataDisk) {
    let file = tempfile::NamedTempFile::new().unwrap();
    disk.to_file(file.path()).unwrap();
    run("thin_check", &[path(file.path())]);
}

pub fn thin_dump(disk: &SimMetadataDisk) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    disk.to_file(file.path()).unwrap();
    run("thin_dump", &[path(file.path())])
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
