//! The log: who writes it, and how far it is.
//!
//! INVARIANT: entries lie one after another without a gap, each written before the next one; the super counts entries that
//! are written.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, Io, IoFlags, Op, submit_all_and_wait};
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, ActorHandle, IoBuf, NextTurn};
use thinmap_units::{BlkStatus, Sector};

use super::disk::{EntryDisk, EntryFlags, pack_super};
use super::pending::{Entry, Pending};

/// What the last entry of a line that goes says.
const END_MARK: &[u8] = b"dm-log-writes-end";
/// Data written in one go.
const BATCH_BYTES: usize = 4 << 20;

/// See the module.
pub(super) struct Shared {
    device: Arc<dyn BlockDevice>,
    block_bytes: u32,
    enabled: AtomicBool,
    pending: Mutex<Pending>,
    place: Mutex<Place>,
    stop: AtomicBool,
    handle: OnceLock<ActorHandle>,
}

/// How far the log is.
struct Place {
    entries: u64,
    next: Sector,
}

/// Starts logs.
pub(super) struct Log;

/// The line's hold on its log. Dropping it logs what no flush has followed, and a last mark, and waits until that is written.
pub(super) struct LogRef(Arc<Shared>);

impl Drop for LogRef {
    fn drop(&mut self) {
        {
            let mut pending = self.0.pending.lock();
            pending.log_all();
            pending.log(self.0.mark_entry(END_MARK));
        }
        self.0.stop.store(true, Relaxed);
        if let Some(handle) = self.0.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl std::ops::Deref for LogRef {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl LogRef {
    /// What requests are pushed with.
    pub fn shared(&self) -> Arc<Shared> {
        self.0.clone()
    }
}

impl Log {
    /// A log that begins at the second block of `device`.
    pub fn start(
        env: &Environment,
        device: Arc<dyn BlockDevice>,
        block_bytes: u32,
    ) -> std::io::Result<LogRef> {
        let shared = Arc::new(Shared {
            device,
            block_bytes,
            enabled: AtomicBool::new(true),
            pending: Mutex::default(),
            place: Mutex::new(Place {
                entries: 0,
                next: Sector::from_bytes(u64::from(block_bytes)),
            }),
            stop: AtomicBool::new(false),
            handle: OnceLock::new(),
        });
        let actor = Arc::new(LogActor(shared.clone()));
        let handle = env.spawner.spawn("thinmap-logw", actor)?;
        let _ = shared.handle.set(handle);
        Ok(LogRef(shared))
    }
}

impl Shared {
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Relaxed)
    }

    /// COMPAT: the last sector is one before the next entry's first, also of a log that is full.
    pub fn status(&self) -> String {
        let place = self.place.lock();
        let disabled = if self.is_enabled() {
            ""
        } else {
            " logging_disabled"
        };
        format!("{} {}{disabled}", place.entries, place.next.raw() - 1)
    }

    /// A flush comes: gives the number to end it with.
    pub fn begin_flush(&self) -> u64 {
        self.pending.lock().begin_flush()
    }

    /// A mark is to be logged.
    pub fn mark(&self, text: &[u8]) {
        let entry = self.mark_entry(text);
        self.pending.lock().log(entry);
        self.wake();
    }

    fn mark_entry(&self, text: &[u8]) -> Entry {
        Entry {
            first: 0,
            blocks: 0,
            flags: EntryFlags::MARK,
            data: text.to_vec(),
        }
    }

    /// A request that was watched has ended; `tag` is a flush's number, or the sector where anything else was.
    pub fn ended(&self, io: Io, tag: u64, status: BlkStatus) {
        let sectors_in_block = u64::from(self.block_bytes >> 9);
        let flags = match io.op {
            Op::Flush => EntryFlags::FLUSH,
            Op::Discard => EntryFlags::DISCARD,
            _ if io.flags.fua => EntryFlags::FUA,
            _ => EntryFlags::default(),
        };
        let first = if io.op == Op::Flush { 0 } else { tag };
        let entry = Entry {
            first: first / sectors_in_block,
            blocks: io.sectors.raw() / sectors_in_block,
            flags,
            data: io.buf.as_slice().to_vec(),
        };
        let mut pending = self.pending.lock();
        if !self.is_enabled() {
            drop(pending);
            return io.complete(status);
        }
        if flags == EntryFlags::FLUSH {
            pending.end_flush(tag, entry);
        } else if flags == EntryFlags::FUA {
            pending.log(entry);
        } else {
            pending.add(entry);
        }
        let has_work = pending.has_work();
        let ended = pending.hold(io, status);
        drop(pending);
        if has_work {
            self.wake();
        }
        if let Some((io, status)) = ended {
            io.complete(status);
        }
    }

    fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Writes what is next; `false` when there is nothing.
    fn write_some(&self) -> bool {
        let batch = self.pending.lock().take(BATCH_BYTES);
        if batch.is_empty() {
            return false;
        }
        let bytes = batch.iter().map(|entry| entry.data.len()).sum();
        for entry in batch {
            if self.is_enabled() && self.write(entry).is_err() {
                self.give_up();
                return true;
            }
        }
        let ended = {
            let mut pending = self.pending.lock();
            if self.is_enabled() {
                pending.written(bytes);
            }
            pending.release()
        };
        complete(ended);
        true
    }

    /// Writes one entry, and the super when it must be found after a power cut.
    fn write(&self, entry: Entry) -> Result<(), BlkStatus> {
        let block = Sector::from_bytes(u64::from(self.block_bytes));
        let is_mark = entry.flags.has(EntryFlags::MARK);
        let data_sectors = match entry.flags.has(EntryFlags::DISCARD) {
            true => Sector::ZERO,
            false => Sector(entry.blocks.saturating_mul(block.raw())),
        };
        let (at, entries) = {
            let mut place = self.place.lock();
            let at = place.next;
            place.next = at + block + data_sectors;
            let end = self.device.size();
            if end > Sector::ZERO && place.next >= end {
                tracing::error!("log-writes: Ran out of space on the logdev");
                return Err(BlkStatus::NoSpc);
            }
            place.entries += 1;
            (at, place.entries)
        };
        let head = EntryDisk {
            first: entry.first,
            blocks: entry.blocks,
            flags: entry.flags,
            text_bytes: if is_mark { entry.data.len() as u64 } else { 0 },
        };
        let mut buf = IoBuf::alloc((block + data_sectors).bytes() as usize);
        let bytes = buf.as_mut_slice();
        bytes.fill(0);
        head.pack(bytes);
        let data_at = match is_mark {
            true => super::disk::HEAD_BYTES,
            false => self.block_bytes as usize,
        };
        bytes[data_at..data_at + entry.data.len()].copy_from_slice(&entry.data);
        self.write_at(at, buf)?;
        if !is_mark && !entry.flags.has(EntryFlags::FUA) {
            return Ok(());
        }
        let mut buf = IoBuf::alloc(self.block_bytes as usize);
        buf.as_mut_slice().fill(0);
        pack_super(buf.as_mut_slice(), entries, self.block_bytes);
        self.write_at(Sector::ZERO, buf)
    }

    fn write_at(&self, at: Sector, buf: IoBuf) -> Result<(), BlkStatus> {
        let sectors = Sector::from_bytes(buf.len() as u64);
        let request = (Op::Write, IoFlags::default(), at, sectors, buf);
        let ended = submit_all_and_wait(&*self.device, vec![request]);
        match ended.iter().find(|(_, status)| !status.is_ok()) {
            Some((_, status)) => {
                tracing::error!(%at, ?status, "log-writes: Error writing log block");
                Err(*status)
            }
            None => Ok(()),
        }
    }

    /// No more is logged. The device goes on.
    fn give_up(&self) {
        let ended = {
            let mut pending = self.pending.lock();
            self.enabled.store(false, Relaxed);
            pending.forget()
        };
        complete(ended);
    }
}

fn complete(ended: Vec<(Io, BlkStatus)>) {
    for (io, status) in ended {
        io.complete(status);
    }
}

struct LogActor(Arc<Shared>);

impl Actor for LogActor {
    fn turn(&self, _now: Duration) -> NextTurn {
        while self.0.write_some() {}
        match self.0.stop.load(Relaxed) {
            // Set after the last entry was left here: look once more.
            true if !self.0.write_some() => NextTurn::Stop,
            true => NextTurn::At(Duration::ZERO),
            false => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        self.0.give_up();
        tracing::error!("log-writes: the worker ended by a panic: nothing is logged any more");
    }
}
