//! The policy alone: what it lets in and out, and when.

use std::time::Duration;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const READ: Access = Access {
    write: false,
    cheap: false,
    may_migrate: true,
};
const WHOLE_WRITE: Access = Access {
    write: true,
    cheap: true,
    may_migrate: true,
};

fn policy(blocks: u32) -> Smq {
    Smq::new(blocks, 1 << 20, Duration::ZERO).expect("memory")
}

/// A whole write that brings its block in.
fn bring(policy: &mut Smq, oblock: u64) -> u32 {
    let Found::MissPromote(work) = policy.look_up(oblock, WHOLE_WRITE) else {
        panic!("block {oblock} did not come");
    };
    policy.done(work, true);
    policy.set_dirty(work.cblock, true);
    work.cblock
}

fn clean_all(policy: &mut Smq) {
    while let Some(work) = policy.next_work(true) {
        assert_eq!(work.task, Task::Writeback);
        policy.set_dirty(work.cblock, false);
        policy.done(work, true);
    }
}

#[test]
fn whole_writes_come_at_once_in_order_while_there_is_room() {
    let mut policy = policy(3);
    for (cblock, oblock) in [(0, 70), (1, 80), (2, 90)] {
        assert_eq!(bring(&mut policy, oblock), cblock);
        assert_eq!(policy.look_up(oblock, READ), Found::Hit(cblock));
        assert_eq!(policy.holds(cblock), Some(oblock));
    }
    assert_eq!(policy.look_up(100, WHOLE_WRITE), Found::Miss);
    assert_eq!((policy.residency(), policy.hints()), (3, vec![63; 3]));
}

#[test]
fn nothing_comes_where_nothing_may() {
    let mut policy = policy(3);
    let access = Access {
        may_migrate: false,
        ..WHOLE_WRITE
    };
    assert_eq!(policy.look_up(1, access), Found::Miss);
    assert!(policy.next_work(true).is_none());
}

#[test]
fn what_is_asked_for_again_and_again_comes_and_what_is_asked_for_once_does_not() {
    let mut policy = policy(64);
    let mut promoted = Vec::new();
    for step in 0..400_u32 {
        policy.look_up(7, READ);
        policy.look_up(100 + u64::from(step) * 64, READ);
        if step % 20 == 19 {
            policy.tick(SECOND * step);
        }
        policy.next_round();
        while let Some(work) = policy.next_work(false) {
            assert_eq!(work.task, Task::Promote);
            promoted.push(work.oblock);
            policy.done(work, true);
        }
    }
    assert!(promoted.contains(&7), "{promoted:?}");
    assert!(policy.place(7).is_some());
    assert!(promoted.len() < 20, "{promoted:?}");
}

#[test]
fn a_full_cache_lets_the_least_used_clean_blocks_go() {
    let mut policy = policy(8);
    for oblock in 0..8 {
        bring(&mut policy, oblock * 1000);
    }
    clean_all(&mut policy);
    // All levels but those of two blocks sink: the two stay where they are used.
    for minute in 1..100 {
        policy.tick(SECOND * 61 * minute);
        policy.look_up(3000, READ);
        policy.look_up(5000, READ);
    }
    let mut gone = Vec::new();
    for step in 0..300 {
        policy.look_up(9_000_000, READ);
        policy.next_round();
        if step % 50 == 49 {
            policy.tick(SECOND * (10_000 + step));
        }
        while let Some(work) = policy.next_work(false) {
            if work.task == Task::Demote {
                gone.push(work.oblock);
            }
            policy.done(work, true);
        }
    }
    assert!(!gone.is_empty() && policy.place(9_000_000).is_some());
    assert!(!gone.contains(&3000) && !gone.contains(&5000), "{gone:?}");
}

#[test]
fn dirty_blocks_are_written_when_idle_and_never_let_go_dirty() {
    let mut policy = policy(4);
    for oblock in 0..4 {
        bring(&mut policy, oblock);
    }
    assert!(policy.next_work(false).is_none(), "not idle");
    let work = policy.next_work(true).expect("idle");
    assert_eq!((work.task, work.oblock), (Task::Writeback, 0));
    // It failed, or was written again meanwhile: still dirty.
    policy.done(work, false);
    clean_all(&mut policy);
    assert!(policy.next_work(true).is_none());
}

#[test]
fn blocks_are_loaded_with_their_hints_and_damage_is_refused() {
    let mut policy = policy(4);
    assert!(policy.load(2, 20, true, Some(5)));
    assert!(policy.load(0, 10, false, Some(900)));
    assert!(
        !policy.load(1, 20, false, None),
        "block 20 is there already"
    );
    assert!(!policy.load(2, 30, false, None), "taken");
    assert!(!policy.load(4, 40, false, None), "no such block");
    policy.loaded();
    assert_eq!(policy.hints(), [63, 0, 5, 0]);
    assert_eq!(policy.residency(), 2);
    assert!(policy.invalidate(0) && !policy.invalidate(0) && !policy.invalidate(9));
    assert_eq!(policy.look_up(10, READ), Found::Miss);
    assert_eq!(bring(&mut policy, 50), 1);
}
