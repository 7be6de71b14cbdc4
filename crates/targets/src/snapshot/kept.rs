//! The exceptions of a transient snapshot, in memory that outlives the process: its COW device does not tell of them. See
//! `docs/internals/snapshot-store.md`.
//!
//! INVARIANT: an exception counts once the count is stored after it, and is noted before anybody acts on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use thinmap_dm::{DeviceId, DeviceUse, Environment, KeptMemory};
use thinmap_units::Sector;

use super::disk::Slot;
use super::state::{State, Validity};
use crate::kept::{Named, name_on};

const MAGIC: u64 = u64::from_le_bytes(*b"snap-N01");
/// 0, or why there is no snapshot any more.
const INVALID_AT: usize = 2;
const COUNT_AT: usize = 3;
const SLOTS_AT: usize = 4;

/// See the module.
pub(super) struct Kept {
    memory: Named,
    /// In [`InUse`] while this lives.
    _in_use: Arc<()>,
}

/// COW devices whose snapshots are kept. A second snapshot on one, of another origin, must not take the first one's memory from it.
#[derive(Default)]
struct InUse(Mutex<HashMap<DeviceId, Weak<()>>>);

impl Kept {
    /// Makes `state`, a new one, what the snapshot on this COW device was when the last process died, if there was one.
    ///
    /// # Errors
    /// The system's. What was kept in another form is no error: the snapshot is invalid then, and nothing is kept.
    pub fn take_over(
        env: &Environment,
        cow: &DeviceUse,
        chunk: Sector,
        state: &mut State,
    ) -> std::io::Result<Option<Self>> {
        let kept_memory = env.shared.of::<KeptMemory>();
        let Some(keeper) = kept_memory.keeper() else {
            return Ok(None);
        };
        let registry = env.shared.of::<InUse>();
        let mut in_use = registry.0.lock();
        if in_use
            .get(&cow.id)
            .is_some_and(|other| other.strong_count() > 0)
        {
            tracing::warn!(%cow, "snapshot: the COW device has another snapshot: if the daemon dies, this one will be invalid or lost");
            return Ok(None);
        }
        let name = name_on("snapshot", cow.id);
        let chunks = cow.dev.size().raw() / chunk.raw();
        let words = usize::try_from(chunks).unwrap_or(usize::MAX / 32) * 2 + SLOTS_AT;
        let kept = match Named::open(keeper, name, (MAGIC, chunk.raw(), words)) {
            Ok(memory) => Self {
                memory,
                _in_use: Arc::default(),
            },
            Err(error) if error.raw_os_error().is_none() => {
                tracing::error!(%error, "snapshot: its exceptions are lost: the snapshot is invalid");
                state.validity = Validity::Invalid;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        in_use.insert(cow.id, Arc::downgrade(&kept._in_use));
        if kept.memory.is_new() && kept_memory.is_bringing_back() {
            tracing::error!(%cow, "snapshot: its exceptions are lost: the snapshot is invalid");
            kept.invalidate();
        }
        if !kept.is_valid() {
            state.validity = Validity::Invalid;
        }
        for slot in kept.left() {
            state.complete.insert(slot.old, slot.new);
            state.room.note(slot.new);
        }
        Ok(Some(kept))
    }

    fn slots(&self) -> &[AtomicU64] {
        &self.memory.words()[SLOTS_AT..]
    }

    fn left(&self) -> Vec<Slot> {
        let count = self.memory.word(COUNT_AT).load(SeqCst) as usize;
        let slots = self.slots().chunks_exact(2).take(count);
        let slot = |words: &[AtomicU64]| Slot {
            old: words[0].load(SeqCst),
            new: words[1].load(SeqCst),
        };
        slots.map(slot).collect()
    }

    fn is_valid(&self) -> bool {
        self.memory.word(INVALID_AT).load(SeqCst) == 0
    }

    /// Exceptions are about to be in force. More than the COW device had room for when the snapshot was made are not kept, and so the
    /// next process has no snapshot.
    pub fn note(&self, slots: &[Slot]) {
        for slot in slots {
            let count = self.memory.word(COUNT_AT).load(SeqCst);
            let Some([old, new]) = self.slots().as_chunks::<2>().0.get(count as usize) else {
                return self.invalidate();
            };
            old.store(slot.old, SeqCst);
            new.store(slot.new, SeqCst);
            self.memory.word(COUNT_AT).store(count + 1, SeqCst);
        }
    }

    /// There is no snapshot any more.
    pub fn invalidate(&self) {
        self.memory.word(INVALID_AT).store(1, SeqCst);
    }

    /// The line that read them ends before it was live.
    pub fn put_back(&self) {
        self.memory.put_back();
    }

    /// The snapshot ends in good order.
    pub fn forget(&self) {
        self.memory.forget();
    }
}
