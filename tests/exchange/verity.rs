//! Exchange: images that veritysetup has formatted beside the kernel open here with every byte right, by the kernel's own table
//! lines, and the reverse.
//!
//! `verity.sh` is the one body that both arms run.

use std::path::Path;

use crate::{Arm, images_for, kernel, run_step, thinmap};

/// As many as `verity.sh` lists.
const IMAGES: usize = 7;

#[test]
fn exchange_verity_kernel_to_thinmap() {
    exchange("exchange_verity_kernel_to_thinmap", kernel, thinmap);
}

#[test]
fn exchange_verity_thinmap_to_kernel() {
    exchange("exchange_verity_thinmap_to_kernel", thinmap, kernel);
}

fn exchange(test: &str, first: Arm, second: Arm) {
    if !Path::new("/usr/sbin/veritysetup").exists() {
        println!("SKIP {test}: /usr/sbin/veritysetup is not there (install cryptsetup-bin)");
        return;
    }
    let Some(images) = images_for(test) else {
        return;
    };
    let script = "exchange/verity.sh";
    let made = run_step(script, first, images.path(), "made", "make_images");
    assert!(!made.contains("= "), "{made}");
    let read = run_step(script, second, images.path(), "read", "check_images");
    let right = read.lines().filter(|line| line.ends_with(": right"));
    assert_eq!(right.count(), IMAGES, "{read}");
    assert!(!read.contains("= "), "{read}");
}
