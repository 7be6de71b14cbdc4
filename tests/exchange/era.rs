//! Exchange of era metadata: written by the kernel, read and changed by thinmap, and the reverse; the era of every block right at
//! each step, and era_check content.
//!
//! `era.sh` is the one body that both arms run; images and the list of eras travel between them.

use crate::{Arm, images_for, kernel, run_step, thinmap};

#[test]
fn era_from_the_kernel_to_thinmap_and_back() {
    exchange("era_from_the_kernel_to_thinmap_and_back", kernel, thinmap);
}

#[test]
fn era_from_thinmap_to_the_kernel_and_back() {
    exchange("era_from_thinmap_to_the_kernel_and_back", thinmap, kernel);
}

/// `first` makes the metadata; each side in turn changes what the other left.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let step = |arm: Arm, name: &str, checks: usize, words: &str| {
        let output = run_step("exchange/era.sh", arm, images.path(), name, words);
        let right = output.lines().filter(|line| *line == "eras: right").count();
        let wrong = output.contains("WRONG") || output.contains("= ");
        assert!(right == checks && !wrong, "{name}: {output}");
    };
    let change = |number| format!("change {number}; close_images; check");
    let continued = |number| format!("attach_images; check; open_images; {}", change(number));
    step(first, "made", 1, &format!("make_images; {}", change(1)));
    step(second, "changed", 2, &continued(5));
    step(first, "back", 2, &continued(9));
    step(second, "again", 2, &continued(3));
}
