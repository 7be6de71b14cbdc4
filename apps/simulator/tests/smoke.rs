//! A few hundred seeds, those that have failed before, and that a seed is a run.

#![cfg(not(feature = "canary"))]

use std::collections::HashSet;

use thinmap_simulator::{Kind, Outcome, run, run_alone, run_mirrored, run_short};

fn passed(seed: u64, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!(
            "seed {seed}: {failure}\nsee it with: cargo run --release -p thinmap-simulator -- --log {seed}"
        );
    }
}

#[test]
fn many_seeds_lose_no_flushed_write() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(600, |n| n.parse().expect("a number"));
    let (mut images, mut steps, mut fault_runs) = (HashSet::new(), 0, 0);
    for seed in 0..seeds {
        let outcome = run(seed);
        passed(seed, &outcome);
        steps += outcome.steps;
        fault_runs += u64::from(outcome.fault_run);
        images.extend(outcome.images);
    }
    println!(
        "{seeds} seeds, {steps} steps, {} crash points, {fault_runs} fault runs",
        images.len()
    );
    assert!(
        images.len() as u64 > seeds && fault_runs * 5 > seeds,
        "hardly anything was tried"
    );
}

/// Clients of a pool on a mirror see nothing of a leg that fails, and its log is right at every power cut.
#[test]
fn a_pool_on_a_mirror_loses_no_flushed_write_when_a_leg_fails() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(200, |n| n.parse().expect("a number"));
    let (mut images, mut fault_runs) = (HashSet::new(), 0);
    for seed in 0..seeds {
        let outcome = run_mirrored(seed);
        if let Some(failure) = &outcome.failure {
            panic!(
                "seed {seed}: {failure}\nsee it with: cargo run --release -p thinmap-simulator -- --mirror --log {seed}"
            );
        }
        fault_runs += u64::from(outcome.fault_run);
        images.extend(outcome.images);
    }
    println!(
        "{seeds} seeds, {} crash points, {fault_runs} fault runs",
        images.len()
    );
    assert!(images.len() as u64 > seeds && fault_runs * 5 > seeds);
}

/// Each target by itself: what was flushed is there after every power cut, what was read once stays, copies and parity agree.
#[test]
fn targets_by_themselves_lose_no_flushed_write() {
    let seeds = std::env::var("THINMAP_SEEDS").map_or(60, |n| n.parse().expect("a number"));
    for kind in Kind::ALL {
        let (mut lives, mut fault_runs) = (0, 0);
        for seed in 0..seeds {
            let outcome = run_alone(kind, seed);
            alone_passed(kind, seed, &outcome);
            lives += u64::from(outcome.lives);
            fault_runs += u64::from(outcome.fault_run);
        }
        println!("{kind:?}: {seeds} seeds, {lives} lives, {fault_runs} fault runs");
        assert!(lives > seeds && fault_runs * 10 > seeds, "{kind:?}");
        let (one, two) = (run_alone(kind, 1), run_alone(kind, 1));
        assert_eq!(one.trace, two.trace, "{kind:?}");
    }
}

#[test]
fn seeds_of_targets_by_themselves_that_once_failed_pass() {
    for (kind, seed) in [
        (Kind::Cache, 55),
        (Kind::Clone, 114),
        (Kind::Merge, 2),
        (Kind::Merge, 11_752),
        (Kind::Raid5, 10_642),
        (Kind::Snapshot, 1180),
        (Kind::Snapshot, 1343),
        (Kind::Writecache, 18),
        (Kind::Writecache, 99),
        (Kind::Writecache, 190),
    ] {
        alone_passed(kind, seed, &run_alone(kind, seed));
    }
}

fn alone_passed(kind: Kind, seed: u64, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!("{kind:?}, seed {seed}: {failure}; see it with --target and --log");
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    let list = include_str!("../regressions.txt").lines();
    for line in list.filter(|line| !line.starts_with('#')) {
        let seed = line.split(' ').next().and_then(|seed| seed.parse().ok());
        let seed = seed.expect("a seed begins each line");
        passed(seed, &run(seed));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..40 {
        let (one, two) = (run(seed), run(seed));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert_eq!(one.images, two.images, "seed {seed}");
    }
    assert_ne!(run(1).trace, run(2).trace);
}

#[test]
fn every_cut_of_short_lives_with_every_subset_of_few_writes() {
    let (mut images, mut cuts) = (HashSet::new(), [0, 0]);
    for seed in 0..100 {
        let outcome = run_short(seed);
        passed(seed, &outcome);
        cuts = [cuts[0] + outcome.cuts[0], cuts[1] + outcome.cuts[1]];
        images.extend(outcome.images);
    }
    println!(
        "{} cuts, {} of them with every subset; {} images",
        cuts[0],
        cuts[1],
        images.len()
    );
    assert!(
        cuts[1] * 2 > cuts[0] && images.len() > 1000,
        "too little was looked at"
    );
}
