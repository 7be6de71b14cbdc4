//! A mapped device's life: load, resume, suspend, swap, openings, events, end.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{FileSystemFreezer, Registry, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, DevNo, Sector};

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
    assert_eq!(
        (text[0].target, text[0].text.as_str()),
        ("linear", "7:0 8")
    );
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
