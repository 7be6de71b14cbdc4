//! Power cuts under mirrors: legs and log keep what was flushed and a random part of what was not, sector by sector. Regions that the
//! log found calls clean must read the same on both legs, and all of it after the recovery.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod mirror_support;
mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, SuspendFlags};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use mirror_support::{REGION, lab, pass_rounds, wait_synced};
use snapshot_support::power::Machine;
use snapshot_support::{CELL, fill_cells, info, read_sectors, write_cell};
use support::{request, resume};
use thin_support::Lab;
use thin_support::manual::ManualTime;

const CELLS: u64 = 64;
const SIZE: u64 = CELLS * CELL;
const LOG: u64 = 16;
const NAMES: [&str; 3] = ["a", "b", "log"];

/// By cell: the version that was flushed, and the one last written.
type Notes = Vec<(u32, u32)>;

fn line(sync: &str) -> String {
    let count = if sync.is_empty() { 2 } else { 3 };
    format!("0 {SIZE} mirror disk {count} log {REGION} {sync} 2 a 0 b 0 1 handle_errors")
        .replace("  ", " ")
}

/// Two legs with the same cells, or with `b` empty, and a log.
fn machine(seed: u64, both: bool) -> Arc<Machine<Notes>> {
    let notes = (1..=CELLS as u32).map(|version| (version, version));
    let machine = Machine::new(seed, &[SIZE, SIZE, LOG], notes.collect());
    let legs = if both { 2 } else { 1 };
    for leg in 0..legs {
        let leg = machine.disk(leg);
        fill_cells(&*leg, CELLS);
        assert!(request(&*leg, Op::Flush, 0, 0).is_ok());
    }
    machine
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
            5 => pass_rounds(time),
            _ => {
                let cell = rng.random_range(0..CELLS);
                let version = 1000 + step;
                machine.note(|cells| cells[cell as usize].1 = version);
                assert!(write_cell(m, cell, version).is_ok());
            }
        }
    }
}

fn found_lab(images: &[Vec<u8>]) -> (Lab, Arc<ManualTime>) {
    let (lab, time) = lab();
    for (name, bytes) in NAMES.into_iter().zip(images) {
        let disk = lab.memory(name, bytes.len() as u64 / 512);
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        assert!(thinmap_block::write(&*disk, Sector(0), buf).1.is_ok());
    }
    (lab, time)
}

/// The promise of the log, looked at without any of our code: how many regions are clean.
fn assert_clean_regions_agree(seed: u64, images: &[Vec<u8>]) -> u32 {
    let [a, b, log] = images else {
        panic!("three disks");
    };
    if log[..4] != *b"rRiM" {
        return 0;
    }
    let bytes = (REGION * 512) as usize;
    let mut clean = 0;
    for region in 0..(SIZE / REGION) as usize {
        if log[1024 + region / 8] >> (region % 8) & 1 == 0 {
            continue;
        }
        clean += 1;
        let part = region * bytes..(region + 1) * bytes;
        assert!(
            a[part.clone()] == b[part],
            "seed {seed}: region {region} is clean and differs"
        );
    }
    clean
}

fn verify(seed: u64, machine: &Machine<Notes>) -> u32 {
    let (images, notes) = machine.found();
    let clean = assert_clean_regions_agree(seed, &images);
    let (lab, _) = found_lab(&images);
    let m = lab.live("m", &line(""));
    check(seed, &*m, &notes);
    wait_synced(&m);
    check(seed, &*m, &notes);
    m.destroy();
    let [a, b] = ["a", "b"].map(|leg| lab.live(leg, &format!("0 {SIZE} linear {leg} 0")));
    let whole = |dev: &dyn BlockDevice| support::read_bytes(dev, 0, SIZE).0;
    assert!(
        whole(&*a) == whole(&*b),
        "seed {seed}: legs differ after recovery"
    );
    check(seed, &*a, &notes);
    clean
}

fn check(seed: u64, dev: &dyn BlockDevice, cells: &[(u32, u32)]) {
    for (cell, (flushed, written)) in cells.iter().enumerate() {
        for found in read_sectors(dev, cell as u64).unwrap() {
            assert!(
                (*flushed..=*written).contains(&found),
                "seed {seed}: cell {cell} has version {found}, flushed {flushed}, written {written}"
            );
        }
    }
}

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(120, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

fn cut(seed: u64, sync: &str, both: bool) -> u32 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let machine = machine(seed, both);
    let (lab, time) = lab();
    for (index, name) in NAMES.into_iter().enumerate() {
        lab.add(name, machine.disk(index));
    }
    machine.cut_in((seed * 13 % 400) as u32);
    let m = lab.live("m", &line(sync));
    if !both && seed.is_multiple_of(2) {
        wait_synced(&m);
    }
    live_on(&machine, &mut rng, (&m, &time), 90);
    // What was not cut by now is cut here, before the device ends.
    drop(machine.found());
    m.destroy();
    verify(seed, &machine)
}

#[test]
fn legs_agree_where_the_log_says_so_after_a_power_cut_at_any_request() {
    // The first table says that the legs are in sync, which they are.
    let clean: u32 = (0..seeds()).map(|seed| cut(seed, "nosync", true)).sum();
    assert!(clean > 0, "no log ever called a region clean");
}

#[test]
fn a_recovery_goes_on_after_a_power_cut_at_any_request() {
    let clean: u32 = (0..seeds()).map(|seed| cut(seed, "", false)).sum();
    assert!(clean > 0, "no log ever called a region clean");
}

#[test]
fn an_orderly_end_leaves_every_region_clean() {
    let machine = machine(7, true);
    let (lab, time) = lab();
    for (index, name) in NAMES.into_iter().enumerate() {
        lab.add(name, machine.disk(index));
    }
    let m = lab.live("m", &line("nosync"));
    let mut rng = SmallRng::seed_from_u64(7);
    live_on(&machine, &mut rng, (&m, &time), 60);
    m.destroy();
    // Power stays on long enough for what the disks have cached.
    for disk in 0..3 {
        assert!(request(&*machine.disk(disk), Op::Flush, 0, 0).is_ok());
    }
    let (images, _) = machine.found();
    let clean = assert_clean_regions_agree(7, &images);
    assert_eq!(u64::from(clean), SIZE / REGION);
    let (lab, _) = found_lab(&images);
    let m = lab.live("m", &line(""));
    assert!(info(&m).contains(" 32/32 "), "{}", info(&m));
    m.destroy();
}
