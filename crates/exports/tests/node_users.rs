//! Who counts as a user of a block device, and what is frozen for it. Needs root.

mod fuse_support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use fuse_support::*;
use rustix::fs::OFlags;
use thinmap_block::backing::MemoryDevice;
use thinmap_exports::block_node::BlockNode;
use thinmap_exports::freeze;
use thinmap_units::Sector;

fn memory(mib: u64) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(Sector(mib << 11)))
}

fn make(tool: &str, node: &dyn BlockNode) {
    run(tool, &["-q", node.path().to_str().expect("path")]);
}

/// A shell in namespaces of its own, which has run `script` and stays.
fn apart(how: &str, script: &str) -> Process {
    let mut child = Command::new("unshare")
        .args([how, "sh", "-c"])
        .arg(format!("set -e; {script}; echo ok; exec sleep 600"))
        .stdout(Stdio::piped())
        .spawn()
        .map(Process)
        .expect("unshare");
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("read");
    assert_eq!(line, "ok\n");
    child
}

/// Whether the file system at `path` is frozen; leaves it as it is.
fn is_frozen(path: &Path) -> bool {
    let fd = open(path, OFlags::RDONLY).expect("open");
    match freeze::freeze_mounted(&fd) {
        Ok(()) => {
            freeze::thaw_mounted(&fd).expect("thaw");
            false
        }
        Err(errno) => {
            assert_eq!(errno, libc::EBUSY);
            true
        }
    }
}

#[test]
fn a_mount_in_another_namespace_counts() {
    let stack = Stack::start();
    let node = stack.active(memory(16));
    make("mkfs.ext4", &*node);
    let dir = stack.dir.path().join("mnt");
    std::fs::create_dir(&dir).expect("directory");
    let script = format!("mount {} {}", node.path().display(), dir.display());
    let child = apart("-m", &script);
    eventually("the mount is counted", || node.open_count() == 1);
    freeze::freeze(node.dev_no()).expect("freeze");
    let seen = format!("/proc/{}/root{}", child.0.id(), dir.display());
    let frozen = is_frozen(Path::new(&seen));
    freeze::thaw(node.dev_no());
    assert!(frozen, "found through the other namespace");
    assert_eq!(
        node.remove(false).expect_err("mounted").errno(),
        libc::EBUSY
    );
    drop(child);
    eventually("the namespace is gone", || node.open_count() == 0);
    eventually("the mount is gone", || node.remove(false).is_ok());
}

#[test]
fn a_btrfs_is_found_by_its_devices() {
    let stack = Stack::start();
    let (node, other) = (stack.active(memory(128)), stack.active(memory(128)));
    make("mkfs.btrfs", &*node);
    make("mkfs.btrfs", &*other);
    let beside = Mounted::mount(&other.path(), &stack.dir.path().join("beside"));
    let mount = Mounted::mount(&node.path(), &stack.dir.path().join("mnt"));
    eventually("counted once", || node.open_count() == 1);
    freeze::freeze(node.dev_no()).expect("freeze");
    let (frozen, others) = (is_frozen(&mount.0), is_frozen(&beside.0));
    freeze::thaw(node.dev_no());
    assert!(frozen && !others);
}

#[test]
fn a_source_that_names_a_device_is_no_mount_of_it() {
    let stack = Stack::start();
    let (node, other) = (stack.active(memory(16)), stack.active(memory(16)));
    make("mkfs.ext4", &*other);
    let victim = Mounted::mount(&other.path(), &stack.dir.path().join("victim"));
    let bait = stack.dir.path().join("bait");
    std::fs::create_dir(&bait).expect("directory");
    let (source, bait) = (node.path(), bait.display());
    let script = format!(
        "mount -t tmpfs {} {bait}; mount --bind {} {bait}",
        source.display(),
        victim.0.display()
    );
    // As any user may, and as an administrator might.
    for how in ["-Urm", "-m"] {
        let child = apart(how, &script);
        freeze::freeze(node.dev_no()).expect("nothing is mounted");
        let frozen = is_frozen(&victim.0);
        freeze::thaw(node.dev_no());
        assert!(!frozen, "a file system of another device, {how}");
        assert_eq!(node.open_count(), 0, "{how}");
        drop(child);
    }
}

#[test]
fn a_mount_that_a_user_has_laid_over_another_is_not_frozen_for_it() {
    let stack = Stack::start();
    let (node, other) = (stack.active(memory(16)), stack.active(memory(16)));
    make("mkfs.ext4", &*node);
    make("mkfs.ext4", &*other);
    let mount = Mounted::mount(&node.path(), &stack.dir.path().join("mnt"));
    let victim = Mounted::mount(&other.path(), &stack.dir.path().join("victim"));
    let (bait, victim_dir) = (mount.0.display(), victim.0.display());
    let _child = apart("-Urm", &format!("mount --bind {victim_dir} {bait}"));
    freeze::freeze(node.dev_no()).expect("freeze");
    let (frozen, others) = (is_frozen(&mount.0), is_frozen(&victim.0));
    freeze::thaw(node.dev_no());
    assert!(frozen && !others);
}

#[test]
fn a_descriptor_that_only_names_a_device_is_no_opener() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    let named = open(&node.path(), OFlags::PATH).expect("no permission is needed for that");
    let holder = Command::new("sleep").arg("600").stdin(named).spawn();
    let _holder = holder.map(Process).expect("sleep");
    assert_eq!(node.open_count(), 0);
    assert!(!node.is_in_use());
    let opened = open(&node.path(), OFlags::RDONLY).expect("open");
    let holder = Command::new("sleep").arg("600").stdin(opened).spawn();
    let holder = holder.map(Process).expect("sleep");
    eventually("counted", || node.open_count() == 1);
    drop(holder);
    eventually("gone", || node.open_count() == 0);
    node.remove(false).expect("nobody has it open");
}
