//! Mirrors: recovery, the log before the legs, reads, suspend, what holds writes and lets them go.

mod mirror_support;
mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirror_support::*;
use snapshot_support::{
    CELL, Failing, cell_bytes, fill_cells, image, info, read_cell, replace, table, write_cell,
};
use support::{Double, NOFLUSH, load, request, resume};
use thinmap_block::Op;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::SuspendFlags;
use thinmap_units::{BlkStatus, Sector};

const CELLS: u64 = 40;
const SIZE: u64 = CELLS * CELL;
const REGIONS: u64 = SIZE / REGION;

fn double(sectors: u64) -> (Arc<MemoryDevice>, Arc<Double>) {
    let below = Arc::new(MemoryDevice::new(Sector(sectors)));
    (below.clone(), Double::new(below))
}

#[test]
fn recovery_makes_all_legs_the_same_and_raises_one_event() {
    let (lab, _) = lab();
    let legs: Vec<_> = ["a", "b", "c"]
        .map(|name| lab.memory(name, SIZE + 8))
        .into();
    fill_cells(&*legs[0], CELLS + 1);
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 1 {REGION} 3 a 8 b 0 c 3"),
    );
    wait_synced(&m);
    assert_eq!(
        info(&m),
        format!("3 7:0 7:1 7:2 {REGIONS}/{REGIONS} 1 AAA 1 core")
    );
    assert_eq!(table(&m), format!("core 1 {REGION} 3 7:0 8 7:1 0 7:2 3"));
    wait_for("the event", || m.info().event_nr == 1);
    let whole = (SIZE * 512) as usize;
    let source = image(&legs[0])[8 * 512..][..whole].to_vec();
    assert_eq!(image(&legs[1])[..whole], source);
    assert_eq!(image(&legs[2])[3 * 512..][..whole], source);
    assert!(
        image(&legs[1])[whole..].iter().all(|byte| *byte == 0),
        "nothing behind the end"
    );
    m.destroy();
}

#[test]
fn the_last_region_may_be_shorter() {
    let (lab, _) = lab();
    let (a, b) = (lab.memory("a", SIZE), lab.memory("b", SIZE));
    fill_cells(&*a, CELLS);
    let m = lab.live(
        "m",
        &format!("0 {} mirror core 1 {REGION} 2 a 0 b 0", SIZE - 5),
    );
    wait_synced(&m);
    let len = (SIZE as usize - 5) * 512;
    assert_eq!(image(&a)[..len], image(&b)[..len]);
    assert!(image(&b)[len..].iter().all(|byte| *byte == 0));
    m.destroy();
}

#[test]
fn a_write_to_a_region_that_is_being_copied_waits_for_it() {
    let (lab, _) = lab();
    let a = lab.memory("a", SIZE);
    fill_cells(&*a, CELLS);
    let (b_below, b) = double(SIZE);
    b.hold.store(true, Ordering::SeqCst);
    lab.add("b", b.clone());
    let m = lab.live("m", &format!("0 {SIZE} mirror core 1 {REGION} 2 a 0 b 0"));
    wait_for("the copy of the first region", || !b.held.lock().is_empty());
    let first = begin_write(&*m, 0, 100);
    // A region out of sync is written on the default leg only.
    let far = begin_write(&*m, CELLS - 1, 200);
    assert_eq!(ended(&far), BlkStatus::Ok);
    assert_eq!(read_cell(&*m, CELLS - 1), Ok(200));
    assert_eq!(read_cell(&*b_below, CELLS - 1), Ok(0));
    assert!(first.try_recv().is_err());
    assert_eq!(read_cell(&*m, 0), Ok(1));
    b.release();
    assert_eq!(ended(&first), BlkStatus::Ok);
    wait_synced(&m);
    assert_eq!(
        (read_cell(&*a, 0), read_cell(&*b_below, 0)),
        (Ok(100), Ok(100))
    );
    assert_eq!(read_cell(&*b_below, CELLS - 1), Ok(200));
    m.destroy();
}

#[test]
fn recovery_has_a_bounded_number_of_requests_under_way() {
    let (lab, _) = lab();
    lab.memory("a", 8192);
    let (_, b) = double(8192);
    b.hold.store(true, Ordering::SeqCst);
    lab.add("b", b.clone());
    let m = lab.live("m", "0 8192 mirror core 1 8192 2 a 0 b 0");
    wait_for("sixteen pieces", || b.held.lock().len() == 16);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(b.held.lock().len(), 16);
    b.release();
    wait_synced(&m);
    m.destroy();
}

#[test]
fn the_log_is_written_and_flushed_before_the_legs_and_once_for_a_region_in_use() {
    let (lab, time) = lab();
    let (a_below, a) = double(SIZE);
    lab.add("a", a.clone());
    lab.memory("b", SIZE);
    let (_, log) = double(64);
    lab.add("log", log.clone());
    let line = format!("0 {SIZE} mirror disk 3 log {REGION} nosync 2 a 0 b 0 1 handle_errors");
    let m = lab.live("m", &line);
    log.seen.lock().clear();
    log.hold.store(true, Ordering::SeqCst);
    let write = begin_write(&*m, 0, 7);
    wait_for("the log's write", || log.held.lock().len() == 1);
    assert!(a.seen.lock().is_empty());
    // The second region joins when the log is free again.
    let other = begin_write(&*m, 5, 8);
    log.release();
    assert_eq!(
        (ended(&write), ended(&other)),
        (BlkStatus::Ok, BlkStatus::Ok)
    );
    assert_eq!(read_cell(&*a_below, 0), Ok(7));
    let ops: Vec<Op> = log.seen.lock().iter().map(|seen| seen.0).collect();
    assert_eq!(ops, [Op::Write, Op::Flush, Op::Write, Op::Flush]);
    for version in 0..100 {
        assert!(write_cell(&*m, version % 2, version as u32).is_ok());
    }
    assert_eq!(log.seen.lock().len(), 4, "the region is dirty already");
    // Clean again after a while: the legs are flushed first.
    let flushes = a.flushes.load(Ordering::SeqCst);
    pass_rounds(&time);
    wait_for("the log says clean", || log.seen.lock().len() == 5);
    assert_eq!(a.flushes.load(Ordering::SeqCst), flushes + 1);
    m.destroy();
}

#[test]
fn reads_go_to_legs_in_sync_only_and_are_spread_there() {
    let (lab, _) = lab();
    let (a_below, a) = double(8192);
    let (b_below, b) = double(8192);
    fill_cells(&*a_below, 1024);
    lab.add("a", a.clone());
    lab.add("b", b.clone());
    b.hold.store(true, Ordering::SeqCst);
    let legs = "2 a 0 b 0 1 handle_errors";
    let m = lab.live("m", &format!("0 8192 mirror core 1 8192 {legs}"));
    for cell in [0, 300, 600, 1000] {
        assert_eq!(read_cell(&*m, cell), Ok(cell as u32 + 1));
    }
    assert!(b.seen.lock().iter().all(|seen| seen.0 != Op::Read));
    b.release();
    wait_synced(&m);
    for leg in [&a, &b] {
        leg.seen.lock().clear();
    }
    for cell in 0..1024 {
        assert_eq!(read_cell(&*m, cell), Ok(cell as u32 + 1));
    }
    assert_eq!((a.seen.lock().len(), b.seen.lock().len()), (512, 512));
    assert_eq!(image(&a_below), image(&b_below));
    m.destroy();
    // Where failures are not handled the first leg is read.
    let m = lab.live("again", "0 8192 mirror core 2 8192 nosync 2 a 0 b 0");
    b.seen.lock().clear();
    assert_eq!(read_cell(&*m, 300), Ok(301));
    assert!(b.seen.lock().is_empty());
    m.destroy();
}

#[test]
fn a_read_that_fails_is_read_from_another_leg() {
    let (lab, _) = lab();
    let a = lab.memory("a", SIZE);
    let b = lab.memory("b", SIZE);
    fill_cells(&*a, CELLS);
    fill_cells(&*b, CELLS);
    let failing = Failing::new(a, -1, true);
    lab.add("failing", failing.clone());
    let legs = "2 failing 0 b 0 1 handle_errors";
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 2 {REGION} nosync {legs}"),
    );
    failing.fail_in(0);
    assert_eq!(read_cell(&*m, 3), Ok(4));
    assert!(info(&m).contains(" 1 RA 1 core"), "{}", info(&m));
    assert_eq!(m.info().event_nr, 1);
    m.destroy();
}

#[test]
fn flush_discard_and_zeroes_reach_every_leg() {
    let (lab, _) = lab();
    let doubles = ["a", "b"].map(|name| {
        let (below, leg) = double(SIZE);
        fill_cells(&*below, CELLS);
        lab.add(name, leg.clone());
        leg
    });
    let legs = "2 a 0 b 0 1 handle_errors";
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 2 {REGION} nosync {legs}"),
    );
    assert!(request(&*m, Op::Flush, 0, 0).is_ok());
    assert!(request(&*m, Op::Discard, 0, REGION).is_ok());
    assert!(request(&*m, Op::WriteZeroes, REGION, REGION).is_ok());
    for leg in &doubles {
        let seen = leg.seen.lock().clone();
        let wanted = [
            (Op::Flush, 0, 0),
            (Op::Discard, 0, REGION),
            (Op::WriteZeroes, REGION, REGION),
        ];
        assert_eq!(seen, wanted);
    }
    assert_eq!(read_cell(&*m, 2), Ok(0));
    // A leg that refuses a discard is not at fault.
    *doubles[1].fail_with.lock() = BlkStatus::NotSupp;
    doubles[1].fail_in.store(0, Ordering::SeqCst);
    assert_eq!(request(&*m, Op::Discard, 0, REGION), BlkStatus::NotSupp);
    assert!(info(&m).contains(" AA "), "{}", info(&m));
    m.destroy();
}

#[test]
fn a_suspend_ends_the_copy_under_way_and_a_resume_goes_on() {
    let (lab, _) = lab();
    let a = lab.memory("a", SIZE);
    fill_cells(&*a, CELLS);
    let (b_below, b) = double(SIZE);
    b.hold.store(true, Ordering::SeqCst);
    lab.add("b", b.clone());
    let line = format!("0 {SIZE} mirror core 1 {REGION} 2 a 0 b 0");
    let m = lab.live("m", &line);
    wait_for("the copy of the first region", || !b.held.lock().is_empty());
    let suspended = std::thread::spawn({
        let m = m.clone();
        move || m.suspend(SuspendFlags::default())
    });
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(!suspended.is_finished());
    b.release();
    suspended.join().expect("the thread").expect("suspended");
    assert_eq!(info(&m), format!("2 7:0 7:1 1/{REGIONS} 1 AA 1 core"));
    resume(&m).expect("resumed");
    wait_synced(&m);
    assert_eq!(image(&a), image(&b_below));
    m.destroy();
}

#[test]
fn a_write_that_failed_on_a_leg_is_held_until_another_table_has_it() {
    let (lab, _) = lab();
    let (a, b) = (lab.memory("a", SIZE), lab.memory("b", SIZE));
    let failing = Failing::new(b.clone(), -1, true);
    lab.add("failing", failing.clone());
    let legs = "2 a 0 failing 0 1 handle_errors";
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 2 {REGION} nosync {legs}"),
    );
    failing.fail_in(0);
    let write = begin_write(&*m, 3, 9);
    wait_status(&m, |info| info.contains(" AD "));
    wait_for("out of sync", || {
        info(&m).contains(&format!(" {}/{REGIONS} ", REGIONS - 1))
    });
    // Another one to the same region, which is out of sync now.
    let second = begin_write(&*m, 2, 10);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(write.try_recv().is_err() && second.try_recv().is_err());
    assert_eq!(read_cell(&*m, 3), Ok(9));
    load(&m, &format!("0 {SIZE} linear a 0")).expect("loaded");
    m.suspend(NOFLUSH).expect("suspended");
    assert!(write.try_recv().is_err());
    resume(&m).expect("resumed");
    assert_eq!(
        (ended(&write), ended(&second)),
        (BlkStatus::Ok, BlkStatus::Ok)
    );
    assert_eq!((read_cell(&*a, 3), read_cell(&*a, 2)), (Ok(9), Ok(10)));
    assert_eq!(read_cell(&*b, 3), Ok(0));
    // The leg is back.
    failing.fail_in(-1);
    replace(&m, &format!("0 {SIZE} mirror core 1 {REGION} {legs}"));
    wait_synced(&m);
    assert_eq!(image(&a), image(&b));
    m.destroy();
}

#[test]
fn a_suspend_with_a_flush_fails_what_is_held() {
    let (lab, _) = lab();
    lab.memory("a", SIZE);
    let failing = Failing::new(lab.memory("b", SIZE), -1, true);
    lab.add("failing", failing.clone());
    let legs = "2 a 0 failing 0 1 handle_errors";
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 2 {REGION} nosync {legs}"),
    );
    failing.fail_in(0);
    let write = begin_write(&*m, 3, 9);
    wait_status(&m, |info| info.contains(" AD "));
    m.suspend(SuspendFlags::default()).expect("suspended");
    assert_eq!(ended(&write), BlkStatus::IoErr);
    resume(&m).expect("resumed");
    let write = begin_write(&*m, 3, 9);
    std::thread::sleep(std::time::Duration::from_millis(5));
    // The end of the device, too.
    m.destroy();
    assert_eq!(ended(&write), BlkStatus::IoErr);
}

#[test]
fn a_log_in_memory_forgets_and_one_on_a_device_remembers() {
    let (lab, _) = lab();
    let (a, b) = (lab.memory("a", SIZE), lab.memory("b", SIZE));
    fill_cells(&*a, CELLS);
    lab.memory("log", 64);
    let line = format!("0 {SIZE} mirror disk 2 log {REGION} 2 a 0 b 0 1 handle_errors");
    let m = lab.live("m", &line);
    wait_synced(&m);
    assert!(info(&m).ends_with(" AA 3 disk 7:2 A"), "{}", info(&m));
    assert!(write_cell(&*m, 7, 70).is_ok());
    m.destroy();
    let m = lab.live("again", &line);
    assert!(
        info(&m).contains(&format!("{REGIONS}/{REGIONS}")),
        "{}",
        info(&m)
    );
    assert_eq!(image(&a), image(&b));
    // Suspended and resumed it is in sync, too, and says so on the device.
    assert!(write_cell(&*m, 8, 80).is_ok());
    m.suspend(SuspendFlags::default()).expect("suspended");
    resume(&m).expect("resumed");
    assert!(
        info(&m).contains(&format!("{REGIONS}/{REGIONS}")),
        "{}",
        info(&m)
    );
    m.destroy();
}

#[test]
fn a_request_for_several_regions_is_cut_and_joined() {
    let (lab, _) = lab();
    let (a, b) = (lab.memory("a", SIZE), lab.memory("b", SIZE));
    lab.memory("log", 64);
    let line = format!("0 {SIZE} mirror disk 3 log {REGION} nosync 2 a 0 b 0 1 handle_errors");
    let m = lab.live("m", &line);
    let mut buf = thinmap_runtime::IoBuf::alloc((SIZE * 512) as usize);
    for cell in 0..CELLS as usize {
        let bytes = cell_bytes(cell as u32 + 5);
        buf.as_mut_slice()[cell * 4096..][..4096].copy_from_slice(bytes.as_slice());
    }
    let written = buf.as_slice().to_vec();
    let (buf, status) = thinmap_block::write(&*m, Sector(0), buf);
    assert!(status.is_ok());
    assert_eq!(buf.as_slice(), written);
    assert_eq!(image(&a), written);
    assert_eq!(image(&b), written);
    m.destroy();
}

#[test]
fn writes_that_overlap_reach_the_legs_one_after_another() {
    let (lab, _) = lab();
    let a = lab.memory("a", SIZE);
    let (b_below, b) = double(SIZE);
    lab.add("b", b.clone());
    let m = lab.live(
        "m",
        &format!("0 {SIZE} mirror core 2 {REGION} nosync 2 a 0 b 0"),
    );
    b.hold.store(true, Ordering::SeqCst);
    let first = begin_write(&*m, 0, 7);
    let overlapping = begin_write(&*m, 0, 8);
    let beside = begin_write(&*m, 1, 9);
    // Only what does not overlap is on its way to the second leg, and on the first one.
    wait_for("two writes", || b.held.lock().len() == 2);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(b.held.lock().len(), 2);
    assert_eq!((read_cell(&*a, 0), read_cell(&*a, 1)), (Ok(7), Ok(9)));
    b.release();
    for write in [first, overlapping, beside] {
        assert_eq!(ended(&write), BlkStatus::Ok);
    }
    assert_eq!((read_cell(&*a, 0), read_cell(&*b_below, 0)), (Ok(8), Ok(8)));
    m.destroy();
}
