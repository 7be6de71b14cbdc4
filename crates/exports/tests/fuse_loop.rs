//! Loop devices over FUSE files, against the real kernel: data, sizes, limits, errors. Needs root.

mod fuse_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuse_support::*;
use rustix::fs::OFlags;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{Op, read};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

const MIB: u64 = 1 << 20;

fn sectors(bytes: u64) -> Sector {
    Sector::from_bytes(bytes)
}

#[test]
fn data_written_direct_and_buffered_is_on_the_device() {
    let stack = Stack::start();
    let device = Arc::new(MemoryDevice::new(sectors(64 * MIB)));
    let node = stack.active(device.clone());
    assert_eq!(kernel_size(&node.path()), 64 * MIB);
    assert_eq!(sysfs(&*node, "loop/dio"), "1");
    let direct = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    for (offset, len) in [(0, 512), (4096, 4096), (MIB, 4 << 20), (63 * MIB, 1 << 20)] {
        let data = pattern(len, offset);
        write_at(&direct, offset, &data).expect("write");
        let back = read_at(&direct, offset, len).expect("read");
        assert!(
            back.as_slice() == data.as_slice(),
            "direct, {len} at {offset}"
        );
        let (on_device, status) = read(&*device, sectors(offset), IoBuf::alloc(len));
        assert!(
            status.is_ok() && on_device.as_slice() == data.as_slice(),
            "on the device"
        );
    }
    drop(direct);
    let buffered = open(&node.path(), OFlags::RDWR).expect("open");
    let data = pattern(3_000_001, 9);
    write_at(&buffered, 12_345_677, &data).expect("write");
    rustix::fs::fsync(&buffered).expect("fsync");
    let around = read_at(&buffered, 12_345_677, data.len()).expect("read");
    assert!(around.as_slice() == data.as_slice());
    let (on_device, _) = read(&*device, Sector(0), IoBuf::alloc(64 << 20));
    assert!(on_device.as_slice()[12_345_677..][..data.len()] == *data.as_slice());
    drop(buffered);
    node.remove(false).expect("remove");
    assert!(loops_over(stack.dir.path()).is_empty());
}

#[test]
fn a_reserved_node_is_empty_until_activated() {
    let stack = Stack::start();
    let node = stack.nodes.create(None).expect("create");
    assert_eq!(node.dev_no().major, 7);
    assert_eq!(kernel_size(&node.path()), 0);
    assert_eq!(node.open_count(), 0);
    node.activate(Arc::new(MemoryDevice::new(Sector(2048))), "later", false)
        .expect("activate");
    assert_eq!(kernel_size(&node.path()), MIB);
}

#[test]
fn an_ext4_file_system_lives_on_it() {
    let stack = Stack::start();
    let node = stack.active(Arc::new(MemoryDevice::new(sectors(128 * MIB))));
    run(
        "mkfs.ext4",
        &["-q", "-F", node.path().to_str().expect("path")],
    );
    let mount = Mounted::mount(&node.path(), &stack.dir.path().join("mnt"));
    let content = pattern(20 << 20, 1);
    std::fs::write(mount.0.join("file"), content.as_slice()).expect("write");
    run("sync", &["-f", mount.0.to_str().expect("path")]);
    assert!(node.open_count() >= 1);
    let busy = node.remove(false).expect_err("mounted");
    assert_eq!(busy.errno(), libc::EBUSY);
    assert!(std::fs::read(mount.0.join("file")).expect("still served") == content.as_slice());
    run("umount", &[&mount.0]);
    run("fsck.ext4", &["-fn", node.path().to_str().expect("path")]);
    assert_eq!(node.open_count(), 0);
    node.remove(false).expect("remove");
}

#[test]
fn discard_and_zero_out_read_back_as_zeroes() {
    let stack = Stack::start();
    let device = Double::new(sectors(16 * MIB), |_| Fate::Pass);
    device.limits.lock().discard_granularity = 65_536;
    let node = stack.active(device.clone());
    assert_eq!(sysfs(&*node, "queue/discard_granularity"), "65536");
    let path = node.path();
    let direct = open(&path, OFlags::RDWR | OFlags::DIRECT).expect("open");
    write_at(&direct, 0, &pattern(8 << 20, 1)).expect("write");
    run(
        "blkdiscard",
        &[
            "-f",
            "-o",
            "65536",
            "-l",
            "131072",
            path.to_str().expect("path"),
        ],
    );
    run(
        "blkdiscard",
        &[
            "-f",
            "-z",
            "-o",
            "1048576",
            "-l",
            "65536",
            path.to_str().expect("path"),
        ],
    );
    for (offset, len) in [(65_536, 131_072), (1_048_576, 65_536)] {
        let back = read_at(&direct, offset, len).expect("read");
        assert!(back.as_slice().iter().all(|byte| *byte == 0), "at {offset}");
    }
    let around = read_at(&direct, 0, 65_536).expect("read");
    assert!(around.as_slice() == &pattern(8 << 20, 1).as_slice()[..65_536]);
    let seen = device.zeroes.lock().clone();
    assert!(
        seen.contains(&(Sector(128), Sector(256), false)),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|(sector, _, no_unmap)| *sector == Sector(2048) && *no_unmap),
        "{seen:?}"
    );
}

#[test]
fn flushes_reach_the_device() {
    let stack = Stack::start();
    let device = Double::new(sectors(MIB), |_| Fate::Pass);
    let node = stack.active(device.clone());
    let fd = open(&node.path(), OFlags::RDWR).expect("open");
    write_at(&fd, 0, &pattern(4096, 1)).expect("write");
    let before = device.flushes.load(Ordering::SeqCst);
    rustix::fs::fsync(&fd).expect("fsync");
    assert!(device.flushes.load(Ordering::SeqCst) > before);
}

#[test]
fn growth_reaches_the_kernel() {
    let stack = Stack::start();
    let device = Arc::new(MemoryDevice::new(sectors(4 * MIB)));
    let node = stack.active(device.clone());
    device.grow(sectors(12 * MIB));
    node.refresh().expect("refresh");
    assert_eq!(kernel_size(&node.path()), 12 * MIB);
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    let data = pattern(1 << 20, 2);
    write_at(&fd, 11 * MIB, &data).expect("write");
    assert!(read_at(&fd, 11 * MIB, 1 << 20).expect("read").as_slice() == data.as_slice());
}

#[test]
fn read_only_is_refused_by_the_kernel_and_can_change() {
    let stack = Stack::start();
    let device = Double::new(sectors(MIB), |_| Fate::Pass);
    device.limits.lock().read_only = true;
    let node = stack.active(device.clone());
    assert_eq!(sysfs(&*node, "ro"), "1");
    let refused = open(&node.path(), OFlags::RDWR | OFlags::DIRECT)
        .and_then(|fd| write_at(&fd, 0, &pattern(512, 1)));
    assert!(refused.is_err());
    device.limits.lock().read_only = false;
    node.refresh().expect("refresh");
    assert_eq!(sysfs(&*node, "ro"), "0");
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    write_at(&fd, 0, &pattern(512, 1)).expect("write");
}

#[test]
fn large_logical_blocks_are_passed_on() {
    let stack = Stack::start();
    let device = Double::new(sectors(MIB), |_| Fate::Pass);
    device.limits.lock().logical_block_size = 4096;
    let node = stack.active(device);
    assert_eq!(sysfs(&*node, "queue/logical_block_size"), "4096");
    assert_eq!(sysfs(&*node, "loop/dio"), "1");
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    assert!(write_at(&fd, 512, &pattern(512, 1)).is_err());
    write_at(&fd, 4096, &pattern(4096, 1)).expect("write");
}

#[test]
fn errors_are_told_and_end_with_their_cause() {
    let stack = Stack::start();
    let device = Double::new(sectors(4 * MIB), |io| match (io.op, io.sector.0) {
        (Op::Read, 0..2048) => Fate::Fail(BlkStatus::IoErr),
        (Op::Write, 2048..4096) => Fate::Fail(BlkStatus::NoSpc),
        _ => Fate::Pass,
    });
    let node = stack.active(device);
    let fd = open(&node.path(), OFlags::RDWR | OFlags::DIRECT).expect("open");
    let errno = |result: std::io::Result<()>| result.expect_err("fails").raw_os_error();
    assert_eq!(errno(read_at(&fd, 4096, 4096).map(drop)), Some(libc::EIO));
    let no_space = errno(write_at(&fd, MIB, &pattern(4096, 1)));
    assert!(
        matches!(no_space, Some(libc::ENOSPC | libc::EIO)),
        "{no_space:?}"
    );
    write_at(&fd, 2 * MIB, &pattern(4096, 1)).expect("others go on");
}

#[test]
fn requests_may_end_in_any_order() {
    let stack = Stack::start();
    let device = Double::new(sectors(4 * MIB), |io| match io.op {
        Op::Write => Fate::Hold,
        _ => Fate::Pass,
    });
    let node = stack.active(device.clone());
    let path = node.path();
    let writers: Vec<_> = (0..8u64)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                let fd = open(&path, OFlags::RDWR | OFlags::DIRECT).expect("open");
                write_at(&fd, n * 65_536, &pattern(65_536, n)).expect("write");
            })
        })
        .collect();
    // Parallel writes to one file: all eight are with the device before the first has ended.
    while device.held() < 8 {
        std::thread::yield_now();
    }
    device.release();
    writers
        .into_iter()
        .for_each(|writer| writer.join().expect("writer"));
    let fd = open(&path, OFlags::RDONLY | OFlags::DIRECT).expect("open");
    for n in 0..8 {
        let back = read_at(&fd, n * 65_536, 65_536).expect("read");
        assert!(back.as_slice() == pattern(65_536, n).as_slice());
    }
}
