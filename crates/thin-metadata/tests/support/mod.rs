//! What several tests need: pools on simulated disks, and Debian's thin tools.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{Block4k, Lookup, MayRead, MetadataDevice, OpenOptions, PoolMetadata};
use thinmap_units::{DataBlock, MetaBlock, Sector, ThinId, VirtBlock};

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

/// All that a pool says of itself to its users: volumes, their mappings, ids.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    pub transaction_id: u64,
    pub held: bool,
    pub data_blocks: u64,
    pub free_data_blocks: u64,
    pub volumes: BTreeMap<ThinId, BTreeMap<u64, (u64, bool)>>,
}

pub fn state_of(pool: &PoolMetadata) -> State {
    let volumes = pool.device_ids().unwrap().into_iter();
    State {
        transaction_id: pool.transaction_id(),
        held: pool.held_root().is_some(),
        data_blocks: pool.data_blocks().raw(),
        free_data_blocks: pool.free_data_blocks().raw(),
        volumes: volumes.map(|id| (id, mappings(pool, id))).collect(),
    }
}

pub fn mappings(pool: &PoolMetadata, id: ThinId) -> BTreeMap<u64, (u64, bool)> {
    let mut found = BTreeMap::new();
    let end = pool.highest_mapped(id).unwrap().map_or(0, |v| v.raw() + 1);
    let mut at = 0;
    while at < end {
        let run = pool
            .lookup_run(id, VirtBlock(at), end - at, MayRead::Yes)
            .unwrap();
        if let Lookup::Mapped { data, shared } = run.first {
            found.extend((0..run.blocks).map(|n| (at + n, (data.raw() + n, shared))));
        }
        at += run.blocks;
    }
    found
}

/// A metadata device that is a file, for images too large to simulate.
pub struct FileDisk {
    file: std::fs::File,
    reads: std::sync::atomic::AtomicU64,
}

impl FileDisk {
    pub fn open(path: &Path) -> Self {
        let mut options = std::fs::File::options();
        Self {
            file: options.read(true).write(true).open(path).unwrap(),
            reads: std::sync::atomic::AtomicU64::new(0),
        }
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl MetadataDevice for FileDisk {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.file.metadata().unwrap().len() / 4096)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> std::io::Result<()> {
        self.reads
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.file.read_exact_at(&mut buf.0, block.raw() * 4096)
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> std::io::Result<()> {
        batch
            .iter()
            .try_for_each(|(block, bytes)| self.file.write_all_at(&bytes.0, block.raw() * 4096))
    }

    fn flush(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}
