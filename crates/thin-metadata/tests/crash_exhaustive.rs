//! Every power cut of some short lives, with every subset of the blocks that were not flushed: what is found must be the
//! state before or after the commit that was cut, with nothing leaked and nothing counted wrong. Some of it is shown to
//! Debian's thin_check too.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scripts;
mod support;

use std::process::Command;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use scripts::SCRIPTS;
use support::*;
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::check;

/// Blocks of the metadata device.
const METADATA_BLOCKS: u64 = 60;
/// With no more unflushed blocks than this (`THINMAP_SUBSETS` for another bound) every subset is looked at; with more all
/// that keep or lose at most two, and as many again by chance.
fn bound() -> usize {
    std::env::var("THINMAP_SUBSETS").map_or(6, |n| n.parse().expect("a number"))
}

/// One image of so many is shown to thin_check.
const SHOWN_ONE_IN: usize = 400;

#[derive(Default)]
struct Tally {
    cuts: usize,
    complete: usize,
    images: usize,
    shown: usize,
}

#[test]
fn every_cut_and_every_subset_of_a_commit_is_before_or_after() {
    let tool = Command::new("thin_check").arg("-V").output().is_ok();
    let mut tally = Tally::default();
    for (name, steps) in SCRIPTS {
        let (disk, mut pool) = new_pool(METADATA_BLOCKS, 0);
        disk.start_recording();
        let mut states = vec![state_of(&pool)];
        let mut durable_at = vec![0];
        for step in steps {
            step(&mut pool).unwrap();
            pool.commit().unwrap();
            states.push(state_of(&pool));
            durable_at.push(disk.recorded());
        }
        for cut in 0..=disk.recorded() {
            let last = durable_at.partition_point(|at| *at <= cut) - 1;
            let may_be = &states[last..(last + 2).min(states.len())];
            look_at_all(name, &disk, cut, may_be, tool, &mut tally);
        }
    }
    let Tally {
        cuts,
        complete,
        images,
        shown,
    } = tally;
    println!(
        "{cuts} cuts, {complete} of them with every subset; {images} images, {shown} shown to thin_check"
    );
    if !tool {
        println!("SKIP thin_check is not installed: only our own check has seen the images");
    }
    assert!(complete > 50 && images > 5000, "too little was looked at");
}

fn look_at_all(
    name: &str,
    disk: &Arc<SimMetadataDisk>,
    cut: usize,
    may_be: &[State],
    tool: bool,
    tally: &mut Tally,
) {
    let unflushed = disk.unflushed(cut);
    let complete = unflushed <= bound();
    tally.cuts += 1;
    tally.complete += usize::from(complete);
    for kept in subsets(unflushed) {
        let crashed = disk.crash_keeping(cut, |at| kept[at]);
        let findings = check(crashed.clone()).unwrap();
        assert!(
            findings.is_empty(),
            "{name} cut {cut} kept {kept:?}: {findings:?}"
        );
        let state = state_of(&reopen(&crashed));
        assert!(
            may_be.contains(&state),
            "{name} cut {cut} kept {kept:?}: neither state"
        );
        if tool && tally.images.is_multiple_of(SHOWN_ONE_IN) {
            thin_check(&crashed);
            tally.shown += 1;
        }
        tally.images += 1;
    }
}

/// Which of `n` writes are kept, for each subset that is looked at.
fn subsets(n: usize) -> Vec<Vec<bool>> {
    if n <= bound() {
        let bits = |mask: usize| (0..n).map(|i| mask >> i & 1 == 1).collect();
        return (0..1 << n).map(bits).collect();
    }
    let mut all = Vec::new();
    for lost in [false, true] {
        for a in 0..n {
            for b in a..n {
                let kept = (0..n).map(|i| (i == a || i == b) != lost);
                all.push(kept.collect());
            }
        }
    }
    let mut rng = SmallRng::seed_from_u64(n as u64);
    for _ in 0..all.len() {
        all.push((0..n).map(|_| rng.random()).collect());
    }
    all
}
