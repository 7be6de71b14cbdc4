//! Power cuts under snapshots: origin and COW device keep what was flushed and a random part of what was not, sector by sector.
//! What is found then must be the snapshot, or one that says it is invalid.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Op};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use snapshot_support::power::Machine;
use snapshot_support::{CELL, fill_cells, info, read_sectors, replace, wait_merged, write_cell};
use support::{request, resume};
use thin_support::Lab;

const CELLS: u64 = 32;
const SIZE: u64 = CELLS * CELL;

/// By cell: the version that was flushed, and the one last written.
#[derive(Clone)]
struct Notes {
    origin: Vec<(u32, u32)>,
    snapshot: Vec<(u32, u32)>,
    /// A merge has begun: the origin's content is the snapshot's from then on.
    merging: bool,
}

/// The version that cell `i` has before anything is written.
fn first_version(cell: usize) -> (u32, u32) {
    (cell as u32 + 1, cell as u32 + 1)
}

fn machine(seed: u64, cow: u64) -> Arc<Machine<Notes>> {
    let cells: Vec<_> = (0..CELLS as usize).map(first_version).collect();
    let notes = Notes {
        origin: cells.clone(),
        snapshot: cells,
        merging: false,
    };
    let machine = Machine::new(seed, &[SIZE, cow], notes);
    let origin = machine.disk(0);
    fill_cells(&*origin, CELLS);
    assert!(request(&*origin, Op::Flush, 0, 0).is_ok());
    machine
}

/// A lab with both disks, as `origin` and `cow`.
fn lab_of(machine: &Arc<Machine<Notes>>) -> Lab {
    let lab = Lab::new();
    lab.add("origin", machine.disk(0));
    lab.add("cow", machine.disk(1));
    lab
}

/// Writes version after version to origin and snapshot, with flushes, until the power is cut or `steps` are done.
fn live_on(
    machine: &Machine<Notes>,
    rng: &mut SmallRng,
    devices: [&dyn BlockDevice; 2],
    steps: u32,
) {
    for step in 0..steps {
        if machine.is_cut() {
            return;
        }
        let which = rng.random_range(0..2);
        let version = 1000 + 2 * step + which as u32;
        let cells = move |notes: &mut Notes, change: &dyn Fn(&mut Vec<(u32, u32)>)| {
            change(if which == 0 {
                &mut notes.origin
            } else {
                &mut notes.snapshot
            });
        };
        let device = devices[which];
        if rng.random_range(0..5) == 0 {
            let mut written = Vec::new();
            machine.note(|notes| {
                let all = if which == 0 {
                    &notes.origin
                } else {
                    &notes.snapshot
                };
                written = all.iter().map(|cell| cell.1).collect();
            });
            // An invalid snapshot flushes nothing that matters.
            let _ = request(device, Op::Flush, 0, 0);
            machine.note(|notes| {
                cells(notes, &|all| {
                    all.iter_mut()
                        .zip(&written)
                        .for_each(|(cell, v)| cell.0 = *v);
                });
            });
        } else {
            let cell = rng.random_range(0..CELLS);
            machine.note(|notes| cells(notes, &|all| all[cell as usize].1 = version));
            let status = write_cell(device, cell, version);
            assert!(
                status.is_ok() || which == 1,
                "the origin always takes writes"
            );
        }
    }
}

/// The disks as they were found, in memory.
fn found_lab(images: &[Vec<u8>]) -> Lab {
    let lab = Lab::new();
    for (name, bytes) in ["origin", "cow"].into_iter().zip(images) {
        let disk = lab.memory(name, bytes.len() as u64 / 512);
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        assert!(thinmap_block::write(&*disk, Sector(0), buf).1.is_ok());
    }
    lab
}

fn check(seed: u64, (what, parity): (&str, u32), dev: &dyn BlockDevice, cells: &[(u32, u32)]) {
    for (cell, (flushed, written)) in cells.iter().enumerate() {
        for found in read_sectors(dev, cell as u64).unwrap() {
            // What was written elsewhere has another parity.
            let is_here = found == first_version(cell).0 || found % 2 == parity;
            assert!(
                is_here && (*flushed..=*written).contains(&found),
                "seed {seed}: {what} cell {cell} has version {found}, flushed {flushed}, written {written}"
            );
        }
    }
}

/// What is found after a cut without a merge: the snapshot, unless it may be invalid and is.
fn verify(seed: u64, machine: &Machine<Notes>, line: &str, may_be_invalid: bool) {
    let (images, notes) = machine.found();
    let lab = found_lab(&images);
    let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin origin"));
    check(seed, ("origin", 0), &*origin, &notes.origin);
    let snapshot = lab.live("s", line);
    if info(&snapshot) == "Invalid" {
        assert!(may_be_invalid, "seed {seed}");
    } else {
        check(seed, ("snapshot", 1), &*snapshot, &notes.snapshot);
        // It goes on from there: every chunk is saved when the origin is overwritten.
        let all = |dev: &dyn BlockDevice| -> Vec<Vec<u32>> {
            (0..CELLS)
                .map(|cell| read_sectors(dev, cell).unwrap())
                .collect()
        };
        let before = all(&*snapshot);
        for cell in 0..CELLS {
            assert!(write_cell(&*origin, cell, 9_000_000).is_ok());
        }
        if info(&snapshot) != "Invalid" {
            assert_eq!(before, all(&*snapshot), "seed {seed}");
            snapshot.destroy();
            let again = lab.live("again", line);
            assert_eq!(before, all(&*again), "seed {seed}: reopened");
            again.destroy();
        } else {
            assert!(may_be_invalid, "seed {seed}");
            snapshot.destroy();
        }
    }
    origin.destroy();
}

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(120, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

fn cut(seed: u64, cow: u64, chunk: u64, may_be_invalid: bool) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let machine = machine(seed, cow);
    let lab = lab_of(&machine);
    let line = format!("0 {SIZE} snapshot origin cow P {chunk}");
    let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin origin"));
    let snapshot = lab.live("s", &line);
    machine.cut_in((seed * 13 % 240) as u32);
    live_on(&machine, &mut rng, [&*origin, &*snapshot], 80);
    // What was not cut by now is cut here, before the devices end.
    drop(machine.found());
    snapshot.destroy();
    origin.destroy();
    verify(seed, &machine, &line, may_be_invalid);
}

#[test]
fn a_snapshot_survives_a_power_cut_at_any_request() {
    for seed in 0..seeds() {
        // Chunks of one sector fill an area with 32 of them, so areas follow one another; of two cells' size they are copied.
        let chunk = [1, 8, 16][seed as usize % 3];
        cut(seed, 2048, chunk, false);
    }
}

#[test]
fn a_full_snapshot_is_invalid_before_the_origin_goes_on() {
    for seed in 0..seeds() {
        let chunk = [1, 8][seed as usize % 2];
        // Room for a few chunks only.
        cut(seed, 88, chunk, true);
    }
}

#[test]
fn a_store_that_is_being_made_is_there_or_not() {
    for requests in 0..8 {
        for seed in 0..20 {
            let machine = machine(seed, 512);
            // The device held something that looks like exceptions, but for its first sector.
            let cow = machine.disk(1);
            for sector in 1..64 {
                let mut buf = IoBuf::alloc(512);
                buf.as_mut_slice().fill(3);
                assert!(thinmap_block::write(&*cow, Sector(sector), buf).1.is_ok());
            }
            assert!(request(&*cow, Op::Flush, 0, 0).is_ok());
            let lab = lab_of(&machine);
            let line = format!("0 {SIZE} snapshot origin cow P 8");
            machine.cut_in(requests);
            lab.live("s", &line).destroy();
            verify(seed, &machine, &line, false);
        }
    }
}

#[test]
fn a_merge_goes_on_after_a_power_cut_at_any_request() {
    for seed in 0..seeds() {
        let chunk = [1, 8, 16][seed as usize % 3];
        let mut rng = SmallRng::seed_from_u64(seed);
        let machine = machine(seed, 2048);
        let lab = lab_of(&machine);
        let line = format!("0 {SIZE} snapshot origin cow P {chunk}");
        let merge = line.replace("snapshot", "snapshot-merge");
        let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin origin"));
        let snapshot = lab.live("s", &line);
        live_on(&machine, &mut rng, [&*origin, &*snapshot], 60);
        for device in [&origin, &snapshot] {
            assert!(request(&**device, Op::Flush, 0, 0).is_ok());
        }
        machine.note(|notes| {
            notes.snapshot.iter_mut().for_each(|cell| cell.0 = cell.1);
            notes.merging = true;
        });
        machine.cut_in((seed * 7 % 90) as u32);
        snapshot.destroy();
        replace(&origin, &merge);
        wait_merged(&origin);
        let (images, notes) = machine.found();
        origin.destroy();
        assert!(notes.merging);
        let lab = found_lab(&images);
        let origin = lab.live("o", &merge);
        check(seed, ("while merging", 1), &*origin, &notes.snapshot);
        wait_merged(&origin);
        check(seed, ("merged", 1), &*origin, &notes.snapshot);
        origin.suspend(thinmap_dm::SuspendFlags::default()).unwrap();
        resume(&origin).unwrap();
        origin.destroy();
        let plain = lab.live("plain", &format!("0 {SIZE} linear origin 0"));
        check(seed, ("the origin alone", 1), &*plain, &notes.snapshot);
    }
}
