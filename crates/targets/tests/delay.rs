//! delay: what waits, for how long, and what ends the wait. On a clock that the test moves.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
mod support;

use std::sync::Arc;
use std::time::Duration;

use clocked::*;
use support::*;
use thinmap_block::Op;
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};

fn status(dev: &MappedDevice) -> String {
    let lines = dev.table_status(StatusKind::Info, WhichTable::Live, false);
    lines.unwrap()[0].text.clone()
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn each_class_waits_its_own_time() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, time) = live(&world, "0 64 delay 7:0 0 30 7:0 0 20 7:0 0 10");
    let ends = Ends::new();
    ends.send(&*dev, 1, Op::Read, (0, 8), 0);
    ends.send(&*dev, 2, Op::Write, (8, 8), 7);
    ends.send(&*dev, 3, Op::Flush, (0, 0), 0);
    ends.send(&*dev, 4, Op::Discard, (16, 8), 0);
    assert_eq!(status(&dev), "1 2 1");
    time.advance(9 * MS);
    assert_eq!(ends.ended(), [0_u64; 0]);
    time.advance(MS);
    ends.wait(1);
    assert_eq!(ends.ended(), [3]);
    time.advance(10 * MS);
    ends.wait(3);
    assert_eq!(ends.ended(), [3, 2, 4], "in the order in which they came");
    time.advance(9 * MS);
    assert_eq!(status(&dev), "1 0 0");
    time.advance(MS);
    ends.wait(4);
    assert_eq!(status(&dev), "0 0 0");
    let (bytes, end) = read_bytes(&*world_device(&world), 8, 8);
    assert!(end.is_ok() && bytes.iter().all(|byte| *byte == 7));
}

fn world_device(world: &Arc<World>) -> Arc<MappedDevice> {
    world.live("below", "0 64 linear 7:0 0")
}

#[test]
fn a_suspend_lets_everything_go_and_a_resume_delays_again() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, time) = live(&world, "0 64 delay 7:0 0 1000000");
    let ends = Ends::new();
    for tag in 0..20 {
        ends.send(&*dev, tag, Op::Read, (tag, 1), 0);
    }
    assert_eq!(status(&dev), "20 0 0");
    dev.suspend(SuspendFlags::default()).unwrap();
    assert_eq!(ends.ended(), (0..20).collect::<Vec<_>>());
    ends.send(&*dev, 20, Op::Read, (0, 1), 0);
    resume(&dev).unwrap();
    // Held by the suspend, and then delayed like any other.
    assert_eq!(status(&dev), "1 0 0");
    time.advance(1_000_000 * MS);
    ends.wait(21);
    assert_eq!(ends.ended().len(), 21);
}

#[test]
fn a_device_that_goes_takes_no_request_with_it() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, _time) = live(&world, "0 64 delay 7:0 0 5000");
    let ends = Ends::new();
    ends.send(&*dev, 1, Op::Write, (0, 8), 1);
    dev.suspend(NOFLUSH).unwrap();
    load(&dev, "0 64 error").unwrap();
    resume(&dev).unwrap();
    assert_eq!(ends.wait(1).len(), 1);
    assert_eq!(ends.ended(), [1]);
}
