//! The Nth request to one device of an array fails, once or from then on: nobody above sees it, and the array is whole again
//! afterwards.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod raid_support;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use raid_support::*;
use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::SuspendFlags;

const LEN: u64 = 512;

struct Kind {
    line: &'static str,
    members: usize,
    data: u64,
}

const KINDS: &[Kind] = &[
    Kind {
        line: "raid1 5 0 daemon_sleep 10 region_size 64",
        members: 2,
        data: 1,
    },
    Kind {
        line: "raid10 3 16 region_size 64",
        members: 4,
        data: 2,
    },
    Kind {
        line: "raid5_ls 3 16 region_size 64",
        members: 3,
        data: 2,
    },
    Kind {
        line: "raid6_zr 3 8 region_size 128",
        members: 4,
        data: 2,
    },
];

/// Makes an array, has one of its devices fail at its Nth request, works on. Whether the fault struck.
fn nth(kind: &Kind, meta: bool, victim: usize, left: i64, for_good: bool) -> bool {
    let lab = RaidLab::new(kind.members, LEN);
    let numbers: Vec<usize> = (0..kind.members).collect();
    let len = LEN * kind.data;
    let table = format!("0 {len} raid {} {}", kind.line, lab.members(&numbers));
    let dev = lab.world.live("r", &table);
    wait_idle(&dev);
    let device: &Arc<Member> = if meta {
        &lab.metas[victim]
    } else {
        &lab.data[victim]
    };
    device.for_good.store(for_good, SeqCst);
    device.fail_in.store(left, SeqCst);
    let what = format!("{}, meta {meta}, {victim}, {left}, {for_good}", kind.line);
    let mut model = vec![0_u8; (len / 8) as usize];
    for step in 0..24_u8 {
        // Here and there, in part the same cells again.
        let cell = usize::from(step) * 37 % 61 % model.len();
        model[cell] = step + 1;
        let status = write_fill(&*dev, cell as u64 * 8, 8, step + 1);
        assert!(status.is_ok(), "{what}: write {step}");
        if step % 5 == 4 {
            assert!(request(&*dev, Op::Flush, 0, 0).is_ok(), "{what}: flush");
        }
        if step == 11 {
            dev.suspend(SuspendFlags::default()).unwrap();
            // A revival may be tried, and fail.
            resume(&dev).unwrap();
        }
        for at in [cell, usize::from(step)] {
            let (bytes, status) = read_bytes(&*dev, at as u64 * 8, 8);
            assert!(status.is_ok(), "{what}: read {at}");
            assert!(bytes.iter().all(|b| *b == model[at]), "{what}: cell {at}");
        }
    }
    let struck = device.fail_in.load(SeqCst) < 0;
    device.fail_in.store(-1, SeqCst);
    device.broken.store(false, SeqCst);
    dev.destroy();
    // What failed works again.
    let again = lab.world.live("s", &table);
    wait_idle(&again);
    assert_eq!(health(&again), "A".repeat(kind.members), "{what}");
    assert_eq!(check(&again), 0, "{what}");
    for (at, byte) in model.iter().enumerate() {
        let (bytes, status) = read_bytes(&*again, at as u64 * 8, 8);
        assert!(
            status.is_ok() && bytes.iter().all(|b| b == byte),
            "{what}: cell {at} afterwards"
        );
    }
    assert_eq!(again.size().raw(), len);
    again.destroy();
    struck
}

#[test]
fn fault_nth_request_to_a_member_is_not_seen_above() {
    for kind in KINDS {
        for meta in [false, true] {
            for for_good in [false, true] {
                for victim in [0, kind.members - 1] {
                    for left in (0..12).chain((12..60).step_by(7)) {
                        if !nth(kind, meta, victim, left, for_good) {
                            break;
                        }
                    }
                }
            }
        }
    }
}
