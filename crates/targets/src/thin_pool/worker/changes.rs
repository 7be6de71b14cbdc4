//! Changes of the metadata, which a full metadata device can refuse but not harm.
//!
//! While there is room a change joins the open transaction. Where room is scarce it is one step with its own commit, made when
//! nothing else is open: if no block is left for it, it is taken back and nobody has been told of anything that goes with it.
//! A transaction that runs out of blocks all the same is given up; volumes with changes in it learn of that at their next
//! flush. Neither is damage, and nothing has to be checked.
//!
//! CRASH: what is taken back has never been written to the device.

use std::sync::atomic::Ordering::SeqCst;

use thinmap_thin_metadata::{ErrorKind, MetadataError, PoolMetadata, Result, Space};
use thinmap_units::DataBlock;

use super::Entry;
use super::Worker;
use super::commit::AfterCommit;
use super::ranges::DataRun;
use crate::flush::flush;
use crate::thin_pool::mode::Mode;

/// With less room than this after the commit of the open transaction, each change is a step of its own.
const TIGHT_BLOCKS: u64 = 64;

/// What a change may do to the number of metadata blocks in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// It is allowed while there is room.
    Grows,
    /// It gives blocks back, if maybe only later: the reserve is there for it.
    Frees,
}

/// Why a change was not made.
#[derive(Debug)]
pub(super) enum Unchanged {
    /// No metadata block was left for it.
    Full,
    /// Something else failed before it; the pool's mode says what.
    Failed,
    /// The metadata engine refused it, or failed: for the caller to tell apart.
    Metadata(MetadataError),
}

/// Whether a change is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Made {
    InTheOpenTransaction,
    WithItsCommit,
}

/// What a change gives: its value, and data blocks to be held, on top of what refers to them.
pub(super) type Outcome<T> = Result<(T, Vec<DataRun>)>;

pub(super) fn is_full(error: &MetadataError) -> bool {
    error.kind() == ErrorKind::NoSpace(Space::Metadata)
}

pub(super) fn full(what: &'static str) -> MetadataError {
    MetadataError::new(ErrorKind::NoSpace(Space::Metadata), what)
}

impl Worker<'_> {
    /// Makes a change. `takes`: a held data block whose reference passes to a mapping.
    pub(super) fn change<T>(
        &mut self,
        kind: Change,
        takes: Option<DataBlock>,
        change: impl FnOnce(&mut PoolMetadata) -> Outcome<T>,
    ) -> std::result::Result<(T, Made), Unchanged> {
        self.make(kind, takes, None, change)
    }

    /// A change that somebody above may build on before it is durable: it is also noted in the journal, unless it is committed.
    pub(super) fn change_and_note<T>(
        &mut self,
        kind: Change,
        takes: Option<DataBlock>,
        entry: Entry,
        change: impl FnOnce(&mut PoolMetadata) -> Outcome<T>,
    ) -> std::result::Result<(T, Made), Unchanged> {
        if !self.make_journal_room() {
            return Err(Unchanged::Failed);
        }
        self.make(kind, takes, Some(entry), change)
    }

    fn make<T>(
        &mut self,
        kind: Change,
        takes: Option<DataBlock>,
        entry: Option<Entry>,
        change: impl FnOnce(&mut PoolMetadata) -> Outcome<T>,
    ) -> std::result::Result<(T, Made), Unchanged> {
        if self.is_tight() || !self.pool.mode().may_grow_metadata() {
            return self.change_and_commit(kind, takes, change);
        }
        let done = {
            let mut metadata = self.pool.metadata.write();
            // Set under the lock: whoever sees the change sees the flag.
            self.mark_dirty();
            change(&mut metadata).and_then(|(value, runs)| {
                inc_all(&mut metadata, &runs)?;
                // Under the lock: whoever sees the change may build on it, and be told so.
                if let Some(entry) = entry {
                    self.note(entry);
                }
                Ok((value, runs))
            })
        };
        match done {
            Ok((value, runs)) => {
                self.hold_runs(takes, runs);
                Ok((value, Made::InTheOpenTransaction))
            }
            Err(error) if is_full(&error) => {
                self.give_up_transaction("make a change", &error);
                Err(Unchanged::Full)
            }
            Err(error) => Err(Unchanged::Metadata(error)),
        }
    }

    /// Makes a change and its commit one step, whatever room there is.
    pub(super) fn change_and_commit<T>(
        &mut self,
        kind: Change,
        takes: Option<DataBlock>,
        change: impl FnOnce(&mut PoolMetadata) -> Outcome<T>,
    ) -> std::result::Result<(T, Made), Unchanged> {
        if !self.commit() {
            return Err(Unchanged::Failed);
        }
        if kind == Change::Grows && !self.has_metadata_room() {
            return Err(Unchanged::Full);
        }
        match self.write_commit(takes, change) {
            Ok(value) => {
                self.committed();
                Ok((value, Made::WithItsCommit))
            }
            Err((error, Written::No)) if is_full(&error) => {
                self.pool.dirty.store(false, SeqCst);
                Err(Unchanged::Full)
            }
            // A refusal is the caller's business; it has left nothing to commit.
            Err((error, Written::No)) => Err(Unchanged::Metadata(error)),
            Err((error, Written::Maybe)) => {
                self.metadata_failed("commit", &error);
                Err(Unchanged::Failed)
            }
        }
    }

    /// Whether there is more than what is kept back for deletions; if not the mode says so from here on.
    pub(super) fn has_metadata_room(&mut self) -> bool {
        let room = self.pool.metadata.read().metadata_room();
        if room == 0 && self.pool.mode().may_grow_metadata() && !self.find_metadata_space() {
            self.set_mode(Mode::OutOfMetadataSpace);
        }
        self.pool.mode().may_grow_metadata()
    }

    fn is_tight(&self) -> bool {
        self.pool.metadata.read().is_slack_below(TIGHT_BLOCKS)
    }

    /// A change and the commit of all that is open.
    pub(super) fn write_commit<T>(
        &mut self,
        takes: Option<DataBlock>,
        change: impl FnOnce(&mut PoolMetadata) -> Outcome<T>,
    ) -> std::result::Result<T, (MetadataError, Written)> {
        let not_written = |error| (error, Written::No);
        let held = self.held_except(takes);
        let ((value, runs), commit) = {
            let mut metadata = self.pool.metadata.write();
            self.mark_dirty();
            // CRASH: blocks that only work in flight holds must not be counted on disk, or a power cut would
            // lose them for ever. Nothing allocates until they are taken again below.
            let dropped = dec_all(&mut metadata, &held);
            let prepared = match dropped {
                Err(error) if is_full(&error) => metadata.abort().and(Err(error)),
                dropped => dropped.and_then(|()| metadata.prepare_with(change)),
            };
            match prepared {
                Ok(prepared) => prepared,
                Err(error) => {
                    if is_full(&error) {
                        // Taken back to the last commit, which counts none of what is held.
                        inc_all(&mut metadata, &self.state.held_blocks).map_err(not_written)?;
                    } else {
                        // A refusal has changed nothing; after a failure this fails too, and the caller gives all up.
                        let _ = inc_all(&mut metadata, &held);
                    }
                    return Err(not_written(error));
                }
            }
        };
        // A deliberately broken order, for the test that the simulator sees such things.
        #[cfg(feature = "canary")]
        commit.write().map_err(|error| (error, Written::Maybe))?;
        let flushed = flush(&**self.pool.data_dev(), "data device");
        let written = flushed.and_then(|()| commit.write());
        let maybe_written = |error| (error, Written::Maybe);
        let mut metadata = self.pool.metadata.write();
        metadata
            .finish_commit(commit, written)
            .map_err(maybe_written)?;
        inc_all(&mut metadata, &held).map_err(maybe_written)?;
        inc_all(&mut metadata, &runs).map_err(maybe_written)?;
        drop(metadata);
        self.hold_runs(takes, runs);
        Ok(value)
    }

    /// The open transaction has run out of metadata blocks: back to the last commit.
    pub(in crate::thin_pool) fn give_up_transaction(
        &mut self,
        operation: &str,
        error: &MetadataError,
    ) {
        let taken_back = {
            let mut metadata = self.pool.metadata.write();
            let aborted = metadata.abort();
            aborted.and_then(|()| inc_all(&mut metadata, &self.state.held_blocks))
        };
        if let Err(error) = taken_back {
            return self.metadata_failed(operation, &error);
        }
        self.transaction_given_up(operation, error);
    }

    /// The open transaction was taken back: those who waited for it, and volumes that had changes in it, learn of it.
    pub(super) fn transaction_given_up(&mut self, operation: &str, error: &MetadataError) {
        tracing::error!(pool = %self.pool.dev_no, %error, "thin: the metadata device is too full to {operation}: giving up what was not flushed");
        self.pool.dirty.store(false, SeqCst);
        for wait in std::mem::take(&mut self.state.after_commit) {
            if let AfterCommit::PassDown(job, runs) = wait {
                self.let_go(&runs);
                AfterCommit::PassDown(job, Vec::new()).fail();
            } else {
                wait.fail();
            }
        }
        self.pool.transaction_ended(false);
        self.state.inserted = 0;
        self.state.replaced = false;
        self.reset_journal();
        self.set_mode(Mode::OutOfMetadataSpace);
        // Requests went to blocks that are free again: until they have ended nobody else may get those.
        self.state.taken_back += 1;
        let drained = |worker: &mut Worker<'_>| {
            worker.state.taken_back -= 1;
            worker.retry_all();
        };
        self.when_drained(true, false, Box::new(drained));
    }

    /// Drops what is held of `runs`.
    pub(super) fn let_go(&mut self, runs: &[DataRun]) {
        for (data, len) in runs {
            self.release_block(*data, *len);
        }
        let dropped = dec_all(&mut self.pool.metadata.write(), runs);
        // In a pool that has failed there is nothing to give back to.
        if let Err(error) = dropped
            && self.pool.mode().may_commit()
        {
            self.metadata_failed("give data blocks back", &error);
        }
    }

    fn held_except(&self, takes: Option<DataBlock>) -> Vec<DataRun> {
        let mut held = self.state.held_blocks.clone();
        if let Some(at) = takes.and_then(|block| held.iter().position(|h| *h == (block, 1))) {
            held.swap_remove(at);
        }
        held
    }

    fn hold_runs(&mut self, takes: Option<DataBlock>, runs: Vec<DataRun>) {
        if let Some(block) = takes {
            self.release_block(block, 1);
        }
        self.state.held_blocks.extend(runs);
    }
}

/// Whether a failed commit may have reached the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    No,
    Maybe,
}

fn inc_all(metadata: &mut PoolMetadata, runs: &[DataRun]) -> Result<()> {
    let end = |(begin, len): &DataRun| DataBlock(begin.raw() + len);
    runs.iter()
        .try_for_each(|run| metadata.inc_data_range(run.0, end(run)))
}

fn dec_all(metadata: &mut PoolMetadata, runs: &[DataRun]) -> Result<()> {
    let end = |(begin, len): &DataRun| DataBlock(begin.raw() + len);
    runs.iter()
        .try_for_each(|run| metadata.dec_data_range(run.0, end(run)))
}
