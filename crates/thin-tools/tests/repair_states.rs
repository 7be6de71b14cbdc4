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
        let options = RepairOptions {
            transaction_id: Some(9),
            ..RepairOptions::default()
        };
        let report = case.repair_with(&options);
        assert!(report.volumes.iter().all(|volume| volume.details_lost));
        let source = Source::open(&case.output, RootChoice::Live).unwrap();
        let volumes = source.volumes().unwrap();
        assert!(volumes.iter().all(|v| v.details.transaction_id == 9));
        drop(source);
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

/// Metadata blocks of a pool's trees of volumes or details, by the size of a leaf's values.
fn leaves_below(bytes: &[u8], root: u64) -> Vec<u64> {
    let raw = Raw(bytes);
    let field = |block: u64, at: usize| {
        u32::from_le_bytes(raw.block(block)[at..at + 4].try_into().unwrap()) as usize
    };
    let (flags, len, max) = (field(root, 4), field(root, 16), field(root, 20));
    match flags & 2 {
        0 => (0..len)
            .flat_map(|at| leaves_below(bytes, number(bytes, root, 32 + 8 * max + 8 * at)))
            .collect(),
        _ => vec![root],
    }
}

#[test]
fn parts_of_a_damaged_tree_do_not_win_over_it() {
    for volumes in [300, 3000] {
        let case = Case::new(|path| {
            let mut pool = pools::new_pool(path, 8192, 10_000).unwrap();
            for id in 0..volumes {
                pool.create_thin(pools::id(id)).unwrap();
                pools::map(&mut pool, id, id % 7).unwrap();
            }
            pool.commit().unwrap();
        });
        let before = case.bytes();
        let leaves = leaves_below(&before, number(&before, 0, 328));
        assert!(leaves.len() > 2);
        for lost in [leaves[0], leaves[leaves.len() / 2], *leaves.last().unwrap()] {
            case.write(0, &before);
            case.zero(0);
            case.zero(lost);
            let report = case.repair();
            let after = std::fs::read(&case.output).unwrap();
            assert!(Raw(&after).volumes() == Raw(&before).volumes());
            let told = report.volumes.iter().filter(|v| v.details_lost).count();
            assert!(
                told > 30 && told < 130,
                "{told} of {volumes} without details"
            );
            assert!(report.lost_volumes.is_empty());
        }
    }
}

#[test]
fn a_hole_in_the_newest_state_is_better_than_an_older_state() {
    let case = Case::new(|path| pools::random(path, 104).unwrap());
    let before = Raw(&case.bytes()).volumes();
    case.zero(0);
    case.zero(83);
    let report = case.repair();
    let after = std::fs::read(&case.output).unwrap();
    let after = Raw(&after).volumes();
    assert!(after.keys().eq(before.keys()));
    for volume in &report.volumes {
        assert_eq!(volume.lost.is_empty(), volume.id != 0, "{volume:?}");
        let mappings = &after[&volume.id];
        assert!(
            mappings
                .iter()
                .all(|(key, value)| before[&volume.id].get(key) == Some(value))
        );
        let is_whole = mappings.len() == before[&volume.id].len();
        assert_eq!(is_whole, volume.id != 0);
    }
    let text = report.to_string();
    assert!(text.contains("may be an older state"), "{text}");
    assert!(text.ends_with("which may be an older one"), "{text}");
}

#[test]
fn volumes_that_only_other_states_know_are_named() {
    let case = Case::new(|path| {
        let mut pool = pools::new_pool(path, 256, 1000).unwrap();
        for id in [0, 1] {
            pool.create_thin(pools::id(id)).unwrap();
            pools::map(&mut pool, id, 0).unwrap();
        }
        pool.commit().unwrap();
        pool.delete_thin(pools::id(1)).unwrap();
        pool.set_transaction_id(0, 5).unwrap();
        pool.create_thin(pools::id(2)).unwrap();
        pool.commit().unwrap();
    });
    case.zero(0);
    let report = case.repair();
    let ids: Vec<u64> = report.volumes.iter().map(|volume| volume.id).collect();
    assert_eq!((ids, &report.possibly_missing[..]), (vec![0, 2], &[1][..]));
    let text = report.to_string();
    assert!(text.contains("deleted or are missing: 1\n"), "{text}");
    // A transaction id that only an older state has is no reason to take that one.
    let options = RepairOptions {
        transaction_id: Some(9),
        ..RepairOptions::default()
    };
    assert_eq!(case.repair_with(&options).volumes.len(), 2);
}

#[test]
fn a_root_of_counts_that_is_another_tree_gives_no_counts() {
    let case = Case::new(|path| pools::random(path, 4).unwrap());
    let bytes = case.bytes();
    let top = number(&bytes, 0, 320);
    // Of the metadata space map.
    case.forge(0, BlockKind::Superblock, |bytes| {
        bytes[216..224].copy_from_slice(&top.to_le_bytes());
    });
    case.zero(number(&bytes, top, 32 + 252 * 8));
    let report = case.repair();
    assert!(!report.volumes.is_empty());
}
