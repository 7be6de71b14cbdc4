//! `repair` when the superblock or details are lost: times that keep shared blocks shared, and which state of
//! the pool is taken.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/pools.rs"]
mod pools;
#[path = "support/raw.rs"]
mod raw;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raw::Raw;
use thinmap_persistent_data::{BlockKind, seal};
use thinmap_thin_tools::check::{Depth, check};
use thinmap_thin_tools::repair::{RepairOptions, RepairReport, repair};
use thinmap_thin_tools::{Access, Image, RootChoice, Source};

const TIME_MAX: u32 = (1 << 24) - 1;

struct Case {
    _directory: tempfile::TempDir,
    pool: PathBuf,
    output: PathBuf,
}

impl Case {
    fn new(make: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path().join("pool");
        let output = directory.path().join("output");
        make(&pool);
        let size = std::fs::metadata(&pool).unwrap().len();
        let file = std::fs::File::create(&output).unwrap();
        file.set_len(size + (1 << 20)).unwrap();
        Self {
            _directory: directory,
            pool,
            output,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.pool).unwrap()
    }

    fn write(&self, block: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(&self.pool);
        file.unwrap().write_all_at(bytes, block * 4096).unwrap();
    }

    fn zero(&self, block: u64) {
        self.write(block, &[0; 4096]);
    }

    /// Changes block `block` and seals it.
    fn forge(&self, block: u64, kind: BlockKind, change: impl FnOnce(&mut [u8])) {
        let bytes = self.bytes();
        let mut block_bytes = *Raw(&bytes).block(block).first_chunk::<4096>().unwrap();
        change(&mut block_bytes);
        seal(kind, block, &mut block_bytes);
        self.write(block, &block_bytes);
    }

    fn repair(&self) -> RepairReport {
        self.repair_with(&RepairOptions::default())
    }

    fn repair_with(&self, options: &RepairOptions) -> RepairReport {
        let options = RepairOptions {
            data_block_size: Some(pools::BLOCK_SECTORS as u32),
            quiet: true,
            ..*options
        };
        let input = Image::open(&self.pool, Access::Read).unwrap();
        let output = Image::open(&self.output, Access::Write).unwrap();
        let report = repair(&input, &output, &options).unwrap();
        let found = check(&output, RootChoice::Live, Depth::All, true).report;
        assert_eq!(found.fatal + found.leaks, 0, "{:?}", found.findings);
        report
    }

    /// The pool's time in the output, and each volume's highest time of a mapping and of its last snapshot.
    fn times(&self) -> (u32, Vec<(u64, u32, u32)>) {
        let bytes = std::fs::read(&self.output).unwrap();
        let mappings = Raw(&bytes).volumes();
        let source = Source::open(&self.output, RootChoice::Live).unwrap();
        let volumes = source.volumes().unwrap();
        let times = volumes.iter().map(|volume| {
            let newest = mappings[&volume.id].values().map(|v| *v as u32 & TIME_MAX);
            let newest = newest.max().unwrap_or(0);
            (volume.id, newest, volume.details.snapshotted_time)
        });
        (source.superblock().time, times.collect())
    }
}

fn number(bytes: &[u8], block: u64, at: usize) -> u64 {
    let block = Raw(bytes).block(block);
    u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
}

/// A pool whose time is that of a snapshot which is gone; the volume left was written since.
fn with_a_snapshot_deleted(path: &Path) {
    let mut pool = pools::new_pool(path, 256, 1000).unwrap();
    for id in [0, 2] {
        pool.create_thin(pools::id(id)).unwrap();
    }
    pool.create_snap(pools::id(1), pools::id(0)).unwrap();
    for block in 0..40 {
        pools::map(&mut pool, 2, block).unwrap();
    }
    for id in [0, 1] {
        pool.delete_thin(pools::id(id)).unwrap();
    }
    pool.commit().unwrap();
}

#[test]
fn the_pools_time_is_at_least_that_of_every_mapping() {
    let case = Case::new(with_a_snapshot_deleted);
    let live = Source::open(&case.pool, RootChoice::Live).unwrap();
    assert_eq!(live.volumes().unwrap()[0].details.snapshotted_time, 0);
    drop(live);
    case.zero(0);
    assert!(case.repair().superblock_rebuilt);
    assert_eq!(case.times(), (1, vec![(2, 1, 0)]));
}

#[test]
fn a_live_superblock_that_is_behind_its_mappings_is_put_right() {
    let case = Case::new(with_a_snapshot_deleted);
    // The time.
    case.forge(0, BlockKind::Superblock, |bytes| bytes[44..48].fill(0));
    let report = case.repair();
    assert!(!report.superblock_rebuilt && !report.time_at_end);
    assert_eq!(case.times(), (1, vec![(2, 1, 0)]));
}

#[test]
fn made_up_details_take_every_mapping_as_shared() {
    for superblock_lost in [false, true] {
        let case = Case::new(with_a_snapshot_deleted);
        let details = number(&case.bytes(), 0, 328);
        // What older states had, too.
        for block in 1..256 {
            let is_details = Raw(&case.bytes()).block(block)[24..28] == 24_u32.to_le_bytes();
            if block == details || is_details {
                case.zero(block);
            }
        }
        if superblock_lost {
            case.zero(0);
        }
        let report = case.repair();
        assert!(report.volumes.iter().all(|volume| volume.details_lost));
        let (time, volumes) = case.times();
        assert!(!volumes.is_empty());
        let newest = volumes.iter().map(|v| v.1).max().unwrap();
        for (id, _, snapshotted) in volumes {
            assert!(
                snapshotted > newest && time >= snapshotted,
                "volume {id}: {snapshotted} of {time}"
            );
        }
    }
}

#[test]
fn at_the_last_time_there_is_nothing_wraps_and_it_is_said() {
    let case = Case::new(with_a_snapshot_deleted);
    let bytes = case.bytes();
    let (top, details) = (number(&bytes, 0, 320), number(&bytes, 0, 328));
    let leaf = number(&bytes, top, 32 + 252 * 8);
    // The first mapping's time.
    case.forge(leaf, BlockKind::Node, |bytes| {
        bytes[32 + 252 * 8..][..3].fill(0xff);
    });
    case.zero(details);
    let report = case.repair();
    assert!(report.time_at_end);
    assert!(report.to_string().contains("at its end"), "{report}");
    let (time, volumes) = case.times();
    assert_eq!(time, TIME_MAX);
    assert_eq!(volumes, [(2, TIME_MAX, TIME_MAX + 1)]);
}
