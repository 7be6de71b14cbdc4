//! The pool's failure modes: what leads there, what works there, what leads back.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::MappedDevice;
use thinmap_units::{BlkStatus, Sector};

use support::{Double, NOFLUSH, load, read_bytes, request, resume, write_fill};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::{BLOCK, Lab, PoolLab, check_clean, flagged, info, message, until, used};

fn events(dev: &MappedDevice) -> u32 {
    dev.event().number()
}

#[test]
fn out_of_data_space_errors_at_once_when_asked_to() {
    let lab = PoolLab::new(4, "1 error_if_no_space");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 4 * BLOCK, 1).is_ok());
    let before = events(&lab.pool);
    assert_eq!(write_fill(&*t, 4 * BLOCK, 8, 1), BlkStatus::NoSpc);
    assert!(
        lab.status()
            .contains(" out_of_data_space discard_passdown error_if_no_space ")
    );
    assert!(events(&lab.pool) > before);
    assert!(
        write_fill(&*t, 0, 8, 2).is_ok(),
        "what is mapped can be written"
    );
    assert!(read_bytes(&*t, 9 * BLOCK, 8).1.is_ok());
    lab.message("create_thin 5").unwrap();
    lab.message("delete 5").unwrap();
    assert!(request(&*t, Op::Discard, 0, 2 * BLOCK).is_ok());
    assert!(lab.status().contains(" 2/4 - rw "), "{}", lab.status());
    assert!(write_fill(&*t, 4 * BLOCK, 2 * BLOCK, 1).is_ok());
    t.destroy();
    lab.close_and_check();
}

#[test]
fn a_queued_write_goes_on_when_a_discard_or_growth_gives_room() {
    let lab = PoolLab::new(4, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 4 * BLOCK, 1).is_ok());
    let writer = |at: u64| {
        let t = t.clone();
        std::thread::spawn(move || write_fill(&*t, at * BLOCK, 8, 7))
    };
    let full = || lab.status().contains(" out_of_data_space ");
    let first = writer(5);
    until("out of data space", full);
    assert!(request(&*t, Op::Discard, 0, BLOCK).is_ok());
    assert!(first.join().unwrap().is_ok());
    let second = writer(6);
    until("out of data space again", full);
    lab.data.grow(Sector(8 * BLOCK));
    load(&lab.pool, "0 1024 thin-pool meta data 128 0").unwrap();
    resume(&lab.pool).unwrap();
    assert!(second.join().unwrap().is_ok());
    assert!(lab.status().contains(" 5/8 - rw "), "{}", lab.status());
    t.destroy();
    lab.close_and_check();
}

#[test]
fn deleting_a_volume_gives_room_too() {
    let lab = PoolLab::new(4, "");
    let (t, u) = (lab.volume(0, 64), lab.volume(1, 64));
    assert!(write_fill(&*u, 0, 4 * BLOCK, 1).is_ok());
    u.destroy();
    let t2 = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 0, 8, 7));
    until("full", || lab.status().contains(" out_of_data_space "));
    lab.message("delete 1").unwrap();
    assert!(writer.join().unwrap().is_ok());
    t.destroy();
    lab.close_and_check();
}

#[test]
fn queued_writes_are_given_up_after_sixty_seconds() {
    let time = Arc::new(ManualTime::default());
    let lab = Lab::with(Arc::new(ManualSpawner(time.clone())), time.clone());
    let meta = lab.memory("meta", 8192);
    lab.memory("data", 2 * BLOCK);
    let pool = lab.live("pool", "0 256 thin-pool meta data 128 0");
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    assert!(write_fill(&*t, 0, 2 * BLOCK, 1).is_ok());
    let t2 = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 5 * BLOCK, 8, 7));
    until("queued", || info(&pool).contains(" out_of_data_space "));
    time.advance(Duration::from_millis(59_900));
    assert!(info(&pool).contains(" queue_if_no_space "));
    assert!(!writer.is_finished());
    time.advance(Duration::from_millis(200));
    assert_eq!(writer.join().unwrap(), BlkStatus::NoSpc);
    assert!(info(&pool).contains(" out_of_data_space discard_passdown error_if_no_space "));
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

#[test]
fn a_noflush_suspend_takes_queued_writes_back_and_sends_them_again() {
    let lab = PoolLab::new(2, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 2 * BLOCK, 1).is_ok());
    let t2 = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 5 * BLOCK, 8, 7));
    until("queued", || lab.status().contains(" out_of_data_space "));
    t.suspend(NOFLUSH).unwrap();
    assert!(!writer.is_finished());
    lab.data.grow(Sector(8 * BLOCK));
    load(&lab.pool, "0 1024 thin-pool meta data 128 0").unwrap();
    resume(&lab.pool).unwrap();
    assert!(!writer.is_finished());
    resume(&t).unwrap();
    assert!(writer.join().unwrap().is_ok());
    t.destroy();
    lab.close_and_check();
}

#[test]
fn the_low_water_mark_raises_one_event() {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    lab.memory("data", 16 * BLOCK);
    let pool = lab.live("pool", "0 2048 thin-pool meta data 128 8");
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    let before = events(&pool);
    assert!(write_fill(&*t, 0, 8 * BLOCK, 1).is_ok());
    assert_eq!(events(&pool), before);
    assert!(write_fill(&*t, 8 * BLOCK, 4 * BLOCK, 1).is_ok());
    assert_eq!(events(&pool), before + 1);
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

#[test]
fn a_read_only_pool_serves_what_is_mapped_and_refuses_the_rest() {
    let lab = PoolLab::new(8, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 2 * BLOCK, 1).is_ok());
    lab.message("create_snap 1 0").unwrap();
    assert!(write_fill(&*t, 0, BLOCK, 2).is_ok());
    load(&lab.pool, "0 1024 thin-pool meta data 128 0 1 read_only").unwrap();
    resume(&lab.pool).unwrap();
    assert!(lab.status().contains(" ro "));
    assert!(write_fill(&*t, 0, BLOCK, 3).is_ok(), "its own block");
    assert_eq!(write_fill(&*t, BLOCK, 8, 3), BlkStatus::IoErr, "shared");
    assert_eq!(write_fill(&*t, 9 * BLOCK, 8, 3), BlkStatus::IoErr, "new");
    assert!(read_bytes(&*t, 9 * BLOCK, 8).1.is_ok());
    for text in [
        "create_thin 7",
        "delete 1",
        "nonsense",
        "reserve_metadata_snap",
    ] {
        assert_eq!(lab.message(text).expect_err(text).errno(), 95);
    }
    load(&lab.pool, "0 1024 thin-pool meta data 128 0").unwrap();
    resume(&lab.pool).unwrap();
    assert!(write_fill(&*t, BLOCK, 8, 3).is_ok());
    t.destroy();
    lab.close_and_check();
}

#[test]
fn read_only_needs_a_formatted_pool() {
    let lab = Lab::new();
    lab.memory("meta", 8192);
    lab.memory("data", 1024);
    let error = lab.try_load("0 1024 thin-pool meta data 128 0 1 read_only");
    assert_eq!(error.expect_err("unformatted").errno(), 1);
}

struct Faulty {
    lab: Lab,
    meta: Arc<MemoryDevice>,
    meta_double: Arc<Double>,
    data_double: Arc<Double>,
    pool: Arc<MappedDevice>,
    t: Arc<MappedDevice>,
}

fn faulty() -> Faulty {
    let lab = Lab::new();
    let meta = Arc::new(MemoryDevice::new(Sector(8192)));
    let meta_double = Double::new(meta.clone());
    lab.add("meta", meta_double.clone());
    let data_double = Double::new(Arc::new(MemoryDevice::new(Sector(64 * BLOCK))));
    lab.add("data", data_double.clone());
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data 128 0", 64 * BLOCK),
    );
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    Faulty {
        lab,
        meta,
        meta_double,
        data_double,
        pool,
        t,
    }
}

#[test]
fn a_failed_commit_makes_the_pool_read_only_and_to_be_checked() {
    let f = faulty();
    assert!(write_fill(&*f.t, 0, BLOCK, 1).is_ok());
    assert!(request(&*f.t, Op::Flush, 0, 0).is_ok());
    assert!(write_fill(&*f.t, BLOCK, BLOCK, 1).is_ok());
    f.meta_double.fail_in.store(0, Ordering::SeqCst);
    let before = events(&f.pool);
    assert_eq!(request(&*f.t, Op::Flush, 0, 0), BlkStatus::IoErr);
    let status = info(&f.pool);
    assert!(
        status.contains(" ro ") && status.contains(" needs_check "),
        "{status}"
    );
    assert!(events(&f.pool) > before);
    assert!(
        read_bytes(&*f.t, 0, BLOCK).0.iter().all(|b| *b == 1),
        "what was flushed is there"
    );
    assert!(write_fill(&*f.t, 5 * BLOCK, 8, 1) == BlkStatus::IoErr);
    // Another table does not bring it back: it needs a check.
    load(
        &f.pool,
        &format!("0 {} thin-pool meta data 128 0", 64 * BLOCK),
    )
    .unwrap();
    resume(&f.pool).unwrap();
    assert!(info(&f.pool).contains(" ro "), "{}", info(&f.pool));
    f.t.destroy();
    f.pool.destroy();
    check_clean(&f.meta);
    drop(f.lab);
}

#[test]
fn a_metadata_device_that_is_gone_fails_the_pool_only() {
    let f = faulty();
    f.lab.memory("meta2", 8192);
    f.lab.memory("data2", 64 * BLOCK);
    let other = f.lab.live("other", "0 8192 thin-pool meta2 data2 128 0");
    message(&other, "create_thin 0").unwrap();
    let u = f.lab.live("u", "0 8192 thin other 0");
    assert!(write_fill(&*f.t, BLOCK, BLOCK, 1).is_ok());
    // Everything from here on fails: hold requests back for good would hang, so fail each in turn.
    f.meta_double.fail_in.store(0, Ordering::SeqCst);
    let failing = {
        let double = f.meta_double.clone();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                double.fail_in.store(0, Ordering::SeqCst);
            }
            double.fail_in.store(-1, Ordering::SeqCst);
        });
        (thread, stop)
    };
    assert_eq!(request(&*f.t, Op::Flush, 0, 0), BlkStatus::IoErr);
    until("it has lost its mode", || {
        let status = info(&f.pool);
        status == "Fail" || status.contains(" ro ")
    });
    failing.1.store(true, Ordering::SeqCst);
    failing.0.join().unwrap();
    if info(&f.pool) == "Fail" {
        assert_eq!(info(&f.t), "Fail");
        assert_eq!(read_bytes(&*f.t, 0, 8).1, BlkStatus::IoErr);
    }
    assert!(write_fill(&*u, 0, BLOCK, 1).is_ok());
    assert!(request(&*u, Op::Flush, 0, 0).is_ok());
    for dev in [&f.t, &u, &f.pool, &other] {
        dev.destroy();
    }
}

/// Fails the Nth request of one device, for every N, and finds every promise kept.
fn nth_fault(pick: impl Fn(&Faulty) -> Arc<Double>) {
    for n in 0.. {
        let f = faulty();
        let mut promised: Vec<(u64, u8)> = Vec::new();
        pick(&f).fail_in.store(n, Ordering::SeqCst);
        let mut wrote = Vec::new();
        for round in 0..6u64 {
            let byte = round as u8 + 1;
            for at in [round * BLOCK + 8, (round % 2) * BLOCK + 40 + round] {
                if write_fill(&*f.t, at, 1, byte).is_ok() {
                    wrote.push((at, byte));
                }
            }
            if round == 2 {
                let _ = message(&f.pool, "create_snap 1 0");
            }
            if round == 3 {
                let _ = flagged(&*f.t, Op::Discard, IoFlags::default(), 20 * BLOCK, BLOCK, 0);
            }
            if request(&*f.t, Op::Flush, 0, 0).is_ok() {
                promised.append(&mut wrote);
            }
        }
        let left = pick(&f).fail_in.swap(-1, Ordering::SeqCst);
        f.t.destroy();
        f.pool.destroy();
        check_clean(&f.meta);
        // A pool anew on the same devices, as after a repair.
        let lab = Lab::new();
        lab.add("meta", f.meta_double.clone());
        lab.add("data", f.data_double.clone());
        let pool = lab.live(
            "pool",
            &format!("0 {} thin-pool meta data 128 0", 64 * BLOCK),
        );
        if info(&pool).contains("needs_check") {
            assert!(info(&pool).contains(" ro "), "fault {n}: {}", info(&pool));
        }
        let t = lab.live("t", "0 8192 thin pool 0");
        for (at, byte) in promised {
            let (bytes, status) = read_bytes(&*t, at, 1);
            assert!(
                status.is_ok() && bytes.iter().all(|b| *b == byte),
                "fault {n}: sector {at}"
            );
        }
        t.destroy();
        pool.destroy();
        if left >= 0 {
            assert!(n > 10, "the script makes requests");
            return;
        }
    }
}

#[test]
fn every_single_metadata_fault_keeps_what_was_flushed() {
    nth_fault(|f| f.meta_double.clone());
}

#[test]
fn every_single_data_fault_keeps_what_was_flushed() {
    nth_fault(|f| f.data_double.clone());
}

#[test]
fn a_failed_fill_fails_its_request_and_gives_the_block_back() {
    let f = faulty();
    f.data_double.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(write_fill(&*f.t, 8, 8, 1), BlkStatus::IoErr);
    assert_eq!(used(&info(&f.pool)), 0);
    assert!(write_fill(&*f.t, 8, 8, 1).is_ok());
    f.t.destroy();
    f.pool.destroy();
    check_clean(&f.meta);
}

#[test]
fn a_full_metadata_device_stops_changes_but_loses_nothing() {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8 * 100);
    lab.memory("data", 20_000 * BLOCK);
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data 128 0", 20_000 * BLOCK),
    );
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", &format!("0 {} thin pool 0", 20_000 * BLOCK));
    let before = events(&pool);
    let mut written = 0;
    // Far apart, so that leaves fill badly.
    while written < 20_000 && write_fill(&*t, (written * 7919 % 20_000) * BLOCK, BLOCK, 3).is_ok() {
        written += 1;
    }
    assert!(written < 20_000, "100 blocks cannot map that much");
    let status = info(&pool);
    assert!(
        status.contains(" ro ") && status.contains(" - 25 "),
        "{status}"
    );
    assert!(events(&pool) > before + 1, "low water and mode");
    let (bytes, ok) = read_bytes(&*t, 0, 8);
    assert!(ok.is_ok() && bytes.iter().all(|b| *b == 3));
    meta.grow(Sector(8 * 400));
    load(
        &pool,
        &format!("0 {} thin-pool meta data 128 0", 20_000 * BLOCK),
    )
    .unwrap();
    resume(&pool).unwrap();
    assert!(info(&pool).contains(" rw "), "{}", info(&pool));
    assert!(write_fill(&*t, (written * 7919 % 20_000) * BLOCK, BLOCK, 3).is_ok());
    assert_eq!(used(&info(&pool)), written + 1);
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

/// As by a daemon that makes way for the next one.
#[test]
fn a_suspend_that_is_given_up_lets_what_waited_go_on() {
    let f = faulty();
    assert!(write_fill(&*f.t, 0, BLOCK, 1).is_ok());
    f.data_double.hold.store(true, Ordering::SeqCst);
    let write = |byte| {
        let t = f.t.clone();
        std::thread::spawn(move || write_fill(&*t, 0, 8, byte))
    };
    let in_flight = write(2);
    until("a write is in flight", || {
        f.data_double.held.lock().len() == 1
    });
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let suspend = {
        let (t, stop) = (f.t.clone(), stop.clone());
        std::thread::spawn(move || t.suspend_unless(NOFLUSH, &|| stop.load(Ordering::SeqCst)))
    };
    std::thread::sleep(Duration::from_millis(50));
    let waiting = write(3);
    std::thread::sleep(Duration::from_millis(50));
    stop.store(true, Ordering::SeqCst);
    assert!(suspend.join().unwrap().is_err(), "it was given up");
    f.data_double.release();
    for write in [in_flight, waiting] {
        assert_eq!(write.join().unwrap(), BlkStatus::Ok);
    }
    f.t.destroy();
    f.pool.destroy();
    check_clean(&f.meta);
}

#[test]
fn volumes_wait_while_their_pool_is_suspended() {
    let lab = PoolLab::new(8, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, BLOCK, 1).is_ok());
    lab.pool.suspend(thin_support::SUSPEND).unwrap();
    let error = lab
        .lab
        .try_load("0 128 thin pool 0")
        .expect_err("suspended");
    assert!(
        error.to_string().contains("while pool is suspended"),
        "{error}"
    );
    lab.message("create_snap 1 0").unwrap();
    let t2: Arc<dyn BlockDevice> = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 0, 8, 7));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!writer.is_finished());
    resume(&lab.pool).unwrap();
    assert!(writer.join().unwrap().is_ok());
    let snap = lab.open(1, 64);
    assert!(read_bytes(&*snap, 0, 8).0.iter().all(|b| *b == 1));
    snap.destroy();
    t.destroy();
    lab.close_and_check();
}
