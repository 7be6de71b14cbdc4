//! Entries whose writes have ended and no commit has made valid yet, in memory that outlives the process.
//!
//! After a crash of the daemon alone the page cache above believes in its writes, flushed or not: the data are in the cache's blocks, and
//! the next daemon learns from here which. See `docs/internals/continuity.md`.
//!
//! Two halves, one for each epoch: while a commit is under way the next epoch's entries come into the other one.
//!
//! INVARIANT: all calls but those of [`Journals`] are made under the line's lock. A record counts once the count says so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use thinmap_dm::{Environment, KeptMemory, MemoryKeeper};
use thinmap_runtime::SharedMemory;

use super::disk::EntryDisk;

/// The journals that are in use, by name: a table that is loaded over the same cache shares that of the live one.
#[derive(Default)]
pub(super) struct Journals(Mutex<HashMap<String, Weak<Journal>>>);

/// See the module. Forgotten with its last user, in good order.
pub(super) struct Journal {
    memory: SharedMemory,
    keeper: Arc<dyn MemoryKeeper>,
    name: String,
    journals: Arc<Journals>,
    /// It is no longer as the last process left it.
    changed: AtomicBool,
}

/// The journal of the cache of this name, where something keeps memory.
pub(super) fn open(env: &Environment, name: String) -> std::io::Result<Option<Arc<Journal>>> {
    let Some(keeper) = env.shared.of::<KeptMemory>().keeper() else {
        return Ok(None);
    };
    let journals = env.shared.of::<Journals>();
    let mut in_use = journals.0.lock();
    if let Some(journal) = in_use.get(&name).and_then(Weak::upgrade) {
        return Ok(Some(journal));
    }
    let memory = keeper.open(&name, WORDS)?;
    let magic = memory.words().first().map_or(0, |word| word.load(SeqCst));
    if memory.words().len() != WORDS || (magic != 0 && magic != MAGIC) {
        let text = format!("{name}: kept by another version of thinmap, and of another form");
        return Err(std::io::Error::other(text));
    }
    memory.words()[0].store(MAGIC, SeqCst);
    let journal = Arc::new(Journal {
        memory,
        keeper,
        name: name.clone(),
        journals: journals.clone(),
        changed: AtomicBool::new(false),
    });
    in_use.insert(name, Arc::downgrade(&journal));
    Ok(Some(journal))
}

impl Drop for Journal {
    fn drop(&mut self) {
        let mut in_use = self.journals.0.lock();
        // Another one of the same name may have been opened since the last user went.
        if in_use
            .get(&self.name)
            .is_some_and(|other| other.strong_count() == 0)
        {
            in_use.remove(&self.name);
            // A table that could not be loaded is tried again, and finds it as it was.
            match self.changed.load(SeqCst) {
                true => self.keeper.forget(&self.name),
                false => self.keeper.put_back(&self.name),
            }
        }
    }
}

impl Journal {
    /// What was written and is not valid on a medium with this sequence number, in order.
    pub fn left(&self, seq_on_disk: u64) -> Vec<(u32, EntryDisk)> {
        let mut halves = [0, 1].map(|epoch| (self.word(epoch, SEQ_AT).load(SeqCst), epoch));
        halves.sort_unstable();
        let mut left = Vec::new();
        for (seq, epoch) in halves.into_iter().filter(|(seq, _)| *seq >= seq_on_disk) {
            for record in 0..self.count(epoch) {
                let at = RECORDS_AT + record * RECORD_WORDS;
                let [index, sector] = [at, at + 1].map(|at| self.word(epoch, at).load(SeqCst));
                left.push((index as u32, EntryDisk { sector, seq }));
            }
        }
        left
    }

    /// An epoch begins, whose entries have this sequence number.
    pub fn begin(&self, epoch: usize, seq: u64) {
        self.clear(epoch);
        self.word(epoch, SEQ_AT).store(seq, SeqCst);
    }

    /// An epoch's entries are valid, or gone.
    pub fn clear(&self, epoch: usize) {
        self.changed.store(true, SeqCst);
        self.word(epoch, COUNT_AT).store(0, SeqCst);
    }

    /// Notes an entry before anybody is told of its write; `false` without room: only a commit makes it known then.
    #[must_use]
    pub fn note(&self, epoch: usize, index: u32, sector: u64) -> bool {
        let count = self.count(epoch);
        if count == RECORDS_MAX {
            return false;
        }
        let at = RECORDS_AT + count * RECORD_WORDS;
        self.word(epoch, at).store(u64::from(index), SeqCst);
        self.word(epoch, at + 1).store(sector, SeqCst);
        self.word(epoch, COUNT_AT).store(count as u64 + 1, SeqCst);
        true
    }

    fn count(&self, epoch: usize) -> usize {
        let count = self.word(epoch, COUNT_AT).load(SeqCst);
        (count as usize).min(RECORDS_MAX)
    }

    fn word(&self, epoch: usize, at: usize) -> &AtomicU64 {
        &self.memory.words()[1 + epoch * HALF_WORDS + at]
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"tmwcjr01");
const COUNT_AT: usize = 0;
const SEQ_AT: usize = 1;
const RECORDS_AT: usize = 2;
const RECORD_WORDS: usize = 2;
/// As many as are written before a commit comes by itself. 2 MiB in all.
const RECORDS_MAX: usize = 1 << 16;
const HALF_WORDS: usize = RECORDS_AT + RECORDS_MAX * RECORD_WORDS;
const WORDS: usize = 1 + 2 * HALF_WORDS;
