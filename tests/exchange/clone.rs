//! Exchange of clones: begun by the kernel, continued by thinmap, and the reverse; every byte right, and the same status where one side
//! ends and the other begins.

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn clone_from_the_kernel_to_thinmap_and_back() {
    exchange("clone_from_the_kernel_to_thinmap_and_back", kernel, thinmap);
}

#[test]
fn clone_from_thinmap_to_the_kernel_and_back() {
    exchange("clone_from_thinmap_to_the_kernel_and_back", thinmap, kernel);
}

/// `first` begins; each side in turn writes; `second` copies the rest and the source goes.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let mut before: Option<String> = None;
    let mut step = |arm: Arm, name: &str, words: &str| {
        let output = run_step("exchange/clone.sh", arm, images.path(), name, words);
        let right = output.lines().filter(|line| *line == "data: right").count();
        let wrong = output.contains("WRONG") || output.contains("= ");
        assert!(right == 2 && !wrong, "{name}: {output}");
        let statuses: Vec<&str> = output.lines().filter(|l| l.contains(" clone ")).collect();
        if let Some(before) = &before {
            assert_eq!(before, statuses[0], "{name}: as it was left");
        }
        before = statuses.last().map(|&last| last.to_owned());
    };
    step(
        first,
        "made",
        "make_images; check; change 1; check; close_images",
    );
    step(
        second,
        "changed",
        "open_images; check; change 2; check; close_images",
    );
    step(
        first,
        "back",
        "open_images; check; change 3; check; close_images",
    );
    step(
        second,
        "copied",
        "open_images; check; copy_all; check; quiet dmsetup message c 0 disable_hydration
         quiet dmsetup message c 0 hydration_threshold 1; quiet dmsetup message c 0 hydration_batch_size 1
         dmsetup status c; close_images",
    );
    step(
        first,
        "ended",
        "open_images; check; change 4; check; close_images",
    );
}
