//! Failing I/O: the Nth operation of some short lives fails, for every N, once or for good. Then
//! no change works until the abort, none at all after a failed commit, and what is on the device is
//! a state that was committed.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scripts;
mod support;

use std::sync::Arc;

use scripts::{SCRIPTS, Step};
use support::*;
use thinmap_sim::{Fault, SimMetadataDisk};
use thinmap_thin_metadata::{ErrorKind, PoolMetadata, Result, Space, check};
use thinmap_units::{DataBlock, MetaBlock, VirtBlock};

fn play(
    disk: &Arc<SimMetadataDisk>,
    steps: &[Step],
    fault: Option<Fault>,
) -> (PoolMetadata, Vec<State>, Option<Result<()>>) {
    let mut o = options();
    o.cache_blocks_max = 64;
    let mut pool = PoolMetadata::open(disk.clone(), &o).unwrap();
    let mut states = vec![state_of(&pool)];
    disk.set_fault(fault);
    for step in steps {
        let changed = step(&mut pool);
        if changed.is_err() {
            return (pool, states, Some(changed));
        }
        let fault = disk.operations();
        let committed = pool.commit();
        if committed.is_err() {
            return (pool, states, Some(committed));
        }
        if states.len() > 100 {
            unreachable!("scripts are short; fault at {fault}");
        }
        states.push(State::default());
    }
    (pool, states, None)
}

/// The states after each step, from a run without faults.
fn expected(steps: &[Step]) -> Vec<State> {
    let (_, mut pool) = new_pool(700, 0);
    let mut states = vec![state_of(&pool)];
    for step in steps {
        step(&mut pool).unwrap();
        pool.commit().unwrap();
        states.push(state_of(&pool));
    }
    states
}

fn fail_everywhere(name: &str, steps: &[Step], fault: fn(u64) -> Fault) {
    let states = expected(steps);
    for at in 0.. {
        let (disk, _) = new_pool(700, 0);
        let (mut pool, reached, failed) = play(&disk, steps, Some(fault(at)));
        let Some(failed) = failed else {
            assert!(at > 50, "{name}: the fault never hit");
            return;
        };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        let refused = pool.create_thin(id(99)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Poisoned);
        disk.set_fault(None);
        let done = reached.len() - 1;
        let allowed = [Some(&states[done]), states.get(done + 1)];
        pool.abort().unwrap();
        let state = state_of(&pool);
        assert!(allowed.contains(&Some(&state)), "{name} fault {at}");
        pool.set_needs_check().unwrap();
        drop(pool);
        let findings = check(disk.clone()).unwrap();
        assert!(findings.is_empty(), "{name} fault {at}: {findings:?}");
        let reopened = reopen(&disk);
        assert!(reopened.needs_check());
        assert_eq!(state_of(&reopened), state, "{name} fault {at}");
    }
}

#[test]
fn fault_once() {
    for (name, steps) in SCRIPTS {
        fail_everywhere(name, steps, Fault::Once);
    }
}

#[test]
fn fault_for_good() {
    for (name, steps) in SCRIPTS {
        fail_everywhere(name, steps, Fault::From);
    }
}

#[test]
fn fault_for_good_in_writes() {
    for (name, steps) in SCRIPTS {
        fail_everywhere(name, steps, Fault::WritesFrom);
    }
}

#[test]
fn abort_heals_after_a_failed_change_but_not_after_a_failed_commit() {
    let (disk, mut pool) = new_pool(700, 1000);
    pool.create_thin(id(1)).unwrap();
    disk.set_fault(Some(Fault::From(0)));
    assert_eq!(pool.commit().unwrap_err().kind(), ErrorKind::Io);
    disk.set_fault(None);
    pool.abort().unwrap();
    let refused = pool.create_thin(id(1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Poisoned);
    assert_eq!(refused.errno(), 22);
}

#[test]
fn full_metadata_device_fails_the_change_and_abort_restores() {
    for blocks in [20, 25, 30, 64] {
        let (disk, mut pool) = new_pool(blocks, 20_000);
        pool.create_thin(id(1)).unwrap();
        pool.commit().unwrap();
        let mut committed = state_of(&pool);
        let mut next = 0;
        let error = loop {
            let data = pool.alloc_data_block().unwrap();
            let inserted = pool.insert(id(1), VirtBlock(next * 997 % 20_011), data);
            next += 1;
            let committed_now = match inserted {
                Err(e) => break e,
                Ok(()) if next % 50 == 0 => pool.commit(),
                Ok(()) => continue,
            };
            if let Err(e) = committed_now {
                break e;
            }
            committed = state_of(&pool);
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace(Space::Metadata));
        assert_eq!(error.errno(), 28);
        pool.abort().unwrap();
        assert_eq!(state_of(&pool), committed);
        assert!(check(disk.clone()).unwrap().is_empty());
        // With more room the pool goes on.
        disk.resize(blocks + 100);
        pool.resize_metadata(MetaBlock(blocks + 100)).unwrap();
        for v in 30_000..30_200 {
            map(&mut pool, 1, v);
        }
        pool.commit().unwrap();
        assert!(check(disk.clone()).unwrap().is_empty());
        thin_check(&disk);
    }
}

#[test]
fn full_data_device_refuses_until_freed_blocks_are_committed() {
    let (disk, mut pool) = new_pool(700, 100);
    pool.create_thin(id(1)).unwrap();
    for v in 0..100 {
        assert_eq!(
            map(&mut pool, 1, v),
            DataBlock(v),
            "sequence stays sequence"
        );
    }
    let full = pool.alloc_data_block().unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace(Space::Data));
    pool.commit().unwrap();
    pool.remove_range(id(1), VirtBlock(10), VirtBlock(20))
        .unwrap();
    assert_eq!(pool.free_data_blocks(), DataBlock(0));
    let full = pool.alloc_data_block().unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace(Space::Data));
    pool.commit().unwrap();
    assert_eq!(pool.free_data_blocks(), DataBlock(10));
    assert_eq!(pool.alloc_data_block().unwrap(), DataBlock(10));
    pool.dec_data_range(DataBlock(10), DataBlock(11)).unwrap();
    // Allocated and freed in one transaction: at once free again, as in the kernel.
    assert_eq!(pool.free_data_blocks(), DataBlock(10));
    pool.resize_data(DataBlock(50_000)).unwrap();
    assert_eq!(pool.free_data_blocks(), DataBlock(49_910));
    pool.commit().unwrap();
    assert!(check(disk.clone()).unwrap().is_empty());
    thin_check(&disk);
}
