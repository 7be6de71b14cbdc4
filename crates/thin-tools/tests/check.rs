//! `check` on whole and on leaky pools, its options, and its agreement with thin_check.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/pools.rs"]
mod pools;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use thinmap_persistent_data::{
    BlockBytes, BlockCache, BlockKind, DiskSpaceMap, MetadataDevice, TransactionManager,
    index_entry, seal,
};
use thinmap_thin_metadata::Superblock;
use thinmap_thin_tools::check::{Depth, Report, check, clear_needs_check, fix_leaks};
use thinmap_thin_tools::command::{Invocation, NoHost, find};
use thinmap_thin_tools::{Access, Image, RootChoice, Roots};

fn check_all(path: &Path) -> Report {
    let image = Image::open(path, Access::Read).unwrap();
    check(&image, RootChoice::Live, Depth::All, true).report
}

fn thin_check(path: &Path) -> bool {
    let output = Command::new("thin_check").arg("-q").arg(path).output();
    output.unwrap().status.success()
}

fn run(name: &str, args: &[&str]) -> i32 {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let call = Invocation {
        program: name,
        args: &args,
        host: &NoHost,
    };
    (find(name).unwrap().run)(&call)
}

#[test]
fn generated_pools_are_clean_to_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    for seed in 0..20 {
        pools::random(&path, seed).unwrap();
        let report = check_all(&path);
        assert!(
            report.findings.is_empty(),
            "seed {seed}: {:?}",
            report.findings
        );
        assert!(thin_check(&path), "seed {seed}");
        let pool = pools::open(&path).unwrap();
        let mappings = pools::mappings_of(&pool).unwrap();
        assert_eq!(report.volumes, mappings.len() as u64);
        let mapped: usize = mappings.values().map(|m| m.len()).sum();
        assert_eq!(report.mappings, mapped as u64);
    }
}

#[test]
fn a_metadata_snapshot_is_checked_while_the_pool_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    pools::random(&path, 3).unwrap();
    let _pool = pools::open(&path).unwrap();
    let word = path.to_str().unwrap();
    assert_eq!(run("thin_check", &["-q", word]), 1);
    assert_eq!(run("thin_check", &["-q", "-m", word]), 0);
    pools::random(&directory.path().join("other"), 2).unwrap();
    let other = directory.path().join("other");
    assert_eq!(run("thin_check", &["-q", "-m", other.to_str().unwrap()]), 1);
}

/// Raises counts of a free metadata block and of data blocks, as a lost transaction would.
fn leak(path: &Path) {
    let image: Arc<dyn MetadataDevice> = Arc::new(Image::open(path, Access::Write).unwrap());
    let mut superblock = Roots::read(&*image, RootChoice::Live).unwrap().live;
    let cache = Arc::new(BlockCache::new(image, 1000));
    let mut tm = TransactionManager::open(cache, &superblock.metadata_space_map).unwrap();
    let mut data = DiskSpaceMap::open(&superblock.data_space_map).unwrap();
    tm.new_block(BlockKind::Node).unwrap();
    let shared = tm.new_block(BlockKind::Node).unwrap();
    (0..6).for_each(|_| tm.inc(shared).unwrap());
    for _ in 0..3 {
        let block = data.alloc(&mut tm).unwrap().unwrap();
        (0..4).for_each(|_| data.inc(&mut tm, block).unwrap());
    }
    superblock.data_space_map = data.prepare(&mut tm).unwrap();
    superblock.metadata_space_map = tm.prepare().unwrap();
    superblock.flags |= 1;
    tm.freeze(superblock.pack()).write().unwrap();
}

#[test]
fn leaks_are_told_apart_from_damage_and_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    pools::random(&path, 4).unwrap();
    let before = check_all(&path);
    leak(&path);
    let report = check_all(&path);
    assert_eq!(
        (report.fatal, report.leaks),
        (0, 5),
        "{:?}",
        report.findings
    );
    assert!(report.needs_check && !thin_check(&path));
    let word = path.to_str().unwrap();
    assert_eq!(run("thin_check", &["-q", word]), 1);
    assert_eq!(
        run("thin_check", &["-q", "--ignore-non-fatal-errors", word]),
        0
    );
    assert_eq!(
        run("thin_check", &["-q", "--clear-needs-check-flag", word]),
        1
    );
    assert!(check_all(&path).needs_check);
    let fix = ["-q", "--auto-repair", "--clear-needs-check-flag", word];
    assert_eq!(run("thin_check", &fix), 0);
    let after = check_all(&path);
    assert!(after.findings.is_empty(), "{:?}", after.findings);
    assert!(!after.needs_check && thin_check(&path));
    assert_eq!(after.mappings, before.mappings);
}

#[test]
fn damaged_metadata_is_never_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    pools::random(&path, 4).unwrap();
    leak(&path);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let image = Image::open(&path, Access::Read).unwrap();
    let root = Roots::read(&image, RootChoice::Live)
        .unwrap()
        .live
        .device_details_root;
    drop(image);
    file.write_all_at(b"x", root * 4096 + 40).unwrap();
    drop(file);
    let bytes = std::fs::read(&path).unwrap();
    let word = path.to_str().unwrap();
    assert_eq!(run("thin_check", &["-q", "--auto-repair", word]), 1);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let image = Arc::new(Image::open(&path, Access::Write).unwrap());
    let outcome = check(&image, RootChoice::Live, Depth::All, true);
    assert!(fix_leaks(image.clone(), &outcome).is_err());
    clear_needs_check(&*image).unwrap();
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    pools::random(&path, 1).unwrap();
    let word = path.to_str().unwrap();
    for fix in ["--auto-repair", "--clear-needs-check-flag"] {
        for other in [
            "-m",
            "--skip-mappings",
            "--super-block-only",
            "--ignore-non-fatal-errors",
        ] {
            assert_eq!(
                run("thin_check", &["-q", fix, other, word]),
                1,
                "{fix} {other}"
            );
            let theirs = Command::new("thin_check").args([fix, other, word]).output();
            assert!(!theirs.unwrap().status.success(), "{fix} {other}");
        }
    }
    assert_eq!(run("thin_check", &["-q", "--skip-mappings", word]), 0);
    assert_eq!(run("thin_check", &["-q", "--super-block-only", word]), 0);
    assert_eq!(run("thin_check", &["-q", "/nonexistent"]), 1);
    assert_eq!(run("thin_check", &[]), 1);
}

#[test]
fn a_superblock_that_lies_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    type Lie = fn(&mut Superblock);
    let lies: [(&str, Lie); 6] = [
        ("roots swapped", |s| {
            std::mem::swap(&mut s.data_mapping_root, &mut s.device_details_root)
        }),
        ("metadata blocks", |s| {
            s.metadata_space_map.nr_blocks = u64::MAX
        }),
        ("data blocks", |s| s.data_space_map.nr_blocks = u64::MAX),
        ("held root", |s| s.held_root = 1),
        ("past the end", |s| s.data_mapping_root = 1 << 50),
        ("version", |s| s.version = 9),
    ];
    for (what, lie) in lies {
        pools::random(&path, 6).unwrap();
        let image = Image::open(&path, Access::Write).unwrap();
        let mut superblock = Roots::read(&image, RootChoice::Live).unwrap().live;
        lie(&mut superblock);
        let mut block = superblock.pack();
        seal(BlockKind::Superblock, 0, &mut block.0);
        image.write_run(0, &block.0).unwrap();
        drop(image);
        assert!(check_all(&path).fatal > 0, "{what}");
    }
}

/// Counts of a block that does not exist (thin_check finds those of data blocks), and one above two that the tree does not tell.
#[test]
fn counts_that_stand_for_nothing_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    for (beyond, wanted) in [
        (true, "beyond the end of the device"),
        (false, "has one above two"),
    ] {
        pools::random(&path, 4).unwrap();
        let image = Image::open(&path, Access::Write).unwrap();
        let map = Roots::read(&image, RootChoice::Live)
            .unwrap()
            .live
            .metadata_space_map;
        let mut block: BlockBytes = [0; 4096];
        image.read_run(map.bitmap_root, &mut block).unwrap();
        let bitmap = index_entry(&block, 0).block;
        image.read_run(bitmap, &mut block).unwrap();
        // Two bits for each block, after a header of 16 bytes. The last block of the pool is free.
        let last = (map.nr_blocks - 1) as usize;
        let at = if beyond { last + 5 } else { last };
        block[16 + at / 4] |= 3 << (at % 4 * 2);
        seal(BlockKind::Bitmap, bitmap, &mut block);
        image.write_run(bitmap, &block).unwrap();
        drop(image);
        let report = check_all(&path);
        assert_eq!(report.fatal, 1, "{:?}", report.findings);
        let text = format!("{:?}", report.findings);
        assert!(text.contains(wanted), "{text}");
        assert!(beyond || !thin_check(&path), "{wanted}");
    }
}

/// Zeroes the block that `of` names.
fn zero(path: &Path, of: impl FnOnce(&Superblock, &Image) -> u64) {
    let image = Image::open(path, Access::Write).unwrap();
    let superblock = Roots::read(&image, RootChoice::Live).unwrap().live;
    let block = of(&superblock, &image);
    image.write_run(block, &[0; 4096]).unwrap();
}

#[test]
fn without_mappings_the_tree_of_volumes_is_checked_and_theirs_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let word = path.to_str().unwrap();
    let skip = |path: &Path| {
        let ours = run("thin_check", &["-q", "--skip-mappings", word]) == 0;
        let theirs = Command::new("thin_check")
            .args(["-q", "--skip-mappings"])
            .arg(path)
            .status();
        assert_eq!(ours, theirs.unwrap().success());
        ours
    };
    pools::random(&path, 4).unwrap();
    assert!(skip(&path));
    zero(&path, |superblock, image| {
        let mut top: BlockBytes = [0; 4096];
        image
            .read_run(superblock.data_mapping_root, &mut top)
            .unwrap();
        // The root of the first volume, behind the keys.
        u64::from_le_bytes(top[32 + 252 * 8..][..8].try_into().unwrap())
    });
    assert!(skip(&path) && check_all(&path).fatal > 0);
    zero(&path, |superblock, _| superblock.data_mapping_root);
    assert!(!skip(&path));
}

#[test]
fn auto_repair_takes_the_demand_for_a_check_back_when_nothing_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    for leaks in [false, true] {
        pools::random(&path, 4).unwrap();
        leak(&path);
        if !leaks {
            let fix = ["-q", "--auto-repair", path.to_str().unwrap()];
            assert_eq!(run("thin_check", &fix), 0);
            let image = Image::open(&path, Access::Write).unwrap();
            let mut superblock = Roots::read(&image, RootChoice::Live).unwrap().live;
            superblock.flags |= 1;
            image.write_run(0, &superblock.pack().0).unwrap();
        }
        assert!(check_all(&path).needs_check);
        let fix = ["-q", "--auto-repair", path.to_str().unwrap()];
        assert_eq!(run("thin_check", &fix), 0);
        let after = check_all(&path);
        assert!(after.findings.is_empty() && !after.needs_check);
    }
}
