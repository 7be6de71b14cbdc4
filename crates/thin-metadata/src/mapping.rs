//! The two-level mapping tree: volume id, then block of the volume, to a data block and the time
//! it was mapped.
//!
//! A mapping is `data block << 24 | time`. A mapping whose time is before the volume's
//! `snapshotted_time` may be shared; one that is not cannot be. (The converse does not hold: when
//! the other owner is deleted the time stays. The kernel copies in that case too.)

use std::ops::ControlFlow;

use thinmap_persistent_data::btree::{self, ValueOps};
use thinmap_persistent_data::{
    DiskSpaceMap, ErrorKind, MayRead, MetadataError, Result, TransactionManager,
};
use thinmap_units::{DataBlock, ThinId, VirtBlock};

use crate::pool_metadata::PoolMetadata;

/// Bits of a mapping that hold the time.
const TIME_BITS: u32 = 24;
/// The highest time a mapping can hold.
pub(crate) const TIME_MAX: u32 = (1 << TIME_BITS) - 1;
/// Bits that hold the data block.
const DATA_BLOCK_BITS: u32 = 40;

pub(crate) fn pack(data: DataBlock, time: u32) -> Result<[u8; 8]> {
    if data.raw() >> DATA_BLOCK_BITS != 0 || time > TIME_MAX {
        return Err(MetadataError::new(
            ErrorKind::Inval,
            format!("data block {data} at time {time} does not fit a mapping"),
        ));
    }
    Ok((data.raw() << TIME_BITS | u64::from(time)).to_le_bytes())
}

pub(crate) fn unpack(value: u64) -> (DataBlock, u32) {
    (DataBlock(value >> TIME_BITS), value as u32 & TIME_MAX)
}

fn numbers(values: &[u8]) -> impl Iterator<Item = u64> + '_ {
    values.chunks_exact(8).map(|bytes| {
        let mut le = [0; 8];
        le.copy_from_slice(bytes);
        u64::from_le_bytes(le)
    })
}

/// Values of a volume's tree: each refers to a data block.
pub(crate) struct MappingOps<'a> {
    pub(crate) data_sm: &'a mut DiskSpaceMap,
}

impl ValueOps for MappingOps<'_> {
    const SIZE: usize = 8;

    fn inc(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        numbers(values).try_for_each(|v| self.data_sm.inc(tm, unpack(v).0.raw()))
    }

    fn dec(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        numbers(values).try_for_each(|v| self.data_sm.dec(tm, unpack(v).0.raw()))
    }
}

/// Values of the top tree: each refers to the root of a volume's tree.
pub(crate) struct SubtreeOps<'a> {
    pub(crate) data_sm: &'a mut DiskSpaceMap,
}

impl ValueOps for SubtreeOps<'_> {
    const SIZE: usize = 8;

    fn inc(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        numbers(values).try_for_each(|root| tm.inc(root))
    }

    fn dec(&mut self, tm: &mut TransactionManager, values: &[u8]) -> Result<()> {
        let data_sm = &mut *self.data_sm;
        numbers(values)
            .try_for_each(|root| btree::delete_tree(tm, &mut MappingOps { data_sm }, root))
    }
}

/// What a block of a volume maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing: reads as zeroes, or as the external origin.
    Unmapped,
    /// A block of the data device.
    Mapped {
        /// Which one.
        data: DataBlock,
        /// Whether it may belong to another volume too, and must not be written.
        shared: bool,
    },
}

/// A run of blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the first block maps to. In a mapped run the data blocks follow one another and
    /// `shared` is the same for all.
    pub first: Lookup,
    /// How many blocks the run has, at least one.
    pub blocks: u64,
}

impl PoolMetadata {
    /// What block `v` of volume `id` maps to.
    ///
    /// # Errors
    /// `NotFound`: no such volume. `WouldBlock`: `may_read` is `No` and a node is not in memory.
    pub fn lookup(&self, id: ThinId, v: VirtBlock, may_read: MayRead) -> Result<Lookup> {
        let volume = self.volume(id, may_read)?;
        let reader = self.tm.reader();
        let value = btree::lookup_u64(reader, volume.root, v.raw(), may_read)?;
        let Some(value) = value else {
            return Ok(Lookup::Unmapped);
        };
        let (data, time) = unpack(value);
        if data >= self.data_blocks() {
            return Err(self.beyond_the_pool(id, v, data));
        }
        Ok(Lookup::Mapped {
            data,
            shared: volume.details.snapshotted_time > time,
        })
    }

    /// INVARIANT: nobody is told of a data block that the pool does not have, whatever an image says.
    #[cold]
    fn beyond_the_pool(&self, id: ThinId, v: VirtBlock, data: DataBlock) -> MetadataError {
        let end = self.data_blocks();
        MetadataError::new(
            ErrorKind::Corrupt,
            format!("volume {id} maps block {v} to data block {data}, and the pool has {end}"),
        )
    }

    /// The run of like blocks that begins with `v`, at most `max` (and at least one) long. It may
    /// be cut short where the next node is not in memory and `may_read` is `No`.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn lookup_run(&self, id: ThinId, v: VirtBlock, max: u64, may_read: MayRead) -> Result<Run> {
        let volume = self.volume(id, may_read)?;
        let end = v.raw().saturating_add(max.max(1));
        let mut run: Option<Run> = None;
        let mut visit = |key: u64, value: &[u8]| {
            let (data, time) = unpack(numbers(value).next().unwrap_or(0));
            let shared = volume.details.snapshotted_time > time;
            let here = Lookup::Mapped { data, shared };
            if data >= self.data_blocks() && run.is_none() && key <= v.raw() {
                return Err(self.beyond_the_pool(id, v, data));
            }
            let Some(run) = &mut run else {
                let blocks = key.min(end) - v.raw();
                run = Some(match blocks {
                    0 => Run {
                        first: here,
                        blocks: 1,
                    },
                    blocks => Run {
                        first: Lookup::Unmapped,
                        blocks,
                    },
                });
                let more = blocks == 0 && key + 1 < end;
                return Ok(continue_if(more));
            };
            let Lookup::Mapped {
                data: first_data,
                shared: first_shared,
            } = run.first
            else {
                return Ok(ControlFlow::Break(()));
            };
            let follows = data < self.data_blocks()
                && key == v.raw() + run.blocks
                && data.raw() == first_data.raw() + run.blocks
                && shared == first_shared;
            run.blocks += u64::from(follows);
            Ok(continue_if(follows && key + 1 < end))
        };
        let reader = self.tm.reader();
        let walked = btree::visit_entries(reader, volume.root, 8, v.raw(), may_read, &mut visit);
        match (walked, run) {
            (Ok(()), _) => {}
            // The run goes on where memory ends: what is known of it is an answer too.
            (Err(e), Some(known)) if e.kind() == ErrorKind::WouldBlock => return Ok(known),
            (Err(e), _) => return Err(e),
        }
        Ok(run.unwrap_or(Run {
            first: Lookup::Unmapped,
            blocks: end - v.raw(),
        }))
    }

    /// The highest block of volume `id` that is mapped.
    pub fn highest_mapped(&self, id: ThinId) -> Result<Option<VirtBlock>> {
        let volume = self.volume(id, MayRead::Yes)?;
        let key = btree::highest_key(self.tm.reader(), volume.root, MayRead::Yes)?;
        Ok(key.map(VirtBlock))
    }

    /// A free data block, with reference count one: the caller's until it is
    /// [inserted](Self::insert), or given back with [`dec_data_range`](Self::dec_data_range).
    /// Blocks asked for in sequence lie in sequence.
    ///
    /// # Errors
    /// `NoSpace(Data)`: none is free that was free at the last commit too.
    pub fn alloc_data_block(&mut self) -> Result<DataBlock> {
        self.change(|pool| {
            let block = pool.data_sm.alloc(&mut pool.tm)?.ok_or_else(|| {
                MetadataError::new(
                    ErrorKind::NoSpace(crate::Space::Data),
                    "the data device has no free block",
                )
            })?;
            Ok(DataBlock(block))
        })
    }

    /// Maps block `v` of volume `id` to `data`, whose count of one passes to the mapping. A mapping
    /// that was there is replaced and its data block loses a reference.
    pub fn insert(&mut self, id: ThinId, v: VirtBlock, data: DataBlock) -> Result<()> {
        self.change(|pool| {
            let value = pack(data, pool.superblock.time)?;
            let root = pool.own_root(id)?;
            let data_sm = &mut pool.data_sm;
            let ops = &mut MappingOps { data_sm };
            let (root, is_new) = btree::insert(&mut pool.tm, ops, root, v.raw(), &value)?;
            pool.set_root(id, root, i64::from(is_new))
        })
    }

    /// Unmaps blocks `begin..end` of volume `id`; their data blocks lose a reference. Gives how
    /// many were mapped.
    pub fn remove_range(&mut self, id: ThinId, begin: VirtBlock, end: VirtBlock) -> Result<u64> {
        self.change(|pool| {
            let (mut at, end, mut removed) = (begin.raw(), end.raw(), 0);
            while at < end {
                let run = pool.lookup_run(id, VirtBlock(at), end - at, MayRead::Yes)?;
                let next = at + run.blocks;
                if let Lookup::Mapped { .. } = run.first {
                    removed += pool.remove_run(id, at, next)?;
                }
                at = next;
            }
            Ok(removed)
        })
    }

    /// Unmaps blocks `begin..end`, which lie in a row on the data device too.
    ///
    /// COMPAT: the kernel unmaps such runs one by one, and for each takes the volume out of the top
    /// tree and puts it back, which both may move entries between nodes.
    pub(crate) fn remove_run(&mut self, id: ThinId, begin: u64, end: u64) -> Result<u64> {
        let root = self.own_root(id)?;
        self.take_from_top(id, root)?;
        let data_sm = &mut self.data_sm;
        let ops = &mut MappingOps { data_sm };
        let (root, removed) = btree::remove_range(&mut self.tm, ops, root, begin, end)?;
        self.put_on_top(id, root)?;
        let volume = self.volume_mut(id)?;
        volume.root = root;
        self.set_root(id, root, -(removed as i64))?;
        Ok(removed)
    }

    /// How many mappings (counted once for each leaf) and callers refer to data block `b`.
    pub fn data_ref_count(&self, b: DataBlock) -> Result<u32> {
        self.data_sm.count(self.tm.reader(), b.raw())
    }

    /// Raises the counts of data blocks `begin..end`, so that they survive being unmapped.
    pub fn inc_data_range(&mut self, begin: DataBlock, end: DataBlock) -> Result<()> {
        self.change(|pool| {
            (begin.raw()..end.raw()).try_for_each(|b| pool.data_sm.inc(&mut pool.tm, b))
        })
    }

    /// Lowers the counts of data blocks `begin..end`.
    pub fn dec_data_range(&mut self, begin: DataBlock, end: DataBlock) -> Result<()> {
        self.change(|pool| {
            (begin.raw()..end.raw()).try_for_each(|b| pool.data_sm.dec(&mut pool.tm, b))
        })
    }
}

const fn continue_if(more: bool) -> ControlFlow<()> {
    if more {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}
