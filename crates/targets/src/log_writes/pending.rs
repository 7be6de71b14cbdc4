//! What is to be logged and what may be: lists of entries, with their data, and how much memory they hold.
//!
//! INVARIANT: `unflushed_bytes` never exceeds [`UNFLUSHED_BYTES_MAX`] by more than one request. Above it the oldest entries are
//! logged without waiting for a flush, as a disk whose cache is that large would write them. (`docs/decisions/0120-*`)

use std::collections::{HashMap, VecDeque};

use thinmap_block::Io;
use thinmap_units::BlkStatus;

use super::disk::EntryFlags;

/// Data of writes that no flush has followed yet.
pub(super) const UNFLUSHED_BYTES_MAX: usize = 64 << 20;
/// Data on its way to the log device. Above it writes end later.
pub(super) const LOGGING_BYTES_MAX: usize = 16 << 20;

/// An entry to be.
#[derive(Debug)]
pub(super) struct Entry {
    /// In blocks.
    pub first: u64,
    /// In blocks.
    pub blocks: u64,
    pub flags: EntryFlags,
    /// What was written, or a mark's text.
    pub data: Vec<u8>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Pending {
    /// Ended, in that order; no flush came since.
    unflushed: VecDeque<Entry>,
    unflushed_bytes: usize,
    /// A flush came after these, and has not ended. By its number.
    flushing: HashMap<u64, Vec<Entry>>,
    flushes: u64,
    /// To be written, in this order.
    logging: VecDeque<Entry>,
    logging_bytes: usize,
    /// Requests that end when there is room again in `logging`.
    held: Vec<(Io, BlkStatus)>,
}

impl Pending {
    /// A flush comes: gives its number.
    pub fn begin_flush(&mut self) -> u64 {
        self.flushes += 1;
        let covered = std::mem::take(&mut self.unflushed).into();
        self.flushing.insert(self.flushes, covered);
        self.flushes
    }

    /// That flush has ended.
    pub fn end_flush(&mut self, number: u64, entry: Entry) {
        for covered in self.flushing.remove(&number).unwrap_or_default() {
            self.unflushed_bytes -= covered.data.len();
            self.log(covered);
        }
        self.log(entry);
    }

    /// A write or discard has ended that only a flush makes durable.
    pub fn add(&mut self, entry: Entry) {
        self.unflushed_bytes += entry.data.len();
        self.unflushed.push_back(entry);
        while self.unflushed_bytes > UNFLUSHED_BYTES_MAX
            && let Some(oldest) = self.unflushed.pop_front()
        {
            self.unflushed_bytes -= oldest.data.len();
            self.log(oldest);
        }
    }

    /// This is to be written.
    pub fn log(&mut self, entry: Entry) {
        self.logging_bytes += entry.data.len();
        self.logging.push_back(entry);
    }

    /// All of it is to be written: the end.
    pub fn log_all(&mut self) {
        self.unflushed_bytes = 0;
        let mut numbers: Vec<u64> = self.flushing.keys().copied().collect();
        numbers.sort_unstable();
        let early = numbers
            .iter()
            .filter_map(|number| self.flushing.remove(number))
            .flatten()
            .collect::<Vec<_>>();
        let rest = std::mem::take(&mut self.unflushed);
        early.into_iter().chain(rest).for_each(|e| self.log(e));
    }

    /// The next ones to be written: as many as hold `bytes`, or one.
    pub fn take(&mut self, bytes: usize) -> Vec<Entry> {
        let mut taken = Vec::new();
        let mut size = 0;
        while let Some(entry) = self.logging.front() {
            size += entry.data.len();
            if size > bytes && !taken.is_empty() {
                break;
            }
            taken.extend(self.logging.pop_front());
        }
        taken
    }

    /// Entries with so many bytes of data are written.
    pub fn written(&mut self, bytes: usize) {
        self.logging_bytes -= bytes;
    }

    pub fn has_work(&self) -> bool {
        !self.logging.is_empty()
    }

    /// Gives a request back that may end; keeps it while the log device is too far behind.
    pub fn hold(&mut self, io: Io, status: BlkStatus) -> Option<(Io, BlkStatus)> {
        if self.logging_bytes <= LOGGING_BYTES_MAX {
            return Some((io, status));
        }
        self.held.push((io, status));
        None
    }

    /// Those that were kept, when there is room.
    pub fn release(&mut self) -> Vec<(Io, BlkStatus)> {
        if self.logging_bytes > LOGGING_BYTES_MAX {
            return Vec::new();
        }
        std::mem::take(&mut self.held)
    }

    /// Forgets all entries: logging was given up. Gives the requests that were kept.
    pub fn forget(&mut self) -> Vec<(Io, BlkStatus)> {
        let flushes = self.flushes;
        let held = std::mem::take(&mut self.held);
        *self = Self {
            flushes,
            ..Self::default()
        };
        held
    }
}
