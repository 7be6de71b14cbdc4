//! Devices that fail under a snapshot, at every request in turn: the origin goes on, the snapshot is right or says that it is not.

mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;

use snapshot_support::*;
use support::{load, resume};
use thin_support::Lab;
use thinmap_block::BlockDevice;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::{MappedDevice, SuspendFlags};
use thinmap_units::{BlkStatus, Sector};

const CELLS: u64 = 40;
const SIZE: u64 = CELLS * CELL;

/// Both devices, one of which fails at its n-th request.
fn lab(fail_origin: bool, n: i64, for_good: bool) -> (Lab, Arc<Failing>) {
    let lab = Lab::new();
    let base = Arc::new(MemoryDevice::new(Sector(SIZE)));
    fill_cells(&*base, CELLS);
    let cow: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(Sector(4096)));
    let failing = if fail_origin {
        let failing = Failing::new(base, n, for_good);
        lab.add("base", failing.clone());
        lab.add("cow", cow);
        failing
    } else {
        let failing = Failing::new(cow, n, for_good);
        lab.add("base", base);
        lab.add("cow", failing.clone());
        failing
    };
    (lab, failing)
}

/// Writes both; the versions that the origin must have, `None` where a write of its own failed.
fn work(origin: &MappedDevice, s: &MappedDevice) -> (Vec<Option<u32>>, Vec<Option<u32>>) {
    let first = |cell: u64| Some(cell as u32 + 1);
    let mut on_origin: Vec<_> = (0..CELLS).map(first).collect();
    let mut on_snapshot = on_origin.clone();
    for step in 0..30_u32 {
        let cell = (u64::from(step) * 7) % CELLS;
        let (dev, versions) = if step % 3 == 2 {
            (s, &mut on_snapshot)
        } else {
            (origin, &mut on_origin)
        };
        let status = write_cell(dev, cell, 100 + step);
        versions[cell as usize] = status.is_ok().then_some(100 + step);
    }
    (on_origin, on_snapshot)
}

fn check(dev: &MappedDevice, versions: &[Option<u32>], what: &str) {
    for (cell, version) in versions.iter().enumerate() {
        // What failed may be there or not.
        if let Some(version) = version {
            assert_eq!(
                read_cell(dev, cell as u64),
                Ok(*version),
                "{what}: cell {cell}"
            );
        }
    }
}

#[test]
fn a_cow_device_that_fails_makes_the_snapshot_invalid_and_nothing_else() {
    for chunk in [1, 8, 32] {
        for for_good in [false, true] {
            for n in 0.. {
                let what = format!("chunk {chunk}, request {n}, for good {for_good}");
                let (lab, cow) = lab(false, -1, for_good);
                let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin base"));
                let s = lab.live("s", &format!("0 {SIZE} snapshot base cow P {chunk}"));
                let before = s.info().event_nr;
                cow.fail_in(n);
                let (on_origin, on_snapshot) = work(&origin, &s);
                let failed = cow.has_failed();
                cow.fail_in(-1);
                assert!(
                    on_origin.iter().all(Option::is_some),
                    "{what}: the origin goes on"
                );
                check(&origin, &on_origin, &what);
                if info(&s) == "Invalid" {
                    assert!(failed && s.info().event_nr > before, "{what}");
                    assert_eq!(read_cell(&*s, 0), Err(BlkStatus::IoErr), "{what}");
                } else {
                    check(&s, &on_snapshot, &what);
                }
                let was_invalid = info(&s) == "Invalid";
                s.destroy();
                // The store says so, too, unless that is just what failed.
                let again = lab.live("again", &format!("0 {SIZE} snapshot base cow P {chunk}"));
                if was_invalid && !for_good {
                    assert_eq!(info(&again), "Invalid", "{what}");
                }
                again.destroy();
                origin.destroy();
                if !failed {
                    break;
                }
            }
        }
    }
}

#[test]
fn an_origin_that_fails_costs_the_snapshot_or_one_request() {
    for for_good in [false, true] {
        for n in 0.. {
            let what = format!("request {n}, for good {for_good}");
            let (lab, base) = lab(true, -1, for_good);
            let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin base"));
            let s = lab.live("s", &format!("0 {SIZE} snapshot base cow P 16"));
            base.fail_in(n);
            let (on_origin, on_snapshot) = work(&origin, &s);
            let failed = base.has_failed();
            base.fail_in(-1);
            check(&origin, &on_origin, &what);
            if info(&s) != "Invalid" {
                check(&s, &on_snapshot, &what);
            }
            s.destroy();
            origin.destroy();
            if !failed {
                break;
            }
        }
    }
}

#[test]
fn a_merge_that_fails_says_so_and_the_device_goes_on() {
    for fail_origin in [false, true] {
        for n in 0.. {
            let what = format!("origin {fail_origin}, request {n}");
            let (lab, failing) = lab(fail_origin, -1, false);
            let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin base"));
            let s = lab.live("s", &format!("0 {SIZE} snapshot base cow P 8"));
            let (_, on_snapshot) = work(&origin, &s);
            s.destroy();
            load(&origin, &format!("0 {SIZE} snapshot-merge base cow P 8")).unwrap();
            origin.suspend(SuspendFlags::default()).unwrap();
            failing.fail_in(n);
            resume(&origin).unwrap();
            let merged = || info(&origin) == "Merge failed" || info(&origin).starts_with("16/");
            for _ in 0..20_000 {
                if merged() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert!(merged(), "{what}: {}", info(&origin));
            let failed = failing.has_failed();
            failing.fail_in(-1);
            assert_eq!(info(&origin) == "Merge failed", failed, "{what}");
            check(&origin, &on_snapshot, &what);
            assert!(write_cell(&*origin, 1, 5).is_ok(), "{what}");
            assert_eq!(read_cell(&*origin, 1), Ok(5));
            origin.destroy();
            // Activated anew, it is merged to its end.
            let again = lab.live("again", &format!("0 {SIZE} snapshot-merge base cow P 8"));
            wait_merged(&again);
            assert_eq!(read_cell(&*again, 1), Ok(5));
            for (cell, version) in on_snapshot
                .iter()
                .enumerate()
                .filter(|(cell, _)| *cell != 1)
            {
                assert_eq!(
                    read_cell(&*again, cell as u64).ok(),
                    *version,
                    "{what}: cell {cell}"
                );
            }
            again.destroy();
            if !failed {
                break;
            }
        }
    }
}

/// A write that fails may have been done: what is written to the device after a failed merge is there when its store is read anew,
/// or was refused.
#[test]
fn what_is_written_after_a_failed_merge_is_not_lost() {
    let mut refused = 0;
    for (for_good, does) in [(false, false), (false, true), (true, false), (true, true)] {
        for n in 0.. {
            let what = format!("request {n}, for good {for_good}, done {does}");
            let (lab, cow) = lab(false, -1, for_good);
            let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin base"));
            let s = lab.live("s", &format!("0 {SIZE} snapshot base cow P 8"));
            let (_, mut versions) = work(&origin, &s);
            s.destroy();
            load(&origin, &format!("0 {SIZE} snapshot-merge base cow P 8")).unwrap();
            origin.suspend(SuspendFlags::default()).unwrap();
            cow.does_what_fails(does);
            cow.fail_in(n);
            resume(&origin).unwrap();
            let ended = || info(&origin) == "Merge failed" || info(&origin).starts_with("16/");
            thin_support::until(&what, ended);
            let failed = cow.has_failed();
            cow.fail_in(-1);
            cow.does_what_fails(false);
            for (cell, version) in versions.iter_mut().enumerate() {
                let new = 200 + cell as u32;
                match write_cell(&*origin, cell as u64, new).is_ok() {
                    true => *version = Some(new),
                    false => refused += 1,
                }
            }
            check(&origin, &versions, &what);
            origin.destroy();
            let again = lab.live("again", &format!("0 {SIZE} snapshot-merge base cow P 8"));
            wait_merged(&again);
            check(&again, &versions, &what);
            again.destroy();
            if !failed {
                break;
            }
        }
    }
    assert!(refused > 0, "no slot was ever in doubt");
}
