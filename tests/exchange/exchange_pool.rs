//! Exchange: a pool written by the kernel is read and changed by thinmap, and the reverse, with
//! every byte right, every check clean and the same status at each step.
//!
//! `pool.sh` is the one body that both arms run; images and manifest travel between them.

use std::fs;
use std::path::Path;
use std::process::Command;

use thinmap_tests::arm::{self, Case, Dmsetup};
use thinmap_tests::uml::Uml;

const OPEN_AND_CHECK: &str = "check_images; close_images";
const OPEN_CHECK_AND_CHANGE: &str = "check_images; change_images; close_images";

type Arm = fn(&[Case]) -> anyhow::Result<Vec<String>>;

fn kernel(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    arm::kernel(cases, false, 5)
}

fn thinmap(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    arm::thinmap_arm(cases, Dmsetup::Ours)
}

#[test]
fn exchange_kernel_to_thinmap_and_back() {
    exchange("exchange_kernel_to_thinmap_and_back", kernel, thinmap);
}

#[test]
fn exchange_thinmap_to_kernel_and_back() {
    exchange("exchange_thinmap_to_kernel_and_back", thinmap, kernel);
}

/// The proof that the body itself is right: the kernel with itself.
#[test]
fn exchange_kernel_with_itself() {
    exchange("exchange_kernel_with_itself", kernel, kernel);
}

/// `first` makes a pool, `second` reads and changes it, `first` reads it again.
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

    let made = step(first, images, "made", "make_images");
    check_metadata(images, "as made");
    let dump = dump(images);
    let opened = step(second, images, "opened", OPEN_AND_CHECK);
    assert_no_wrong(&opened);
    assert_eq!(
        status_of(&made),
        status_of(&opened),
        "status of what {test} made and reopened"
    );
    assert_eq!(
        dump,
        self::dump(images),
        "opening a pool must not change its mappings"
    );
    let changed = step(second, images, "changed", OPEN_CHECK_AND_CHANGE);
    assert_no_wrong(&changed);
    check_metadata(images, "as changed");
    let dump_changed = self::dump(images);
    let back = step(first, images, "back", OPEN_AND_CHECK);
    assert_no_wrong(&back);
    let after_change = changed
        .rsplit_once("volume 9: right")
        .map_or(&changed[..], |(_, rest)| rest);
    assert!(
        status_of(after_change).ends_with(&status_of(&back)),
        "status differs:\n{after_change}\n{back}"
    );
    assert_eq!(
        dump_changed,
        self::dump(images),
        "reopening a pool must not change its mappings"
    );
    check_metadata(images, "as left at the end");
}

/// Runs one body over the images. The kernel's loop devices work on copies, because its host file
/// system cannot punch holes; so both arms do.
fn step(arm: Arm, images: &Path, name: &str, words: &str) -> String {
    let pool = arm::package()
        .join("exchange/pool.sh")
        .canonicalize()
        .expect("pool.sh");
    let body = format!(
        "IMAGES=$WORK/images\nmkdir $IMAGES\n\
         cp --sparse=always {images}/* $IMAGES/ 2>/dev/null\n\
         . {pool}\n{words}\ncp --sparse=always $IMAGES/* {images}/",
        pool = pool.display(),
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
    assert!(
        images.join("manifest").exists(),
        "{name} left no manifest:\n{output}"
    );
    output
}

fn assert_no_wrong(output: &str) {
    let right = output
        .lines()
        .filter(|line| line.ends_with(": right"))
        .count();
    assert!(right >= 10, "only {right} volumes were read:\n{output}");
    for word in [
        "WRONG",
        "= preparation failed",
        "= left behind",
        "= no loop",
        "= the case",
    ] {
        assert!(!output.contains(word), "{word}:\n{output}");
    }
}

fn status_of(output: &str) -> Vec<&str> {
    output
        .lines()
        .filter(|line| line.contains(" thin ") || line.contains(" thin-pool "))
        .collect()
}

fn check_metadata(images: &Path, when: &str) {
    let output = Command::new("thin_check")
        .arg(images.join("meta.img"))
        .output()
        .expect("thin_check");
    assert!(
        output.status.success(),
        "thin_check of the metadata {when}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The mappings of every volume as thin_dump prints them.
fn dump(images: &Path) -> String {
    let output = Command::new("thin_dump")
        .arg(images.join("meta.img"))
        .output()
        .expect("thin_dump");
    assert!(
        output.status.success(),
        "thin_dump: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let dump = String::from_utf8(output.stdout).expect("text");
    assert!(
        fs::metadata(images.join("meta.img")).is_ok() && dump.contains("<device "),
        "{dump}"
    );
    dump
}
