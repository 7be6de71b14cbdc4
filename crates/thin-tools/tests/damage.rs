//! Single bytes and single blocks of generated pools are damaged. `check` must find each damage that
//! thin_check finds; `repair` must bring back every volume that the damage did not touch, mapping for
//! mapping, and name what it could not bring back.
//!
//! `THINMAP_DAMAGES=N` for more than the default; `THINMAP_DAMAGE_FIRST=N` to start elsewhere.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/pools.rs"]
mod pools;
#[path = "support/raw.rs"]
mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use raw::{Mappings, Raw};
use thinmap_persistent_data::{BlockBytes, kind_of, seal};
use thinmap_thin_tools::check::{Depth, check};
use thinmap_thin_tools::repair::{RepairOptions, RepairReport, repair};
use thinmap_thin_tools::{Access, Image, RootChoice};

const POOLS: u64 = 12;

struct Pool {
    path: PathBuf,
    bytes: Vec<u8>,
    written: Vec<u64>,
    used: Vec<u64>,
    volumes: BTreeMap<u64, Mappings>,
}

fn make_pools(directory: &Path) -> Vec<Pool> {
    (0..POOLS)
        .map(|seed| {
            let path = directory.join(format!("pool{seed}"));
            pools::random(&path, seed).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let raw = Raw(&bytes);
            let (written, used, volumes) = (raw.written(), raw.used(), raw.volumes());
            Pool {
                path,
                written,
                used,
                volumes,
                bytes,
            }
        })
        .collect()
}

/// What a damage makes of a block.
fn damaged(pool: &Pool, block: u64, rng: &mut SmallRng) -> (Vec<u8>, &'static str) {
    let mut bytes = Raw(&pool.bytes).block(block).to_vec();
    match rng.random_range(0..8) {
        0..=3 => {
            let at = rng.random_range(0..4096);
            bytes[at] ^= rng.random_range(1..=255_u8);
            (bytes, "byte")
        }
        4 => (vec![0; 4096], "zeroes"),
        5 => {
            rng.fill(&mut bytes[..]);
            (bytes, "noise")
        }
        6 => {
            let other = pool.written[rng.random_range(0..pool.written.len())];
            (Raw(&pool.bytes).block(other).to_vec(), "other block")
        }
        _ => {
            let sector = rng.random_range(0..8) * 512;
            bytes[sector..sector + 512].fill(0);
            (bytes, "torn")
        }
    }
}

/// thin_check at work beside us; `true` from it means that the image is clean.
fn thin_check(path: &Path) -> impl FnOnce() -> bool + use<> {
    let child = Command::new("thin_check")
        .arg("-q")
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    move || child.wait().unwrap().success()
}

#[derive(Default, Debug)]
struct Tally {
    damages: u64,
    found_by_thin_check: u64,
    found_by_us: u64,
    repaired: u64,
    untouched_volumes: u64,
    touched_volumes: u64,
    touched_but_whole: u64,
    lost_mappings: u64,
    superblocks_lost: u64,
    superblocks_lost_all_came_back: u64,
}

#[test]
fn every_damage_is_found_and_what_it_did_not_touch_comes_back() {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (
        number("THINMAP_DAMAGE_FIRST", 0),
        number("THINMAP_DAMAGES", 300),
    );
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let made = make_pools(directory.path());
    let output = directory.path().join("output");
    let mut tally = Tally::default();
    for seed in first..first + count {
        let pool = &made[(seed % POOLS) as usize];
        one_damage(seed, pool, &output, &mut tally);
        if tally.damages.is_multiple_of(500) {
            println!("up to seed {seed}: {tally:?}");
        }
    }
    println!("{tally:?}");
    // The canary: damage that nobody notices proves nothing.
    assert!(tally.found_by_us * 10 > tally.damages * 8, "{tally:?}");
    assert!(tally.found_by_us >= tally.found_by_thin_check);
}

fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    }
}

fn one_damage(seed: u64, pool: &Pool, output: &Path, tally: &mut Tally) {
    let mut rng = SmallRng::seed_from_u64(seed);
    // Now and then one that only held something once: nothing may come of that.
    let blocks = match rng.random_range(0..20) {
        0 => &pool.written,
        _ => &pool.used,
    };
    let block = blocks[rng.random_range(0..blocks.len())];
    let (bytes, kind) = damaged(pool, block, &mut rng);
    let what = format!(
        "seed {seed}, {kind} in block {block} of {}",
        pool.path.display()
    );
    let file = std::fs::File::options()
        .write(true)
        .open(&pool.path)
        .unwrap();
    file.write_all_at(&bytes, block * 4096).unwrap();
    let theirs = thin_check(&pool.path);
    let image = Image::open(&pool.path, Access::Read).unwrap();
    let report = check(&image, RootChoice::Live, Depth::All, true).report;
    let is_clean = report.fatal == 0 && report.leaks == 0;
    std::fs::File::create(output)
        .unwrap()
        .set_len(pool.bytes.len() as u64)
        .unwrap();
    let target = Image::open(output, Access::Write).unwrap();
    let options = RepairOptions {
        data_block_size: Some(pools::BLOCK_SECTORS as u32),
        quiet: true,
        ..RepairOptions::default()
    };
    let report = repair(&image, &target, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
    drop((image, target));
    let is_clean_to_thin_check = theirs();
    assert!(
        !is_clean || is_clean_to_thin_check,
        "{what}: only thin_check finds it"
    );
    tally.damages += 1;
    tally.found_by_us += u64::from(!is_clean);
    tally.found_by_thin_check += u64::from(!is_clean_to_thin_check);
    tally.repaired += 1;
    compare(&what, pool, block, output, &report, tally);
    if seed.is_multiple_of(10) {
        assert!(
            thin_check(output)(),
            "{what}: thin_check refuses the output"
        );
    }
    let good = Raw(&pool.bytes).block(block);
    file.write_all_at(good, block * 4096).unwrap();
}

fn compare(
    what: &str,
    pool: &Pool,
    block: u64,
    output: &Path,
    report: &RepairReport,
    tally: &mut Tally,
) {
    let bytes = std::fs::read(output).unwrap();
    let repaired = Raw(&bytes);
    let (volumes, details) = (repaired.volumes(), repaired.details());
    assert!(volumes.keys().eq(details.iter()), "{what}: ids differ");
    if report.superblock_rebuilt {
        // Two states of the pool between two snapshots bear the same time, so it may be the one before.
        tally.superblocks_lost += 1;
        tally.superblocks_lost_all_came_back += u64::from(volumes == pool.volumes);
        return;
    }
    let touched = Raw(&pool.bytes).volumes_through(block);
    let lost: BTreeSet<u64> = report.lost_volumes.iter().map(|(id, _)| *id).collect();
    for id in volumes.keys() {
        assert!(
            pool.volumes.contains_key(id),
            "{what}: volume {id} came from nowhere"
        );
    }
    for (id, before) in &pool.volumes {
        let after = volumes.get(id);
        if !touched.contains(id) {
            tally.untouched_volumes += 1;
            assert_eq!(after, Some(before), "{what}: volume {id} was not touched");
            continue;
        }
        tally.touched_volumes += 1;
        tally.touched_but_whole += u64::from(after == Some(before));
        let Some(after) = after else {
            assert!(
                lost.contains(id) || report.ids_in_doubt,
                "{what}: volume {id} is lost without a word"
            );
            tally.lost_mappings += before.len() as u64;
            continue;
        };
        let told = report.volumes.iter().find(|v| v.id == *id).unwrap();
        assert_eq!(told.mappings, after.len() as u64, "{what}: volume {id}");
        let is_told_older = told.root_scanned && told.mappings_before != Some(told.mappings);
        for (key, value) in after {
            let is_right = before.get(key) == Some(value) || is_told_older;
            assert!(is_right, "{what}: volume {id}, block {key} is wrong");
        }
        let is_named = |key: &u64| {
            told.lost
                .iter()
                .any(|r| *key >= r.first && r.end.is_none_or(|end| *key < end))
        };
        for key in before.keys().filter(|key| !after.contains_key(key)) {
            tally.lost_mappings += 1;
            let is_named = is_named(key) || is_told_older;
            assert!(
                is_named,
                "{what}: volume {id}, block {key} is lost without a word"
            );
        }
    }
}

/// A damage that carries the right checksum: what a bug or an enemy makes, not a disk.
fn forged(pool: &Pool, block: u64, rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes: BlockBytes = Raw(&pool.bytes).block(block).try_into().unwrap();
    let kind = kind_of(block, &bytes);
    for _ in 0..rng.random_range(1..4) {
        let is_header = rng.random_range(0..3) == 0;
        let at = rng.random_range(0..if is_header { 8 } else { 512 }) * 8;
        let value = match rng.random_range(0..6) {
            0 => rng.random(),
            1 => pool.used[rng.random_range(0..pool.used.len())],
            2 => rng.random_range(0..300),
            3 => u64::MAX,
            4 => block,
            _ => 1 << rng.random_range(0..64),
        };
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    if let Some(kind) = kind {
        seal(kind, block, &mut bytes);
    }
    bytes.to_vec()
}

#[test]
fn forged_metadata_never_panics_and_what_is_repaired_is_clean() {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (
        number("THINMAP_DAMAGE_FIRST", 0),
        number("THINMAP_DAMAGES", 300),
    );
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let made = make_pools(directory.path());
    let output = directory.path().join("output");
    let (mut found, mut found_by_thin_check, mut missed) = (0, 0, Vec::new());
    let mut refused = 0;
    for seed in first..first + count {
        let pool = &made[(seed % POOLS) as usize];
        let mut rng = SmallRng::seed_from_u64(seed);
        let block = pool.used[rng.random_range(0..pool.used.len())];
        let file = std::fs::File::options()
            .write(true)
            .open(&pool.path)
            .unwrap();
        file.write_all_at(&forged(pool, block, &mut rng), block * 4096)
            .unwrap();
        let theirs = thin_check(&pool.path);
        let image = Image::open(&pool.path, Access::Read).unwrap();
        let report = check(&image, RootChoice::Live, Depth::All, true).report;
        std::fs::File::create(&output)
            .unwrap()
            .set_len(pool.bytes.len() as u64)
            .unwrap();
        let target = Image::open(&output, Access::Write).unwrap();
        let options = RepairOptions {
            quiet: true,
            ..RepairOptions::default()
        };
        match repair(&image, &target, &options) {
            Ok(_) => drop(target),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !text.contains("the output is not right"),
                    "seed {seed}: {text}"
                );
                refused += 1;
            }
        }
        let (ours, theirs) = (report.fatal + report.leaks > 0, !theirs());
        found += u64::from(ours);
        found_by_thin_check += u64::from(theirs);
        if theirs && !ours {
            missed.push((seed, block));
        }
        file.write_all_at(Raw(&pool.bytes).block(block), block * 4096)
            .unwrap();
    }
    println!(
        "{count} forged: {found} found, {found_by_thin_check} by thin_check, repair refused {refused}"
    );
    assert!(
        missed.is_empty(),
        "only thin_check finds (seed, block): {missed:?}"
    );
    assert!(found * 2 > count, "only {found} found");
}
