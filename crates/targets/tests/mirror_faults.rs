//! A leg or a log that fails under a mirror, at every request in turn, once or for good: what was acknowledged is there, once another
//! table is loaded as a program would that repairs mirrors.

mod mirror_support;
mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mirror_support::*;
use snapshot_support::*;
use support::{NOFLUSH, load, read_bytes, request, resume};
use thin_support::Lab;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::MappedDevice;
use thinmap_units::Sector;

const CELLS: u64 = 24;
const SIZE: u64 = CELLS * CELL;
const NAMES: [&str; 3] = ["a", "b", "log"];

/// Legs with the same cells and a log; `which` of them fails at its n-th request.
fn faulty_lab(which: usize, n: i64, for_good: bool) -> (Lab, Arc<Failing>, Vec<Arc<MemoryDevice>>) {
    let (lab, _) = lab();
    let mut failing = None;
    let mut disks = Vec::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let disk = Arc::new(MemoryDevice::new(Sector(SIZE)));
        if index < 2 {
            fill_cells(&*disk, CELLS);
        }
        disks.push(disk.clone());
        if index == which {
            let fails = Failing::new(disk, n, for_good);
            lab.add(name, fails.clone());
            failing = Some(fails);
        } else {
            lab.add(name, disk);
        }
    }
    (lab, failing.expect("one of them fails"), disks)
}

/// Writes, flushes and reads; the version that each cell must have, `None` where a write failed.
fn work(m: &MappedDevice) -> Vec<Option<u32>> {
    let mut cells: Vec<_> = (1..=CELLS as u32).map(Some).collect();
    for step in 0..40_u32 {
        let cell = u64::from(step) * 7 % CELLS;
        match step % 5 {
            3 => {
                let _ = request(m, Op::Flush, 0, 0);
            }
            4 => {
                if let (Ok(found), Some(version)) = (read_cell(m, cell), cells[cell as usize]) {
                    assert_eq!(found, version, "cell {cell} at step {step}");
                }
            }
            _ => {
                let status = write_cell(m, cell, 100 + step);
                cells[cell as usize] = status.is_ok().then_some(100 + step);
            }
        }
    }
    cells
}

/// The mirror while `work` goes on: when the status shows a failure, what `repair` says is loaded.
fn work_and_repair(m: &Arc<MappedDevice>, repair: &str) -> Vec<Option<u32>> {
    let is_over = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let (m, is_over) = (m.clone(), is_over.clone());
        move || {
            let cells = work(&m);
            is_over.store(true, Ordering::SeqCst);
            cells
        }
    });
    while !is_over.load(Ordering::SeqCst) {
        let status = info(m);
        let failed = status.split(' ').any(|word| {
            "AA AD DA AR RA AS SA AF FA".contains(word) && word.len() == 2 && word != "AA"
        }) || status.ends_with(" D")
            || status.ends_with(" F");
        if failed {
            load(m, repair).expect("loaded");
            m.suspend(NOFLUSH).expect("suspended");
            resume(m).expect("resumed");
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    worker.join().expect("the work")
}

fn check(dev: &dyn BlockDevice, cells: &[Option<u32>], what: &str) {
    for (cell, version) in cells.iter().enumerate() {
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

/// Every request of one device in turn, until one is never reached.
fn each_request(test: impl Fn(i64, bool) -> bool) {
    for for_good in [false, true] {
        let reached = (0..200).take_while(|n| test(*n, for_good)).count();
        assert!((5..200).contains(&reached), "{reached} requests");
    }
}

fn mirror(log: &str, features: &str) -> String {
    format!("0 {SIZE} mirror {log} 2 a 0 b 0{features}")
}

fn disk_log() -> String {
    format!("disk 3 log {REGION} nosync")
}

#[test]
fn a_leg_that_fails_at_any_request_is_taken_out_and_nothing_is_lost() {
    for which in [0, 1] {
        each_request(|n, for_good| {
            let what = format!("leg {which} fails at {n}, for good: {for_good}");
            let (lab, failing, disks) = faulty_lab(which, n, for_good);
            let m = lab.live("m", &mirror(&disk_log(), " 1 handle_errors"));
            let good = NAMES[1 - which];
            let cells = work_and_repair(&m, &format!("0 {SIZE} linear {good} 0"));
            assert!(cells.iter().all(Option::is_some), "{what}: a write failed");
            check(&*m, &cells, &what);
            // The leg is back, empty as a new one, and gets everything.
            let had_failed = failing.has_failed();
            failing.fail_in(-1);
            let back = NAMES[which];
            let line =
                format!("0 {SIZE} mirror core 1 {REGION} 2 {good} 0 {back} 0 1 handle_errors");
            replace(&m, &line);
            wait_synced(&m);
            check(&*m, &cells, &what);
            m.destroy();
            assert_eq!(image(&disks[0]), image(&disks[1]), "{what}");
            had_failed
        });
    }
}

#[test]
fn a_log_that_fails_at_any_request_is_taken_out_and_nothing_is_lost() {
    each_request(|n, for_good| {
        let what = format!("the log fails at {n}, for good: {for_good}");
        let (lab, failing, disks) = faulty_lab(2, n, for_good);
        let m = lab.live("m", &mirror(&disk_log(), " 1 handle_errors"));
        let core = mirror(&format!("core 1 {REGION}"), " 1 handle_errors");
        let cells = work_and_repair(&m, &core);
        assert!(cells.iter().all(Option::is_some), "{what}: a write failed");
        wait_synced(&m);
        check(&*m, &cells, &what);
        m.destroy();
        assert_eq!(image(&disks[0]), image(&disks[1]), "{what}");
        failing.has_failed()
    });
}

#[test]
fn with_keep_log_the_other_leg_goes_on_by_itself() {
    for which in [0, 1] {
        each_request(|n, for_good| {
            let what = format!("leg {which} fails at {n}, for good: {for_good}");
            let (lab, failing, disks) = faulty_lab(which, n, for_good);
            let line = mirror(&disk_log(), " 2 handle_errors keep_log");
            let m = lab.live("m", &line);
            let cells = work(&m);
            assert!(cells.iter().all(Option::is_some), "{what}: a write failed");
            check(&*m, &cells, &what);
            m.destroy();
            let has_failed = failing.has_failed();
            failing.fail_in(-1);
            // The leg that was well comes first now: the log tells what the other one missed.
            let (good, back) = (NAMES[1 - which], NAMES[which]);
            let legs = format!("2 {good} 0 {back} 0 2 handle_errors keep_log");
            let m = lab.live(
                "again",
                &format!("0 {SIZE} mirror disk 2 log {REGION} {legs}"),
            );
            wait_synced(&m);
            check(&*m, &cells, &what);
            m.destroy();
            assert_eq!(image(&disks[0]), image(&disks[1]), "{what}");
            has_failed
        });
    }
}

#[test]
fn a_recovery_that_fails_at_any_request_leaves_what_is_right() {
    for which in [0, 1] {
        each_request(|n, for_good| {
            let what = format!("leg {which} fails at {n}, for good: {for_good}");
            let (lab, failing, disks) = faulty_lab(which, n, for_good);
            let (b, empty) = (&disks[1], MemoryDevice::new(Sector(SIZE)));
            let zeroes = thinmap_runtime::IoBuf::alloc(image(&empty).len());
            assert!(thinmap_block::write(&**b, Sector(0), zeroes).1.is_ok());
            let line = format!("0 {SIZE} mirror core 1 {REGION} 2 a 0 b 0 1 handle_errors");
            let m = lab.live("m", &line);
            wait_status(&m, |status| {
                failing.has_failed() || status.contains(&format!("{0}/{0}", SIZE / REGION))
            });
            m.suspend(NOFLUSH).expect("suspended");
            let has_failed = failing.has_failed();
            failing.fail_in(-1);
            resume(&m).expect("resumed");
            wait_synced(&m);
            let status = info(&m);
            assert_eq!(!status.contains(" AA "), has_failed, "{what}: {status}");
            m.destroy();
            assert_eq!(image(&disks[0]), image(b), "{what}");
            assert_eq!(read_bytes(&**b, 0, 1).0[0], 1, "{what}");
            has_failed
        });
    }
}
