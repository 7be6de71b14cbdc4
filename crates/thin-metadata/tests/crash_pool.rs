//! Power cuts: at every write and flush of some short lives, with what was not yet flushed lost,
//! kept, kept in part, or torn at 512 bytes. What is found then must be the state before or after
//! the commit that was cut, with nothing leaked and nothing counted wrong.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scripts;
mod support;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use scripts::{SCRIPTS, Step};
use support::*;
use thinmap_sim::Loss;
use thinmap_thin_metadata::check;

fn cut_everywhere(name: &str, steps: &[Step]) {
    let (disk, mut pool) = new_pool(700, 0);
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
            let state = state_of(&reopen(&crashed));
            let before = state == states[last];
            let after = states.get(last + 1) == Some(&state);
            assert!(before || after, "{name} cut {cut} {loss:?}: neither state");
            found_after += usize::from(after && !before);
        }
    }
    // The canary: some cuts must have been late enough to find the newer state.
    assert!(found_after > 0, "{name}: no cut hit a commit's end");
}

#[test]
fn crash_finds_state_before_or_after_the_commit() {
    for (name, steps) in SCRIPTS {
        cut_everywhere(name, steps);
    }
}

#[test]
fn crash_during_format_leaves_zeroes_or_a_pool() {
    let disk = thinmap_sim::SimMetadataDisk::new(700);
    drop(thinmap_thin_metadata::PoolMetadata::open(disk.clone(), &options()).unwrap());
    let mut rng = SmallRng::seed_from_u64(8);
    for cut in 0..=disk.recorded() {
        for loss in Loss::ALL {
            let crashed = disk.crash(cut, loss, &mut rng);
            drop(thinmap_thin_metadata::PoolMetadata::open(crashed.clone(), &options()).unwrap());
            assert!(check(crashed).unwrap().is_empty());
        }
    }
}
