//! Requests: what they become, how they end.

use super::super::abi::{IO_FLAG_FUA, IO_FLAG_NO_UNMAP};
use super::*;

#[test]
fn what_programs_write_they_read_again_on_every_queue() {
    let stack = Stack::start(2);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(4096))));
    for queue in 0..2 {
        for (start, sectors) in [(0u64, 1u32), (7, 9), (1000, 2048)] {
            let data: Vec<u8> = (0..sectors * 512).map(|i| (i % 251) as u8 + 1).collect();
            let write = stack.begin(&node, queue, op::WRITE, start, sectors, &data);
            write.wait().expect("write");
            let read = stack.begin(&node, 1 - queue, op::READ, start, sectors, &[]);
            assert_eq!(read.wait().expect("read"), data);
        }
    }
    let zeroes = stack.begin(&node, 0, op::WRITE_ZEROES, 8, 4, &[]);
    zeroes.wait().expect("write zeroes");
    let around = stack.read(&node, 7, 6).expect("read");
    assert!(around[512..512 * 5].iter().all(|byte| *byte == 0));
    assert!(
        around[..512]
            .iter()
            .chain(&around[512 * 5..])
            .all(|b| *b != 0)
    );
    stack
        .begin(&node, 1, op::FLUSH, 0, 0, &[])
        .wait()
        .expect("flush");
    stack
        .begin(&node, 1, op::DISCARD, 0, 8, &[])
        .wait()
        .expect("discard");
}

#[test]
fn operations_and_flags_arrive_as_they_were_meant() {
    let stack = Stack::start(1);
    let device = Held::new();
    let node = stack.active(device.clone());
    let (fua, keep) = (IO_FLAG_FUA, IO_FLAG_NO_UNMAP);
    // Flags that say nothing to us (fail fast, metadata, swap) must not disturb.
    let noise = 1 << 8 | 1 << 11 | 1 << 16;
    let plain = IoFlags::default();
    let durable = IoFlags { fua: true, ..plain };
    let cases = [
        (op::READ | noise, Op::Read, plain),
        (op::WRITE, Op::Write, plain),
        (op::WRITE | fua | noise, Op::Write, durable),
        (op::DISCARD, Op::Discard, plain),
        (op::WRITE_ZEROES, Op::WriteZeroes, plain),
        (
            op::WRITE_ZEROES | keep,
            Op::WriteZeroes,
            IoFlags {
                no_unmap: true,
                ..plain
            },
        ),
        (
            op::WRITE_ZEROES | keep | fua,
            Op::WriteZeroes,
            IoFlags {
                no_unmap: true,
                fua: true,
            },
        ),
    ];
    for (op_flags, wanted, flags) in cases {
        let request = stack.begin(&node, 0, op_flags, 24, 8, &[5; 4096]);
        let io = device.take(1).pop().expect("one");
        assert_eq!((io.op, io.flags), (wanted, flags));
        assert_eq!((io.sector, io.sectors), (Sector(24), Sector(8)));
        if wanted == Op::Write {
            assert_eq!(io.buf.as_slice(), [5; 4096]);
        }
        io.complete(BlkStatus::Ok);
        request.wait().expect("ends well");
    }
    let request = stack.begin(&node, 0, op::FLUSH | fua, 0, 0, &[]);
    let io = device.take(1).pop().expect("one");
    assert_eq!(
        (io.op, io.flags, io.sectors),
        (Op::Flush, plain, Sector::ZERO)
    );
    io.complete(BlkStatus::Ok);
    request.wait().expect("ends well");
}

#[test]
fn a_discard_may_be_far_larger_than_a_buffer() {
    let stack = Stack::start(1);
    let device = Held::new();
    let node = stack.active(device.clone());
    let request = stack.begin(&node, 0, op::DISCARD, 0, 1 << 20, &[]);
    let io = device.take(1).pop().expect("one");
    assert_eq!(io.sectors, Sector(1 << 20));
    io.complete(BlkStatus::Ok);
    request.wait().expect("ends well");
}

#[test]
fn programs_see_the_errno_of_each_failure() {
    let stack = Stack::start(1);
    let device = Held::new();
    let node = stack.active(device.clone());
    for (status, errno) in [
        (BlkStatus::IoErr, libc::EIO),
        (BlkStatus::NoSpc, libc::ENOSPC),
        (BlkStatus::NotSupp, libc::EOPNOTSUPP),
        (BlkStatus::Inval, libc::EINVAL),
        (BlkStatus::Requeue, libc::EIO),
    ] {
        for op in [op::READ, op::WRITE, op::DISCARD] {
            let request = stack.begin(&node, 0, op, 0, 8, &[0; 4096]);
            device.take(1).pop().expect("one").complete(status);
            assert_eq!(request.wait(), Err(errno), "{status:?}");
        }
    }
    let dropped = stack.begin(&node, 0, op::READ, 0, 8, &[]);
    drop(device.take(1));
    assert_eq!(dropped.wait(), Err(libc::EIO));
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_queue_lives_on() {
    let stack = Stack::start(1);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(64))));
    for (op, start, sectors, errno) in [
        (4, 0, 1, libc::EOPNOTSUPP),
        (13, 0, 1, libc::EOPNOTSUPP),
        (0xff, 0, 1, libc::EOPNOTSUPP),
        (op::READ, 0, 0, libc::EINVAL),
        (op::READ, 0, 2049, libc::EINVAL),
        (op::READ, 64, 1, libc::EIO),
        (op::READ, u64::MAX, 1, libc::EIO),
        (op::DISCARD, 60, u32::MAX, libc::EIO),
    ] {
        let request = stack.begin(&node, 0, op, start, sectors, &[]);
        assert_eq!(request.wait(), Err(errno), "op {op} {start}+{sectors}");
    }
    stack.read(&node, 0, 1).expect("still serves");
}

#[test]
fn data_that_the_driver_does_not_copy_is_an_io_error() {
    let stack = Stack::start(1);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(64))));
    for (step, op) in [(Step::TakeData, op::WRITE), (Step::GiveData, op::READ)] {
        stack.fake.state().refuse.insert(step, (0, Errno::FAULT));
        let request = stack.begin(&node, 0, op, 0, 1, &[1; 512]);
        assert_eq!(request.wait(), Err(libc::EIO));
    }
    assert_eq!(stack.read(&node, 0, 1), Ok(vec![0; 512]));
}

#[test]
fn before_the_first_activation_everything_fails() {
    let stack = Stack::start(1);
    let node = stack.nodes.create(None).expect("create");
    assert_eq!(stack.read(&node, 0, 1), Err(libc::EIO));
    let flush = stack.begin(&node, 0, op::FLUSH, 0, 0, &[]);
    assert_eq!(flush.wait(), Err(libc::EIO));
}

#[test]
fn requests_may_end_in_any_order_on_any_thread() {
    let stack = Stack::start(2);
    let device = Held::new();
    let node = stack.active(device.clone());
    // More than the queue's tags: the rest comes as tags come free.
    let requests: Vec<_> = (0..200u64)
        .map(|n| stack.begin(&node, (n % 2) as usize, op::READ, n, 1, &[]))
        .collect();
    let mut held = device.take(200);
    held.reverse();
    std::thread::scope(|scope| {
        while !held.is_empty() {
            let some = held.split_off(held.len().saturating_sub(50));
            scope.spawn(move || {
                for mut io in some {
                    let stamp = io.sector.0 as u8;
                    io.buf.as_mut_slice().fill(stamp);
                    io.complete(BlkStatus::Ok);
                }
            });
        }
    });
    for (n, request) in requests.iter().enumerate() {
        assert_eq!(request.wait().expect("read"), [n as u8; 512]);
    }
}

#[test]
fn many_programs_at_once_lose_nothing() {
    let stack = Stack::start(2);
    let node = stack.active(Arc::new(MemoryDevice::new(Sector(8 * 64))));
    std::thread::scope(|scope| {
        for program in 0..8u64 {
            let (stack, node) = (&stack, &node);
            scope.spawn(move || {
                let queue = (program % 2) as usize;
                for round in 0..100u64 {
                    let start = program * 64 + round % 60;
                    let data = vec![(program * 31 + round) as u8; 4 * 512];
                    let write = stack.begin(node, queue, op::WRITE, start, 4, &data);
                    write.wait().expect("write");
                    let read = stack.begin(node, 1 - queue, op::READ, start, 4, &[]);
                    assert_eq!(read.wait().expect("read"), data);
                }
            });
        }
    });
}

#[test]
fn a_thread_takes_no_more_requests_than_it_has_memory_for() {
    let stack = Stack::start(1);
    let device = Held::new();
    let nodes: Vec<_> = (0..3).map(|_| stack.active(device.clone())).collect();
    let read = |node| stack.begin(node, 0, op::READ, 0, 2048, &[]);
    let requests: Vec<_> = nodes
        .iter()
        .flat_map(|node| (0..120).map(move |_| node))
        .map(read)
        .collect();
    let first = device.take(256);
    // Not one more, though the kernel has given all: small ones wait their turn as well.
    assert_eq!(device.requests.lock().len(), 0);
    assert!(requests.iter().all(|request| !request.is_done()));
    for io in first {
        io.complete(BlkStatus::NoSpc);
    }
    for io in device.take(360 - 256) {
        io.complete(BlkStatus::NoSpc);
    }
    assert!(requests.iter().all(|r| r.wait() == Err(libc::ENOSPC)));
}

#[test]
fn a_read_only_device_refuses_writers_but_not_readers() {
    let stack = Stack::start(1);
    let node = stack.nodes.create(None).expect("create");
    let device = Arc::new(MemoryDevice::new(Sector(64)));
    node.activate(device, "test", true).expect("activate");
    assert!(stack.fake.state().devices[&id_of(&node)].read_only);
    assert_eq!(stack.write(&node, 0, &[1; 512]), Err(libc::EROFS));
    for op in [op::DISCARD, op::WRITE_ZEROES] {
        let request = stack.begin(&node, 0, op, 0, 1, &[]);
        assert_eq!(request.wait(), Err(libc::EROFS));
    }
    stack.read(&node, 0, 1).expect("read");
    let flush = stack.begin(&node, 0, op::FLUSH, 0, 0, &[]);
    flush.wait().expect("flush");
}
