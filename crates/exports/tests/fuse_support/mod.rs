//! What the tests of block nodes share: a stack of nodes that goes away even on panic, a device that does what a
//! test wants, and direct I/O on paths.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_exports::block_node::{self, BlockNode, BlockNodes, NodeKind, NodesConfig};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

/// Nodes in a directory of their own.
pub struct Stack {
    pub nodes: Arc<dyn BlockNodes>,
    pub dir: tempfile::TempDir,
}

impl Stack {
    /// Loop devices; the tests run as root where these exist, so anything else is a failure.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let config = NodesConfig {
            run_dir: dir.path().to_owned(),
            queues: 2,
            enabled: true,
        };
        let (nodes, notes) = block_node::open(&config);
        assert_eq!(
            nodes.kind(),
            NodeKind::Loop,
            "needs root, /dev/fuse and loop devices: {notes:?}"
        );
        Self { nodes, dir }
    }

    /// An active node over `device`.
    pub fn active(&self, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockNode> {
        let node = self.nodes.create(None).expect("create");
        node.activate(device, "test", false).expect("activate");
        node
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.nodes.shutdown();
    }
}

/// A mounted directory, unmounted at the end.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn mount(device: &Path, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("mount point");
        run("mount", &[device.as_os_str(), dir.as_os_str()]);
        Self(dir.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A child process that is gone at the end.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..500 {
        if check() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never: {what}");
}

pub fn try_run<S: AsRef<std::ffi::OsStr>>(program: &str, args: &[S]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

pub fn run<S: AsRef<std::ffi::OsStr>>(program: &str, args: &[S]) -> String {
    let output = try_run(program, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program}: {}: {stderr}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

pub fn read_at(fd: &OwnedFd, offset: u64, len: usize) -> io::Result<IoBuf> {
    let mut buf = IoBuf::alloc(len);
    let done = rustix::io::pread(fd, buf.as_mut_slice(), offset)?;
    assert_eq!(done, len, "short read");
    Ok(buf)
}

pub fn write_at(fd: &OwnedFd, offset: u64, data: &IoBuf) -> io::Result<()> {
    let done = rustix::io::pwrite(fd, data.as_slice(), offset)?;
    assert_eq!(done, data.len(), "short write");
    Ok(())
}

/// Bytes that tell their place.
pub fn pattern(len: usize, seed: u64) -> IoBuf {
    let mut buf = IoBuf::alloc(len);
    for (i, chunk) in buf.as_mut_slice().chunks_mut(8).enumerate() {
        let word = (i as u64 ^ seed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    buf
}

/// The kernel's size of a block device, in bytes.
pub fn kernel_size(path: &Path) -> u64 {
    let fd = open(path, OFlags::RDONLY).expect("open");
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).expect("seek")
}

pub fn sysfs(node: &dyn BlockNode, file: &str) -> String {
    let name = node.path().file_name().expect("name").to_owned();
    let path = Path::new("/sys/block").join(name).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Loop devices bound to files below a directory.
pub fn loops_over(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").expect("sysfs").flatten() {
        if let Ok(path) = std::fs::read_to_string(entry.path().join("loop/backing_file"))
            && path.starts_with(&*dir.to_string_lossy())
        {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

pub fn raw(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Pass,
    Fail(BlkStatus),
    /// Kept back until [`Double::release`].
    Hold,
}

type Decide = dyn Fn(&Io) -> Fate + Send + Sync;

/// Memory behind a decision per request.
pub struct Double {
    pub memory: MemoryDevice,
    pub limits: Mutex<QueueLimits>,
    decide: Box<Decide>,
    held: Mutex<Vec<Io>>,
    pub flushes: AtomicU64,
    pub fua_writes: AtomicU64,
    pub zeroes: Mutex<Vec<(Sector, Sector, bool)>>,
}

impl Double {
    pub fn new(size: Sector, decide: impl Fn(&Io) -> Fate + Send + Sync + 'static) -> Arc<Self> {
        let memory = MemoryDevice::new(size);
        Arc::new(Self {
            limits: Mutex::new(memory.limits()),
            memory,
            decide: Box::new(decide),
            held: Mutex::default(),
            flushes: AtomicU64::new(0),
            fua_writes: AtomicU64::new(0),
            zeroes: Mutex::default(),
        })
    }

    pub fn held(&self) -> usize {
        self.held.lock().len()
    }

    /// Ends what was held, last come first.
    pub fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter().rev().for_each(|io| self.memory.submit(io));
    }
}

impl BlockDevice for Double {
    fn limits(&self) -> QueueLimits {
        *self.limits.lock()
    }

    fn size(&self) -> Sector {
        self.memory.size()
    }

    fn submit(&self, io: Io) {
        match io.op {
            Op::Flush => {
                self.flushes.fetch_add(1, Ordering::SeqCst);
            }
            Op::Write if io.flags.fua => {
                self.fua_writes.fetch_add(1, Ordering::SeqCst);
            }
            Op::WriteZeroes => self
                .zeroes
                .lock()
                .push((io.sector, io.sectors, io.flags.no_unmap)),
            _ => {}
        }
        match (self.decide)(&io) {
            Fate::Pass => self.memory.submit(io),
            Fate::Fail(status) => io.complete(status),
            Fate::Hold => self.held.lock().push(io),
        }
    }
}
