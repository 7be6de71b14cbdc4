//! Merging: exceptions go back to the origin, last ones first, and are forgotten. A part of the worker.

use thinmap_block::Io;
use thinmap_units::{BlkStatus, Sector};

use super::origin::go_on;
use super::snapshot::Snapshot;
use super::state::{Validity, Waiting};
use super::store::{Consecutive, NotForgotten, Store, flush};
use super::worker::{Drain, Event, Worker};

/// Sectors copied in one step, if a chunk is not larger: writes to them wait for it.
const STEP_SECTORS_MAX: u64 = 8192;

/// How far a merge is.
pub(super) enum Merge {
    /// Nothing is merged.
    Off,
    /// The next step may begin.
    Next,
    /// The origin's other snapshots get exceptions for what will be overwritten.
    Others(Consecutive),
    /// Writes under way to the chunks are outwaited.
    Draining(Consecutive, Drain),
    /// The chunks are being copied.
    Copying(Consecutive),
}

impl Merge {
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }

    pub fn is_draining(&self) -> bool {
        matches!(self, Self::Draining(..))
    }
}

impl Worker<'_> {
    pub(super) fn start_merge(&mut self) {
        // After a failure what the store holds is not known.
        if self.state.merge.is_off() && !self.snapshot.state.read().merge_failed {
            self.state.merge = Merge::Next;
        }
    }

    fn must_stop(&self) -> bool {
        self.state.stop || !self.state.stop_merge.is_empty()
    }

    /// Goes on until something has to be waited for.
    pub(super) fn merge_some(&mut self) {
        loop {
            match std::mem::replace(&mut self.state.merge, Merge::Off) {
                Merge::Off => break,
                Merge::Next | Merge::Others(_) if self.must_stop() => break,
                Merge::Next => {
                    if !self.is_settled() {
                        self.state.merge = Merge::Next;
                        return;
                    }
                    self.state.merge = self.next_chunks();
                }
                Merge::Others(chunks) => {
                    if self.others_wait(chunks) {
                        self.state.merge = Merge::Others(chunks);
                        return;
                    }
                    self.snapshot.state.write().merging = Some(chunks.range());
                    self.state.merge = Merge::Draining(chunks, Drain::default());
                }
                Merge::Draining(chunks, mut drain) => {
                    if !drain.is_over(&self.snapshot.merge_writes) {
                        self.state.merge = Merge::Draining(chunks, drain);
                        return;
                    }
                    // Before it is started: it may end at once.
                    self.state.merge = Merge::Copying(chunks);
                    let snapshot = self.snapshot.clone();
                    let range = (chunks.old, chunks.new, chunks.count as u64);
                    let done = move |status| snapshot.push(Event::Merged(status));
                    self.snapshot.copy_back(range, done);
                    return;
                }
                copying @ Merge::Copying(_) => {
                    self.state.merge = copying;
                    return;
                }
            }
        }
        for sender in self.state.stop_merge.drain(..) {
            // Whoever asked may have gone.
            let _ = sender.send(());
        }
    }

    fn next_chunks(&mut self) -> Merge {
        if self.snapshot.state.read().validity != Validity::Valid {
            tracing::error!("snapshot-merge: the snapshot is invalid: there is nothing to merge");
            return Merge::Off;
        }
        let max = (STEP_SECTORS_MAX / self.snapshot.chunk.raw()).max(1) as usize;
        let cow = self.snapshot.devices().cow.clone();
        let Some(store) = &mut self.state.store else {
            return Merge::Off;
        };
        match store.last_consecutive(&*cow, max) {
            Ok(Some(chunks)) => {
                let area = store.area();
                self.snapshot.state.write().area = Some(area);
                Merge::Others(chunks)
            }
            Ok(None) => {
                tracing::info!("snapshot-merge: everything is merged");
                Merge::Off
            }
            Err(_) => {
                self.merge_failed("the exception store cannot be read");
                Merge::Off
            }
        }
    }

    /// Has the origin's other snapshots save what will be overwritten; whether that takes time.
    fn others_wait(&self, chunks: Consecutive) -> bool {
        let begin = self.snapshot.sector_of(chunks.old);
        let len = chunks.count as u64 * self.snapshot.chunk.raw();
        let end = Sector(begin.raw().saturating_add(len));
        let mut waiting = Some(Waiting::Merge(self.snapshot.clone()));
        self.snapshot.origin.protect(begin, end, &mut waiting)
    }

    /// The copy of some chunks has ended.
    pub(super) fn merged(&mut self, status: BlkStatus) {
        let Merge::Copying(chunks) = std::mem::replace(&mut self.state.merge, Merge::Off) else {
            return;
        };
        let devices = self.snapshot.devices();
        if !status.is_ok() {
            return self.merge_failed("chunks could not be copied to the origin");
        }
        // CRASH: what was copied, before the exceptions for it are forgotten.
        if flush(&*devices.origin).is_err() {
            return self.merge_failed("the origin could not be flushed");
        }
        let Some(store) = &mut self.state.store else {
            return;
        };
        if let Err(outcome) = store.forget_last(&*devices.cow, chunks.count) {
            if outcome == NotForgotten::Unknown {
                self.snapshot.state.write().doubtful = Some(chunks.range());
            }
            return self.merge_failed("the exception store cannot be written");
        }
        let queued = forget(self.snapshot, store, chunks);
        self.state.merge = Merge::Next;
        for io in queued {
            go_on(
                &self.snapshot.origin,
                Waiting::Write(io, devices.origin.clone()),
            );
        }
    }

    fn merge_failed(&self, why: &str) {
        tracing::error!(
            "snapshot-merge: {why}: merging has stopped; the device goes on with what is not merged on its COW device"
        );
        let queued = {
            let mut state = self.snapshot.state.write();
            state.merge_failed = true;
            state.merging = None;
            std::mem::take(&mut state.queued)
        };
        queued
            .into_iter()
            .for_each(|io| io.complete(BlkStatus::IoErr));
    }
}

/// Reads and writes of merged chunks go to the origin from now on; the writes that waited for that.
fn forget(snapshot: &Snapshot, store: &Store, chunks: Consecutive) -> Vec<Io> {
    let mut state = snapshot.state.write();
    for chunk in chunks.range() {
        state.complete.remove(chunk);
    }
    state.room.set_next(store.next_free_in_order());
    state.merging = None;
    std::mem::take(&mut state.queued)
}
