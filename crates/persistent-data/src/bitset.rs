//! Arrays of bits, in words of 64. (dm-bitset.c)

use crate::array;
use crate::cache::MayRead;
use crate::error::{MetadataError, Result};
use crate::transaction_manager::{Reader, TransactionManager};

/// Bits in a word.
pub const WORD_BITS: u64 = 64;

/// A new bitset without bits.
pub fn empty(tm: &mut TransactionManager) -> Result<u64> {
    array::empty(tm)
}

/// Changes the number of bits from `old` to `new`; new words are zero. Gives the new root.
pub fn resize(tm: &mut TransactionManager, root: u64, (old, new): (u64, u64)) -> Result<u64> {
    let words = (old.div_ceil(WORD_BITS), new.div_ceil(WORD_BITS));
    array::resize(tm, root, words, &[0; 8])
}

/// Word `index`: bit 0 is the first of its bits. `None` past the end.
pub fn word(reader: &Reader, root: u64, index: u64, may_read: MayRead) -> Result<Option<u64>> {
    let word = array::get::<8>(reader, root, index, may_read)?;
    Ok(word.map(u64::from_le_bytes))
}

/// Sets word `index`, which must be inside; gives the new root.
pub fn set_word(tm: &mut TransactionManager, root: u64, index: u64, word: u64) -> Result<u64> {
    array::set(tm, root, index, &word.to_le_bytes())
}

/// Sets a bit, which must be inside; gives the new root.
pub fn set(tm: &mut TransactionManager, root: u64, bit: u64) -> Result<u64> {
    let index = bit / WORD_BITS;
    let old = word(tm.reader(), root, index, MayRead::Yes)?.ok_or_else(|| {
        MetadataError::out_of_bounds(format!("bit {bit} is past the end of its bitset"))
    })?;
    set_word(tm, root, index, old | 1 << (bit % WORD_BITS))
}

/// Gives up one reference to a bitset.
pub fn delete(tm: &mut TransactionManager, root: u64) -> Result<()> {
    array::delete(tm, root)
}
