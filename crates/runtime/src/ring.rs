//! A safe face on io_uring for file I/O: the ring owns the buffer and the descriptor of every
//! operation in flight, so neither can go away under the kernel.
//!
//! One ring belongs to one thread. What an operation is for is the caller's payload, handed back
//! with the result.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use crate::buffer::IoBuf;

/// What to do with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingOp {
    /// Fill the buffer from the file.
    Read,
    /// Write the buffer; `dsync` makes it durable before it completes (FUA).
    Write {
        /// Durable on completion.
        dsync: bool,
    },
    /// Make all completed writes durable (fdatasync).
    Flush,
    /// fallocate(2) with this mode over `len` bytes.
    Fallocate {
        /// FALLOC_FL_* bits.
        mode: i32,
        /// Bytes to work on.
        len: u64,
    },
}

/// What came back: the payload and buffer as given, and bytes done or a negated errno.
pub struct Completed<P> {
    /// The caller's payload.
    pub payload: P,
    /// The operation's buffer.
    pub buf: IoBuf,
    /// Bytes done, or a negated errno.
    pub result: i32,
}

struct InFlight<P> {
    payload: P,
    buf: IoBuf,
    // Keeps the descriptor open until the kernel is done with it.
    _fd: Arc<OwnedFd>,
}

/// An io_uring of one thread, with a slot per operation in flight.
pub struct Ring<P> {
    uring: IoUring,
    slots: Vec<Option<InFlight<P>>>,
    free: Vec<usize>,
    in_flight: usize,
}

/// Set in `user_data` of a poll; the rest is the caller's token.
const POLL_BIT: u64 = 1 << 63;

impl<P> Ring<P> {
    /// A ring whose submission queue holds `entries`; more may be in flight at once.
    pub fn new(entries: u32) -> std::io::Result<Self> {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self {
            uring,
            slots: Vec::with_capacity(entries as usize),
            free: Vec::with_capacity(entries as usize),
            in_flight: 0,
        })
    }

    /// Queues an operation at byte `offset`; [`Ring::submit`] sends it.
    pub fn push(&mut self, fd: &Arc<OwnedFd>, op: RingOp, offset: u64, buf: IoBuf, payload: P) {
        self.push_with(fd, op, offset, buf, payload, squeue::Flags::empty());
    }

    /// The same for an operation that would be done on the spot: another thread of the kernel does it, beside this one.
    pub fn push_beside(
        &mut self,
        fd: &Arc<OwnedFd>,
        op: RingOp,
        offset: u64,
        buf: IoBuf,
        payload: P,
    ) {
        self.push_with(fd, op, offset, buf, payload, squeue::Flags::ASYNC);
    }

    fn push_with(
        &mut self,
        fd: &Arc<OwnedFd>,
        op: RingOp,
        offset: u64,
        buf: IoBuf,
        payload: P,
        flags: squeue::Flags,
    ) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let entry = entry(fd.as_raw_fd(), op, offset, &buf)
            .flags(flags)
            .user_data(slot as u64);
        self.slots[slot] = Some(InFlight {
            payload,
            buf,
            _fd: fd.clone(),
        });
        self.in_flight += 1;
        // SAFETY: the buffer and descriptor the entry names are owned by the slot until the
        // kernel's completion for it has been reaped (`reap`, or the wait in `drop`).
        unsafe { self.push_entry(&entry) }
    }

    /// Asks for one wake-up (a [`Ready`](Self::reap) token) when `fd` has any of `events` (POLLIN, ...).
    ///
    /// The caller keeps `fd` open until the poll has fired or the ring is dropped; an fd closed before only
    /// makes the poll fire or never fire, no memory is involved.
    pub fn poll_once(&mut self, fd: RawFd, events: u32, token: u32) {
        let entry = opcode::PollAdd::new(types::Fd(fd), events)
            .build()
            .user_data(POLL_BIT | u64::from(token));
        // SAFETY: a poll names no memory.
        unsafe { self.push_entry(&entry) }
    }

    /// # Safety
    /// Memory and descriptors that `entry` names must stay valid until its completion is reaped.
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: passed on to our own caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it to the kernel, which takes all of it.
            self.enter(0);
        }
    }

    /// Hands queued operations to the kernel; does not wait.
    pub fn submit(&mut self) {
        if !self.uring.submission().is_empty() {
            self.enter(0);
        }
    }

    /// Hands over what is queued and sleeps until something completes.
    pub fn submit_and_wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, want: usize) {
        loop {
            match self.uring.submit_and_wait(want) {
                Ok(_) => return,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Completions must be reaped first: the caller does so next.
                    Some(libc::EBUSY | libc::EAGAIN) => return,
                    _ => panic!("io_uring_enter: {error}"),
                },
            }
        }
    }

    /// Operations that have not come back (polls not counted).
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Moves what has completed into `done`, and the tokens of fired polls into `ready`.
    pub fn reap(&mut self, done: &mut Vec<Completed<P>>, ready: &mut Vec<u32>) {
        let mut completion = self.uring.completion();
        completion.sync();
        for cqe in completion {
            let data = cqe.user_data();
            if data & POLL_BIT != 0 {
                ready.push((data & u64::from(u32::MAX)) as u32);
                continue;
            }
            let slot = data as usize;
            let Some(in_flight) = self.slots.get_mut(slot).and_then(Option::take) else {
                debug_assert!(false, "completion for an empty slot {slot}");
                continue;
            };
            self.free.push(slot);
            self.in_flight -= 1;
            done.push(Completed {
                payload: in_flight.payload,
                buf: in_flight.buf,
                result: cqe.result(),
            });
        }
    }
}

impl<P> Drop for Ring<P> {
    fn drop(&mut self) {
        // The kernel still writes into the buffers of what is in flight: wait for all of it.
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        while self.in_flight > 0 {
            self.submit_and_wait();
            self.reap(&mut done, &mut ready);
        }
    }
}

fn entry(fd: RawFd, op: RingOp, offset: u64, buf: &IoBuf) -> squeue::Entry {
    let fd = types::Fd(fd);
    let len = u32::try_from(buf.len()).expect("one I/O is below 4 GiB");
    match op {
        RingOp::Read => opcode::Read::new(fd, buf.as_ptr(), len)
            .offset(offset)
            .build(),
        RingOp::Write { dsync } => opcode::Write::new(fd, buf.as_ptr(), len)
            .offset(offset)
            .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
            .build(),
        RingOp::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        RingOp::Fallocate { mode, len } => opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<OwnedFd> {
        let fd = rustix::fs::memfd_create("ring-test", rustix::fs::MemfdFlags::CLOEXEC);
        Arc::new(fd.expect("memfd"))
    }

    fn wait<P>(ring: &mut Ring<P>, count: usize) -> Vec<Completed<P>> {
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        while done.len() < count {
            ring.submit_and_wait();
            ring.reap(&mut done, &mut ready);
        }
        done
    }

    #[test]
    fn more_operations_than_entries_all_come_back() {
        let mut ring = Ring::new(4).expect("io_uring");
        let fd = file();
        for i in 0..64u64 {
            let mut buf = IoBuf::alloc(512);
            buf.as_mut_slice().fill(i as u8);
            ring.push(&fd, RingOp::Write { dsync: false }, i * 512, buf, i);
        }
        assert!(wait(&mut ring, 64).iter().all(|c| c.result == 512));
        ring.push(&fd, RingOp::Read, 512 * 9, IoBuf::alloc(512), 9);
        let done = wait(&mut ring, 1);
        assert_eq!((done[0].payload, done[0].buf.as_slice()[511]), (9, 9));
    }

    #[test]
    fn a_poll_fires_once() {
        let mut ring = Ring::<()>::new(4).expect("io_uring");
        let waker = crate::Waker::new().expect("eventfd");
        ring.poll_once(waker.raw_fd(), libc::POLLIN as u32, 3);
        waker.wake();
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        ring.submit_and_wait();
        ring.reap(&mut done, &mut ready);
        assert_eq!(ready, [3]);
    }

    #[test]
    fn an_error_is_a_negated_errno() {
        let mut ring = Ring::new(4).expect("io_uring");
        let (read_end, _write_end) = rustix::pipe::pipe().expect("pipe");
        ring.push(&Arc::new(read_end), RingOp::Flush, 0, IoBuf::empty(), ());
        assert!(wait(&mut ring, 1)[0].result < 0);
    }

    #[test]
    fn dropping_the_ring_waits_for_the_kernel() {
        let mut ring = Ring::new(4).expect("io_uring");
        ring.push(
            &file(),
            RingOp::Write { dsync: true },
            0,
            IoBuf::alloc(1 << 20),
            (),
        );
        drop(ring);
    }
}
