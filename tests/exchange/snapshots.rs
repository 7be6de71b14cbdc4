//! Exchange of snapshots: stores written by the kernel are read, changed and merged by thinmap, and the reverse, with every byte
//! right and the same status at each step.
//!
//! `snapshots.sh` is the one body that both arms run; images and manifest travel between them.

use std::path::Path;

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn snapshots_from_the_kernel_to_thinmap_and_back() {
    exchange(
        "snapshots_from_the_kernel_to_thinmap_and_back",
        kernel,
        thinmap,
    );
}

#[test]
fn snapshots_from_thinmap_to_the_kernel_and_back() {
    exchange(
        "snapshots_from_thinmap_to_the_kernel_and_back",
        thinmap,
        kernel,
    );
}

/// `first` makes four devices; each side reads and changes what the other left; `second` begins a merge and `first` ends it.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let step = |arm: Arm, name: &str, words: &str| {
        run_step("exchange/snapshots.sh", arm, images.path(), name, words)
    };
    let made = step(first, "made", "make_images");
    let changed = step(
        second,
        "changed",
        "check_images; change_images; close_images",
    );
    assert_right(&changed, 4);
    let (opened, after) = split(&changed);
    assert_eq!(status_of(&made), status_of(opened), "as made and reopened");
    let back = step(first, "back", "check_images; change_images; close_images");
    assert_right(&back, 4);
    let (opened, _) = split(&back);
    assert_eq!(
        status_of(after),
        status_of(opened),
        "as changed and reopened"
    );
    assert_headers(images.path());

    let begun = step(second, "begun", "begin_merge");
    assert!(!begun.contains("= "), "{begun}");
    let ended = step(first, "ended", "end_merge");
    // Before its end and after it.
    assert_right(&ended, 6);
    assert!(ended.contains(" snapshot-merge 16/32768 16"), "{ended}");
}

/// What came before the devices were changed, and after.
fn split(output: &str) -> (&str, &str) {
    let lines: Vec<&str> = output.lines().filter(|l| is_status(l)).collect();
    let second = lines.len() / 2;
    let at = output.rfind(lines[second]).expect("a line of it");
    output.split_at(at)
}

fn is_status(line: &str) -> bool {
    line.contains(" snapshot")
}

fn status_of(output: &str) -> Vec<&str> {
    output.lines().filter(|line| is_status(line)).collect()
}

fn assert_right(output: &str, devices: usize) {
    let right = output.lines().filter(|line| line.ends_with(": right"));
    assert_eq!(right.count(), devices, "{output}");
    assert!(
        !output.contains("WRONG") && !output.contains("= "),
        "{output}"
    );
}

fn assert_headers(images: &Path) {
    for (name, chunk) in [("a.img", 1_u8), ("b.img", 8), ("c.img", 64)] {
        let bytes = std::fs::read(images.join(name)).expect(name);
        let expected = [*b"SnAp", [1, 0, 0, 0], [1, 0, 0, 0], [chunk, 0, 0, 0]].concat();
        assert_eq!(bytes[..16], expected, "{name}");
    }
}
