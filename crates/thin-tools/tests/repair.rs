//! `repair` on chosen damage: what must come back, what must be named, and what must be refused.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/pools.rs"]
mod pools;
#[path = "support/raw.rs"]
mod raw;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raw::Raw;
use thinmap_persistent_data::{BlockKind, Result, seal};
use thinmap_thin_metadata::ErrorKind;
use thinmap_thin_tools::check::{Depth, check};
use thinmap_thin_tools::command::{Invocation, NoHost, find};
use thinmap_thin_tools::repair::{RepairOptions, RepairReport, repair};
use thinmap_thin_tools::{Access, Image, RootChoice};

const SNAPSHOTS: u64 = 100;
const MAPPINGS: u64 = 40_000;

struct Case {
    directory: tempfile::TempDir,
    pool: PathBuf,
    output: PathBuf,
    before: Vec<u8>,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (pool, output) = (
            directory.path().join("pool"),
            directory.path().join("output"),
        );
        pools::many_snapshots(&pool, MAPPINGS, SNAPSHOTS).unwrap();
        let before = std::fs::read(&pool).unwrap();
        let file = std::fs::File::create(&output).unwrap();
        file.set_len(before.len() as u64).unwrap();
        Self {
            directory,
            pool,
            output,
            before,
        }
    }

    fn damage(&self, block: u64) {
        let file = std::fs::File::options().write(true).open(&self.pool);
        file.unwrap()
            .write_all_at(b"damage", block * 4096 + 1000)
            .unwrap();
    }

    fn repair(&self, options: &RepairOptions) -> Result<RepairReport> {
        let input = Image::open(&self.pool, Access::Read).unwrap();
        let output = Image::open(&self.output, Access::Write).unwrap();
        repair(&input, &output, options)
    }

    fn used(path: &Path) -> u64 {
        let image = Image::open(path, Access::Read).unwrap();
        let report = check(&image, RootChoice::Live, Depth::All, true).report;
        assert_eq!(report.fatal + report.leaks, 0, "{:?}", report.findings);
        report.metadata_blocks_used
    }
}

fn number(raw: &Raw<'_>, block: u64, at: usize) -> u64 {
    u64::from_le_bytes(raw.block(block)[at..at + 8].try_into().unwrap())
}

/// Root of the origin's tree, which is of two levels, and its child `at`.
fn origin(bytes: &[u8], at: usize) -> (u64, u64) {
    let raw = Raw(bytes);
    let top = number(&raw, 0, 320);
    // The top tree's only node: 252 keys, then the roots.
    let root = number(&raw, top, 32 + 252 * 8);
    (root, number(&raw, root, 32 + 252 * 8 + 8 * at))
}

#[test]
fn features_that_nobody_knows_are_refused_before_anything_is_written() {
    let case = Case::new();
    let mut superblock = *Raw(&case.before).block(0).first_chunk::<4096>().unwrap();
    // The low byte of the incompat flags.
    superblock[360] = 0x40;
    seal(BlockKind::Superblock, 0, &mut superblock);
    let file = std::fs::File::options().write(true).open(&case.pool);
    file.unwrap().write_all_at(&superblock, 0).unwrap();
    let before = std::fs::read(&case.output).unwrap();
    let refused = case.repair(&RepairOptions::default()).unwrap_err();
    assert!(
        refused.to_string().contains("unknown features (0x40)"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&case.output).unwrap(), before);
}

#[test]
fn a_data_block_size_that_no_pool_has_is_asked_for() {
    let case = Case::new();
    let mut superblock = *Raw(&case.before).block(0).first_chunk::<4096>().unwrap();
    let size = u32::from_le_bytes(superblock[336..340].try_into().unwrap());
    superblock[336..340].copy_from_slice(&232u32.to_le_bytes());
    seal(BlockKind::Superblock, 0, &mut superblock);
    let file = std::fs::File::options().write(true).open(&case.pool);
    file.unwrap().write_all_at(&superblock, 0).unwrap();
    let before = std::fs::read(&case.output).unwrap();
    let refused = case.repair(&RepairOptions::default()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("data blocks of 232 sectors"), "{text}");
    assert_eq!(std::fs::read(&case.output).unwrap(), before);
    let given = RepairOptions {
        data_block_size: Some(size),
        ..RepairOptions::default()
    };
    case.repair(&given).unwrap();
    let after = std::fs::read(&case.output).unwrap();
    assert_eq!(Raw(&after).volumes(), Raw(&case.before).volumes());
}

#[test]
fn leaves_below_a_damaged_root_are_found_again() {
    let case = Case::new();
    let (root, _) = origin(&case.before, 0);
    case.damage(root);
    let report = case.repair(&RepairOptions::default()).unwrap();
    let volume = report.volumes.iter().find(|v| v.id == 0).unwrap();
    assert!(volume.is_whole(), "{volume:?}");
    assert!(report.lost_volumes.is_empty());
    let after = std::fs::read(&case.output).unwrap();
    assert_eq!(Raw(&after).volumes(), Raw(&case.before).volumes());
    Case::used(&case.output);
}

#[test]
fn a_leaf_that_snapshots_share_is_lost_for_each_and_the_rest_stays_shared() {
    let case = Case::new();
    let used = Case::used(&case.pool);
    let (_, leaf) = origin(&case.before, 7);
    let touched = Raw(&case.before).volumes_through(leaf);
    assert!(touched.len() > 10, "{touched:?}");
    case.damage(leaf);
    let report = case.repair(&RepairOptions::default()).unwrap();
    for volume in &report.volumes {
        assert_eq!(
            !volume.lost.is_empty(),
            touched.contains(&volume.id),
            "{volume:?}"
        );
    }
    let text = report.to_string();
    assert!(text.contains("lost in blocks"), "{text}");
    let now = Case::used(&case.output);
    assert!(now <= used + 2, "{now} blocks in use, {used} before");
}

#[test]
fn a_lost_superblock_needs_the_block_size_and_no_more() {
    let case = Case::new();
    case.damage(0);
    let refused = case.repair(&RepairOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Inval);
    assert!(refused.context().contains("--data-block-size"), "{refused}");
    let options = RepairOptions {
        data_block_size: Some(pools::BLOCK_SECTORS as u32),
        ..RepairOptions::default()
    };
    let report = case.repair(&options).unwrap();
    assert!(report.superblock_rebuilt);
    let after = std::fs::read(&case.output).unwrap();
    assert_eq!(Raw(&after).volumes(), Raw(&case.before).volumes());
    Case::used(&case.output);
}

#[test]
fn a_damaged_space_map_is_made_anew() {
    let case = Case::new();
    let raw = Raw(&case.before);
    for at in [208, 216, 80, 88] {
        case.damage(number(&raw, 0, at));
    }
    let report = case.repair(&RepairOptions::default()).unwrap();
    assert!(report.volumes.iter().all(|v| v.is_whole()));
    let after = std::fs::read(&case.output).unwrap();
    assert_eq!(Raw(&after).volumes(), raw.volumes());
    Case::used(&case.output);
}

#[test]
fn lost_details_do_not_cost_the_mappings() {
    let case = Case::new();
    let raw = Raw(&case.before);
    case.damage(number(&raw, 0, 328));
    let report = case.repair(&RepairOptions::default()).unwrap();
    assert!(
        report
            .volumes
            .iter()
            .all(|v| v.lost.is_empty() && v.details_lost)
    );
    let after = std::fs::read(&case.output).unwrap();
    assert_eq!(Raw(&after).volumes(), raw.volumes());
    Case::used(&case.output);
}

#[test]
fn an_output_too_small_is_no_pool_and_the_input_is_never_the_output() {
    let case = Case::new();
    let small = std::fs::File::options()
        .write(true)
        .open(&case.output)
        .unwrap();
    small.write_all_at(&case.before[..4096 * 20], 0).unwrap();
    small.set_len(4096 * 20).unwrap();
    let refused = case.repair(&RepairOptions::default()).unwrap_err();
    assert!(refused.context().contains("too small"), "{refused}");
    let left = std::fs::read(&case.output).unwrap();
    assert!(left[..4096].iter().all(|byte| *byte == 0));
    let link = case.directory.path().join("link");
    std::os::unix::fs::symlink(&case.pool, &link).unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let args = ["-i", &path(&case.pool), "-o", &path(&link)].map(str::to_owned);
    let call = Invocation {
        program: "thin_repair",
        args: &args,
        host: &NoHost,
    };
    assert_eq!((find("thin_repair").unwrap().run)(&call), 1);
    assert_eq!(std::fs::read(&case.pool).unwrap(), case.before);
}

#[test]
fn a_mapping_past_the_end_of_the_data_device_is_refused_with_the_number_to_give() {
    let case = Case::new();
    let mut block = *Raw(&case.before).block(0).first_chunk::<4096>().unwrap();
    block[64..72].copy_from_slice(&1000_u64.to_le_bytes());
    seal(BlockKind::Superblock, 0, &mut block);
    let file = std::fs::File::options().write(true).open(&case.pool);
    file.unwrap().write_all_at(&block, 0).unwrap();
    let refused = case.repair(&RepairOptions::default()).unwrap_err();
    assert!(refused.context().contains("--nr-data-blocks"), "{refused}");
    let options = RepairOptions {
        nr_data_blocks: Some(1_000_000),
        ..RepairOptions::default()
    };
    case.repair(&options).unwrap();
    Case::used(&case.output);
}
