//! Deletion of large volumes: out of sight at once, taken down in steps.
//!
//! The format and the states are in `docs/internals/background-deletion.md`.
//!
//! INVARIANT: a condemned volume is a valid volume at every moment, its `mapped_blocks` exact: a commit
//! may come between any two steps, and anybody may open what it leaves.

use std::ops::ControlFlow;

use thinmap_persistent_data::btree::{self, Plain};
use thinmap_persistent_data::{ErrorKind, MayRead, MetadataError, Result};
use thinmap_units::ThinId;

use crate::device_details::DeviceDetails;
use crate::mapping::{MappingOps, SubtreeOps, TIME_MAX};
use crate::pool_metadata::PoolMetadata;
use crate::volumes::Volume;

/// The lowest id of a condemned volume.
const CONDEMNED_FIRST: u32 = 0x00ff_f000;
/// The highest id there is.
const ID_MAX: u32 = 0x00ff_ffff;

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// All of it is in the open transaction.
    Done,
    /// What was deleted is out of sight; its blocks return by
    /// [`continue_deletion`](PoolMetadata::continue_deletion).
    Begun,
}

/// What a step found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionStep {
    /// Nothing is being deleted; nothing was changed.
    Nothing,
    /// Some blocks were given up; there are more.
    More,
    /// The last of what was being deleted is gone.
    Last,
}

/// Whether details under `id` are those of a condemned volume.
pub(crate) fn is_condemned(id: ThinId, details: &DeviceDetails) -> bool {
    // dm-thin never has a volume made after it was last made a snapshot of.
    id.raw() >= CONDEMNED_FIRST
        && details.snapshotted_time.checked_add(1) == Some(details.creation_time)
}

fn condemned(details: DeviceDetails) -> DeviceDetails {
    DeviceDetails {
        creation_time: details.snapshotted_time + 1,
        ..details
    }
}

impl PoolMetadata {
    /// Deletes volume `id`; at once if it has at most `nodes_max` metadata blocks of its own.
    ///
    /// Otherwise takes time with the logarithm of its size. The volume is gone for everybody who
    /// asks, and its id is free.
    ///
    /// # Errors
    /// `NotFound`: no such volume.
    pub fn begin_deletion(&mut self, id: ThinId, nodes_max: u64) -> Result<Deletion> {
        self.change(|pool| {
            let volume = pool.volume(id, MayRead::Yes)?;
            if !pool.is_alone_with_more_than(volume.root, nodes_max)? {
                pool.remove_volume(id)?;
                return Ok(Deletion::Done);
            }
            // A metadata snapshot's reference counts only once the way to the root is copied.
            pool.own_top_path(id, volume.root)?;
            let new = match pool.tm.count(volume.root)? {
                1 if volume.details.snapshotted_time < TIME_MAX => pool.free_condemned_id()?,
                _ => None,
            };
            let Some(new) = new else {
                pool.remove_volume(id)?;
                return Ok(Deletion::Done);
            };
            pool.take_from_top(id, volume.root)?;
            pool.remove_details(id)?;
            pool.volumes.remove(&id);
            pool.condemn(new, volume.root, volume.details)?;
            Ok(Deletion::Begun)
        })
    }

    /// Takes the next step, of at most `nodes_max` leaves, of what is being deleted.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `NoSpace(Metadata)`: the transaction must be aborted.
    pub fn continue_deletion(&mut self, nodes_max: u64) -> Result<DeletionStep> {
        let Some(id) = self.condemned_ids()?.last().copied() else {
            return Ok(DeletionStep::Nothing);
        };
        self.change(|pool| {
            let root = pool.volume_mut(id)?.root;
            pool.own_top_path(id, root)?;
            // A metadata snapshot taken meanwhile keeps the rest.
            let shared = pool.tm.count(root)? > 1;
            if !shared && pool.is_alone_with_more_than(root, nodes_max)? {
                let root = pool.own_root(id)?;
                let data_sm = &mut pool.data_sm;
                let ops = &mut MappingOps { data_sm };
                let dropped = btree::drop_front(&mut pool.tm, ops, root, nodes_max)?;
                pool.set_root(id, dropped.root, -(dropped.entries as i64))?;
                if dropped.leaves > 0 {
                    return Ok(DeletionStep::More);
                }
            }
            pool.remove_volume(id)?;
            if let Some(ids) = &mut pool.condemned {
                ids.retain(|other| *other != id);
            }
            match pool.condemned_ids()?.is_empty() {
                true => Ok(DeletionStep::Last),
                false => Ok(DeletionStep::More),
            }
        })
    }

    /// Takes a step of at most `mappings_max` mappings: for metadata without room for a whole leaf's, which may be in as
    /// many places of the data device.
    ///
    /// # Errors
    /// As [`continue_deletion`](Self::continue_deletion).
    pub fn continue_deletion_by_mappings(&mut self, mappings_max: u64) -> Result<DeletionStep> {
        let Some(id) = self.condemned_ids()?.last().copied() else {
            return Ok(DeletionStep::Nothing);
        };
        let root = self.any_volume(id, MayRead::Yes)?.root;
        let (mut keys, mut left) = (None, mappings_max);
        let mut visit = |key: u64, _: &[u8]| {
            left -= 1;
            keys = Some((keys.map_or(key, |(first, _)| first), key + 1));
            Ok(match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        };
        btree::visit_entries(self.tm.reader(), root, 8, 0, MayRead::Yes, &mut visit)?;
        let Some((begin, end)) = keys else {
            return self.continue_deletion(1);
        };
        self.change(|pool| pool.remove_run(id, begin, end))?;
        Ok(DeletionStep::More)
    }

    /// Reads what the next step of as many leaves will need, as far as it is known where that is.
    /// Damage and failures are left for the step to find.
    pub fn read_for_deletion(&self, nodes_max: u64) {
        let id = self.condemned.as_ref().and_then(|ids| ids.last());
        if let Some(volume) = id.and_then(|id| self.any_volume(*id, MayRead::Yes).ok()) {
            let _ = btree::read_front(self.tm.reader(), volume.root, nodes_max);
        }
    }

    /// How many deletions are not done.
    pub fn deletions(&mut self) -> Result<usize> {
        Ok(self.condemned_ids()?.len())
    }

    /// Removes the entries of volume `id`, and all that it alone refers to.
    pub(crate) fn remove_volume(&mut self, id: ThinId) -> Result<()> {
        self.remove_details(id)?;
        let (key, data_sm) = (u64::from(id.raw()), &mut self.data_sm);
        let (ops, top) = (
            &mut SubtreeOps { data_sm },
            self.superblock.data_mapping_root,
        );
        (self.superblock.data_mapping_root, _) = btree::remove(&mut self.tm, ops, top, key)?;
        self.volumes.remove(&id);
        Ok(())
    }

    fn remove_details(&mut self, id: ThinId) -> Result<()> {
        let (key, ops) = (u64::from(id.raw()), &mut Plain::<{ DeviceDetails::SIZE }>);
        let root = self.superblock.device_details_root;
        (self.superblock.device_details_root, _) = btree::remove(&mut self.tm, ops, root, key)?;
        Ok(())
    }

    /// Enters the tree at `root`, one reference to which is the caller's, as a condemned volume.
    fn condemn(&mut self, id: ThinId, root: u64, details: DeviceDetails) -> Result<()> {
        // Loaded first: the new one must not be in it twice.
        self.condemned_ids()?;
        self.add_volume(id, root, condemned(details))?;
        if let Some(ids) = &mut self.condemned {
            ids.push(id);
        }
        Ok(())
    }

    /// Lets a new volume have `id`, under which there is none that anybody can see.
    pub(crate) fn make_way(&mut self, id: ThinId) -> Result<()> {
        if id.raw() < CONDEMNED_FIRST || !self.condemned_ids()?.contains(&id) {
            return Ok(());
        }
        let Some(new) = self.free_condemned_id()? else {
            return Err(MetadataError::new(
                ErrorKind::Exists,
                format!("id {id} belongs to a deleted volume whose blocks are still being freed"),
            ));
        };
        let Volume { details, root, .. } = *self.volume_mut(id)?;
        self.own_top_path(id, root)?;
        self.take_from_top(id, root)?;
        self.remove_details(id)?;
        self.volumes.remove(&id);
        if let Some(ids) = &mut self.condemned {
            ids.retain(|other| *other != id);
        }
        self.condemn(new, root, details)
    }

    /// Makes condemned volumes of the large trees that only the held trees `top` and `details_root` refer
    /// to: they must not be taken down with them.
    pub(crate) fn adopt_from_held(
        &mut self,
        (top, details_root): (u64, u64),
        nodes_max: u64,
    ) -> Result<Deletion> {
        let mut found = Vec::new();
        btree::visit_exclusive(&self.tm, top, 8, &mut |key, value| {
            let mut le = [0; 8];
            le.copy_from_slice(value);
            let root = u64::from_le_bytes(le);
            if self.is_alone_with_more_than(root, nodes_max)? {
                found.push((key, root));
            }
            Ok(())
        })?;
        let mut outcome = Deletion::Done;
        for (key, root) in found {
            let reader = self.tm.reader();
            let details = btree::lookup(reader, details_root, key, MayRead::Yes)?;
            let Some(details) = details.map(|bytes| DeviceDetails::unpack(&bytes)) else {
                continue;
            };
            // Without an id it is dropped with the snapshot.
            let Some(id) = self.free_condemned_id()? else {
                break;
            };
            if details.snapshotted_time < TIME_MAX {
                self.tm.inc(root)?;
                self.condemn(id, root, details)?;
                outcome = Deletion::Begun;
            }
        }
        Ok(outcome)
    }

    fn is_alone_with_more_than(&self, root: u64, nodes: u64) -> Result<bool> {
        Ok(btree::exclusive_nodes(&self.tm, root, nodes)? > nodes)
    }

    /// The highest id that no volume has, of those that a condemned one may have.
    fn free_condemned_id(&self) -> Result<Option<ThinId>> {
        let mut used = Vec::new();
        self.visit_high_details(&mut |id, _| used.push(id.raw()))?;
        let free = (CONDEMNED_FIRST..=ID_MAX)
            .rev()
            .find(|id| used.binary_search(id).is_err());
        Ok(free.and_then(|id| ThinId::new(u64::from(id))))
    }

    /// The condemned volumes, looked for on the first call.
    fn condemned_ids(&mut self) -> Result<&[ThinId]> {
        if self.condemned.is_none() {
            let mut ids = Vec::new();
            self.visit_high_details(&mut |id, details| {
                if is_condemned(id, details) {
                    ids.push(id);
                }
            })?;
            self.condemned = Some(ids);
        }
        Ok(self.condemned.as_deref().unwrap_or_default())
    }

    fn visit_high_details(&self, each: &mut dyn FnMut(ThinId, &DeviceDetails)) -> Result<()> {
        let mut visit = |key, value: &[u8]| {
            let mut bytes = [0; DeviceDetails::SIZE];
            bytes.copy_from_slice(value);
            if let Some(id) = ThinId::new(key) {
                each(id, &DeviceDetails::unpack(&bytes));
            }
            Ok(ControlFlow::Continue(()))
        };
        btree::visit_entries(
            self.tm.reader(),
            self.superblock.device_details_root,
            DeviceDetails::SIZE,
            u64::from(CONDEMNED_FIRST),
            MayRead::Yes,
            &mut visit,
        )
    }
}
