//! Copy-on-write arrays: values of a fixed size by index, in blocks that a btree finds.
//!
//! An array is the root of its btree, which maps the number of each array block to that block. All
//! blocks but the last are full; the array itself does not know its length. Values refer to nothing.
//! (dm-array.c)
//!
//! COMPAT: blocks are made, filled and dropped in the kernel's order, because the number of metadata
//! blocks shows in status lines.

use crate::block::{BlockBytes, BlockKind, META_BLOCK_SIZE, put_u32, u32_at};
use crate::btree::{self, ValueOps};
use crate::cache::MayRead;
use crate::error::{MetadataError, Result};
use crate::transaction_manager::{Reader, TransactionManager};

/// Bytes before the first value: checksum, room, length, value size, own address.
const HEADER_BYTES: usize = 24;

/// Values of an array's btree: each refers to an array block.
pub struct ArrayBlocks;

impl ValueOps for ArrayBlocks {
    const SIZE: usize = 8;

    fn inc(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        blocks(values).try_for_each(|block| tm.inc(block))
    }

    fn dec(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        blocks(values).try_for_each(|block| tm.dec(block))
    }
}

fn blocks(values: &[u8]) -> impl Iterator<Item = u64> + '_ {
    values.chunks_exact(8).map(|bytes| {
        let mut le = [0; 8];
        le.copy_from_slice(bytes);
        u64::from_le_bytes(le)
    })
}

/// How many values of `size` bytes a block holds.
pub const fn capacity(size: usize) -> usize {
    (META_BLOCK_SIZE - HEADER_BYTES) / size
}

/// What makes later access to an array block safe.
pub(crate) fn verify(block: u64, bytes: &BlockBytes) -> Result<()> {
    let [room, len, size] = [4, 8, 12].map(|at| u32_at(bytes, at) as usize);
    let fits = size > 0 && len <= room && room <= (META_BLOCK_SIZE - HEADER_BYTES) / size;
    if fits {
        return Ok(());
    }
    let what = format!("array block claims {len} of {room} values of {size} bytes");
    Err(MetadataError::corrupt(block, what))
}

/// A new array without values.
pub fn empty(tm: &mut TransactionManager) -> Result<u64> {
    btree::empty::<ArrayBlocks>(tm)
}

/// Gives up one reference to an array, and to all it alone refers to.
pub fn delete(tm: &mut TransactionManager, root: u64) -> Result<()> {
    btree::delete_tree(tm, &mut ArrayBlocks, root)
}

/// Value `index`; `None` past the end.
pub fn get<const SIZE: usize>(
    reader: &Reader,
    root: u64,
    index: u64,
    may_read: MayRead,
) -> Result<Option<[u8; SIZE]>> {
    let (block_nr, at) = place::<SIZE>(index);
    let Some(block) = btree::lookup_u64(reader, root, block_nr, may_read)? else {
        return Ok(None);
    };
    let bytes = reader.read(block, BlockKind::Array, may_read)?;
    if at >= len::<SIZE>(block, &bytes)? {
        return Ok(None);
    }
    let start = HEADER_BYTES + at * SIZE;
    let mut value = [0; SIZE];
    value.copy_from_slice(&bytes[start..start + SIZE]);
    Ok(Some(value))
}

/// Sets value `index`, which must be inside; gives the new root.
pub fn set<const SIZE: usize>(
    tm: &mut TransactionManager,
    root: u64,
    index: u64,
    value: &[u8; SIZE],
) -> Result<u64> {
    let (block_nr, at) = place::<SIZE>(index);
    let (root, block) = own_block(tm, root, block_nr)?;
    let bytes = tm.write(block)?;
    if at >= len::<SIZE>(block, bytes)? {
        return Err(past_end(index));
    }
    let start = HEADER_BYTES + at * SIZE;
    bytes[start..start + SIZE].copy_from_slice(value);
    Ok(root)
}

/// Changes the number of values from `old` to `new`; new ones are `value`. Gives the new root.
pub fn resize<const SIZE: usize>(
    tm: &mut TransactionManager,
    root: u64,
    (old, new): (u64, u64),
    value: &[u8; SIZE],
) -> Result<u64> {
    let room = capacity(SIZE) as u64;
    let (old_full, old_tail) = (old / room, old % room);
    let (new_full, new_tail) = (new / room, new % room);
    let mut root = root;
    if new < old {
        let keep = new_full + u64::from(new_tail > 0);
        for number in keep..old_full + u64::from(old_tail > 0) {
            (root, _) = btree::remove(tm, &mut ArrayBlocks, root, number)?;
        }
        return match new_tail {
            0 => Ok(root),
            tail => set_len(tm, root, new_full, tail, value),
        };
    }
    if new_full > old_full {
        let mut next = old_full;
        if old_tail > 0 {
            root = set_len(tm, root, old_full, room, value)?;
            next += 1;
        }
        for number in next..new_full {
            root = add_block(tm, root, number, room, value)?;
        }
        return match new_tail {
            0 => Ok(root),
            tail => add_block(tm, root, new_full, tail, value),
        };
    }
    if new_tail == old_tail {
        Ok(root)
    } else if old_tail > 0 {
        set_len(tm, root, new_full, new_tail, value)
    } else {
        add_block(tm, root, new_full, new_tail, value)
    }
}

fn place<const SIZE: usize>(index: u64) -> (u64, usize) {
    let room = capacity(SIZE) as u64;
    (index / room, (index % room) as usize)
}

/// Values in a block, which must be of this size.
fn len<const SIZE: usize>(block: u64, bytes: &BlockBytes) -> Result<usize> {
    let size = u32_at(bytes, 12) as usize;
    if size != SIZE {
        let what = format!("array has values of {size} bytes where {SIZE} are expected");
        return Err(MetadataError::corrupt(block, what));
    }
    Ok(u32_at(bytes, 8) as usize)
}

/// Makes block `number` of the array writable; gives the new root, and the block.
fn own_block(tm: &mut TransactionManager, root: u64, number: u64) -> Result<(u64, u64)> {
    let find = |tm: &TransactionManager, root| {
        let found = btree::lookup_u64(tm.reader(), root, number, MayRead::Yes)?;
        found.ok_or_else(|| past_end(number.saturating_mul(capacity(1) as u64)))
    };
    let old = find(tm, root)?;
    if tm.is_exclusive(old)? && tm.is_exclusive(root)? {
        return Ok((root, old));
    }
    // The way to it first: where that is shared, so is the block, and its count tells.
    let root = btree::replace(tm, &mut ArrayBlocks, root, number, &old.to_le_bytes())?;
    let (new, _) = tm.shadow(old, BlockKind::Array)?;
    let root = btree::replace(tm, &mut ArrayBlocks, root, number, &new.to_le_bytes())?;
    Ok((root, new))
}

fn add_block<const SIZE: usize>(
    tm: &mut TransactionManager,
    root: u64,
    number: u64,
    values: u64,
    value: &[u8; SIZE],
) -> Result<u64> {
    let block = tm.new_block(BlockKind::Array)?;
    let bytes = tm.write(block)?;
    put_u32(bytes, 4, capacity(SIZE) as u32);
    put_u32(bytes, 12, SIZE as u32);
    fill(bytes, (0, values as usize), value);
    let inserted = btree::insert(tm, &mut ArrayBlocks, root, number, &block.to_le_bytes())?;
    Ok(inserted.0)
}

/// Gives a block that is there this many values.
fn set_len<const SIZE: usize>(
    tm: &mut TransactionManager,
    root: u64,
    number: u64,
    values: u64,
    value: &[u8; SIZE],
) -> Result<u64> {
    let (root, block) = own_block(tm, root, number)?;
    let bytes = tm.write(block)?;
    let before = len::<SIZE>(block, bytes)?;
    let room = u32_at(bytes, 4) as usize;
    if values as usize > room {
        return Err(MetadataError::corrupt(block, "array block is too small"));
    }
    fill(bytes, (before, values as usize), value);
    Ok(root)
}

/// Sets the length, and the values from `before` on.
fn fill<const SIZE: usize>(
    bytes: &mut BlockBytes,
    (before, values): (usize, usize),
    value: &[u8; SIZE],
) {
    for at in before..values {
        let start = HEADER_BYTES + at * SIZE;
        bytes[start..start + SIZE].copy_from_slice(value);
    }
    put_u32(bytes, 8, values as u32);
}

fn past_end(index: u64) -> MetadataError {
    MetadataError::out_of_bounds(format!("value {index} is past the end of its array"))
}
