//! Volumes whose changes were given up, and which no flush has told of yet: in memory that outlives the process, as a flush after the
//! daemon's death must tell of it, too.
//!
//! INVARIANT: one word says which of two lists counts and how long it is, so that a death finds the one or the other.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_dm::MemoryKeeper;
use thinmap_units::ThinId;

use crate::kept::Named;

/// See the module.
pub(super) struct Lost(Named);

/// What the last process left.
pub(super) enum Left {
    /// These volumes.
    Volumes(Vec<ThinId>),
    /// More than the memory has room for: any.
    All,
}

impl Lost {
    /// As the last process left it, or new and empty.
    ///
    /// # Errors
    /// As of [`Named::open`].
    pub fn open(keeper: Arc<dyn MemoryKeeper>, name: String) -> std::io::Result<Self> {
        Named::open(keeper, name, (MAGIC, 0, WORDS)).map(Self)
    }

    pub fn left(&self) -> Left {
        let (list, len) = self.state();
        if len == ALL {
            return Left::All;
        }
        let id = |at: usize| ThinId::new(self.0.word(IDS_AT + list * IDS_MAX + at).load(SeqCst));
        let len = usize::try_from(len).map_or(0, |len| len.min(IDS_MAX));
        Left::Volumes((0..len).filter_map(id).collect())
    }

    /// These and no others.
    pub fn keep(&self, volumes: impl Iterator<Item = ThinId>) {
        let (list, _) = self.state();
        let list = 1 - list;
        let mut len = 0;
        for id in volumes {
            if len == IDS_MAX {
                return self.set_state(list, ALL);
            }
            let at = IDS_AT + list * IDS_MAX + len;
            self.0.word(at).store(u64::from(id.raw()), SeqCst);
            len += 1;
        }
        self.set_state(list, len as u64);
    }

    /// The pool has failed, and its metadata may not say so; or they do by now.
    pub fn note_failure(&self, failed: bool) {
        self.0.word(FAILED_AT).store(u64::from(failed), SeqCst);
    }

    /// Whether the last process's pool had.
    pub fn pool_has_failed(&self) -> bool {
        self.0.word(FAILED_AT).load(SeqCst) != 0
    }

    /// The pool ends in good order.
    pub fn forget(&self) {
        self.0.forget();
    }

    fn state(&self) -> (usize, u64) {
        let state = self.0.word(STATE_AT).load(SeqCst);
        ((state >> LIST_SHIFT) as usize, state & !(1 << LIST_SHIFT))
    }

    fn set_state(&self, list: usize, len: u64) {
        let state = (list as u64) << LIST_SHIFT | len;
        self.0.word(STATE_AT).store(state, SeqCst);
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"tmlost01");
/// Bit 63: which list; below: how many ids it has.
const STATE_AT: usize = 2;
const LIST_SHIFT: u32 = 63;
const FAILED_AT: usize = 3;
const IDS_AT: usize = 4;
const IDS_MAX: usize = 2000;
const ALL: u64 = u32::MAX as u64;
const WORDS: usize = IDS_AT + 2 * IDS_MAX;
