//! Runs: mappings in a row, on the volume as on the data device.

use thinmap_persistent_data::btree::NodeView;
use thinmap_persistent_data::{MetadataError, Result};

/// Bits of a mapping that hold the time.
const TIME_BITS: u32 = 24;

/// `len` blocks of a volume from `thin` on, mapped to as many data blocks from `data` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The volume's first block.
    pub thin: u64,
    /// The first data block.
    pub data: u64,
    /// How many blocks.
    pub len: u64,
    /// The pool's time when the first was mapped.
    pub time: u32,
}

impl Run {
    /// The volume's block behind the last.
    pub fn end(&self) -> u64 {
        self.thin + self.len
    }
}

/// Whether blocks mapped at different times can be one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Times {
    /// They cannot.
    Kept,
    /// They can; the run's time is that of its first block.
    Ignored,
}

impl Times {
    /// Whether `next` goes on where `run` ends.
    pub fn join(self, run: &Run, next: &Run) -> bool {
        run.end() == next.thin
            && run.data + run.len == next.data
            && (self == Self::Ignored || run.time == next.time)
    }

    /// Adds `next` to `runs`, to the last of them if it goes on there.
    pub fn append(self, runs: &mut Vec<Run>, next: Run) {
        match runs.last_mut() {
            Some(last) if self.join(last, &next) => last.len += next.len,
            _ => runs.push(next),
        }
    }
}

/// Adds the mappings of a leaf to `runs`.
///
/// # Errors
/// `Corrupt`: no leaf of mappings, or keys that do not ascend, also from the runs before.
pub fn decode(leaf: &NodeView, block: u64, times: Times, runs: &mut Vec<Run>) -> Result<()> {
    if !leaf.is_leaf() || leaf.value_size() != 8 {
        let what = "a leaf of mappings is expected here";
        return Err(MetadataError::corrupt(block, what));
    }
    let mut end = runs.last().map_or(0, Run::end);
    for at in 0..leaf.len() {
        let (thin, value) = (leaf.key(at), leaf.value_u64(at));
        if thin < end || thin == u64::MAX {
            return Err(out_of_order(block));
        }
        end = thin + 1;
        let next = Run {
            thin,
            data: value >> TIME_BITS,
            len: 1,
            time: value as u32 & ((1 << TIME_BITS) - 1),
        };
        times.append(runs, next);
    }
    Ok(())
}

pub(crate) fn out_of_order(block: u64) -> MetadataError {
    MetadataError::corrupt(block, "btree keys do not ascend")
}
