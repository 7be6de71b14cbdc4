//! A mapped device's life: load, resume, suspend, swap, openings, events, end.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{FileSystemFreezer, Registry, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, DevNo, DmName, DmUuid, Sector};

#[test]
fn a_table_goes_live_at_resume() {
    let world = World::new();
    world.memory("a", 64);
    let dev = world.mapped("one");
    assert_eq!(dev.size(), Sector::ZERO);
    assert!(!dev.info().suspended);
    assert_eq!(request(&*dev, Op::Read, 0, 1), BlkStatus::IoErr);
    assert_eq!(request(&*dev, Op::Flush, 0, 0), BlkStatus::Ok);
    load(&dev, "0 32 linear a 8").unwrap();
    assert!(dev.info().live.is_none() && dev.info().inactive.is_some());
    resume(&dev).unwrap();
    let info = dev.info();
    assert!(info.inactive.is_none() && !info.suspended);
    assert_eq!(info.live.unwrap().size, Sector(32));
    assert_eq!(write_fill(&*dev, 0, 4, 7), BlkStatus::Ok);
    assert_eq!(request(&*dev, Op::Read, 31, 2), BlkStatus::IoErr);
    let text = dev
        .table_status(StatusKind::Table, WhichTable::Live, false)
        .unwrap();
    assert_eq!((text[0].target, text[0].text.as_str()), ("linear", "7:0 8"));
    assert!(
        dev.table_status(StatusKind::Table, WhichTable::Inactive, false)
            .is_none()
    );
}

#[test]
fn a_suspended_device_holds_requests_until_resume() {
    let world = World::new();
    world.memory("a", 64);
    let dev = world.live("one", "0 64 linear a 0");
    dev.suspend(SuspendFlags::default()).unwrap();
    dev.suspend(SuspendFlags::default()).unwrap();
    let writer = {
        let dev = dev.clone();
        thread::spawn(move || write_fill(&*dev, 3, 1, 9))
    };
    thread::sleep(Duration::from_millis(20));
    assert!(!writer.is_finished());
    resume(&dev).unwrap();
    assert_eq!(writer.join().unwrap(), BlkStatus::Ok);
    assert_eq!(read_bytes(&*dev, 3, 1).0, vec![9; 512]);
}

#[test]
fn suspend_waits_for_requests_in_flight_and_status_does_not() {
    let world = World::new();
    let double = Double::new(world.memory("below", 64));
    world.add("a", double.clone());
    let dev = world.live("one", "0 64 linear a 0");
    double.hold.store(true, Ordering::SeqCst);
    let writer = {
        let dev = dev.clone();
        thread::spawn(move || write_fill(&*dev, 0, 1, 1))
    };
    while double.held.lock().is_empty() {
        thread::yield_now();
    }
    let suspender = {
        let dev = dev.clone();
        thread::spawn(move || dev.suspend(SuspendFlags::default()))
    };
    thread::sleep(Duration::from_millis(20));
    assert!(!suspender.is_finished() && !dev.info().suspended);
    assert!(
        dev.table_status(StatusKind::Info, WhichTable::Live, false)
            .is_some()
    );
    double.release();
    suspender.join().unwrap().unwrap();
    assert!(dev.info().suspended);
    assert_eq!(writer.join().unwrap(), BlkStatus::Ok);
}

#[test]
fn an_interrupted_suspend_leaves_the_device_running() {
    let world = World::new();
    let double = Double::new(world.memory("below", 64));
    world.add("a", double.clone());
    let dev = world.live("one", "0 64 linear a 0");
    double.hold.store(true, Ordering::SeqCst);
    let first = {
        let dev = dev.clone();
        thread::spawn(move || write_fill(&*dev, 0, 1, 1))
    };
    while double.held.lock().is_empty() {
        thread::yield_now();
    }
    let error = dev
        .suspend_unless(SuspendFlags::default(), &|| true)
        .unwrap_err();
    assert_eq!(error.errno(), 4);
    assert!(!dev.info().suspended);
    double.release();
    assert_eq!(first.join().unwrap(), BlkStatus::Ok);
    assert_eq!(write_fill(&*dev, 1, 1, 1), BlkStatus::Ok);
}

#[test]
fn resume_without_a_table_is_refused_only_when_suspended() {
    let world = World::new();
    let dev = world.mapped("one");
    resume(&dev).unwrap();
    dev.suspend(SuspendFlags::default()).unwrap();
    assert!(dev.info().suspended);
    assert_eq!(resume(&dev).unwrap_err().errno(), 22);
    load(&dev, "0 8 zero").unwrap();
    resume(&dev).unwrap();
    assert!(!dev.info().suspended);
}

#[test]
fn a_new_table_that_does_not_fit_its_device_fails_at_load_first_and_at_resume_later() {
    let world = World::new();
    let memory = world.memory("a", 64);
    let dev = world.mapped("one");
    let error = load(&dev, "0 65 linear a 0").unwrap_err();
    assert_eq!(error.errno(), 22);
    assert_eq!(
        error.to_string(),
        "table: 7:0 too small for target: start=0, len=65, dev_size=64"
    );
    load(&dev, "0 64 linear a 0").unwrap();
    resume(&dev).unwrap();
    load(&dev, "0 65 linear a 0").unwrap();
    assert_eq!(resume(&dev).unwrap_err().errno(), 22);
    // The old table is still there, suspended.
    let info = dev.info();
    assert!(info.suspended && info.inactive.is_none());
    assert_eq!(info.live.unwrap().size, Sector(64));
    load(&dev, "0 65 linear a 0").unwrap();
    memory.grow(Sector(65));
    resume(&dev).unwrap();
    assert_eq!(dev.size(), Sector(65));
}

#[test]
fn a_device_that_a_table_uses_is_busy_until_the_table_goes() {
    let world = World::new();
    world.memory("a", 64);
    let below = world.live("below", "0 64 linear a 0");
    let above = world.mapped("above");
    load(&above, "0 64 linear below 0").unwrap();
    assert_eq!(below.open_count(), 1);
    assert_eq!(below.begin_removal(&|| false).unwrap_err().errno(), 16);
    assert_eq!(above.deps(WhichTable::Inactive), Some(vec![below.dev_no()]));
    above.clear();
    assert_eq!(below.open_count(), 0);
    assert_eq!(below.begin_removal(&|| true).unwrap_err().errno(), 16);
    below.begin_removal(&|| false).unwrap();
    assert_eq!(load(&above, "0 64 linear below 0").unwrap_err().errno(), 6);
    below.destroy();
    assert_eq!(request(&*below, Op::Read, 0, 1), BlkStatus::IoErr);
    assert_eq!(request(&*below, Op::Flush, 0, 0), BlkStatus::IoErr);
    assert_eq!(load(&below, "0 8 zero").unwrap_err().errno(), 6);
}

#[test]
fn a_loop_of_devices_is_refused() {
    let world = World::new();
    let (one, two, three) = (
        world.mapped("one"),
        world.mapped("two"),
        world.mapped("three"),
    );
    assert_eq!(load(&one, "0 8 linear one 0").unwrap_err().errno(), 22);
    load(&one, "0 8 linear two 0").unwrap();
    load(&two, "0 8 linear three 0").unwrap();
    assert_eq!(load(&three, "0 8 linear one 0").unwrap_err().errno(), 40);
    assert!(one.stands_on(three.dev_no()) && !three.stands_on(one.dev_no()));
    load(&three, "0 8 zero").unwrap();
    for dev in [&three, &two, &one] {
        resume(dev).unwrap();
    }
    assert_eq!(read_bytes(&*one, 0, 8), (vec![0; 4096], BlkStatus::Ok));
}

#[test]
fn destroy_fails_what_a_suspended_device_holds() {
    let world = World::new();
    world.memory("a", 64);
    let dev = world.live("one", "0 64 linear a 0");
    dev.suspend(SuspendFlags::default()).unwrap();
    let writer = {
        let dev = dev.clone();
        thread::spawn(move || write_fill(&*dev, 3, 1, 9))
    };
    thread::sleep(Duration::from_millis(20));
    dev.destroy();
    dev.destroy();
    assert_eq!(writer.join().unwrap(), BlkStatus::IoErr);
    assert!(dev.is_destroyed());
}

#[test]
fn the_end_of_a_device_wakes_those_who_wait_for_events() {
    let world = World::new();
    let dev = world.live("one", "0 8 zero");
    let waiter = {
        let dev = dev.clone();
        thread::spawn(move || dev.wait_event(dev.info().event_nr, &|| false))
    };
    thread::sleep(Duration::from_millis(10));
    dev.destroy();
    waiter.join().unwrap();
}

#[test]
fn a_rename_counts_as_an_event_and_a_uuid_is_for_life() {
    let world = World::new();
    let dev = world.live("one", "0 8 zero");
    dev.set_name(DmName::new("two").unwrap());
    dev.set_uuid(DmUuid::new("U-1").unwrap()).unwrap();
    assert_eq!(
        dev.set_uuid(DmUuid::new("U-2").unwrap())
            .unwrap_err()
            .errno(),
        22
    );
    let info = dev.info();
    assert_eq!((info.name.as_str(), info.event_nr), ("two", 2));
    assert_eq!(info.uuid.unwrap().as_str(), "U-1");
}

#[test]
fn a_read_only_table_refuses_writes() {
    let world = World::new();
    world.memory("a", 64);
    let dev = world.mapped("one");
    dev.load(&lines("0 64 linear a 0"), true).unwrap();
    resume(&dev).unwrap();
    assert!(dev.limits().read_only && dev.info().live.unwrap().read_only);
    for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
        assert_eq!(request(&*dev, op, 0, 8), BlkStatus::IoErr, "{op:?}");
    }
    assert_eq!(request(&*dev, Op::Read, 0, 8), BlkStatus::Ok);
    assert_eq!(request(&*dev, Op::Flush, 0, 0), BlkStatus::Ok);
}

#[test]
fn messages_go_to_the_target_at_their_sector() {
    let world = World::new();
    let dev = world.mapped("one");
    let send = |sector, words: &[&str]| {
        let argv: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        dev.message(Sector(sector), &argv).unwrap_err()
    };
    assert_eq!(dev.message(Sector(0), &["hello".to_owned()]), Ok(None));
    load(&dev, "0 8 zero").unwrap();
    resume(&dev).unwrap();
    assert_eq!(send(0, &[]).to_string(), "Empty message received.");
    assert_eq!(
        send(8, &["hello"]).to_string(),
        "Target message sector outside device."
    );
    assert_eq!(send(0, &["hello"]).errno(), 22);
    assert_eq!(
        send(5, &["hello"]).to_string(),
        "Target type does not support messages"
    );
    assert_eq!(
        send(0, &["@nonsense"]).to_string(),
        "Unsupported message sent to DM core: @nonsense"
    );
}

#[derive(Default)]
struct Freezer {
    log: Mutex<Vec<&'static str>>,
    refuse: std::sync::atomic::AtomicBool,
}

impl FileSystemFreezer for Freezer {
    fn freeze(&self, _: DevNo) -> Result<(), i32> {
        if self.refuse.load(Ordering::SeqCst) {
            return Err(16);
        }
        self.log.lock().push("freeze");
        Ok(())
    }

    fn thaw(&self, _: DevNo) {
        self.log.lock().push("thaw");
    }
}

#[test]
fn the_file_system_is_frozen_unless_told_not_to() {
    let world = World::new();
    let freezer = Arc::new(Freezer::default());
    let registry = Registry::new(thinmap_targets::ALL);
    let dev = world.mapped_with("one", registry, Some(freezer.clone()));
    load(&dev, "0 8 zero").unwrap();
    resume(&dev).unwrap();
    assert!(freezer.log.lock().is_empty());
    dev.suspend(SuspendFlags::default()).unwrap();
    resume(&dev).unwrap();
    assert_eq!(*freezer.log.lock(), ["freeze", "thaw"]);
    let nolockfs = SuspendFlags {
        lockfs: false,
        ..SuspendFlags::default()
    };
    for flags in [NOFLUSH, nolockfs] {
        dev.suspend(flags).unwrap();
        resume(&dev).unwrap();
    }
    assert_eq!(freezer.log.lock().len(), 2);
    freezer.refuse.store(true, Ordering::SeqCst);
    assert_eq!(
        dev.suspend(SuspendFlags::default()).unwrap_err().errno(),
        16
    );
    assert!(!dev.info().suspended);
    assert_eq!(request(&*dev, Op::Read, 0, 1), BlkStatus::Ok);
}

#[test]
fn an_error_table_ends_what_can_be_ended() {
    let world = World::new();
    world.memory("a", 64);
    let dev = world.live("one", "0 64 linear a 0");
    dev.replace_with_error_table().unwrap();
    assert_eq!(request(&*dev, Op::Read, 0, 1), BlkStatus::IoErr);
    assert_eq!(dev.size(), Sector(64));
}

#[test]
fn a_device_counts_as_one_opener_however_many_lines_it_has() {
    let world = World::new();
    let below = world.live("below", "0 64 zero");
    let above = world.live("above", "0 8 linear below 0\n8 8 linear below 16");
    load(&above, "0 8 linear below 0").unwrap();
    assert_eq!(below.open_count(), 1);
    let claim = below.open().unwrap();
    assert_eq!(below.info().open_count, 2);
    drop(claim);
    let told = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let hook = told.clone();
    below.on_last_close(move || {
        hook.fetch_add(1, Ordering::SeqCst);
    });
    above.clear();
    assert_eq!(told.load(Ordering::SeqCst), 0);
    above.destroy();
    assert_eq!((below.open_count(), told.load(Ordering::SeqCst)), (0, 1));
}

#[test]
fn devices_stack_deep() {
    let world = World::new();
    world.memory("0", 64);
    let mut devices = Vec::new();
    for level in 1..=100 {
        let table = format!("0 64 linear {} 0", level - 1);
        devices.push(world.live(&level.to_string(), &table));
    }
    let top = devices.last().unwrap();
    assert_eq!(write_fill(&**top, 5, 1, 3), BlkStatus::Ok);
    assert_eq!(read_bytes(&*devices[0], 5, 1).0, vec![3; 512]);
    assert!(top.stands_on(devices[0].dev_no()));
}

#[test]
fn block_status_goes_through_to_the_devices() {
    let world = World::new();
    let below = world.live("below", "0 16 zero\n16 16 error");
    let dev = world.live("one", "0 8 linear below 4\n8 8 striped 2 4 below 0 below 8");
    let extents = |dev: &dyn BlockDevice, start, len| {
        let mut out = Vec::new();
        let result = dev.extents(Sector(start), Sector(len), &mut out);
        result.map(|()| (out[0].sectors.raw(), out[0].allocated, out[0].zeroes))
    };
    assert_eq!(extents(&*dev, 2, 14), Ok((6, false, true)));
    assert_eq!(extents(&*dev, 13, 3), Ok((3, false, true)));
    assert_eq!(extents(&*below, 20, 1), Err(BlkStatus::IoErr));
    assert_eq!(extents(&*dev, 16, 1), Err(BlkStatus::IoErr));
}
