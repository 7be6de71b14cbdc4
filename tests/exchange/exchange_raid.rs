//! Exchange: arrays that one side made, degraded or rebuilt are taken on by the other, superblocks, bitmap and bytes.
//!
//! `raid.sh` is the one body that both arms run; the members' images and a manifest travel between them.

use std::path::Path;

use crate::{Arm, images_for, kernel, run_step, thinmap};

/// As many as `raid.sh` lists.
const ARRAYS: usize = 10;

#[test]
fn exchange_raid_kernel_to_thinmap_and_back() {
    exchange("exchange_raid_kernel_to_thinmap_and_back", kernel, thinmap);
}

#[test]
fn exchange_raid_thinmap_to_kernel_and_back() {
    exchange("exchange_raid_thinmap_to_kernel_and_back", thinmap, kernel);
}

/// `first` makes arrays and writes to them without a member; `second` takes the member back and replaces another; `first` reads that
/// without a third.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let images = images.path();
    let made = step(first, images, "made", "make_all; degrade_all");
    assert!(!made.contains("= "), "{made}");
    let taken_on = step(second, images, "taken_on", "check_all; replace_all");
    assert_all_right(&taken_on);
    assert_no_difference(&taken_on);
    let back = step(first, images, "back", "alone_all; check_all");
    assert_all_right(&back);
    assert_no_difference(&back);
}

fn step(arm: Arm, images: &Path, name: &str, words: &str) -> String {
    run_step("exchange/raid.sh", arm, images, name, words)
}

fn assert_all_right(output: &str) {
    let right = output.lines().filter(|line| line.ends_with(": right"));
    assert_eq!(right.count() % ARRAYS, 0, "{output}");
    assert!(
        !output.contains("WRONG") && output.contains(": right"),
        "{output}"
    );
    assert!(!output.contains("= "), "{output}");
}

/// Every status line: all members in sync, and no mismatch.
fn assert_no_difference(output: &str) {
    let lines: Vec<&str> = output.lines().filter(|l| l.starts_with("raid")).collect();
    assert_eq!(lines.len(), ARRAYS, "{output}");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words[2].bytes().all(|b| b == b'A'), "{output}");
        assert_eq!(words[4..6], ["idle", "0"], "{output}");
    }
}
