//! How near the metadata device is to full: what a commit will take, and what is kept back.
//!
//! Estimates, and meant to be too high. They decide when to commit early and when to make a change and its commit one step
//! ([`PoolMetadata::prepare_with`]); what keeps a full device from harm is that such a step can be taken back.

use thinmap_persistent_data::{ErrorKind, Result};

use crate::Space;
use crate::pool_metadata::PoolMetadata;
use crate::transaction::PoolCommit;

/// The work of one insertion with its commit, in metadata blocks.
const INSERTION_BLOCKS: u64 = 12;

impl PoolMetadata {
    /// Metadata blocks in use as of the open transaction; what it freed does not count.
    pub fn used_metadata_blocks(&self) -> u64 {
        self.tm.nr_allocated()
    }

    /// Metadata blocks that new mappings and volumes may take before only what is kept back is left.
    ///
    /// COMPAT: the kernel's reserve of a tenth is too small for the work of one insertion on devices below 480 KiB; ours is
    /// never less than that work.
    pub fn metadata_room(&self) -> u64 {
        let reserve = self.metadata_reserve().raw().max(INSERTION_BLOCKS);
        self.tm.nr_free().saturating_sub(reserve)
    }

    /// Of that, what is left when a commit of the open transaction has taken its own.
    ///
    /// Takes time with the volumes and space map blocks that the transaction changed.
    pub fn metadata_slack(&self) -> u64 {
        let details = self.volumes.values().filter(|v| v.details_changed).count() as u64;
        // Each on a way of its own, at worst.
        let space_maps = self.data_sm.commit_estimate() + self.tm.commit_estimate();
        self.metadata_room()
            .saturating_sub(2 * details + space_maps + INSERTION_BLOCKS)
    }

    /// Whether [`metadata_slack`](Self::metadata_slack) is below `min`, without its time where there is plenty of room.
    pub fn is_slack_below(&self, min: u64) -> bool {
        let details = self.volumes.len() as u64;
        let space_maps = self.data_sm.commit_estimate_max() + self.tm.commit_estimate_max();
        let at_most = 2 * details + space_maps + INSERTION_BLOCKS;
        self.metadata_room() < at_most + min && self.metadata_slack() < min
    }

    /// One change with the first step of its commit: see [`prepare_commit`](Self::prepare_commit).
    ///
    /// Nothing must have changed since the last commit that anybody relies on: where the metadata device has no block left for
    /// it, everything since that commit is taken back, and the metadata is as good as before.
    ///
    /// # Errors
    /// `NoSpace(Metadata)`: taken back. Others: as for any change.
    pub fn prepare_with<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(T, PoolCommit)> {
        let done = change(self).and_then(|value| Ok((value, self.prepare_commit()?)));
        match done {
            Err(full) if full.kind() == ErrorKind::NoSpace(Space::Metadata) => {
                self.abort()?;
                Err(full)
            }
            done => done,
        }
    }
}
