//! Devices as plain files of the FUSE mount, as programs without loop devices use them. The mount is made by
//! mount(2) for root and by fusermount3 for others; both are tried.

mod fuse_support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fuse_support::*;
use thinmap_block::backing::{FileDevice, MemoryDevice, OpenMode};
use thinmap_block::{BlockDevice, EndIo, Io, Op, QueueLimits};
use thinmap_exports::block_node::{self, NodeKind, NodesConfig};
use thinmap_units::{BlkStatus, Sector};

/// The FUSE file behind a loop node: the same code serves it in both kinds.
fn file_of(
    stack: &Stack,
    device: Arc<dyn BlockDevice>,
) -> (Arc<dyn block_node::BlockNode>, PathBuf) {
    let node = stack.active(device);
    let path = PathBuf::from(sysfs(&*node, "loop/backing_file"));
    assert!(path.starts_with(stack.dir.path()), "{}", path.display());
    (node, path)
}

#[test]
fn bytes_at_any_place_are_read_and_written() {
    let stack = Stack::start();
    let (_node, path) = file_of(&stack, Arc::new(MemoryDevice::new(Sector(2048))));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let mut model = vec![0u8; 1 << 20];
    for (n, (offset, len)) in [
        (0, 1),
        (511, 2),
        (1000, 5000),
        (4096, 512),
        (1_048_575, 1),
        (7, 300_001),
    ]
    .iter()
    .enumerate()
    {
        let data = pattern(*len, n as u64);
        file.write_all_at(data.as_slice(), *offset).expect("write");
        model[*offset as usize..][..*len].copy_from_slice(data.as_slice());
        let mut back = vec![0; *len];
        file.read_exact_at(&mut back, *offset).expect("read");
        assert!(back == data.as_slice(), "{len} at {offset}");
    }
    let mut all = vec![0; 1 << 20];
    file.read_exact_at(&mut all, 0).expect("read");
    assert!(all == model);
}

#[test]
fn small_writes_by_many_lose_nothing() {
    let stack = Stack::start();
    let (_node, path) = file_of(&stack, Arc::new(MemoryDevice::new(Sector(64))));
    let writers: Vec<_> = (0..8u64)
        .map(|n| {
            let file = std::fs::File::options()
                .write(true)
                .open(&path)
                .expect("open");
            std::thread::spawn(move || {
                for i in 0..200 {
                    file.write_all_at(&[n as u8 + 1], i * 8 + n).expect("write");
                }
            })
        })
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().expect("writer"));
    let mut all = vec![0; 1600];
    std::fs::File::open(&path)
        .expect("open")
        .read_exact_at(&mut all, 0)
        .expect("read");
    assert!(
        all.iter()
            .enumerate()
            .all(|(i, byte)| usize::from(*byte) == i % 8 + 1)
    );
}

#[test]
fn the_end_is_the_devices_end() {
    let stack = Stack::start();
    let (_node, path) = file_of(&stack, Arc::new(MemoryDevice::new(Sector(8))));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    assert_eq!(file.metadata().expect("stat").len(), 4096);
    assert_eq!(file.read_at(&mut [0; 100], 4096).expect("at the end"), 0);
    assert_eq!(
        file.read_at(&mut [0; 100], 4090).expect("across the end"),
        6
    );
    assert_eq!(file.write_at(&[1; 100], 4090).expect("across the end"), 6);
    let past = file.write_at(&[1; 100], 4096).expect_err("past the end");
    assert_eq!(past.raw_os_error(), Some(libc::ENOSPC));
    let grow = file.set_len(8192).expect_err("a device does not grow so");
    assert_eq!(grow.raw_os_error(), Some(libc::EINVAL));
    let truncating = std::fs::File::create(&path).expect("O_TRUNC is ignored");
    assert_eq!(truncating.metadata().expect("stat").len(), 4096);
    let chmod =
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666));
    assert_eq!(
        chmod.expect_err("refused").raw_os_error(),
        Some(libc::EPERM)
    );
}

#[test]
fn synchronous_writes_are_durable_writes() {
    let stack = Stack::start();
    let device = Double::new(Sector(64), |_| Fate::Pass);
    let (_node, path) = file_of(&stack, device.clone());
    let fd = open(
        &path,
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DSYNC,
    )
    .expect("open");
    write_at(&fd, 0, &pattern(4096, 1)).expect("write");
    assert_eq!(
        device.fua_writes.load(std::sync::atomic::Ordering::SeqCst),
        1
    );
}

#[test]
fn errors_keep_their_cause() {
    let stack = Stack::start();
    let device = Double::new(Sector(64), |io| match io.op {
        Op::Write => Fate::Fail(BlkStatus::NoSpc),
        Op::Read if io.sector.0 >= 32 => Fate::Fail(BlkStatus::IoErr),
        Op::WriteZeroes => Fate::Fail(BlkStatus::NotSupp),
        _ => Fate::Pass,
    });
    let (_node, path) = file_of(&stack, device);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let errno = |e: std::io::Error| e.raw_os_error();
    assert_eq!(
        file.write_at(&[0; 512], 0).map_err(errno),
        Err(Some(libc::ENOSPC))
    );
    assert_eq!(
        file.write_at(&[0; 3], 1).map_err(errno),
        Err(Some(libc::ENOSPC))
    );
    assert_eq!(
        file.read_at(&mut [0; 3], 20_000).map_err(errno),
        Err(Some(libc::EIO))
    );
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(&file, flags, 0, 512),
        Err(rustix::io::Errno::OPNOTSUPP)
    );
    assert_eq!(
        rustix::fs::fallocate(&file, flags, 1, 512),
        Err(rustix::io::Errno::INVAL)
    );
}

/// A hole is asked for to save space: where that cannot be, it is not written out with zeroes.
#[test]
fn holes_are_refused_where_they_would_be_written() {
    let stack = Stack::start();
    let device = Double::new(Sector(64), |_| Fate::Pass);
    {
        let mut limits = device.limits.lock();
        limits.max_discard = Sector::ZERO;
        limits.max_write_zeroes = Sector::ZERO;
    }
    let (_node, path) = file_of(&stack, device.clone());
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | keep;
    assert_eq!(
        rustix::fs::fallocate(&file, punch, 0, 512),
        Err(rustix::io::Errno::OPNOTSUPP)
    );
    assert!(device.zeroes.lock().is_empty());
    let zero = rustix::fs::FallocateFlags::ZERO_RANGE | keep;
    assert_eq!(rustix::fs::fallocate(&file, zero, 0, 512), Ok(()));
    assert_eq!(*device.zeroes.lock(), [(Sector(0), Sector(1), true)]);
}

#[test]
fn the_directory_lists_the_files_and_takes_no_others() {
    let stack = Stack::start();
    let nodes: Vec<_> = (0..150)
        .map(|_| stack.nodes.create(None).expect("create"))
        .collect();
    let dir = stack.dir.path().join("fuse");
    let names: std::collections::HashSet<_> = std::fs::read_dir(&dir)
        .expect("list")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(names.len(), nodes.len());
    assert!(std::fs::write(dir.join("new"), b"").is_err());
    assert!(std::fs::remove_file(dir.join(names.iter().next().expect("one"))).is_err());
    assert!(!dir.join("02").exists() && !dir.join("+2").exists());
}

/// What [`an_ordinary_user_gets_files`] starts as another user.
#[test]
#[ignore = "only the child process of another test: serves as an ordinary user"]
fn child_without_rights() {
    let dir = PathBuf::from(std::env::var_os("THINMAP_TEST_RUN_DIR").expect("set by the parent"));
    let (nodes, notes) = block_node::open(&NodesConfig {
        run_dir: dir,
        queues: 2,
        enabled: true,
    });
    assert_eq!(nodes.kind(), NodeKind::FuseFile, "{notes:?}");
    assert!(notes[0].contains("/dev/loop-control"), "{notes:?}");
    let node = nodes.create(Some(3)).expect("create");
    assert_eq!(node.dev_no().to_string(), "253:3");
    let device = Arc::new(MemoryDevice::new(Sector(64 << 11)));
    node.activate(device.clone(), "user", false)
        .expect("activate");
    let path = node.path();
    let text = path.to_str().expect("path");
    assert_eq!(std::fs::metadata(&path).expect("stat").len(), 64 << 20);
    run("mkfs.ext4", &["-q", "-F", text]);
    run("fsck.ext4", &["-fn", text]);
    run(
        "dd",
        &["if=/dev/zero", &format!("of={text}"), "bs=1000", "count=77"],
    );
    assert_eq!(std::fs::metadata(&path).expect("stat").len(), 64 << 20);
    let user = std::fs::File::open(&path).expect("open");
    assert_eq!(node.open_count(), 1);
    assert_eq!(node.remove(false).expect_err("open").errno(), libc::EBUSY);
    device.grow(Sector(65 << 11));
    node.refresh().expect("refresh");
    assert_eq!(user.metadata().expect("stat").len(), 65 << 20);
    drop(user);
    while node.open_count() > 0 {
        std::thread::yield_now();
    }
    node.remove(false).expect("remove");
    assert!(!path.exists());
    nodes.shutdown();
    println!("all went well");
}

struct UserRun(Child, PathBuf);

impl Drop for UserRun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        block_node::clean_stale(&self.1);
    }
}

#[test]
fn an_ordinary_user_gets_files() {
    let dir = tempfile::tempdir().expect("directory");
    const NOBODY: u32 = 65_534;
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let exe = copy_for_all(dir.path());
    // Elsewhere /dev/fuse is for everybody; here perhaps not, so a node that is lies over it, in a namespace of
    // the child's own, where its mount stays too.
    let script = format!(
        "mknod -m 666 {dir}/fuse-node c 10 229 && mount --bind {dir}/fuse-node /dev/fuse && \
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {exe} \
         --exact child_without_rights --ignored --nocapture",
        dir = dir.path().display(),
        exe = exe.display(),
    );
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .env("THINMAP_TEST_RUN_DIR", dir.path())
        .current_dir("/")
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut child = UserRun(child, dir.path().to_owned());
    let output = BufReader::new(child.0.stdout.take().expect("piped"));
    let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
    assert!(
        lines.iter().any(|line| line.contains("all went well")),
        "{lines:#?}"
    );
}

/// The test binary where every user may run it.
fn copy_for_all(dir: &Path) -> PathBuf {
    let copy = dir.join("test-binary");
    std::fs::copy(std::env::current_exe().expect("own path"), &copy).expect("copy");
    copy
}

#[test]
fn a_device_that_panics_fails_its_request_and_no_other() {
    let stack = Stack::start();
    // More often than there are queue threads.
    let bad = Double::new(Sector(2048), |io: &Io| {
        assert!(
            io.op != Op::Read || io.sector != Sector(1024),
            "wanted by the test"
        );
        Fate::Pass
    });
    let (_bad_node, bad_path) = file_of(&stack, bad);
    let (_node, path) = file_of(&stack, Arc::new(MemoryDevice::new(Sector(2048))));
    let bad = std::fs::File::open(bad_path).expect("open");
    let mut block = [1; 4096];
    for _ in 0..12 {
        let error = bad
            .read_exact_at(&mut block, 1024 * 512)
            .expect_err("it panics");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    bad.read_exact_at(&mut block, 0).expect("another place");
    let file = std::fs::File::open(path).expect("open");
    file.read_exact_at(&mut block, 1024 * 512)
        .expect("another device");
    assert_eq!(block, [0; 4096]);
}

/// A file whose reads of its second half bring a panic when they are done.
struct PanicsAtTheEnd(FileDevice);

struct Panics;

impl EndIo for Panics {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, _status: BlkStatus) {
        panic!("wanted by the test");
    }
}

impl BlockDevice for PanicsAtTheEnd {
    fn limits(&self) -> QueueLimits {
        self.0.limits()
    }

    fn size(&self) -> Sector {
        self.0.size()
    }

    fn submit(&self, mut io: Io) {
        if io.op == Op::Read && io.sector >= Sector(1024) {
            io.push_end_io(Arc::new(Panics), 0);
        }
        self.0.submit(io);
    }
}

#[test]
fn a_device_that_panics_at_the_end_of_a_request_fails_it_and_no_other() {
    let stack = Stack::start();
    let image = tempfile::NamedTempFile::new().expect("file");
    image.as_file().set_len(1 << 20).expect("size");
    let mode = OpenMode {
        read_only: false,
        exclusive: false,
    };
    let device = FileDevice::open(image.path(), mode).expect("open");
    let (_node, path) = file_of(&stack, Arc::new(PanicsAtTheEnd(device)));
    let file = std::fs::File::open(path).expect("open");
    let mut block = [1; 4096];
    for _ in 0..12 {
        let error = file
            .read_exact_at(&mut block, 1024 * 512)
            .expect_err("it panics");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        file.read_exact_at(&mut block, 0).expect("another place");
    }
}

#[test]
fn an_aborted_mount_fails_who_waits() {
    let stack = Stack::start();
    let holds = Double::new(Sector(2048), |_: &Io| Fate::Hold);
    let (_node, path) = file_of(&stack, holds.clone());
    let file = std::fs::File::open(path).expect("open");
    let reader = std::thread::spawn(move || file.read_exact_at(&mut [0; 4096], 0));
    while holds.held() == 0 {
        std::thread::yield_now();
    }
    block_node::abort(stack.dir.path());
    reader.join().expect("no panic").expect_err("it fails");
    holds.release();
}
