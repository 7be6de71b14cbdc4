//! Commits, allocation, and the changes of mode that they lead to.
//!
//! CRASH: the order of a commit is: freeze the transaction, flush the data device, write the metadata, tell those
//! who waited. What a mapping's block was filled with was written before the mapping was inserted, so the flush makes it
//! durable before anything durable points to it; and writes that ended before the guest's flushes came are in the flush too.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::Io;
use thinmap_thin_metadata::{ErrorKind, MetadataError, Space};
use thinmap_units::{BlkStatus, DataBlock};

use super::changes::{Written, is_full};
use super::ranges::{DataRun, RangeJob};
use super::{COMMIT_PERIOD, Entry, Journal, NO_SPACE_TIMEOUT, Work, Worker};
use crate::thin::Port;
use crate::thin_pool::mode::{Mode, allowed};

/// What waits for the next commit.
pub(super) enum AfterCommit {
    /// A flush, or a request with FUA whose data is written: it ends well with the commit.
    Complete(Io),
    /// A write with FUA to a block whose mapping is not committed: it is looked at again.
    Again(Arc<Port>, Io),
    /// A discard to be passed down, whose blocks the last commit may still count as another volume's.
    PassDown(Box<RangeJob>, Vec<DataRun>),
}

impl AfterCommit {
    pub(super) fn fail(self) {
        match self {
            Self::Complete(io) | Self::Again(_, io) => io.complete(BlkStatus::IoErr),
            Self::PassDown(job, _) => job.end(BlkStatus::IoErr),
        }
    }
}

/// Why no data block was allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoBlock {
    /// None is free: the pool is out of data space now.
    NoSpace,
    /// Metadata failed: the pool's mode says so.
    Failed,
}

/// A transaction on metadata with less room than this...
const NEAR_BLOCKS: u64 = 256;
/// ... is committed after so many insertions.
const NEAR_INSERTIONS: u32 = 16;

impl Worker<'_> {
    pub(super) fn commit_if_due(&mut self) {
        let due = self.state.now >= self.state.last_commit + COMMIT_PERIOD;
        if !self.state.after_commit.is_empty() || (due && self.pool.dirty.load(SeqCst)) {
            self.commit_for_all();
        }
    }

    /// One commit for everybody who waits for one.
    fn commit_for_all(&mut self) {
        // A transaction that is given up tells them itself.
        let committed = self.commit();
        for wait in std::mem::take(&mut self.state.after_commit) {
            match (committed, wait) {
                (false, wait) => wait.fail(),
                (true, AfterCommit::Complete(io)) => io.complete(BlkStatus::Ok),
                (true, AfterCommit::Again(port, io)) => self.process(Work::Io(port, io)),
                (true, AfterCommit::PassDown(job, runs)) => self.pass_down(job, runs),
            }
        }
    }

    /// Makes the metadata durable. `false`: it is not, and the mode has changed accordingly.
    pub(super) fn commit(&mut self) -> bool {
        self.state.last_commit = self.state.now;
        if !self.pool.dirty.load(SeqCst) {
            return true;
        }
        if !self.pool.mode().may_commit() {
            return false;
        }
        match self.write_commit(None, |_| Ok(((), Vec::new()))) {
            Ok(()) => {
                self.committed();
                true
            }
            Err((error, Written::No)) if is_full(&error) => {
                self.transaction_given_up("commit", &error);
                false
            }
            Err((error, _)) => {
                self.metadata_failed("commit", &error);
                false
            }
        }
    }

    /// The open transaction is durable.
    pub(super) fn committed(&mut self) {
        self.pool.dirty.store(false, SeqCst);
        self.pool.transaction_ended(true);
        self.state.inserted = 0;
        self.state.replaced = false;
        self.reset_journal();
        self.after_good_commit();
    }

    /// A commit, or with nothing to commit the data device's flush alone: everything acknowledged is durable afterwards, as
    /// after the kernel's `commit` (which flushes the data device whatever changed).
    pub(super) fn commit_or_flush(&mut self) {
        if self.pool.dirty.load(SeqCst) {
            self.commit();
            return;
        }
        let status = thinmap_block::flush(&**self.pool.data_dev());
        if !status.is_ok() {
            tracing::error!(pool = %self.pool.dev_no, "thin: cannot flush the data device: {status:?}");
        }
    }

    /// What is in the journal is committed, or given up.
    pub(super) fn reset_journal(&mut self) {
        let reset = self.state.journal.as_ref().map(Journal::reset);
        if let Some(Err(error)) = reset {
            tracing::error!(pool = %self.pool.dev_no, %error, "thin: the journal cannot be kept: from now on a crash of the daemon may lose what was not flushed");
            if let Some(journal) = self.state.journal.take() {
                journal.forget();
            }
        }
    }

    /// Makes room for one more change in the journal; `false`: the pool has failed over it.
    pub(super) fn make_journal_room(&mut self) -> bool {
        let full = |journal: &Journal| !journal.has_room();
        if !self.state.journal.as_ref().is_some_and(full) {
            return true;
        }
        self.mark_dirty();
        self.commit()
    }

    /// A change is in the metadata, and nobody was told yet.
    pub(super) fn note(&self, entry: Entry) {
        if let Some(journal) = &self.state.journal {
            journal.append(entry);
        }
    }

    fn after_good_commit(&mut self) {
        let (data_free, metadata_free, room) = {
            let metadata = self.pool.metadata.read();
            let all = metadata.metadata_blocks().raw();
            // The event counts the reserve as free, the status does not.
            let free = all.saturating_sub(metadata.used_metadata_blocks());
            (metadata.free_data_blocks(), free, metadata.metadata_room())
        };
        self.check_metadata_low_water(metadata_free);
        let mode = self.pool.mode();
        if mode == Mode::OutOfMetadataSpace {
            // More than there was when something found too little: the kernel waits for a table here.
            if room > self.state.room_when_full {
                self.set_mode(Mode::Write);
                self.retry_all();
            }
        } else if room == 0 && mode.may_grow_metadata() && !self.find_metadata_space() {
            tracing::error!(pool = %self.pool.dev_no, "thin: no free metadata blocks");
            self.set_mode(Mode::OutOfMetadataSpace);
        }
        if data_free.raw() > 0 && self.pool.mode() == Mode::OutOfDataSpace {
            self.set_mode(Mode::Write);
            self.retry_all();
        }
    }

    fn check_metadata_low_water(&mut self, free: u64) {
        let low = free < self.state.metadata_low_water;
        if low && !self.state.metadata_low_triggered {
            tracing::warn!(pool = %self.pool.dev_no, free, "thin: reached low water mark for metadata device: sending event");
            self.pool.trigger_event();
        }
        self.state.metadata_low_triggered = low;
    }

    fn check_data_low_water(&mut self, free: u64) {
        if free <= self.pool.low_water.load(SeqCst) && !self.state.low_water_triggered {
            tracing::warn!(pool = %self.pool.dev_no, free, "thin: reached low water mark for data device: sending event");
            self.state.low_water_triggered = true;
            self.pool.trigger_event();
        }
    }

    pub(super) fn rearm_low_water(&mut self) {
        self.state.low_water_triggered = false;
    }

    /// A data block, held by the caller's work until it is [inserted](Worker::release_block) or given back.
    pub(super) fn alloc_block(&mut self) -> Result<DataBlock, NoBlock> {
        if self.pool.mode() != Mode::Write {
            return Err(NoBlock::Failed);
        }
        let free = self.pool.metadata.read().free_data_blocks().raw();
        self.check_data_low_water(free);
        // Blocks freed in this transaction come back with a commit.
        if free == 0 && !self.find_data_space() {
            if self.pool.mode() == Mode::Write {
                self.set_mode(Mode::OutOfDataSpace);
                return Err(NoBlock::NoSpace);
            }
            return Err(NoBlock::Failed);
        }
        // Finding space is work on the metadata, which may have failed.
        if self.pool.mode() != Mode::Write {
            return Err(NoBlock::Failed);
        }
        // Before the metadata reserve is touched what there is gets committed, which may free some. Where it is
        // nearly reached commits come often, so that one transaction cannot run through it.
        let room = self.pool.metadata.read().metadata_room();
        let near = room < NEAR_BLOCKS && self.state.inserted >= NEAR_INSERTIONS;
        if room == 0 || near {
            self.mark_dirty();
            if !self.commit() || self.pool.mode() != Mode::Write {
                return Err(NoBlock::Failed);
            }
        }
        let allocated = self.pool.metadata.write().alloc_data_block();
        match allocated {
            Ok(block) => {
                self.state.held_blocks.push((block, 1));
                Ok(block)
            }
            Err(e) if e.kind() == ErrorKind::NoSpace(Space::Data) => {
                self.set_mode(Mode::OutOfDataSpace);
                Err(NoBlock::NoSpace)
            }
            Err(e) => {
                self.metadata_failed("allocate a data block", &e);
                Err(NoBlock::Failed)
            }
        }
    }

    /// The work no longer holds this run: its reference has passed to a mapping, or is dropped next.
    pub(super) fn release_block(&mut self, begin: DataBlock, len: u64) {
        if let Some(i) = self
            .state
            .held_blocks
            .iter()
            .position(|h| *h == (begin, len))
        {
            self.state.held_blocks.swap_remove(i);
        }
    }

    /// Gives an allocated block back that was not used. `aborts` is the count when it was allocated.
    pub(super) fn give_back(&mut self, block: DataBlock, aborts: u64) {
        if aborts != self.state.aborts {
            return;
        }
        // In any mode: what the pool does not commit now it may commit after its next table.
        self.let_go(&[(block, 1)]);
        if self.pool.mode() == Mode::OutOfDataSpace {
            // Only a commit notices that there is a block again.
            self.mark_dirty();
        }
    }

    /// Acknowledged work depends on metadata that is not committed.
    pub(super) fn mark_dirty(&self) {
        self.pool.dirty.store(true, SeqCst);
    }

    /// The kernel's `metadata_operation_failed`: give up the transaction, mark the metadata, go read-only.
    pub(super) fn metadata_failed(&mut self, operation: &str, error: &MetadataError) {
        tracing::error!(pool = %self.pool.dev_no, %error, "thin: metadata operation '{operation}' failed: aborting the current transaction");
        self.state.aborts += 1;
        self.state.held_blocks.clear();
        let mut mode = Mode::ReadOnly;
        {
            let mut metadata = self.pool.metadata.write();
            if let Err(error) = metadata.abort() {
                tracing::error!(pool = %self.pool.dev_no, %error, "thin: failed to abort the metadata transaction");
                mode = Mode::Fail;
            }
            if let Err(error) = metadata.set_needs_check() {
                tracing::error!(pool = %self.pool.dev_no, %error, "thin: failed to set the needs_check flag");
                mode = Mode::Fail;
            }
        }
        if mode == Mode::Fail {
            self.pool.note_failure();
        }
        self.pool.dirty.store(false, SeqCst);
        // CRASH: there is nothing to commit any more, and so no commit that could tell them of the failure.
        let waiting = std::mem::take(&mut self.state.after_commit);
        waiting.into_iter().for_each(AfterCommit::fail);
        self.pool.transaction_ended(false);
        self.state.inserted = 0;
        self.state.replaced = false;
        self.reset_journal();
        self.set_mode(mode);
    }

    /// Moves the pool to `wanted`, as far as that is allowed; tells of a change.
    pub(super) fn set_mode(&mut self, wanted: Mode) {
        let old = self.pool.mode();
        let needs_check = old != Mode::Fail && self.pool.metadata.read().needs_check();
        let new = allowed(old, wanted, needs_check);
        if wanted == Mode::Write && new != Mode::Write && needs_check {
            tracing::error!(pool = %self.pool.dev_no, "thin: unable to switch pool to write mode until repaired");
        }
        self.pool.store_mode(new);
        if new == Mode::OutOfMetadataSpace && old != new {
            self.state.room_when_full = self.pool.metadata.read().metadata_room();
        }
        self.state.no_space_since = (new == Mode::OutOfDataSpace
            && !self.pool.features().error_if_no_space)
            .then(|| self.state.no_space_since.unwrap_or(self.state.now));
        if old != new {
            let name = new.description(self.pool.features().error_if_no_space);
            tracing::info!(pool = %self.pool.dev_no, "thin: switching pool to {name} mode");
            self.pool.trigger_event();
        }
        match new {
            Mode::Write => {}
            Mode::OutOfDataSpace => {
                if self.pool.features().error_if_no_space {
                    self.fail_retries(BlkStatus::NoSpc);
                }
            }
            Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => {
                self.fail_retries(BlkStatus::IoErr);
            }
        }
    }

    fn fail_retries(&mut self, status: BlkStatus) {
        for work in std::mem::take(&mut self.state.retry) {
            work.end(status);
        }
    }

    /// Space may be there again.
    pub(super) fn retry_all(&mut self) {
        for work in std::mem::take(&mut self.state.retry) {
            self.take_in(work);
        }
    }

    pub(super) fn check_no_space_timeout(&mut self) {
        let Some(since) = self.state.no_space_since else {
            return;
        };
        if self.state.now < since + NO_SPACE_TIMEOUT {
            return;
        }
        self.state.no_space_since = None;
        if self.pool.mode() == Mode::OutOfDataSpace {
            self.pool.features.lock().error_if_no_space = true;
            tracing::info!(pool = %self.pool.dev_no, "thin: switching pool to {} mode", Mode::OutOfDataSpace.description(true));
            self.pool.trigger_event();
            self.fail_retries(BlkStatus::NoSpc);
        }
    }

    /// What to do with a write that cannot be served in the present mode.
    pub(super) fn unserviceable(&mut self, work: Work) {
        match self.pool.mode() {
            Mode::OutOfDataSpace if self.pool.features().error_if_no_space => {
                work.end(BlkStatus::NoSpc);
            }
            Mode::OutOfDataSpace => self.state.retry.push(work),
            _ => work.end(BlkStatus::IoErr),
        }
    }
}
