//! flakey: intervals, and what fails in them. On a clock that the test moves.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
mod support;

use std::time::Duration;

use clocked::*;
use support::*;
use thinmap_block::{IoFlags, Op};
use thinmap_units::BlkStatus;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_is_up_and_down_by_turns_from_when_it_was_loaded() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, time) = live(&world, "0 64 flakey 7:0 0 3 2");
    let works: Vec<bool> = (0..12)
        .map(|_| {
            let works = request(&*dev, Op::Read, 0, 8).is_ok();
            assert_eq!(works, request(&*dev, Op::Write, 0, 8).is_ok());
            assert_eq!(works, request(&*dev, Op::Flush, 0, 0).is_ok());
            time.advance(SECOND);
            works
        })
        .collect();
    let (up, down) = (true, false);
    assert_eq!(
        works,
        [up, up, up, down, down, up, up, up, down, down, up, up]
    );
}

#[test]
fn dropped_writes_end_well_and_leave_what_was() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, time) = live(&world, "0 64 flakey 7:0 0 1 1 1 drop_writes");
    assert!(write_fill(&*dev, 0, 8, 1).is_ok());
    time.advance(SECOND);
    assert!(write_fill(&*dev, 0, 8, 2).is_ok());
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    assert!(request(&*dev, Op::Discard, 0, 8).is_ok());
    assert_eq!(read_bytes(&*dev, 0, 8), (vec![1; 4096], BlkStatus::Ok));
    time.advance(SECOND);
    assert_eq!(read_bytes(&*dev, 0, 8), (vec![1; 4096], BlkStatus::Ok));
}

#[test]
fn failing_writes_fail_and_reads_work() {
    let world = World::new();
    world.memory("7:0", 64);
    let (dev, _) = live(&world, "0 64 flakey 7:0 0 0 1 1 error_writes");
    for op in [Op::Write, Op::Discard] {
        assert_eq!(request(&*dev, op, 0, 8), BlkStatus::IoErr);
    }
    assert_eq!(request(&*dev, Op::Flush, 0, 0), BlkStatus::IoErr);
    assert!(request(&*dev, Op::Read, 0, 8).is_ok());
}

#[test]
fn a_corrupted_write_is_right_again_for_its_sender() {
    let world = World::new();
    let below = world.memory("7:0", 64);
    let table = "0 56 flakey 7:0 8 0 1 5 corrupt_bio_byte 514 w 255 0";
    let (dev, _) = live(&world, table);
    let ends = Ends::new();
    ends.send(&*dev, 1, Op::Write, (0, 2), 9);
    let (_, status, data) = ends.wait(1).remove(0);
    assert!(status.is_ok() && data == [9; 1024]);
    let (bytes, _) = read_bytes(&*below, 8, 2);
    let wrong: Vec<usize> = (0..1024).filter(|at| bytes[*at] != 9).collect();
    assert_eq!((wrong.as_slice(), bytes[513]), ([513].as_slice(), 255));
    // Too short to have the byte.
    assert!(write_fill(&*dev, 0, 1, 3).is_ok());
    assert_eq!(read_bytes(&*dev, 0, 1).0, [3; 512]);
}

#[test]
fn only_requests_with_the_flags_are_corrupted() {
    let world = World::new();
    world.memory("7:0", 64);
    // REQ_FUA.
    let table = "0 56 flakey 7:0 8 0 1 5 corrupt_bio_byte 1 w 255 131072";
    let (dev, _) = live(&world, table);
    let ends = Ends::new();
    let fua = IoFlags {
        fua: true,
        no_unmap: false,
    };
    ends.send(&*dev, 1, Op::Write, (0, 1), 9);
    ends.send_with(&*dev, 2, (Op::Write, fua), (1, 1), 9);
    ends.wait(2);
    let (bytes, _) = read_bytes(&*dev, 0, 2);
    assert_eq!((bytes[0], bytes[512]), (9, 255));
}

#[test]
fn a_corrupted_read_leaves_the_medium_alone() {
    let world = World::new();
    let below = world.memory("7:0", 64);
    let table = "0 64 flakey 7:0 0 1 1 6 corrupt_bio_byte 1 r 170 0 drop_writes";
    let (dev, time) = live(&world, table);
    assert!(write_fill(&*dev, 0, 8, 5).is_ok());
    assert_eq!(read_bytes(&*dev, 0, 8).0[0], 5);
    time.advance(SECOND);
    let (bytes, status) = read_bytes(&*dev, 0, 8);
    assert!(status.is_ok());
    assert_eq!((bytes[0], bytes[1]), (170, 5));
    assert_eq!(read_bytes(&*below, 0, 8).0[0], 5);
}
