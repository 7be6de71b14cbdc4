//! Deletions that go on in the background: when a step is taken, and who may wait for one.
//!
//! What a step is, and why a commit may come between any two: `docs/internals/background-deletion.md`.

use std::sync::atomic::Ordering::SeqCst;

use thinmap_thin_metadata::{Deletion, DeletionStep, PoolMetadata};
use thinmap_units::ThinId;

use super::Worker;
use super::changes::{Change, Unchanged};
use crate::thin_pool::mode::Mode;

/// Leaves read ahead of the steps that drop them, many at once: so many times a step's.
const STEPS_READ_AHEAD: u64 = 4;
/// Steps that one allocation or commit may wait for at a time...
const STEPS_WAITED_FOR: u32 = 32;
/// ... with a commit after so many.
const STEPS_A_COMMIT: u32 = 8;

/// What one step takes of a deleted volume, at most.
#[derive(Clone, Copy)]
enum Step {
    Leaves(u64),
    Mappings(u64),
}

/// The steps to try, of at most `nodes` leaves: smaller when the metadata device has no room for it; one mapping touches a handful
/// of blocks.
fn steps(nodes: u64) -> [Step; 5] {
    [
        Step::Leaves(nodes),
        Step::Leaves(1),
        Step::Mappings(64),
        Step::Mappings(8),
        Step::Mappings(1),
    ]
}

impl Step {
    fn take(self, metadata: &mut PoolMetadata) -> thinmap_thin_metadata::Result<DeletionStep> {
        match self {
            Self::Leaves(leaves) => metadata.continue_deletion(leaves),
            Self::Mappings(mappings) => metadata.continue_deletion_by_mappings(mappings),
        }
    }
}

impl Worker<'_> {
    /// `delete <id>`; for a large volume its first step only.
    pub(super) fn delete_volume(&mut self, id: ThinId) -> Result<(), Unchanged> {
        let sizes = self.state.sizes;
        let mut deleted = Err(Unchanged::Full);
        for (at_once, first) in [
            (
                sizes.delete_at_once_nodes,
                Some(Step::Leaves(sizes.delete_step_nodes)),
            ),
            // With less and less work in one transaction, for a metadata device that is full.
            (0, Some(Step::Leaves(1))),
            (0, None),
        ] {
            deleted = self.change(Change::Frees, None, |metadata| {
                let deletion = metadata.begin_deletion(id, at_once)?;
                if let (Deletion::Begun, Some(first)) = (deletion, first) {
                    // Gives back more metadata than moving the volume took.
                    first.take(metadata)?;
                }
                Ok((deletion, Vec::new()))
            });
            if !matches!(deleted, Err(Unchanged::Full)) {
                break;
            }
        }
        if deleted?.0 == Deletion::Begun {
            self.state.deleting = true;
            tracing::info!(pool = %self.pool.dev_no, thin = %id, "thin: the volume is deleted; its space returns in the background");
        }
        Ok(())
    }

    /// `release_metadata_snap`; what only it held of large volumes goes in the background.
    pub(super) fn release_held_root(&mut self) -> Result<(), Unchanged> {
        let at_once_nodes = self.state.sizes.delete_at_once_nodes;
        let mut released = Err(Unchanged::Full);
        for at_once in [at_once_nodes, 0] {
            released = self.change(Change::Frees, None, |metadata| {
                Ok((metadata.begin_release(at_once)?, Vec::new()))
            });
            if !matches!(released, Err(Unchanged::Full)) {
                break;
            }
        }
        if released?.0 == Deletion::Begun {
            self.state.deleting = true;
            tracing::info!(pool = %self.pool.dev_no, "thin: the metadata snapshot held deleted volumes; their space returns in the background");
        }
        Ok(())
    }

    /// The pool may change its metadata (again): deletions that an earlier life has left go on.
    pub(super) fn look_for_deletions(&mut self) {
        if !self.pool.mode().may_commit() {
            return;
        }
        let found = self.pool.metadata.write().deletions();
        match found {
            Ok(0) => {}
            Ok(volumes) => {
                self.state.deleting = true;
                tracing::info!(pool = %self.pool.dev_no, volumes, "thin: going on with the deletion of volumes in the background");
            }
            // Not worth the pool: a step would tell the same of damage that matters.
            Err(error) => {
                tracing::error!(pool = %self.pool.dev_no, %error, "thin: cannot look for deletions that are not done");
            }
        }
    }

    /// Whether there is something to delete and it may be.
    pub(super) fn deletion_goes_on(&self) -> bool {
        self.state.deleting
            && !self.state.stop
            && !self.pool.suspended.load(SeqCst)
            && self.pool.mode().may_commit()
    }

    /// A turn's share of what is being deleted.
    pub(super) fn delete_some(&mut self) {
        if !self.deletion_goes_on() {
            return;
        }
        self.deletion_step();
        // Somebody waits for space, or the commit itself will need what the step has freed.
        let short = self.pool.mode() == Mode::OutOfDataSpace
            || self.pool.metadata.read().metadata_room() == 0;
        if short {
            self.commit();
        }
    }

    fn deletion_step(&mut self) {
        // What must be read is read while look-ups go on.
        let nodes = self.state.sizes.delete_step_nodes;
        let ahead = STEPS_READ_AHEAD * nodes;
        self.pool.metadata.read().read_for_deletion(ahead);
        for step in steps(nodes) {
            let taken = self.change(Change::Frees, None, |metadata| {
                Ok((step.take(metadata)?, Vec::new()))
            });
            match taken {
                Ok((DeletionStep::More, _)) => {}
                Ok((DeletionStep::Last, _)) => {
                    self.state.deleting = false;
                    tracing::info!(pool = %self.pool.dev_no, "thin: the space of all deleted volumes has returned");
                }
                Ok((DeletionStep::Nothing, _)) => self.state.deleting = false,
                Err(Unchanged::Full) => continue,
                Err(Unchanged::Failed) => {}
                Err(Unchanged::Metadata(error)) => {
                    self.metadata_failed("free the space of a deleted volume", &error);
                }
            }
            return;
        }
        // Not even the smallest step has room: found again at the next resume, or with the next deletion.
        self.state.deleting = false;
        tracing::error!(pool = %self.pool.dev_no, "thin: the metadata device is too full to free the space of deleted volumes: let it grow");
    }

    /// No data block is free: commits, and takes steps of deletions if that gives none. Whether one is free now.
    pub(super) fn find_data_space(&mut self) -> bool {
        // A write that would fail waits for as long as the deletion takes; one that is put off, only a little.
        let mut steps = match self.pool.features().error_if_no_space {
            true => u32::MAX,
            false => STEPS_WAITED_FOR,
        };
        loop {
            if !self.commit() {
                return false;
            }
            if self.pool.metadata.read().free_data_blocks().raw() > 0 {
                return true;
            }
            if steps == 0 || !self.deletion_goes_on() {
                return false;
            }
            steps -= self.take_steps(steps);
        }
    }

    /// The pool is out of space: a write that would be told so waits for deletions that are under way.
    pub(super) fn outwait_deletions(&mut self) {
        if self.pool.mode() == Mode::OutOfMetadataSpace && self.deletion_goes_on() {
            self.find_metadata_space();
        }
        if self.pool.mode() == Mode::OutOfDataSpace
            && self.pool.features().error_if_no_space
            && self.deletion_goes_on()
        {
            // The commit that finds space leads back to write mode.
            self.find_data_space();
        }
    }

    /// A commit has left nothing but the metadata reserve: whether deletions give room again.
    pub(super) fn find_metadata_space(&mut self) -> bool {
        // The commits made here come by again: the one that asked first decides.
        if self.state.finding_metadata {
            return true;
        }
        self.state.finding_metadata = true;
        let mut room = false;
        while !room && self.deletion_goes_on() {
            // Every step lives on the reserve, which may be small.
            self.take_steps(1);
            // Where the pool was out of room the commit that finds some leads back.
            room = self.commit()
                && self.pool.mode().may_grow_metadata()
                && self.pool.metadata.read().metadata_room() > 0;
        }
        self.state.finding_metadata = false;
        room
    }

    /// Up to a commit's worth of steps; gives how many.
    fn take_steps(&mut self, most: u32) -> u32 {
        let mut taken = 0;
        while taken < most.min(STEPS_A_COMMIT) && self.deletion_goes_on() {
            self.deletion_step();
            taken += 1;
        }
        taken
    }
}
