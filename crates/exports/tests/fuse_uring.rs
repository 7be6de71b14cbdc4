//! Requests over io_uring, where the kernel has that and lets us switch it on for a moment; and without it, when it is off.
//! Needs root.

mod fuse_support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_support::*;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_units::{BlkStatus, Sector};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
const MIB: u64 = 1 << 20;

/// The parameter is the whole system's, and rings are counted in the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Nodes that were mounted with the parameter as wanted.
struct Alone {
    stack: Stack,
    rings: usize,
    _turn: MutexGuard<'static, ()>,
}

struct Restore(String);

impl Drop for Restore {
    fn drop(&mut self) {
        std::fs::write(PARAMETER, self.0.trim()).expect("restore the parameter");
    }
}

/// `None` where the kernel has no such parameter or it cannot be set.
fn start(allowed: bool) -> Option<Alone> {
    let turn = ONE_AT_A_TIME.lock();
    let before = std::fs::read_to_string(PARAMETER).ok()?;
    if std::fs::write(PARAMETER, if allowed { "Y" } else { "N" }).is_err() {
        eprintln!("skipped: {PARAMETER} cannot be set here");
        return None;
    }
    let restore = Restore(before);
    let rings = rings();
    let stack = Stack::start();
    drop(restore);
    Some(Alone {
        rings: crate::rings() - rings,
        stack,
        _turn: turn,
    })
}

/// io_urings of this process.
fn rings() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link == Path::new("anon_inode:[io_uring]"))
        .count()
}

/// One device through all sizes and kinds of request.
fn use_device(stack: &Stack) {
    let device = Double::new(Sector(64 << 11), |_| Fate::Pass);
    let node = stack.active(device.clone());
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    let sizes = [512, 4096, 12 << 10, 64 << 10, 256 << 10, 1 << 20, 3 << 20];
    for (n, len) in sizes.into_iter().enumerate() {
        let (offset, data) = (n as u64 * 5 * MIB, pattern(len, n as u64));
        write_at(&fd, offset, &data).expect("write");
        assert!(read_at(&fd, offset, len).expect("read").as_slice() == data.as_slice());
        let below =
            thinmap_block::read(&device.memory, Sector::from_bytes(offset), pattern(len, 99));
        assert!(
            below.0.as_slice() == data.as_slice(),
            "on the device itself"
        );
    }
    rustix::fs::fdatasync(&fd).expect("flush");
    assert!(device.flushes.load(Ordering::SeqCst) > 0);
    run(
        "blkdiscard",
        &["-o", "0", "-l", "4096", &node.path().to_string_lossy()],
    );
    assert!(
        read_at(&fd, 0, 4096)
            .expect("read")
            .as_slice()
            .iter()
            .all(|b| *b == 0)
    );
    drop(fd);
    node.remove(false).expect("remove");
}

#[test]
fn it_is_used_when_allowed_and_not_when_off() {
    let Some(off) = start(false) else { return };
    use_device(&off.stack);
    let without = off.rings;
    drop(off);
    let Some(on) = start(true) else { return };
    assert!(on.rings > without, "a ring more for each queue thread");
    use_device(&on.stack);
}

#[test]
fn many_at_once_each_find_their_own_data() {
    let Some(alone) = start(true) else { return };
    let memory = Arc::new(MemoryDevice::new(Sector(64 << 11)));
    let node = alone.stack.active(memory);
    std::thread::scope(|scope| {
        for n in 0..16u64 {
            let path = node.path();
            scope.spawn(move || {
                let fd = open(&path, OFlags::RDWR | OFlags::DIRECT).expect("open");
                for round in 0..40u64 {
                    let len = [4096, 16 << 10, 128 << 10, 1 << 20][(n + round) as usize % 4];
                    let offset = n * 4 * MIB + round % 3 * MIB;
                    let data = pattern(len, n << 32 | round);
                    write_at(&fd, offset, &data).expect("write");
                    let read = read_at(&fd, offset, len).expect("read");
                    assert!(read.as_slice() == data.as_slice());
                }
            });
        }
    });
}

#[test]
fn bytes_that_are_not_whole_blocks_are_served() {
    let Some(alone) = start(true) else { return };
    let node = alone
        .stack
        .active(Arc::new(MemoryDevice::new(Sector(2048))));
    let files = std::fs::read_dir(alone.stack.dir.path().join("fuse")).expect("directory");
    let file = files.flatten().next().expect("one file").path();
    let fd = open(&file, OFlags::RDWR).expect("open");
    for (offset, len) in [(1, 1), (511, 2), (700, 5000), (12345, 300_000)] {
        let data = pattern(len, offset);
        write_at(&fd, offset, &data).expect("write");
        assert!(read_at(&fd, offset, len).expect("read").as_slice() == data.as_slice());
    }
    drop(fd);
    node.remove(true).expect("remove");
}

#[test]
fn errors_are_told_and_the_device_goes_on() {
    let Some(alone) = start(true) else { return };
    let failing = Arc::new(AtomicBool::new(true));
    let fails = failing.clone();
    let device = Double::new(Sector(2048), move |io| {
        if fails.load(Ordering::SeqCst) && matches!(io.op, Op::Read | Op::Write) {
            Fate::Fail(BlkStatus::IoErr)
        } else {
            Fate::Pass
        }
    });
    let node = alone.stack.active(device);
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    // More than there are entries, so each has met one.
    for _ in 0..600 {
        read_at(&fd, 0, 4096).expect_err("fails");
        write_at(&fd, 0, &pattern(4096, 1)).expect_err("fails");
    }
    failing.store(false, Ordering::SeqCst);
    write_at(&fd, 4096, &pattern(8192, 2)).expect("write");
    assert!(read_at(&fd, 4096, 8192).expect("read").as_slice() == pattern(8192, 2).as_slice());
}

#[test]
fn a_device_that_stalls_with_a_full_queue_stalls_no_other() {
    let Some(alone) = start(true) else { return };
    let stalled = Double::new(Sector(2048), |io| {
        if io.op == Op::Read {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    let holding = alone.stack.active(stalled.clone());
    let other = alone
        .stack
        .active(Arc::new(MemoryDevice::new(Sector(2048))));
    let held_back = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let reader = || {
            scope.spawn(|| {
                let fd = open(&holding.path(), OFlags::RDONLY | OFlags::DIRECT).expect("open");
                read_at(&fd, 0, 4096).expect("read in the end");
                assert!(!held_back.load(Ordering::SeqCst));
            })
        };
        let readers: Vec<_> = std::iter::repeat_with(reader).take(128).collect();
        while stalled.held() < 100 {
            std::thread::yield_now();
        }
        let fd = open(&other.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
        for n in 0..300 {
            write_at(&fd, 0, &pattern(4096, n)).expect("write");
            assert!(read_at(&fd, 0, 4096).expect("read").as_slice() == pattern(4096, n).as_slice());
        }
        held_back.store(false, Ordering::SeqCst);
        while readers.iter().any(|reader| !reader.is_finished()) {
            stalled.release();
            std::thread::yield_now();
        }
    });
}

#[test]
fn the_end_comes_also_with_a_device_open() {
    let Some(alone) = start(true) else { return };
    let node = alone
        .stack
        .active(Arc::new(MemoryDevice::new(Sector(2048))));
    let path = node.path();
    let fd = open(&path, OFlags::RDWR | OFlags::DIRECT).expect("open");
    read_at(&fd, 0, 4096).expect("read");
    alone.stack.nodes.shutdown();
    read_at(&fd, 0, 4096).expect_err("its device is gone");
    assert!(loops_over(alone.stack.dir.path()).len() <= 1);
    drop(fd);
    // And another daemon starts where this one was.
    drop(node);
    drop(alone);
    let Some(next) = start(true) else { return };
    use_device(&next.stack);
}

#[test]
fn an_idle_device_can_be_removed_and_the_rest_goes_on() {
    let Some(alone) = start(true) else { return };
    for round in 0..5u64 {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(Sector(2048)));
        let node = alone.stack.active(device);
        let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
        write_at(&fd, 0, &pattern(65536, round)).expect("write");
        drop(fd);
        node.remove(true).expect("remove");
    }
}
