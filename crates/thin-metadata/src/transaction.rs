//! Changing, committing, aborting: what state the engine is in and what that allows.
//!
//! | state | changes | commit | abort |
//! | --- | --- | --- | --- |
//! | healthy | yes | yes | yes |
//! | a commit is being written | `Busy` | `Busy` | `Busy` |
//! | a change failed half-way | `Poisoned` | `Poisoned` | back to healthy |
//! | a commit failed | `Poisoned` | `Poisoned` | reloads, stays poisoned |
//!
//! After a failed commit the device may hold the old or the new superblock, and may change its
//! mind after a power cut; writing on would risk overwriting blocks that the other one reaches. So
//! that state lasts until the metadata is opened anew.

use std::sync::Arc;

use thinmap_persistent_data::{
    BlockKind, Commit, ErrorKind, METADATA_BLOCKS_MAX, MetadataError, Result, seal,
};
use thinmap_units::{DataBlock, MetaBlock, ThinId};

use crate::pool_metadata::{PoolMetadata, read_superblock};
use crate::superblock::Superblock;

/// Volumes remembered over a commit.
const VOLUMES_KEPT_MAX: usize = 4096;

/// What still works.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    /// A change failed half-way: the transaction must be aborted.
    broken: bool,
    /// A commit failed: no more changes in this life.
    commit_failed: bool,
    /// A commit was prepared and is not finished.
    committing: bool,
}

/// A prepared commit, to be [written](Self::write) without holding the pool.
#[must_use = "a prepared commit must be written and handed to finish_commit"]
pub struct PoolCommit {
    commit: Commit,
}

impl PoolCommit {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.commit.is_empty()
    }

    /// Metadata blocks that this commit writes, besides the superblock.
    pub fn blocks(&self) -> usize {
        self.commit.blocks()
    }

    /// Writes blocks, flushes, writes the superblock, flushes. The data device must have been
    /// flushed before, or a power cut may leave mappings to blocks that were never written.
    pub fn write(&self) -> Result<()> {
        self.commit.write()
    }
}

impl PoolMetadata {
    /// Runs a change, unless the state forbids it, and takes note if it fails half-way.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.check_changeable()?;
        let result = change(self);
        if let Err(e) = &result {
            // Refusals come before the first change; these may come after it.
            self.health.broken |= matches!(
                e.kind(),
                ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NoSpace(crate::Space::Metadata)
            );
        }
        result
    }

    fn check_changeable(&self) -> Result<()> {
        let refuse = |kind, what| Err(MetadataError::new(kind, what));
        if self.options.read_only {
            return refuse(ErrorKind::ReadOnly, "the metadata was opened read-only");
        }
        if self.health.commit_failed {
            return refuse(
                ErrorKind::Poisoned,
                "an earlier commit failed: the metadata must be opened anew",
            );
        }
        if self.health.broken {
            return refuse(
                ErrorKind::Poisoned,
                "an earlier change failed: the transaction must be aborted",
            );
        }
        if self.health.committing {
            return refuse(ErrorKind::Busy, "a commit is being written");
        }
        Ok(())
    }

    /// Whether there is anything to commit.
    pub fn changed(&self) -> bool {
        self.superblock_changed || self.tm.is_changed() || self.data_sm.is_changed()
    }

    /// Sets the transaction id to `new` if it is `expected`.
    ///
    /// # Errors
    /// `Inval`: it is not.
    pub fn set_transaction_id(&mut self, expected: u64, new: u64) -> Result<()> {
        self.change(|pool| {
            let found = pool.superblock.transaction_id;
            if found != expected {
                return Err(MetadataError::new(
                    ErrorKind::Inval,
                    format!("the transaction id is {found}, not {expected}"),
                ));
            }
            pool.superblock.transaction_id = new;
            pool.superblock_changed = true;
            Ok(())
        })
    }

    /// Tells the pool that the data device has `blocks` blocks.
    ///
    /// # Errors
    /// `Inval`: that is fewer than before.
    pub fn resize_data(&mut self, blocks: DataBlock) -> Result<()> {
        self.change(|pool| {
            if blocks == pool.data_blocks() {
                return Ok(());
            }
            pool.data_sm.extend(&mut pool.tm, blocks.raw())
        })
    }

    /// Lets the pool use the first `blocks` blocks of the metadata device, or as many of them as
    /// the format can use.
    ///
    /// # Errors
    /// `Inval`: that is fewer than before, or more than the device has.
    pub fn resize_metadata(&mut self, blocks: MetaBlock) -> Result<()> {
        self.change(|pool| {
            let blocks = blocks.raw().min(METADATA_BLOCKS_MAX);
            let old = pool.tm.nr_blocks();
            if blocks == old {
                return Ok(());
            }
            if blocks < old || blocks > pool.device.size().raw() {
                return Err(MetadataError::new(
                    ErrorKind::Inval,
                    format!("the metadata space map cannot go from {old} to {blocks} blocks"),
                ));
            }
            pool.tm.extend(blocks)
        })
    }

    /// Marks the metadata on the device as to be checked, now and without a commit: the last
    /// committed superblock gets the flag. Works after a failure too.
    ///
    /// # Errors
    /// `Io`; `Corrupt` when the superblock on the device is damaged; `ReadOnly`; `Busy`.
    pub fn set_needs_check(&mut self) -> Result<()> {
        if self.options.read_only {
            return Err(MetadataError::new(
                ErrorKind::ReadOnly,
                "the metadata was opened read-only",
            ));
        }
        if self.health.committing {
            return Err(MetadataError::new(
                ErrorKind::Busy,
                "a commit is being written",
            ));
        }
        let mut bytes = read_superblock(&*self.device)?;
        let mut flagged = Superblock::unpack(0, &bytes.0)?;
        flagged.set_needs_check();
        bytes.0[4..8].copy_from_slice(&flagged.flags.to_le_bytes());
        seal(BlockKind::Superblock, 0, &mut bytes.0);
        let failed = |e| MetadataError::io(e, "cannot mark the metadata as needing a check");
        self.device
            .write(&[(MetaBlock(0), &bytes)])
            .map_err(failed)?;
        self.device.flush().map_err(failed)?;
        self.superblock.set_needs_check();
        Ok(())
    }

    /// First step of a commit: freezes the transaction. Until
    /// [`finish_commit`](Self::finish_commit) reads work and changes fail with `Busy`.
    ///
    /// May read metadata blocks, never writes.
    ///
    /// # Errors
    /// As for any change; the transaction must then be aborted.
    pub fn prepare_commit(&mut self) -> Result<PoolCommit> {
        let commit = self.change(|pool| {
            if !pool.changed() {
                return Ok(pool.tm.freeze_nothing());
            }
            pool.write_changed_details()?;
            let data_root = pool.data_sm.prepare(&mut pool.tm)?;
            let metadata_root = pool.tm.prepare()?;
            pool.superblock.data_space_map = data_root;
            pool.superblock.metadata_space_map = metadata_root;
            let superblock = pool.superblock.pack();
            Ok(pool.tm.freeze(superblock))
        })?;
        self.health.committing = true;
        Ok(PoolCommit { commit })
    }

    /// Last step: takes note of what became of `commit`, and gives that back.
    pub fn finish_commit(&mut self, commit: PoolCommit, written: Result<()>) -> Result<()> {
        self.health.committing = false;
        if let Err(e) = written {
            self.health.commit_failed = true;
            return Err(e);
        }
        self.tm.finish(&commit.commit);
        self.superblock_changed = false;
        self.snap_taken = false;
        if self.volumes.len() > VOLUMES_KEPT_MAX {
            self.volumes.clear();
        }
        Ok(())
    }

    /// All three steps in one.
    pub fn commit(&mut self) -> Result<()> {
        let commit = self.prepare_commit()?;
        let written = commit.write();
        self.finish_commit(commit, written)
    }

    /// Drops all uncommitted changes and loads the last committed state from the device.
    ///
    /// After a failed commit the pool can be read again but not changed.
    ///
    /// # Errors
    /// As [`open`](Self::open); the pool is then as it was, to be dropped.
    pub fn abort(&mut self) -> Result<()> {
        if self.health.committing {
            return Err(MetadataError::new(
                ErrorKind::Busy,
                "a commit is being written",
            ));
        }
        // After a failed commit the device may hold either state, and blocks that are free in one
        // are in use in the other.
        self.cache.clear();
        let bytes = read_superblock(&*self.device)?;
        let loaded = Self::load(
            Arc::clone(&self.device),
            Arc::clone(&self.cache),
            &self.options,
            &bytes,
        )?;
        let commit_failed = self.health.commit_failed;
        *self = loaded;
        self.health.commit_failed = commit_failed;
        Ok(())
    }

    pub(crate) fn write_changed_details(&mut self) -> Result<()> {
        let mut changed: Vec<ThinId> = self
            .volumes
            .iter()
            .filter_map(|(id, volume)| volume.details_changed.then_some(*id))
            .collect();
        changed.sort_unstable();
        for id in changed {
            let volume = self.volume_mut(id)?;
            volume.details_changed = false;
            let details = volume.details;
            self.write_details(id, &details)?;
        }
        Ok(())
    }
}
