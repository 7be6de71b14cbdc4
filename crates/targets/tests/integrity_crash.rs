//! Power cuts under integrity lines: devices keep what was flushed and a random part of what was not, sector by sector. What was
//! flushed must be there, with its tag.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod mirror_support;
mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, SuspendFlags};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use mirror_support::lab;
use snapshot_support::power::Machine;
use snapshot_support::{CELL, fill_cells, info, read_sectors, wait_info, write_cell};
use support::{request, resume};
use thin_support::Lab;
use thin_support::manual::ManualTime;

const CELLS: u64 = 64;
const SIZE: u64 = CELLS * CELL;
/// Of the data device, with tags and without, and of the one for tags.
const DISKS: [u64; 2] = [2048, 1024];
const NAMES: [&str; 2] = ["a", "m"];

/// By cell: the version that was flushed, and the one last written.
type Notes = Vec<(u32, u32)>;

/// Journals of one section, of three, with signatures, encrypted; tags between the data and on a device of their own.
const KINDS: [&str; 6] = [
    "journal_sectors:88 interleave_sectors:64 buffer_sectors:8 fix_padding internal_hash:sha256",
    "journal_sectors:264 interleave_sectors:512 fix_padding fix_hmac internal_hash:hmac(sha256):0102 journal_mac:hmac(sha256):0304",
    "journal_sectors:800 block_size:4096 meta_device:m internal_hash:crc32c",
    "journal_sectors:264 interleave_sectors:512 fix_padding internal_hash:sha256 journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f journal_mac:crc32c",
    "journal_sectors:264 interleave_sectors:512 fix_padding internal_hash:sha256 journal_crypt:cbc(aes):000102030405060708090a0b0c0d0e0f1011121314151617",
    "journal_sectors:600 internal_hash:xxhash64 buffer_sectors:1 interleave_sectors:256 sectors_per_bit:16",
];

fn line(mode: char, kind: &str) -> String {
    let kind = kind.replace("sectors_per_bit:16", "sectors_per_bit:16 commit_time:200");
    let kind = format!("{kind} bitmap_flush_interval:500");
    format!(
        "0 {SIZE} integrity a 0 - {mode} {} {kind}",
        kind.split(' ').count()
    )
}

/// Versions, flushes, suspends and idle time until the power is cut or `steps` are done.
fn live_on(
    machine: &Machine<Notes>,
    rng: &mut SmallRng,
    (m, time): (&MappedDevice, &ManualTime),
    steps: u32,
) {
    for step in 0..steps {
        if machine.is_cut() {
            return;
        }
        match rng.random_range(0..24) {
            0..4 => {
                let mut written = Vec::new();
                machine.note(|cells| written = cells.iter().map(|cell| cell.1).collect());
                assert!(request(m, Op::Flush, 0, 0).is_ok());
                machine.note(|cells| {
                    let pairs = cells.iter_mut().zip(&written);
                    pairs.for_each(|(cell, version)| cell.0 = *version);
                });
            }
            4 => {
                m.suspend(SuspendFlags::default()).unwrap();
                resume(m).unwrap();
            }
            5 => {
                // Commits and the bitmap have their times; whether they are done before the next request is left to chance.
                time.advance(Duration::from_millis(600));
                std::thread::sleep(Duration::from_millis(3));
            }
            6 => {
                let cell = rng.random_range(0..CELLS);
                assert!(read_sectors(m, cell).is_ok());
            }
            _ => {
                let cell = rng.random_range(0..CELLS);
                let version = 1000 + step;
                machine.note(|cells| cells[cell as usize].1 = version);
                assert!(write_cell(m, cell, version).is_ok());
            }
        }
    }
}

fn found_lab(images: &[Vec<u8>]) -> Lab {
    let lab = Lab::new();
    for (name, bytes) in NAMES.into_iter().zip(images) {
        let disk = lab.memory(name, bytes.len() as u64 / 512);
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        assert!(thinmap_block::write(&*disk, Sector(0), buf).1.is_ok());
    }
    lab
}

/// Each sector of each cell: what was flushed or something newer. In D a block that was not flushed may be damaged.
fn check(what: &str, dev: &dyn BlockDevice, cells: &[(u32, u32)], may_be_damaged: bool) {
    for (cell, (flushed, written)) in cells.iter().enumerate() {
        let found = match read_sectors(dev, cell as u64) {
            Ok(found) => found,
            Err(status) => {
                let permitted = may_be_damaged && flushed != written;
                assert!(
                    permitted && status == BlkStatus::Protection,
                    "{what}: cell {cell}, flushed {flushed}, written {written}: {status:?}"
                );
                continue;
            }
        };
        for found in found {
            assert!(
                (*flushed..=*written).contains(&found),
                "{what}: cell {cell} has version {found}, flushed {flushed}, written {written}"
            );
        }
    }
}

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(20, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

fn cut(seed: u64, mode: char, kind: &str, twice: bool) {
    let what = format!("seed {seed}, mode {mode}, {kind}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let notes: Notes = (1..=CELLS as u32)
        .map(|version| (version, version))
        .collect();
    let machine = Machine::new(seed, &DISKS, notes);
    let (lab, time) = lab();
    for (index, name) in NAMES.into_iter().enumerate() {
        lab.add(name, machine.disk(index));
    }
    let m = lab.live("i", &line(mode, kind));
    fill_cells(&*m, CELLS);
    assert!(request(&*m, Op::Flush, 0, 0).is_ok());
    machine.cut_in((seed * 13 % 300) as u32);
    live_on(&machine, &mut rng, (&m, &time), 120);
    let (mut images, notes) = machine.found();
    m.destroy();
    if twice {
        images = cut_in_replay(seed, mode, kind, images);
    }
    let lab = found_lab(&images);
    let m = lab.live("i", &line(mode, kind));
    check(&what, &*m, &notes, mode == 'D');
    if mode == 'B' && !info(&m).ends_with(" -") {
        let provided = info(&m).split(' ').nth(1).unwrap().to_owned();
        wait_info(&m, &format!("0 {provided} {provided}"));
        check(&what, &*m, &notes, false);
    }
    m.destroy();
    // Once more, in another mode: after an orderly end nothing is to be replayed.
    let m = lab.live("i", &line('D', kind));
    check(&what, &*m, &notes, mode == 'D');
    m.destroy();
}

/// What is found when the power is cut again while the line comes back.
fn cut_in_replay(seed: u64, mode: char, kind: &str, images: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let machine = Machine::new(seed + 1000, &DISKS, Notes::new());
    let lab = Lab::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let disk = machine.disk(index);
        let mut buf = IoBuf::alloc(images[index].len());
        buf.as_mut_slice().copy_from_slice(&images[index]);
        assert!(thinmap_block::write(&*disk, Sector(0), buf).1.is_ok());
        assert!(request(&*disk, Op::Flush, 0, 0).is_ok());
        lab.add(name, disk);
    }
    machine.cut_in((seed * 7 % 40) as u32);
    let m = lab.live("i", &line(mode, kind));
    let found = machine.found().0;
    m.destroy();
    found
}

fn cut_all(mode: char, twice: bool) {
    for seed in 0..seeds() {
        for kind in KINDS {
            // With keys there is no recalculation, and an encrypted journal is no bitmap.
            if mode != 'B' || !kind.contains("hmac") && !kind.contains("crypt") {
                cut(seed, mode, kind, twice);
            }
        }
    }
}

#[test]
fn what_was_flushed_through_the_journal_is_there_after_a_cut_at_any_request() {
    cut_all('J', false);
}

#[test]
fn a_replay_that_is_cut_off_is_done_again() {
    cut_all('J', true);
}

#[test]
fn what_was_flushed_directly_is_there_and_only_blocks_under_way_are_damaged() {
    cut_all('D', false);
}

#[test]
fn what_the_bitmap_notes_is_recalculated_after_a_cut_at_any_request() {
    cut_all('B', false);
}

#[test]
fn a_cut_while_a_device_is_formatted_leaves_one_that_can_be() {
    for seed in 0..40 {
        let machine: Arc<Machine<()>> = Machine::new(seed, &DISKS, ());
        let lab = Lab::new();
        for (index, name) in NAMES.into_iter().enumerate() {
            lab.add(name, machine.disk(index));
        }
        machine.cut_in(seed as u32 % 8);
        let m = lab.live("i", &line('J', KINDS[1]));
        let (images, ()) = machine.found();
        m.destroy();
        let lab = found_lab(&images);
        let m = lab.live("i", &line('J', KINDS[1]));
        assert!(write_cell(&*m, 3, 7).is_ok());
        assert_eq!(read_sectors(&*m, 3), Ok(vec![7; 8]));
        m.destroy();
    }
}
