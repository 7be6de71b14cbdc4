//! Waiting for I/O, for threads that may: pool workers and control threads, never queue threads.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use thinmap_runtime::{IoBuf, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use crate::device::BlockDevice;
use crate::io::{EndIo, Io, IoFlags, Op};
use crate::queue::on_queue_thread;

/// A request without a sink: what [`submit_all_and_wait`] takes.
pub type Request = (Op, IoFlags, Sector, Sector, IoBuf);

/// Submits all requests at once and waits for them; buffers and statuses in the order given.
///
/// # Panics
/// On a queue thread: it would wait for itself.
pub fn submit_all_and_wait(
    dev: &dyn BlockDevice,
    requests: Vec<Request>,
) -> Vec<(IoBuf, BlkStatus)> {
    assert!(!on_queue_thread(), "a queue thread must not wait for I/O");
    let waiter = Arc::new(Waiter {
        state: Mutex::new(State {
            left: requests.len(),
            results: requests.iter().map(|_| None).collect(),
        }),
        done: Condvar::new(),
    });
    for (tag, (op, flags, sector, sectors, buf)) in requests.into_iter().enumerate() {
        let mut io = Io::new(op, sector, sectors, buf, waiter.clone(), tag as u64);
        io.flags = flags;
        dev.submit(io);
    }
    while waiter.state.lock().left > 0 && simulate(Waiting::ForDevices) {}
    let mut state = waiter.state.lock();
    while state.left > 0 {
        waiter.done.wait(&mut state);
    }
    let results = std::mem::take(&mut state.results);
    results
        .into_iter()
        .map(|r| r.expect("every request has ended"))
        .collect()
}

/// Submits one request and waits for it.
pub fn submit_and_wait(dev: &dyn BlockDevice, request: Request) -> (IoBuf, BlkStatus) {
    submit_all_and_wait(dev, vec![request])
        .pop()
        .expect("one result per request")
}

/// Reads `buf.len()` bytes at `sector`.
pub fn read(dev: &dyn BlockDevice, sector: Sector, buf: IoBuf) -> (IoBuf, BlkStatus) {
    let sectors = Sector::from_bytes(buf.len() as u64);
    submit_and_wait(dev, (Op::Read, IoFlags::default(), sector, sectors, buf))
}

/// Writes the buffer at `sector`.
pub fn write(dev: &dyn BlockDevice, sector: Sector, buf: IoBuf) -> (IoBuf, BlkStatus) {
    let sectors = Sector::from_bytes(buf.len() as u64);
    submit_and_wait(dev, (Op::Write, IoFlags::default(), sector, sectors, buf))
}

/// Makes completed writes durable.
pub fn flush(dev: &dyn BlockDevice) -> BlkStatus {
    submit_and_wait(
        dev,
        (
            Op::Flush,
            IoFlags::default(),
            Sector::ZERO,
            Sector::ZERO,
            IoBuf::empty(),
        ),
    )
    .1
}

struct Waiter {
    state: Mutex<State>,
    done: Condvar,
}

struct State {
    left: usize,
    results: Vec<Option<(IoBuf, BlkStatus)>>,
}

impl EndIo for Waiter {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        let mut state = self.state.lock();
        let slot = usize::try_from(tag).expect("tags are indices");
        state.results[slot] = Some((buf, status));
        state.left -= 1;
        if state.left == 0 {
            self.done.notify_all();
        }
    }
}
