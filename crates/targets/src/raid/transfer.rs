//! Requests to several members at once, and waiting for all of them: for the sync thread only.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use thinmap_block::{EndIo, Io, IoFlags, Op};
use thinmap_runtime::{IoBuf, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::members::Members;

/// One request: to which member, what, where, how much.
pub(super) struct Transfer {
    pub member: usize,
    pub op: Op,
    pub flags: IoFlags,
    pub sector: Sector,
    pub buf: IoBuf,
}

impl Transfer {
    /// A read of so many sectors.
    pub fn read(member: usize, sector: Sector, sectors: Sector) -> Self {
        // At most a window, which fits into memory.
        let bytes = usize::try_from(sectors.bytes()).unwrap_or(0);
        Self {
            member,
            op: Op::Read,
            flags: IoFlags::default(),
            sector,
            buf: IoBuf::alloc(bytes),
        }
    }

    /// A write of these bytes.
    pub fn write(member: usize, sector: Sector, bytes: &[u8]) -> Self {
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        Self {
            member,
            op: Op::Write,
            flags: IoFlags::default(),
            sector,
            buf,
        }
    }

    /// A flush.
    pub fn flush(member: usize) -> Self {
        Self {
            member,
            op: Op::Flush,
            flags: IoFlags::default(),
            sector: Sector::ZERO,
            buf: IoBuf::empty(),
        }
    }

    /// The same, durable when it ends.
    pub fn durable(mut self) -> Self {
        self.flags.fua = true;
        self
    }
}

/// Does all of them at once, on the members' data, and waits; buffers and statuses in the order given.
pub(super) fn transfer_all(members: &Members, transfers: Vec<Transfer>) -> Vec<(IoBuf, BlkStatus)> {
    wait_for_all(transfers, &|member, io| members.submit(member, io))
}

/// The same on the members' metadata devices.
pub(super) fn transfer_metadata(
    members: &Members,
    transfers: Vec<Transfer>,
) -> Vec<(IoBuf, BlkStatus)> {
    wait_for_all(
        transfers,
        &|member, io| match &members.member(member).meta {
            Some(meta) => meta.dev.submit(io),
            None => io.complete(BlkStatus::IoErr),
        },
    )
}

fn wait_for_all(transfers: Vec<Transfer>, submit: &dyn Fn(usize, Io)) -> Vec<(IoBuf, BlkStatus)> {
    let waiter = Arc::new(Waiter {
        state: Mutex::new(State {
            left: transfers.len(),
            results: transfers.iter().map(|_| None).collect(),
        }),
        done: Condvar::new(),
    });
    for (tag, transfer) in transfers.into_iter().enumerate() {
        let sectors = Sector::from_bytes(transfer.buf.len() as u64);
        let mut io = Io::new(
            transfer.op,
            transfer.sector,
            sectors,
            transfer.buf,
            waiter.clone(),
            tag as u64,
        );
        io.flags = transfer.flags;
        submit(transfer.member, io);
    }
    while waiter.state.lock().left > 0 && simulate(Waiting::ForDevices) {}
    let mut state = waiter.state.lock();
    while state.left > 0 {
        waiter.done.wait(&mut state);
    }
    let results = std::mem::take(&mut state.results);
    let lost = || (IoBuf::empty(), BlkStatus::IoErr);
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(lost))
        .collect()
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
        let slot = usize::try_from(tag).ok();
        if let Some(slot) = slot.and_then(|slot| state.results.get_mut(slot)) {
            *slot = Some((buf, status));
        }
        state.left -= 1;
        if state.left == 0 {
            self.done.notify_all();
        }
    }
}
