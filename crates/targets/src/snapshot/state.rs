//! What a snapshot is in memory: its exceptions, those under way, and who waits for what.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use thinmap_block::{BlockDevice, Io};
use thinmap_units::Sector;

use super::exceptions::Exceptions;
use super::room::Room;
use super::snapshot::Snapshot;

/// Whether the snapshot is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Validity {
    Valid,
    /// It must become invalid: writes to the origin wait until its header says so.
    Dropping,
    Invalid,
}

/// Behind the snapshot's lock. Held for look-ups and changes only, never while a request is submitted.
pub(super) struct State {
    pub validity: Validity,
    /// A write to the snapshot found no room, and it keeps what it has.
    pub overflowed: bool,
    pub merge_failed: bool,
    pub complete: Exceptions,
    /// Being copied, or complete with reads of the origin still on their way.
    pub pending: HashMap<u64, Pending>,
    pub room: Room,
    /// The store's current area; `None` where there is no store.
    pub area: Option<u64>,
    /// Number of the next exception.
    pub sequence: u64,
    /// Wait until the snapshot is invalid.
    pub stranded: Vec<Waiting>,
    /// Chunks of the origin that are being merged: writes to them wait.
    pub merging: Option<Range<u64>>,
    /// Those writes.
    pub queued: Vec<Io>,
    /// Merged chunks of which the store may have the exceptions or not: written to neither device, or the next reader of the store
    /// could find the other.
    pub doubtful: Option<Range<u64>>,
}

/// A chunk that is being copied, and those who wait for that.
pub(super) struct Pending {
    /// Writes to the origin, and whoever else waits for the exception.
    pub origin: Vec<Waiting>,
    /// Writes to the snapshot.
    pub snapshot: Vec<Io>,
}

/// Who waits for an exception.
pub(super) enum Waiting {
    /// A write that goes to this device, the origin, then.
    Write(Io, Arc<dyn BlockDevice>),
    /// A write to the snapshot that found no room: it fails when the snapshot is invalid and its event was raised.
    Fail(Io),
    /// A merging snapshot's worker.
    Merge(Arc<Snapshot>),
}

impl State {
    pub fn new(room: Room, area: Option<u64>) -> Self {
        Self {
            validity: Validity::Valid,
            overflowed: false,
            merge_failed: false,
            complete: Exceptions::default(),
            pending: HashMap::new(),
            room,
            area,
            sequence: 0,
            stranded: Vec::new(),
            merging: None,
            queued: Vec::new(),
            doubtful: None,
        }
    }

    /// Gives a chunk its place and makes it pending: place and number of the exception. `None` when the COW device, of the size
    /// that is asked for, is full.
    pub fn allocate(&mut self, chunk: u64, size: impl Fn() -> Sector) -> Option<(u64, u64)> {
        let new = self.room.take(size)?;
        let sequence = self.sequence;
        self.sequence += 1;
        let pending = Pending {
            origin: Vec::new(),
            snapshot: Vec::new(),
        };
        self.pending.insert(chunk, pending);
        Some((new, sequence))
    }

    /// Whether a write to these chunks of the origin may go.
    pub fn is_protected(&self, first: u64, last: u64) -> bool {
        match self.validity {
            Validity::Invalid => true,
            Validity::Dropping => false,
            Validity::Valid => {
                let is_pending = |chunk| self.pending.contains_key(&chunk);
                self.complete.cover(first, last)
                    && (self.pending.is_empty() || !(first..=last).any(is_pending))
            }
        }
    }
}
