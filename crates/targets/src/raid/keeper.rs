//! The keeper: the actor that writes an array's superblocks and bitmap. Its turn waits for metadata devices and for flushes of the
//! data devices; never for guests' requests and never for the syncer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::BlkStatus;

use super::array::Array;

/// The actor.
pub(super) struct KeeperActor(pub Arc<Array>);

/// When the bitmap is looked at next.
#[derive(Default)]
pub(super) struct Cleaning(Mutex<Option<Duration>>);

impl Cleaning {
    /// Whether it is time, and when the next time is.
    fn is_due(&self, now: Duration, period: Duration) -> bool {
        let mut next = self.0.lock();
        match *next {
            Some(at) if now < at => false,
            Some(_) => {
                *next = Some(now + period);
                true
            }
            None => {
                *next = Some(now + period);
                false
            }
        }
    }

    fn next(&self) -> Option<Duration> {
        *self.0.lock()
    }

    fn stop(&self) {
        *self.0.lock() = None;
    }
}

impl Actor for KeeperActor {
    fn turn(&self, now: Duration) -> NextTurn {
        self.0.keep(now)
    }

    fn panicked(&self) {
        tracing::error!(
            "raid: the keeper panicked: the array takes no more writes to clean regions, and failures are not recorded"
        );
        let array = &self.0;
        let (writes, settle) = {
            let mut inbox = array.inbox.lock();
            inbox.dead = true;
            let writes = std::mem::take(&mut inbox.writes);
            (writes, std::mem::take(&mut inbox.settle))
        };
        for (io, _) in writes {
            io.complete(BlkStatus::IoErr);
        }
        drop(settle);
        array.members.recorded(array.members.failures());
    }
}

impl Array {
    fn keep(self: &Arc<Self>, now: Duration) -> NextTurn {
        loop {
            let (writes, superblocks, event, settle, stop) = {
                let mut inbox = self.inbox.lock();
                (
                    std::mem::take(&mut inbox.writes),
                    std::mem::take(&mut inbox.superblocks),
                    std::mem::take(&mut inbox.event),
                    std::mem::take(&mut inbox.settle),
                    inbox.stop,
                )
            };
            let idle = writes.is_empty() && !superblocks && settle.is_empty();
            if superblocks {
                self.metadata.lock().update(self.resynced());
            }
            self.let_go(writes);
            if !settle.is_empty() {
                self.clean(true);
                self.metadata.lock().update(self.resynced());
            }
            drop(settle);
            if event {
                self.event.trigger();
            }
            if idle {
                if stop {
                    self.inbox.lock().dead = true;
                    return NextTurn::Stop;
                }
                break;
            }
        }
        self.clean_now_and_then(now)
    }

    /// Writes whose regions become dirty on disk now.
    fn let_go(self: &Arc<Self>, writes: Vec<(thinmap_block::Io, super::regions::Span)>) {
        if writes.is_empty() {
            return;
        }
        if let Some(regions) = &self.regions {
            let spans = writes.iter().map(|(_, span)| span.iter());
            let resynced = self.resynced();
            self.metadata.lock().set_dirty(regions, spans, resynced);
        }
        for (io, _) in writes {
            self.level.submit(io);
        }
    }

    fn clean_now_and_then(&self, now: Duration) -> NextTurn {
        let Some(regions) = self.regions.as_ref().filter(|regions| regions.has_dirty()) else {
            self.cleaning.stop();
            return NextTurn::WhenWoken;
        };
        let _ = regions;
        if self.members.is_degraded() {
            self.cleaning.stop();
            return NextTurn::WhenWoken;
        }
        let period = Duration::from_millis(u64::from(self.pace.daemon_sleep)).max(PERIOD_MIN);
        if self.cleaning.is_due(now, period) {
            self.clean(false);
        }
        self.cleaning
            .next()
            .map_or(NextTurn::WhenWoken, NextTurn::At)
    }

    /// Regions become clean that nothing was written to since the last look; with `all`, since now.
    fn clean(&self, all: bool) {
        let Some(regions) = &self.regions else {
            return;
        };
        if self.members.is_degraded() {
            return;
        }
        let clean = regions.take_clean(all);
        if clean.is_empty() {
            return;
        }
        if !self.metadata.lock().set_clean(&clean) {
            clean
                .into_iter()
                .for_each(|index| regions.set_needed(index));
        }
    }
}

/// The least time between two looks.
const PERIOD_MIN: Duration = Duration::from_millis(10);
