//! Volumes: made, cloned, deleted, described.

use thinmap_persistent_data::btree::{self, Plain};
use thinmap_persistent_data::{ErrorKind, MayRead, MetadataError, Result};
use thinmap_units::ThinId;

use crate::deletion::is_condemned;
use crate::device_details::DeviceDetails;
use crate::mapping::{MappingOps, SubtreeOps, TIME_MAX};
use crate::pool_metadata::PoolMetadata;

/// A volume as the open transaction sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume {
    pub(crate) details: DeviceDetails,
    /// Root of its mapping tree.
    pub(crate) root: u64,
    /// The details are not in their tree yet.
    pub(crate) details_changed: bool,
}

impl PoolMetadata {
    /// Volume `id`; allocates nothing.
    ///
    /// A condemned volume is none that anybody can use.
    pub(crate) fn volume(&self, id: ThinId, may_read: MayRead) -> Result<Volume> {
        let volume = self.any_volume(id, may_read)?;
        if is_condemned(id, &volume.details) {
            return Err(no_volume());
        }
        Ok(volume)
    }

    /// Volume `id`, condemned or not.
    pub(crate) fn any_volume(&self, id: ThinId, may_read: MayRead) -> Result<Volume> {
        if let Some(volume) = self.volumes.get(&id) {
            return Ok(*volume);
        }
        let (reader, key) = (self.tm.reader(), u64::from(id.raw()));
        let details_root = self.superblock.device_details_root;
        let details =
            btree::lookup::<{ DeviceDetails::SIZE }>(reader, details_root, key, may_read)?;
        let Some(details) = details else {
            return Err(no_volume());
        };
        let mapping_root = self.superblock.data_mapping_root;
        let root = btree::lookup_u64(reader, mapping_root, key, may_read)?.ok_or_else(|| {
            MetadataError::new(
                ErrorKind::Corrupt,
                format!("volume {id} has details but no mapping tree"),
            )
        })?;
        Ok(Volume {
            details: DeviceDetails::unpack(&details),
            root,
            details_changed: false,
        })
    }

    /// Volume `id`, condemned or not, kept in memory from here on.
    pub(crate) fn volume_mut(&mut self, id: ThinId) -> Result<&mut Volume> {
        if !self.volumes.contains_key(&id) {
            let volume = self.any_volume(id, MayRead::Yes)?;
            self.volumes.insert(id, volume);
        }
        match self.volumes.get_mut(&id) {
            Some(volume) => Ok(volume),
            None => unreachable!("inserted above"),
        }
    }

    /// Whether volume `id` exists.
    pub fn device_exists(&self, id: ThinId) -> Result<bool> {
        match self.volume(id, MayRead::Yes) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is known of volume `id`.
    ///
    /// # Errors
    /// `NotFound`: no such volume.
    pub fn details(&self, id: ThinId) -> Result<DeviceDetails> {
        Ok(self.volume(id, MayRead::Yes)?.details)
    }

    /// Blocks of volume `id` that are mapped.
    pub fn mapped_blocks(&self, id: ThinId) -> Result<u64> {
        Ok(self.details(id)?.mapped_blocks)
    }

    /// Makes an empty volume.
    ///
    /// # Errors
    /// `Exists`: the id is in use.
    pub fn create_thin(&mut self, id: ThinId) -> Result<()> {
        self.change(|pool| {
            pool.check_unused(id)?;
            pool.make_way(id)?;
            let root = btree::empty::<MappingOps<'_>>(&mut pool.tm)?;
            let details = DeviceDetails {
                mapped_blocks: 0,
                transaction_id: pool.superblock.transaction_id,
                creation_time: pool.superblock.time,
                snapshotted_time: pool.superblock.time,
            };
            pool.add_volume(id, root, details)
        })
    }

    /// Makes volume `new` a snapshot of `origin`. The cost does not depend on how much is mapped:
    /// both have the same tree until one of them changes.
    ///
    /// The caller must have suspended an active `origin`, so that what was written to it is in the
    /// metadata.
    ///
    /// # Errors
    /// `Exists`: `new` is in use. `NotFound`: `origin` is not. `Inval`: the pool has seen 2^24
    /// snapshots, which is all that the format can tell apart.
    pub fn create_snap(&mut self, new: ThinId, origin: ThinId) -> Result<()> {
        self.change(|pool| {
            pool.check_unused(new)?;
            let volume = pool.volume(origin, MayRead::Yes)?;
            if pool.superblock.time >= TIME_MAX {
                return Err(MetadataError::new(
                    ErrorKind::Inval,
                    "the pool has taken as many snapshots as its format can count",
                ));
            }
            pool.make_way(new)?;
            // The path to the origin's root becomes this transaction's own first, so that a
            // reference that a metadata snapshot has to it is counted.
            pool.own_top_path(origin, volume.root)?;
            pool.tm.inc(volume.root)?;
            pool.superblock.time += 1;
            let time = pool.superblock.time;
            let origin = pool.volume_mut(origin)?;
            origin.details.snapshotted_time = time;
            origin.details_changed = true;
            let details = DeviceDetails {
                mapped_blocks: volume.details.mapped_blocks,
                transaction_id: pool.superblock.transaction_id,
                creation_time: time,
                snapshotted_time: time,
            };
            pool.add_volume(new, volume.root, details)
        })
    }

    /// Deletes volume `id`. Takes time with the blocks that it alone maps; see
    /// [`begin_deletion`](Self::begin_deletion) for large ones.
    ///
    /// # Errors
    /// `NotFound`: no such volume.
    pub fn delete_thin(&mut self, id: ThinId) -> Result<()> {
        self.change(|pool| {
            pool.volume(id, MayRead::Yes)?;
            pool.remove_volume(id)
        })
    }

    fn check_unused(&self, id: ThinId) -> Result<()> {
        match self.device_exists(id)? {
            true => Err(MetadataError::new(
                ErrorKind::Exists,
                format!("a volume with id {id} exists already"),
            )),
            false => Ok(()),
        }
    }

    pub(crate) fn add_volume(
        &mut self,
        id: ThinId,
        root: u64,
        details: DeviceDetails,
    ) -> Result<()> {
        self.put_on_top(id, root)?;
        self.write_details(id, &details)?;
        let volume = Volume {
            details,
            root,
            details_changed: false,
        };
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// Enters volume `id` with tree `root` in the top tree.
    pub(crate) fn put_on_top(&mut self, id: ThinId, root: u64) -> Result<()> {
        let (key, value) = (u64::from(id.raw()), root.to_le_bytes());
        let data_sm = &mut self.data_sm;
        let ops = &mut SubtreeOps { data_sm };
        let top = self.superblock.data_mapping_root;
        (self.superblock.data_mapping_root, _) =
            btree::insert(&mut self.tm, ops, top, key, &value)?;
        Ok(())
    }

    /// Takes volume `id` out of the top tree, but keeps its tree `root` alive.
    pub(crate) fn take_from_top(&mut self, id: ThinId, root: u64) -> Result<()> {
        self.tm.inc(root)?;
        let data_sm = &mut self.data_sm;
        let ops = &mut SubtreeOps { data_sm };
        let (key, top) = (u64::from(id.raw()), self.superblock.data_mapping_root);
        (self.superblock.data_mapping_root, _) = btree::remove(&mut self.tm, ops, top, key)?;
        Ok(())
    }

    pub(crate) fn write_details(&mut self, id: ThinId, details: &DeviceDetails) -> Result<()> {
        let ops = &mut Plain::<{ DeviceDetails::SIZE }>;
        let root = self.superblock.device_details_root;
        let key = u64::from(id.raw());
        (self.superblock.device_details_root, _) =
            btree::insert(&mut self.tm, ops, root, key, &details.pack())?;
        Ok(())
    }

    /// Makes the way to volume `id`'s root this transaction's own; `root` is what it holds.
    pub(crate) fn own_top_path(&mut self, id: ThinId, root: u64) -> Result<()> {
        let (key, value) = (u64::from(id.raw()), root.to_le_bytes());
        let data_sm = &mut self.data_sm;
        let ops = &mut SubtreeOps { data_sm };
        let top = self.superblock.data_mapping_root;
        self.superblock.data_mapping_root = btree::replace(&mut self.tm, ops, top, key, &value)?;
        Ok(())
    }

    /// The root of volume `id`'s tree, writable.
    ///
    /// INVARIANT: the top tree's path is copied before the volume's root is. Its leaf may be shared
    /// with a metadata snapshot, and only copying it makes the root's count say so.
    pub(crate) fn own_root(&mut self, id: ThinId) -> Result<u64> {
        let root = self.volume_mut(id)?.root;
        if !self.snap_taken && self.tm.is_exclusive(root)? {
            return Ok(root);
        }
        self.own_top_path(id, root)?;
        let data_sm = &mut self.data_sm;
        let owned = btree::shadow(&mut self.tm, &mut MappingOps { data_sm }, root)?;
        self.own_top_path(id, owned)?;
        self.volume_mut(id)?.root = owned;
        Ok(owned)
    }

    /// Notes the outcome of a change to volume `id`'s tree, whose root was owned.
    pub(crate) fn set_root(&mut self, id: ThinId, root: u64, mapped_delta: i64) -> Result<()> {
        let volume = self.volume_mut(id)?;
        let mapped = &mut volume.details.mapped_blocks;
        *mapped = mapped.saturating_add_signed(mapped_delta);
        volume.details_changed = true;
        if volume.root == root {
            return Ok(());
        }
        volume.root = root;
        self.own_top_path(id, root)
    }
}

fn no_volume() -> MetadataError {
    MetadataError::new(ErrorKind::NotFound, "there is no volume with that id")
}
