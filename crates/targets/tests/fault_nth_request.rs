//! The Nth request below a mapped device fails: exactly the request above that it belongs to fails, and nothing hangs.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::atomic::Ordering;

use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{StatusKind, WhichTable};
use thinmap_units::{BlkStatus, Sector};

const SCRIPT: &[(Op, u64, u64)] = &[
    (Op::Write, 0, 3),
    (Op::Write, 1, 30),
    (Op::Flush, 0, 0),
    (Op::Read, 0, 48),
    (Op::WriteZeroes, 0, 48),
    (Op::Discard, 4, 40),
    (Op::Read, 47, 1),
];

#[test]
fn fault_each_request_in_turn_fails_one_request_above() {
    let mut failed_runs = 0;
    for nth in 0.. {
        let world = World::new();
        let double = Double::new(world.memory("below", 64));
        double.limits.lock().max_write_zeroes = Sector(16);
        world.add("a", double.clone());
        let dev = world.live("one", "0 16 linear a 0\n16 32 striped 2 4 a 16 a 32");
        double.fail_in.store(nth, Ordering::SeqCst);
        let results: Vec<BlkStatus> = SCRIPT
            .iter()
            .map(|(op, sector, len)| request(&*dev, *op, *sector, *len))
            .collect();
        let failures = results.iter().filter(|s| **s == BlkStatus::IoErr).count();
        assert!(
            results
                .iter()
                .all(|s| matches!(s, BlkStatus::Ok | BlkStatus::IoErr))
        );
        if failures == 0 {
            break;
        }
        assert_eq!(failures, 1, "request {nth}: {results:?}");
        failed_runs += 1;
        // Still good for requests, and for its end.
        assert_eq!(request(&*dev, Op::Read, 0, 48), BlkStatus::Ok);
        dev.destroy();
    }
    assert!(
        failed_runs > 20,
        "only {failed_runs} requests reached the device"
    );
}

#[test]
fn fault_a_write_out_of_zeroes_stops_at_the_first_failure() {
    let world = World::new();
    let double = Double::new(world.memory("below", 4096));
    double.limits.lock().max_write_zeroes = Sector::ZERO;
    world.add("a", double.clone());
    let dev = world.live("one", "0 4096 linear a 0");
    double.fail_in.store(2, Ordering::SeqCst);
    *double.fail_with.lock() = BlkStatus::NoSpc;
    assert_eq!(request(&*dev, Op::WriteZeroes, 1, 4000), BlkStatus::NoSpc);
    let seen = double.seen.lock();
    assert_eq!(
        *seen,
        [
            (Op::Write, 1, 512),
            (Op::Write, 513, 512),
            (Op::Write, 1025, 512)
        ]
    );
}

#[test]
fn fault_a_failed_stripe_is_shown_and_raises_an_event() {
    let world = World::new();
    let double = Double::new(world.memory("below", 64));
    world.add("bad", double.clone());
    world.memory("good", 64);
    let dev = world.live("one", "0 16 striped 2 4 good 0 bad 0");
    for _ in 0..3 {
        double.fail_in.store(0, Ordering::SeqCst);
        assert_eq!(request(&*dev, Op::Read, 0, 8), BlkStatus::IoErr);
    }
    let status = dev
        .table_status(StatusKind::Info, WhichTable::Live, false)
        .unwrap();
    assert_eq!(status[0].text, "2 7:2 7:1 1 AD");
    assert_eq!(dev.info().event_nr, 3);
    double.fail_in.store(0, Ordering::SeqCst);
    *double.fail_with.lock() = BlkStatus::NotSupp;
    request(&*dev, Op::Read, 4, 4);
    assert_eq!(dev.info().event_nr, 3);
}

#[test]
fn a_request_that_needs_no_cut_goes_down_as_it_is_and_flushes_reach_every_device() {
    let world = World::new();
    let (one, two) = (
        Double::new(world.memory("m1", 64)),
        Double::new(world.memory("m2", 64)),
    );
    world.add("d1", one.clone());
    world.add("d2", two.clone());
    let dev = world.live("dev", "0 16 striped 2 8 d1 0 d2 0\n16 16 linear d2 32");
    assert_eq!(request(&*dev, Op::Write, 8, 8), BlkStatus::Ok);
    assert_eq!(request(&*dev, Op::Discard, 4, 20), BlkStatus::Ok);
    assert_eq!(request(&*dev, Op::Flush, 0, 0), BlkStatus::Ok);
    assert_eq!(*one.seen.lock(), [(Op::Discard, 4, 4), (Op::Flush, 0, 0)]);
    assert_eq!(
        *two.seen.lock(),
        [
            (Op::Write, 0, 8),
            (Op::Discard, 0, 8),
            (Op::Discard, 32, 8),
            (Op::Flush, 0, 0),
            (Op::Flush, 0, 0)
        ]
    );
    assert!(dev.size() == Sector(32));
}
