//! Creation, use, removal and the remains of killed servers, against the real kernel. Needs root.

mod fuse_support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_support::*;
use rustix::fs::OFlags;
use thinmap_block::backing::MemoryDevice;
use thinmap_exports::block_node::{self, BlockNode, NodeKind, NodesConfig};
use thinmap_exports::freeze;
use thinmap_units::Sector;

fn memory(mib: u64) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(Sector(mib << 11)))
}

/// `cat` with the file as its standard input, blocked on a full pipe or ended, but with the descriptor open.
fn holder(path: &Path) -> Process {
    let file = std::fs::File::open(path).expect("open");
    let child = Command::new("sleep")
        .arg("600")
        .stdin(file)
        .spawn()
        .expect("sleep");
    Process(child)
}

#[test]
fn two_hundred_devices_come_and_go_leaving_nothing() {
    let stack = Stack::start();
    let nodes: Vec<Arc<dyn BlockNode>> = (0..200).map(|_| stack.active(memory(1))).collect();
    let names: Vec<PathBuf> = nodes.iter().map(|node| node.path()).collect();
    assert_eq!(loops_over(stack.dir.path()).len(), 200);
    eventually("nobody has them open", || {
        nodes.iter().all(|node| node.open_count() == 0)
    });
    for (n, node) in nodes.iter().enumerate().step_by(20) {
        let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
        write_at(&fd, 0, &pattern(4096, n as u64)).expect("write");
        assert!(
            read_at(&fd, 0, 4096).expect("read").as_slice() == pattern(4096, n as u64).as_slice()
        );
    }
    for node in &nodes {
        node.remove(false).expect("remove");
        node.remove(false).expect("twice is once");
    }
    assert!(loops_over(stack.dir.path()).is_empty());
    for name in names {
        let in_sysfs = Path::new("/sys/block")
            .join(name.file_name().expect("name"))
            .join("loop");
        assert!(!in_sysfs.exists(), "{} is still bound", name.display());
    }
    let mount = stack.dir.path().join("fuse");
    assert_eq!(std::fs::read_dir(&mount).expect("mounted").count(), 0);
    drop(stack);
    assert!(!mount.exists());
}

#[test]
fn an_open_descriptor_counts_and_keeps_the_device() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    // A child of a test beside holds our descriptors between its fork and exec.
    eventually("nobody has it open", || node.open_count() == 0);
    let user = holder(&node.path());
    eventually("the descriptor is counted", || node.open_count() == 1);
    assert_eq!(node.remove(false).expect_err("open").errno(), libc::EBUSY);
    assert_eq!(kernel_size(&node.path()), 1 << 20, "still in service");
    drop(user);
    eventually("nobody has it open", || node.open_count() == 0);
    node.remove(false).expect("remove");
}

#[test]
fn an_exclusive_opener_keeps_the_device() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    let claim = open(&node.path(), OFlags::RDONLY | OFlags::EXCL).expect("open");
    assert_eq!(
        node.remove(false).expect_err("claimed").errno(),
        libc::EBUSY
    );
    drop(claim);
    node.remove(false).expect("remove");
}

#[test]
fn our_own_descriptor_is_noticed_at_removal() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    // Not counted (the daemon's own), but the kernel knows: removal steps back and the device stays in service.
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    eventually("not counted", || node.open_count() == 0);
    assert_eq!(node.remove(false).expect_err("open").errno(), libc::EBUSY);
    write_at(&fd, 0, &pattern(512, 1)).expect("still in service");
    drop(fd);
    assert_eq!(kernel_size(&node.path()), 1 << 20);
    node.remove(false).expect("remove");
}

#[test]
fn a_loop_device_that_somebody_detached_is_left_to_who_has_its_number_now() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    let path = node.path().to_str().expect("path").to_owned();
    run("losetup", &["-d", &path]);
    eventually("detached", || loops_over(stack.dir.path()).is_empty());
    // The number is another program's, which uses it.
    let other = stack.dir.path().join("other.img");
    std::fs::write(&other, pattern(2 << 20, 7).as_slice()).expect("image");
    run("losetup", &[&path, other.to_str().expect("path")]);
    let user = open(&node.path(), OFlags::RDONLY | OFlags::EXCL).expect("open");

    assert_eq!(node.open_count(), 0, "who has it open uses another device");
    assert!(!node.is_in_use());
    let error = node.activate(memory(1), "name", false).expect_err("gone");
    assert_eq!(error.errno(), libc::ENXIO);
    assert!(error.to_string().contains(&path), "{error}");
    node.remove(false).expect("nothing of ours is left of it");
    assert_eq!(kernel_size(&node.path()), 2 << 20, "the other's stays");
    drop(user);
    run("losetup", &["-d", &path]);
    // The number is in the kernel still, for whoever is first: if that is us, it goes.
    if let Ok(last) = stack.nodes.create(Some(node.dev_no().minor)) {
        last.remove(false).expect("remove");
    }
}

#[test]
fn a_loop_device_that_somebody_detached_can_be_removed() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    run("losetup", &["-d", node.path().to_str().expect("path")]);
    eventually("detached", || loops_over(stack.dir.path()).is_empty());
    node.remove(false).expect("remove");
}

#[test]
fn a_device_goes_also_where_somebody_detached_the_mount() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    run(
        "umount",
        &["-l", stack.dir.path().join("fuse").to_str().expect("path")],
    );
    let name = node.path().file_name().expect("name").to_owned();
    let bound = Path::new("/sys/block").join(name).join("loop");
    assert!(bound.exists());
    node.remove(false).expect("remove");
    eventually("detached", || !bound.exists());
}

#[test]
fn removal_by_force_leaves_users_with_errors() {
    let stack = Stack::start();
    let node = stack.active(memory(1));
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    write_at(&fd, 0, &pattern(4096, 1)).expect("write");
    node.remove(true).expect("forced");
    assert!(read_at(&fd, 0, 4096).is_err());
    drop(fd);
    eventually("gone when closed", || {
        loops_over(stack.dir.path()).is_empty()
    });
}

#[test]
fn a_frozen_file_system_does_not_write_until_thawed() {
    let stack = Stack::start();
    let writes = Arc::new(AtomicU64::new(0));
    let counter = writes.clone();
    let device = Double::new(Sector(32 << 11), move |io| {
        if io.is_write() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        Fate::Pass
    });
    let node = stack.active(device);
    run(
        "mkfs.ext4",
        &["-q", "-F", node.path().to_str().expect("path")],
    );
    let mount = Mounted::mount(&node.path(), &stack.dir.path().join("mnt"));
    std::fs::write(mount.0.join("before"), b"x").expect("write");
    freeze::freeze(node.dev_no()).expect("freeze");
    assert_eq!(freeze::freeze(node.dev_no()), Ok(()), "frozen already");
    let at_freeze = writes.load(Ordering::SeqCst);
    let path = mount.0.join("after");
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::File::create(path).expect("create");
        file.write_all(b"y")
            .and_then(|()| file.sync_all())
            .expect("write");
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    let done_early = writer.is_finished();
    let at_thaw = writes.load(Ordering::SeqCst);
    freeze::thaw(node.dev_no());
    writer.join().expect("writer");
    assert!(!done_early, "the writer waits for the thaw");
    assert_eq!(
        at_thaw, at_freeze,
        "nothing reached the device while frozen"
    );
    assert!(writes.load(Ordering::SeqCst) > at_thaw);
}

/// What [`serving_child`] starts: serves two devices, then waits to be killed.
#[test]
#[ignore = "only the child process of other tests: serves until killed"]
fn child_that_serves() {
    let dir = PathBuf::from(std::env::var_os("THINMAP_TEST_RUN_DIR").expect("set by the parent"));
    let (nodes, notes) = block_node::open(&NodesConfig {
        run_dir: dir,
        queues: 2,
        enabled: true,
    });
    assert_eq!(nodes.kind(), NodeKind::Loop, "{notes:?}");
    for _ in 0..2 {
        let node = nodes.create(None).expect("create");
        node.activate(memory(32), "child", false).expect("activate");
        println!("node {}", node.path().display());
        std::mem::forget(node);
    }
    std::thread::sleep(std::time::Duration::from_secs(120));
    panic!("nobody killed it");
}

fn serving_child(run_dir: &Path) -> (Process, Vec<PathBuf>) {
    let exe = std::env::current_exe().expect("own path");
    let mut child = Command::new(exe)
        .args(["--exact", "child_that_serves", "--ignored", "--nocapture"])
        .env("THINMAP_TEST_RUN_DIR", run_dir)
        .stdout(Stdio::piped())
        .spawn()
        .map(Process)
        .expect("start");
    let lines = BufReader::new(child.0.stdout.take().expect("piped")).lines();
    let nodes = lines
        .map_while(Result::ok)
        .filter_map(|line| {
            line.split_once("node ")
                .map(|(_, path)| PathBuf::from(path))
        })
        .take(2)
        .collect::<Vec<_>>();
    assert_eq!(nodes.len(), 2);
    (child, nodes)
}

/// Takes away what a failing test would leave.
struct CleanUp<'a>(&'a Path);

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        block_node::clean_stale(self.0);
    }
}

#[test]
fn what_a_killed_server_left_is_cleaned() {
    let bystander = Stack::start();
    let other = bystander.active(memory(1));
    let dir = tempfile::tempdir().expect("directory");
    let _clean = CleanUp(dir.path());
    let (child, nodes) = serving_child(dir.path());
    drop(child);
    assert_eq!(loops_over(dir.path()).len(), 2, "the kernel keeps them");
    let mut report = block_node::clean_stale(dir.path());
    report.detached.sort();
    let mut expected = nodes;
    expected.sort();
    assert_eq!(report.detached, expected);
    assert!(report.still_mounted.is_empty() && report.unmounted);
    assert!(loops_over(dir.path()).is_empty());
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!table.contains(&*dir.path().to_string_lossy()));
    assert_eq!(
        block_node::clean_stale(dir.path()),
        Default::default(),
        "nothing is left"
    );
    assert_eq!(kernel_size(&other.path()), 1 << 20, "others are left alone");
    // And a new server starts in the same place.
    let (nodes, _) = block_node::open(&NodesConfig {
        run_dir: dir.path().to_owned(),
        queues: 1,
        enabled: true,
    });
    assert_eq!(nodes.kind(), NodeKind::Loop);
    nodes.shutdown();
}

#[test]
fn a_mount_on_a_killed_servers_device_is_reported_and_goes_when_unmounted() {
    let dir = tempfile::tempdir().expect("directory");
    let _clean = CleanUp(dir.path());
    let (child, nodes) = serving_child(dir.path());
    run("mkfs.ext4", &["-q", "-F", nodes[0].to_str().expect("path")]);
    let mount = Mounted::mount(&nodes[0], &dir.path().join("mnt"));
    std::fs::write(mount.0.join("file"), b"x").expect("write");
    drop(child);
    let report = block_node::clean_stale(dir.path());
    assert_eq!(report.still_mounted, std::slice::from_ref(&mount.0));
    assert!(report.unmounted);
    run("umount", &["-l".as_ref(), mount.0.as_os_str()]);
    let bound = Path::new("/sys/block")
        .join(nodes[0].file_name().expect("name"))
        .join("loop");
    eventually("detached by its last user", || !bound.exists());
}

#[test]
fn shutdown_takes_everything_even_what_is_open() {
    let dir = tempfile::tempdir().expect("directory");
    let config = NodesConfig {
        run_dir: dir.path().to_owned(),
        queues: 2,
        enabled: true,
    };
    let (nodes, _) = block_node::open(&config);
    let node = nodes.create(None).expect("create");
    node.activate(memory(1), "open", false).expect("activate");
    let fd = open(&node.path(), OFlags::RDONLY | OFlags::DIRECT).expect("open");
    nodes.shutdown();
    assert!(read_at(&fd, 0, 512).is_err());
    drop(fd);
    let bound = Path::new("/sys/block")
        .join(node.path().file_name().expect("name"))
        .join("loop");
    eventually("detached at the last close", || !bound.exists());
    assert!(!dir.path().join("fuse").exists());
}

#[test]
fn a_stalled_device_does_not_stall_another() {
    let stack = Stack::start();
    let stalled = Double::new(Sector(64 << 11), |io| {
        if io.is_write() {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    let node = stack.active(stalled.clone());
    let path = node.path();
    let writers: Vec<_> = (0..32u64)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                let fd = open(&path, OFlags::WRONLY | OFlags::DIRECT).expect("open");
                write_at(&fd, n << 20, &pattern(1 << 20, n)).expect("write");
            })
        })
        .collect();
    eventually("the stalled device has them", || stalled.held() >= 32);
    let other = stack.active(memory(8));
    let fd = open(&other.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    write_at(&fd, 0, &pattern(8 << 20, 5)).expect("write");
    assert!(read_at(&fd, 0, 8 << 20).expect("read").as_slice() == pattern(8 << 20, 5).as_slice());
    drop(fd);
    other.remove(false).expect("remove");
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // More comes as the first part of each write ends.
            while !done.load(Ordering::SeqCst) {
                stalled.release();
                std::thread::yield_now();
            }
        });
        writers
            .into_iter()
            .for_each(|writer| writer.join().expect("writer"));
        done.store(true, Ordering::SeqCst);
    });
}

/// A control group with little memory; version 1 or 2, whichever the system has.
struct Cgroup(PathBuf);

impl Cgroup {
    fn with_memory(bytes: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match v1.exists() {
            true => (v1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let group = Self(root.join(format!("thinmap-test-{}", std::process::id())));
        std::fs::create_dir(&group.0).expect("control group");
        std::fs::write(group.0.join(limit), bytes.to_string()).expect("limit");
        group
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn dirty_pages_get_out_when_memory_is_short() {
    let dir = tempfile::tempdir().expect("directory");
    let _clean = CleanUp(dir.path());
    let (_child, nodes) = serving_child(dir.path());
    run("mkfs.ext4", &["-q", "-F", nodes[0].to_str().expect("path")]);
    let mount = Mounted::mount(&nodes[0], &dir.path().join("mnt"));
    // The writer dirties three times what it may have: most pages it gets are pages that were written back.
    let group = Cgroup::with_memory(8 << 20);
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec dd if=/dev/zero of={}/f bs=1M count=24 conv=fsync",
        group.0.display(),
        mount.0.display()
    );
    for _ in 0..3 {
        run("sh", &["-c", &script]);
    }
    assert_eq!(
        std::fs::metadata(mount.0.join("f")).expect("stat").len(),
        24 << 20
    );
    run("umount", &[&mount.0]);
    run("fsck.ext4", &["-fn", nodes[0].to_str().expect("path")]);
}

#[test]
fn disabled_nodes_are_none() {
    let dir = tempfile::tempdir().expect("directory");
    let config = NodesConfig {
        run_dir: dir.path().to_owned(),
        queues: 1,
        enabled: false,
    };
    let (nodes, _) = block_node::open(&config);
    assert_eq!(nodes.kind(), NodeKind::None);
    assert!(!dir.path().join("fuse").exists());
}

#[test]
fn the_mount_is_private() {
    let stack = Stack::start();
    let mode = std::fs::metadata(stack.dir.path().join("fuse"))
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}
