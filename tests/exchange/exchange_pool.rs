//! Exchange: a pool written by the kernel is read and changed by thinmap, and the reverse, with
//! every byte right, every check clean and the same status at each step.
//!
//! `pool.sh` is the one body that both arms run; images and manifest travel between them.

mod cache;
mod clone;
mod era;
mod exchange_crypt;
mod exchange_raid;
mod integrity;
mod mirrors;
mod snapshots;
mod verity;
mod writecache;

use std::fs;
use std::path::Path;
use std::process::Command;

use thinmap_tests::arm::{self, Case, Dmsetup};
use thinmap_tests::uml::Uml;

const OPEN_AND_CHECK: &str = "check_images; close_images";
const OPEN_CHECK_AND_CHANGE: &str = "check_images; change_images; close_images";

pub(crate) type Arm = fn(&[Case]) -> anyhow::Result<Vec<String>>;

pub(crate) fn kernel(cases: &[Case]) -> anyhow::Result<Vec<String>> {
    arm::kernel(cases, false, 15)
}

pub(crate) fn thinmap(cases: &[Case]) -> anyhow::Result<Vec<String>> {
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

/// A volume that thinmap has begun to delete is one like any other for the kernel, which changes the pool, and for thinmap
/// afterwards one that it goes on deleting; the kernel can also delete it itself.
#[test]
fn exchange_a_deletion_that_is_not_done() {
    let test = "exchange_a_deletion_that_is_not_done";
    let root = rustix::process::geteuid().is_root();
    if let Some(reason) = Uml::missing().or_else(|| (!root).then(|| "needs root".to_owned())) {
        println!("SKIP {test}: {reason}");
        return;
    }
    let images = tempfile::Builder::new()
        .prefix("thinmap-exchange.")
        .tempdir()
        .expect("directory");
    let images = images.path();
    restore_large(images);
    let begun = step(thinmap, images, "begun", "begin_deletion; close_images");
    check_metadata(images, "with a deletion begun");
    assert!(dump(images).contains("dev_id=\"16777215\""), "{begun}");
    let used = |output: &str| {
        let line = output.lines().rev().find(|l| l.contains(" thin-pool "));
        let word = line.and_then(|line| line.split(' ').nth(6)).unwrap_or("?");
        word.to_owned()
    };
    let before = used(&begun);
    assert_ne!(before, format!("{LARGE}/{LARGE_DATA}"));
    for keep in ["use_condemned", "delete_condemned"] {
        let copy = tempfile::Builder::new()
            .prefix("thinmap-exchange.")
            .tempdir()
            .expect("directory");
        let copied = Command::new("cp")
            .args(["--sparse=always", "-r"])
            .arg(images.join("."))
            .arg(copy.path())
            .status();
        assert!(copied.expect("cp").success());
        let copy = copy.path();
        let words = format!("large_pool; status_lines; {keep}; close_images");
        let kernel = step(kernel, copy, keep, &words);
        assert!(!kernel.contains("= "), "{kernel}");
        assert!(kernel.contains(&format!(" {before} ")), "{kernel}");
        check_metadata(copy, "after the kernel");
        let ended = step(thinmap, copy, "ended", "end_deletion; close_images");
        assert!(!ended.contains("= "), "{ended}");
        // The kernel has given volume 2 a block.
        assert_eq!(used(&ended), format!("1/{LARGE_DATA}"), "{ended}");
        check_metadata(copy, "at the end");
        let dump = dump(copy);
        let volumes = dump.lines().filter(|l| l.contains("<device ")).count();
        assert_eq!(volumes, 1, "{dump}");
    }
}

/// Mapped blocks of a volume that is too large to be deleted at once, and blocks of the data device.
const LARGE: u64 = 70_000;
const LARGE_DATA: u64 = LARGE + 100;

fn restore_large(images: &Path) {
    let xml = format!(
        r#"<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="{LARGE_DATA}">
  <device dev_id="1" mapped_blocks="{LARGE}" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="0" length="{LARGE}" time="0"/>
  </device>
</superblock>
"#
    );
    let file = |name: &str, bytes: u64| {
        let file = fs::File::create(images.join(name)).expect(name);
        file.set_len(bytes).expect(name);
    };
    file("meta.img", 16 << 20);
    file("data.img", LARGE_DATA * 65_536);
    fs::write(images.join("pool.xml"), xml).expect("pool.xml");
    fs::write(images.join("manifest"), "").expect("manifest");
    let restored = Command::new("thin_restore")
        .arg("-i")
        .arg(images.join("pool.xml"))
        .arg("-o")
        .arg(images.join("meta.img"))
        .output()
        .expect("thin_restore");
    assert!(restored.status.success(), "{restored:?}");
}

/// `first` makes a pool, `second` reads and changes it, `first` reads it again.
fn exchange(test: &str, first: Arm, second: Arm) {
    let Some(images) = images_for(test) else {
        return;
    };
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

/// A directory for the images that travel, where both arms can run; otherwise it says why they cannot.
pub(crate) fn images_for(test: &str) -> Option<tempfile::TempDir> {
    let root = rustix::process::geteuid().is_root();
    let missing = Uml::missing().or_else(|| (!root).then(|| "needs root".to_owned()));
    if let Some(reason) = missing {
        println!("SKIP {test}: {reason}");
        return None;
    }
    let images = tempfile::Builder::new()
        .prefix("thinmap-exchange.")
        .tempdir()
        .expect("directory");
    Some(images)
}

fn step(arm: Arm, images: &Path, name: &str, words: &str) -> String {
    run_step("exchange/pool.sh", arm, images, name, words)
}

/// Runs words of a file of them (a path in the package) over the images. The kernel's loop devices work on copies, because its host
/// file system cannot punch holes; so both arms do.
pub(crate) fn run_step(file: &str, arm: Arm, images: &Path, name: &str, words: &str) -> String {
    let pool = arm::package().join(file).canonicalize().expect(file);
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
