//! Changes of mappings that users were told of and no commit has made durable yet, in memory that outlives the process.
//!
//! After a crash of the daemon alone the page cache above still believes in them, so the next daemon applies them to the metadata
//! of the last commit before anything else. See `docs/internals/continuity.md`.
//!
//! INVARIANT: only the pool's worker appends and resets, so records and commits never overlap. A record counts once the count
//! word says so; the count and the choice of the superblock it belongs to are one word, stored at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thinmap_dm::MemoryKeeper;
use thinmap_runtime::SharedMemory;
use thinmap_thin_metadata::{MetadataError, PoolMetadata, Result};
use thinmap_units::{DataBlock, ThinId, VirtBlock};

use super::metadata_dev::BlockMetadataDevice;

/// See the module.
pub(super) struct Journal {
    memory: SharedMemory,
    metadata_dev: Arc<BlockMetadataDevice>,
    keeper: Arc<dyn MemoryKeeper>,
    name: String,
}

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// A block is mapped, maybe in place of another mapping.
    Insert(ThinId, VirtBlock, DataBlock),
    /// Blocks from the first up to the second are unmapped.
    Remove(ThinId, VirtBlock, VirtBlock),
}

impl Journal {
    /// The pool's journal as the last process left it, or a new one.
    pub(super) fn open(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        metadata_dev: Arc<BlockMetadataDevice>,
    ) -> std::io::Result<Self> {
        let memory = keeper.open(&name, WORDS)?;
        let magic = memory.words()[MAGIC_AT].load(SeqCst);
        if memory.words().len() != WORDS || (magic != 0 && magic != MAGIC) {
            let text = format!("{name}: kept by another version of thinmap, and of another form");
            return Err(std::io::Error::other(text));
        }
        Ok(Self {
            memory,
            metadata_dev,
            keeper,
            name,
        })
    }

    /// What the last process did to the metadata that is on the device now and did not commit, in order.
    pub(super) fn left(&self) -> Result<Vec<Entry>> {
        if self.word(MAGIC_AT).load(SeqCst) != MAGIC {
            return Ok(Vec::new());
        }
        let (slot, count) = self.state();
        let on_device = self.superblock()?;
        let base = BASES_AT + slot * BASE_WORDS;
        let same = (0..BASE_WORDS).all(|i| self.word(base + i).load(SeqCst) == on_device[i]);
        // Another superblock: the commit that holds these changes was done, or the device is another.
        if !same {
            return Ok(Vec::new());
        }
        Ok((0..count).filter_map(|i| self.record(i)).collect())
    }

    /// From now on what is appended comes on top of the metadata that is on the device now.
    pub(super) fn reset(&self) -> Result<()> {
        let superblock = self.superblock()?;
        let slot = 1 - self.state().0;
        let base = BASES_AT + slot * BASE_WORDS;
        for (i, value) in superblock.iter().enumerate() {
            self.word(base + i).store(*value, SeqCst);
        }
        self.word(STATE_AT)
            .store((slot as u64) << SLOT_SHIFT, SeqCst);
        self.word(MAGIC_AT).store(MAGIC, SeqCst);
        Ok(())
    }

    /// Notes a change, before anybody is told of it. [`Journal::has_room`] was asked before.
    pub(super) fn append(&self, change: Entry) {
        let (slot, count) = self.state();
        let at = RECORDS_AT + count * RECORD_WORDS;
        let (kind, id, a, b) = match change {
            Entry::Insert(id, v, data) => (INSERT, id, v.raw(), data.raw()),
            Entry::Remove(id, begin, end) => (REMOVE, id, begin.raw(), end.raw()),
        };
        let head = kind << KIND_SHIFT | u64::from(id.raw());
        for (i, value) in [head, a, b].into_iter().enumerate() {
            self.word(at + i).store(value, SeqCst);
        }
        let state = (slot as u64) << SLOT_SHIFT | (count as u64 + 1);
        self.word(STATE_AT).store(state, SeqCst);
    }

    /// Whether another change can be noted; if not, a commit must come first.
    pub(super) fn has_room(&self) -> bool {
        self.state().1 < RECORDS_MAX
    }

    /// The pool ends in good order.
    pub(super) fn forget(&self) {
        self.keeper.forget(&self.name);
    }

    fn record(&self, number: usize) -> Option<Entry> {
        let at = RECORDS_AT + number * RECORD_WORDS;
        let [head, a, b] = [0, 1, 2].map(|i| self.word(at + i).load(SeqCst));
        let id = ThinId::new(head & !(u64::MAX << KIND_SHIFT))?;
        match head >> KIND_SHIFT {
            INSERT => Some(Entry::Insert(id, VirtBlock(a), DataBlock(b))),
            REMOVE => Some(Entry::Remove(id, VirtBlock(a), VirtBlock(b))),
            _ => None,
        }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.memory.words()[at]
    }

    fn state(&self) -> (usize, usize) {
        let state = self.word(STATE_AT).load(SeqCst);
        let count = (state & !(1 << SLOT_SHIFT)) as usize;
        ((state >> SLOT_SHIFT) as usize, count.min(RECORDS_MAX))
    }

    /// The superblock's sector, which is all of it that a commit writes.
    fn superblock(&self) -> Result<[u64; BASE_WORDS]> {
        let block = self
            .metadata_dev
            .superblock()
            .map_err(|source| MetadataError::io(source, "cannot read the superblock"))?;
        let mut words = [0; BASE_WORDS];
        for (word, bytes) in words.iter_mut().zip(block.0.chunks_exact(8)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        Ok(words)
    }
}

/// Applies what a process left to the metadata of the last commit. Commit it afterwards.
pub(super) fn apply(metadata: &mut PoolMetadata, changes: &[Entry]) -> Result<()> {
    for change in changes {
        match *change {
            Entry::Insert(id, v, data) => {
                metadata.inc_data_range(data, DataBlock(data.raw() + 1))?;
                metadata.insert(id, v, data)?;
            }
            Entry::Remove(id, begin, end) => {
                metadata.remove_range(id, begin, end)?;
            }
        }
    }
    Ok(())
}

const MAGIC: u64 = u64::from_le_bytes(*b"tmjrnl01");
const MAGIC_AT: usize = 0;
/// Bit 63: which base; below: how many records.
const STATE_AT: usize = 1;
const SLOT_SHIFT: u32 = 63;
const BASES_AT: usize = 2;
/// 512 bytes.
const BASE_WORDS: usize = 64;
const RECORDS_AT: usize = BASES_AT + 2 * BASE_WORDS;
const RECORD_WORDS: usize = 3;
/// 65,536 changes, 1.5 MiB: more than a second's worth between two commits is rare, and then one comes earlier.
const RECORDS_MAX: usize = 1 << 16;
const WORDS: usize = RECORDS_AT + RECORDS_MAX * RECORD_WORDS;
const KIND_SHIFT: u32 = 32;
const INSERT: u64 = 1;
const REMOVE: u64 = 2;
