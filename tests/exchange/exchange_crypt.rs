//! Exchange: encrypted data written by the kernel is read and changed by thinmap, and the reverse, with every byte right.
//!
//! `crypt.sh` is the one body that both arms run; image and manifest travel between them.

use std::path::Path;

use crate::{Arm, images_for, kernel, run_step, thinmap};

/// As many as `crypt.sh` lists.
const MAPPINGS: usize = 14;

#[test]
fn exchange_crypt_kernel_to_thinmap_and_back() {
    exchange("exchange_crypt_kernel_to_thinmap_and_back", kernel, thinmap);
}

#[test]
fn exchange_crypt_thinmap_to_kernel_and_back() {
    exchange("exchange_crypt_thinmap_to_kernel_and_back", thinmap, kernel);
}

/// `first` writes, `second` reads and changes, `first` reads again.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
    let images = images.path();
    let made = step(first, images, "made", "make_images; close_images");
    assert!(!made.contains("= "), "{made}");
    let changed = step(
        second,
        images,
        "changed",
        "check_images; change_images; close_images",
    );
    assert_all_right(&changed);
    let back = step(first, images, "back", "check_images; close_images");
    assert_all_right(&back);
}

fn step(arm: Arm, images: &Path, name: &str, words: &str) -> String {
    run_step("exchange/crypt.sh", arm, images, name, words)
}

fn assert_all_right(output: &str) {
    let right = output.lines().filter(|line| line.ends_with(": right"));
    assert_eq!(right.count(), MAPPINGS, "{output}");
    assert!(!output.contains("= "), "{output}");
}
