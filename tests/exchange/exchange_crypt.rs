//! Exchange: encrypted data written by the kernel is read and changed by thinmap, and the reverse, with every byte right.
//!
//! `crypt.sh` is the one body that both arms run; image and manifest travel between them.

use std::path::Path;

use thinmap_tests::arm::{self, Case, Dmsetup};
use thinmap_tests::uml::Uml;

/// As many as `crypt.sh` lists.
const MAPPINGS: usize = 14;

type Arm = fn(&[Case]) -> anyhow::Result<Vec<String>>;

fn kernel(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    arm::kernel(cases, false, 5)
}

fn thinmap(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    arm::thinmap_arm(cases, Dmsetup::Ours)
}

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
    let root = rustix::process::geteuid().is_root();
    let missing = Uml::missing().or_else(|| (!root).then(|| "needs root".to_owned()));
    if let Some(reason) = missing {
        println!("SKIP {test}: {reason}");
        return;
    }
    let images = tempfile::Builder::new()
        .prefix("thinmap-exchange.")
        .tempdir()
        .expect("directory");
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

/// Runs one body over the image, of which both arms use a copy.
fn step(arm: Arm, images: &Path, name: &str, words: &str) -> String {
    let body = arm::package()
        .join("exchange/crypt.sh")
        .canonicalize()
        .expect("crypt.sh");
    let body = format!(
        "IMAGES=$WORK/images\nmkdir $IMAGES\ncp {images}/* $IMAGES/ 2>/dev/null\n\
         . {body}\n{words}\ncp $IMAGES/* {images}/",
        body = body.display(),
        images = images.display(),
    );
    let case = Case {
        name: name.to_owned(),
        body,
    };
    let output = arm(&[case])
        .unwrap_or_else(|e| panic!("{name}: {e:#}"))
        .remove(0);
    println!("{name}:\n{output}");
    output
}

fn assert_all_right(output: &str) {
    let right = output.lines().filter(|line| line.ends_with(": right"));
    assert_eq!(right.count(), MAPPINGS, "{output}");
    assert!(!output.contains("= "), "{output}");
}
