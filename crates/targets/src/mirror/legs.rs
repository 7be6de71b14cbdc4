//! The legs: what failed on which, and which one is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};

use thinmap_block::BlockDevice;
use thinmap_dm::{DeviceUse, TableEvent};
use thinmap_units::Sector;

/// One copy of the content.
pub(super) struct Leg {
    pub device: DeviceUse,
    /// Where the line begins on it.
    pub start: Sector,
    /// What failed so far, one bit for each [`Failure`].
    failures: AtomicU8,
}

/// What a leg failed at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    Read = 1,
    Sync = 2,
    Write = 4,
    Flush = 8,
}

impl Leg {
    pub fn new(device: DeviceUse, start: Sector) -> Self {
        Self {
            device,
            start,
            failures: AtomicU8::new(0),
        }
    }

    pub fn dev(&self) -> &Arc<dyn BlockDevice> {
        &self.device.dev
    }

    /// Where a sector of the line is; out of every device when there is no such place.
    pub fn place(&self, offset: Sector) -> Sector {
        Sector(self.start.raw().saturating_add(offset.raw()))
    }

    fn is_well(&self) -> bool {
        self.failures.load(SeqCst) == 0
    }

    /// The worst that happened, as the status shows it.
    fn letter(&self) -> char {
        let failures = self.failures.load(SeqCst);
        let has = |failure: Failure| failures & failure as u8 != 0;
        if has(Failure::Flush) {
            'F'
        } else if has(Failure::Write) {
            'D'
        } else if has(Failure::Sync) {
            'S'
        } else if has(Failure::Read) {
            'R'
        } else {
            'A'
        }
    }
}

/// All of them.
pub(super) struct Legs {
    pub list: Vec<Leg>,
    /// The one that is right where they may differ.
    default: AtomicUsize,
    handle_errors: bool,
    /// Every region is in sync.
    pub in_sync: AtomicBool,
    /// Some leg has failed.
    pub failed: AtomicBool,
    event: Arc<TableEvent>,
}

impl Legs {
    pub fn new(list: Vec<Leg>, handle_errors: bool, event: Arc<TableEvent>) -> Self {
        Self {
            list,
            default: AtomicUsize::new(0),
            handle_errors,
            in_sync: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            event,
        }
    }

    pub fn default_index(&self) -> usize {
        self.default.load(SeqCst)
    }

    pub fn default_leg(&self) -> &Leg {
        &self.list[self.default_index()]
    }

    pub fn default_is_well(&self) -> bool {
        self.default_leg().is_well()
    }

    pub fn any_is_well(&self) -> bool {
        self.list.iter().any(Leg::is_well)
    }

    /// The leg to read a region from that is in sync: the default one, or going down from it the first that is well.
    pub fn choose(&self) -> Option<usize> {
        let (count, default) = (self.list.len(), self.default_index());
        (0..count)
            .map(|step| (default + count - step) % count)
            .find(|index| self.list[*index].is_well())
    }

    /// The leg whose turn it is at this place, so that reads are spread; `None` when it is not well.
    ///
    /// By place and not by load: what is read twice comes from the same leg, also where nothing was written ever.
    pub fn choose_by_place(&self, offset: Sector) -> Option<usize> {
        let stretch = offset.raw() / SPREAD.raw();
        let index = (stretch % self.list.len() as u64) as usize;
        self.list[index].is_well().then_some(index)
    }

    /// Notes a failure. If failures are handled the first of each kind raises an event, and another leg becomes the default one.
    pub fn fail(&self, index: usize, failure: Failure) {
        self.failed.store(true, SeqCst);
        let leg = &self.list[index];
        let before = leg.failures.fetch_or(failure as u8, SeqCst);
        if before & failure as u8 != 0 {
            return;
        }
        tracing::warn!(leg = %leg.device, ?failure, "mirror: a leg failed");
        if !self.handle_errors {
            return;
        }
        if index == self.default_index() {
            self.replace_default(leg);
        }
        self.event.trigger();
    }

    fn replace_default(&self, failed: &Leg) {
        if !self.in_sync.load(SeqCst) {
            // Reads that fail are better than reads of something else.
            tracing::error!(leg = %failed.device, "mirror: the primary leg failed while out of sync: reads may fail");
            return;
        }
        match self.list.iter().position(Leg::is_well) {
            Some(well) => self.default.store(well, SeqCst),
            None => tracing::warn!("mirror: all legs have failed"),
        }
    }

    pub fn letters(&self) -> impl Iterator<Item = char> + '_ {
        self.list.iter().map(Leg::letter)
    }
}

/// Reads of this much in a row go to one leg: 1 MiB.
const SPREAD: Sector = Sector(2048);
