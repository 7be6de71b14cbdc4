//! Recovery: one region after another is copied from the default leg to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

use thinmap_block::{BlockDevice, EndIo, Io, QueueLimits};
use thinmap_dm::kit::{CopyRequest, CopySource};
use thinmap_units::{BlkStatus, Sector};

use super::legs::Failure;
use super::set::MirrorSet;
use super::worker::{Event, Worker};

/// What the worker is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Recovery {
    /// Not active, or suspended.
    #[default]
    Stopped,
    /// Between regions, or done.
    Between,
    /// Waits for the writes in this region.
    Quiescing(u64),
    /// Copies this region.
    Copying(u64),
}

/// How a copy ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Recovered {
    pub region: u64,
    /// The leg that was read.
    pub from: usize,
    pub read_failed: bool,
    /// A bit for each leg that could not be written.
    pub write_failed: u32,
}

impl Worker<'_> {
    /// Begins what can be begun.
    pub(super) fn recover(&mut self) {
        let set = self.set;
        if let Recovery::Quiescing(region) = self.state.recovery
            && set.regions.lock().is_quiesced(region)
        {
            self.copy(region);
        }
        if self.state.recovery == Recovery::Between
            && let Some(region) = set.log.next_out_of_sync(self.state.search)
        {
            self.state.search = region + 1;
            if set.regions.lock().begin_recovery(region) {
                self.copy(region);
            } else {
                self.state.recovery = Recovery::Quiescing(region);
            }
        }
        if !set.legs.in_sync.load(SeqCst) && set.log.all_in_sync() {
            set.legs.in_sync.store(true, SeqCst);
            set.event.trigger();
        }
    }

    fn copy(&mut self, region: u64) {
        self.state.recovery = Recovery::Copying(region);
        let set = self.set;
        let offset = Sector(region * set.log.region.raw());
        let len = set.log.region.min(set.len - offset);
        let from = set.legs.default_index();
        let source = &set.legs.list[from];
        let copy = Arc::new(RegionCopy {
            set: set.clone(),
            region,
            from,
            left: AtomicUsize::new(set.legs.list.len() - 1),
            read_failed: AtomicBool::new(false),
            write_failed: AtomicU32::new(0),
        });
        for (index, leg) in set.legs.list.iter().enumerate() {
            if index == from {
                continue;
            }
            let watched = Arc::new(Watched {
                below: source.dev().clone(),
                failed: Arc::default(),
            });
            let failed = watched.failed.clone();
            let request = CopyRequest {
                to: leg.dev().clone(),
                to_sector: leg.place(offset),
                segments: vec![(len, CopySource::Device(watched, source.place(offset)))],
                overlay: None,
            };
            let copy = copy.clone();
            let done = move |status, _| copy.leg_ended(index, status, failed.0.load(SeqCst));
            set.copier.start(request, Box::new(done));
        }
    }

    /// A copy has ended.
    pub(super) fn recovered(&mut self, end: Recovered) {
        let set = self.set;
        let from = u32::from(end.read_failed) << end.from;
        let failed = end.write_failed | from;
        if failed != 0 {
            tracing::error!(
                region = end.region,
                "mirror: a region could not be recovered"
            );
        }
        for index in 0..set.legs.list.len() {
            // COMPAT: nor is the leg at fault where failures are not handled.
            if set.features.handle_errors && failed >> index & 1 != 0 {
                set.legs.fail(index, Failure::Sync);
            }
        }
        let well = failed == 0;
        // COMPAT: where failures are not handled, a region that was tried is as good as in sync.
        let in_sync = well || !set.features.handle_errors;
        let delayed = {
            let mut regions = set.regions.lock();
            set.log.set_in_sync(end.region, in_sync);
            regions.end_recovery(end.region, well)
        };
        self.state.writes.extend(delayed);
        self.recovery_ended();
    }

    /// Suspending: what is only waited for is given up, what is being copied goes on to its end.
    pub(super) fn stop_recovery(&mut self) {
        match self.state.recovery {
            Recovery::Copying(_) => {}
            Recovery::Quiescing(region) => {
                let delayed = self.set.regions.lock().end_recovery(region, false);
                self.state.writes.extend(delayed);
                self.state.search = self.state.search.min(region);
                self.recovery_ended();
            }
            Recovery::Between | Recovery::Stopped => self.recovery_ended(),
        }
    }

    /// A region that was being quiesced has lost a write, and is not recovered.
    pub(super) fn give_up_recovery(&mut self, region: u64) {
        // It may have been begun anew since.
        if self.state.recovery == Recovery::Quiescing(region)
            && !self.set.regions.lock().is_recovering(region)
        {
            self.recovery_ended();
        }
    }

    fn recovery_ended(&mut self) {
        if self.state.stop_recovery.is_empty() {
            self.state.recovery = Recovery::Between;
            return;
        }
        self.state.recovery = Recovery::Stopped;
        for waiting in self.state.stop_recovery.drain(..) {
            let _ = waiting.send(());
        }
    }
}

/// One region on its way to all other legs.
struct RegionCopy {
    set: Arc<MirrorSet>,
    region: u64,
    from: usize,
    left: AtomicUsize,
    read_failed: AtomicBool,
    write_failed: AtomicU32,
}

impl RegionCopy {
    fn leg_ended(&self, index: usize, status: BlkStatus, by_reading: bool) {
        if by_reading {
            self.read_failed.store(true, SeqCst);
        } else if !status.is_ok() {
            self.write_failed.fetch_or(1 << index, SeqCst);
        }
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.set.push(Event::Recovered(Recovered {
                region: self.region,
                from: self.from,
                read_failed: self.read_failed.load(SeqCst),
                write_failed: self.write_failed.load(SeqCst),
            }));
        }
    }
}

/// The leg that is read, so that its failures are told from those of the leg that is written.
struct Watched {
    below: Arc<dyn BlockDevice>,
    failed: Arc<ReadFailed>,
}

#[derive(Default)]
struct ReadFailed(AtomicBool);

impl EndIo for ReadFailed {
    fn end_io(self: Arc<Self>, io: Io, _: u64, status: BlkStatus) {
        if !status.is_ok() {
            self.0.store(true, SeqCst);
        }
        io.complete(status);
    }
}

impl BlockDevice for Watched {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, mut io: Io) {
        io.push_end_io(self.failed.clone(), 0);
        self.below.submit(io);
    }
}
