//! Exchange of integrity lines: written by the kernel, read and changed by thinmap, and the reverse; also as they are found when the
//! side before was cut off, with a journal to be replayed or a bitmap.

use crate::{Arm, images_for, kernel, run_step, thinmap};

/// As many as `integrity.sh` lists, and of these that are cut off.
const LINES: usize = 11;
const CUT: usize = 9;

#[test]
fn integrity_from_the_kernel_to_thinmap_and_back() {
    let test = "integrity_from_the_kernel_to_thinmap_and_back";
    exchange(test, kernel, thinmap);
}

#[test]
fn integrity_from_thinmap_to_the_kernel_and_back() {
    let test = "integrity_from_thinmap_to_the_kernel_and_back";
    exchange(test, thinmap, kernel);
}

/// `first` writes, `second` reads what it left, in order and cut off, and changes it, `first` reads that.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let step = |arm: Arm, name: &str, words: &str, right: usize| {
        let output = run_step("exchange/integrity.sh", arm, images.path(), name, words);
        let found = output.lines().filter(|line| line.ends_with(": right"));
        let wrong =
            output.contains("WRONG") || output.contains("= ") || output.contains(" integrity ");
        assert!(found.count() == right && !wrong, "{name}: {output}");
    };
    step(first, "made", "make_images; close_images", 0);
    step(
        second,
        "changed",
        "check_cut; open_images; check_images; change_images; close_images",
        LINES + CUT,
    );
    step(
        first,
        "back",
        "check_cut; open_images; check_images; close_images",
        LINES + CUT,
    );
}
