//! Power cuts: at every write and flush of some short lives, with what was not yet flushed lost,
//! kept, kept in part, or torn at 512 bytes. What is found then must be the state before or after
//! the commit that was cut, with nothing leaked and nothing counted wrong.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scripts;
mod support;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use scripts::{SCRIPTS, Step};
use support::*;
use thinmap_sim::Loss;
use thinmap_thin_metadata::{DeletionStep, ErrorKind, PoolMetadata, Result, Space, check};
use thinmap_units::{DataBlock, VirtBlock};

/// Blocks of the metadata device.
const METADATA_BLOCKS: u64 = 60;

type AnyStep<'a> = dyn Fn(&mut PoolMetadata) -> Result<()> + 'a;

/// A step made of a few random changes; refusals (an id in use, a full device) are part of life.
fn random_step(seed: u64) -> Box<AnyStep<'static>> {
    Box::new(move |pool| {
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..rng.random_range(1..6) {
            let (a, b) = (id(rng.random_range(0..6)), id(rng.random_range(0..6)));
            let begin = rng.random_range(0..3000);
            let len = rng.random_range(1..500);
            let done = match rng.random_range(0..11) {
                0 => pool.create_thin(a),
                1 => pool.create_snap(a, b),
                2 => pool.delete_thin(a),
                3 => pool
                    .remove_range(a, VirtBlock(begin), VirtBlock(begin + len))
                    .map(|_| ()),
                4 => pool.release_metadata_snap(),
                5 => pool.resize_data(pool.data_blocks() + DataBlock(3000)),
                6 => pool.begin_deletion(a, 0).map(|_| ()),
                7 => pool.continue_deletion(1).map(|_| ()),
                _ if pool.device_exists(a)? => (begin..begin + len).try_for_each(|v| {
                    let data = pool.alloc_data_block()?;
                    pool.insert(a, VirtBlock(v), data)
                }),
                _ => Ok(()),
            };
            if let Err(e) = done {
                let refused = [ErrorKind::Exists, ErrorKind::NotFound, ErrorKind::Inval];
                let full = ErrorKind::NoSpace(Space::Data);
                assert!(refused.contains(&e.kind()) || e.kind() == full, "{e}");
            }
        }
        Ok(())
    })
}

#[test]
fn crash_in_random_lives() {
    for seed in 0..6u64 {
        let random = |step: u64| random_step(seed * 1000 + step);
        let mut steps: Vec<Box<AnyStep<'_>>> = vec![Box::new(|pool: &mut PoolMetadata| {
            pool.resize_data(DataBlock(5000))?;
            pool.create_thin(id(0))
        })];
        steps.extend((0..6).map(random));
        // Its own commit has nothing to write, so that a step is still one commit.
        steps.push(Box::new(PoolMetadata::reserve_metadata_snap));
        steps.extend((6..14).map(random));
        cut_everywhere(&format!("seed {seed}"), &steps);
    }
}

fn cut_everywhere(name: &str, steps: &[Box<AnyStep<'_>>]) {
    // Little enough that the search for free blocks goes round several times.
    let (disk, mut pool) = new_pool(METADATA_BLOCKS, 0);
    disk.start_recording();
    let mut states = vec![state_of(&pool)];
    // Recorded operations when the state with this index was durable.
    let mut durable_at = vec![0];
    for step in steps {
        step(&mut pool).unwrap();
        // A step may commit by itself (a metadata snapshot does), without changing the state.
        pool.commit().unwrap();
        states.push(state_of(&pool));
        durable_at.push(disk.recorded());
    }
    let mut rng = SmallRng::seed_from_u64(7);
    let mut found_after = 0;
    for cut in 0..=disk.recorded() {
        let last = durable_at.partition_point(|at| *at <= cut) - 1;
        for loss in Loss::ALL {
            let crashed = disk.crash(cut, loss, &mut rng);
            let findings = check(crashed.clone()).unwrap();
            assert!(
                findings.is_empty(),
                "{name} cut {cut} {loss:?}: {findings:?}"
            );
            let mut pool = reopen(&crashed);
            let state = state_of(&pool);
            let before = state == states[last];
            let after = states.get(last + 1) == Some(&state);
            assert!(before || after, "{name} cut {cut} {loss:?}: neither state");
            found_after += usize::from(after && !before);
            // What was being deleted is deleted to its end.
            while pool.continue_deletion(3).unwrap() == DeletionStep::More {}
            pool.commit().unwrap();
            let findings = check(crashed).unwrap();
            assert!(findings.is_empty(), "{name} cut {cut}: {findings:?}");
            assert_eq!(state_of(&pool).volumes, state.volumes, "{name} cut {cut}");
        }
    }
    // The canary: some cuts must have been late enough to find the newer state.
    assert!(found_after > 0, "{name}: no cut hit a commit's end");
}

#[test]
fn crash_finds_state_before_or_after_the_commit() {
    for (name, steps) in SCRIPTS {
        let boxed = |step: &Step| -> Box<AnyStep<'_>> { Box::new(*step) };
        cut_everywhere(name, &steps.iter().map(boxed).collect::<Vec<_>>());
    }
}

#[test]
fn crash_during_format_leaves_zeroes_or_a_pool() {
    let disk = thinmap_sim::SimMetadataDisk::new(700);
    drop(PoolMetadata::open(disk.clone(), &options()).unwrap());
    let mut rng = SmallRng::seed_from_u64(8);
    for cut in 0..=disk.recorded() {
        for loss in Loss::ALL {
            let crashed = disk.crash(cut, loss, &mut rng);
            drop(PoolMetadata::open(crashed.clone(), &options()).unwrap());
            assert!(check(crashed).unwrap().is_empty());
        }
    }
}
