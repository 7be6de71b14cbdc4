//! The regions that something is going on in: writes under way, writes that wait, recovery. Any other region is as the log says.
//!
//! INVARIANT: a region that is being recovered has no write under way, once its copy has begun. Writes under way never overlap: each leg
//! could end up with another one of them.

use std::collections::HashMap;
use std::ops::Range;

use smallvec::SmallVec;
use thinmap_block::Io;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In sync; the log says, or is about to say, that legs may differ.
    Dirty,
    /// Only the default leg is right.
    OutOfSync,
    /// About to be copied, or being copied, to the other legs. Writes wait.
    Recovering,
}

struct Region {
    state: State,
    /// The log on the medium says that it is dirty.
    is_marked: bool,
    /// Sectors of the line that writes are under way to.
    pending: SmallVec<[Range<u64>; 2]>,
    /// It is in the list of the idle.
    is_listed: bool,
    /// The round in which the last write ended.
    round: u64,
    /// Writes that wait for the recovery's end, or for one that they overlap.
    waiting: Vec<Io>,
}

impl Region {
    fn new(state: State, is_marked: bool) -> Self {
        Self {
            state,
            is_marked,
            pending: SmallVec::new(),
            is_listed: false,
            round: 0,
            waiting: Vec::new(),
        }
    }
}

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// To all legs. It is counted.
    All,
    /// To the default leg. It is counted.
    Default,
    /// Nowhere now: it must wait ([`Regions::keep`]).
    Wait,
    /// To all legs, when the log says that the region is dirty. Counted only for the worker.
    Mark,
}

/// What the end of a write means.
#[derive(Default)]
pub(super) struct Left {
    /// There are idle regions now, which there were not, or a recovery can begin to copy: the worker must look.
    pub wakes: bool,
    /// Writes that waited for it.
    pub waiting: Vec<Io>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Regions {
    map: HashMap<u64, Region>,
    /// Dirty regions without a write.
    idle: Vec<u64>,
    round: u64,
    /// A flush of the legs failed: what was written since is out of sync.
    pub flush_failed: bool,
}

impl Regions {
    /// Asks for a write to sectors of the line. `in_sync` is what the log says; `marks` whether the log has to be written before the legs, and then
    /// `by_worker` whether the worker asks, which does that.
    pub fn admit(
        &mut self,
        nr: u64,
        sectors: Range<u64>,
        in_sync: bool,
        marks: bool,
        by_worker: bool,
    ) -> Admission {
        let may_mark = by_worker || !marks;
        let state = if in_sync {
            State::Dirty
        } else {
            State::OutOfSync
        };
        let region = match self.map.get_mut(&nr) {
            Some(region) => region,
            None if in_sync && !may_mark => return Admission::Mark,
            None => self.map.entry(nr).or_insert(Region::new(state, !marks)),
        };
        let overlaps = |other: &Range<u64>| other.start < sectors.end && sectors.start < other.end;
        let admission = match region.state {
            State::Recovering => return Admission::Wait,
            _ if region.pending.iter().any(overlaps) => return Admission::Wait,
            State::OutOfSync => Admission::Default,
            State::Dirty if region.is_marked => Admission::All,
            State::Dirty if may_mark => Admission::Mark,
            State::Dirty => return Admission::Mark,
        };
        region.pending.push(sectors);
        admission
    }

    /// The log says on the medium that the region is dirty.
    pub fn marked(&mut self, nr: u64) {
        if let Some(region) = self.map.get_mut(&nr) {
            region.is_marked = true;
        }
    }

    /// Keeps a write that must wait.
    pub fn keep(&mut self, nr: u64, io: Io) {
        if let Some(region) = self.map.get_mut(&nr) {
            region.waiting.push(io);
        }
    }

    /// A write that was counted has ended: the one that began at `start`.
    pub fn leave(&mut self, nr: u64, start: u64, in_sync: bool) -> Left {
        let mut left = Left::default();
        let Some(region) = self.map.get_mut(&nr) else {
            debug_assert!(false, "a write ended in region {nr}, where none was");
            return left;
        };
        region.pending.retain(|sectors| sectors.start != start);
        let is_idle = region.pending.is_empty();
        if region.state == State::Recovering {
            left.wakes = is_idle;
            return left;
        }
        left.waiting = std::mem::take(&mut region.waiting);
        if !is_idle {
            return left;
        }
        match region.state {
            State::Dirty if self.flush_failed => region.state = State::OutOfSync,
            State::OutOfSync if !in_sync => {
                self.map.remove(&nr);
            }
            State::OutOfSync | State::Recovering => {}
            State::Dirty => {
                region.round = self.round;
                if !region.is_listed {
                    region.is_listed = true;
                    self.idle.push(nr);
                    left.wakes = self.idle.len() == 1;
                }
            }
        }
        left
    }

    /// Whether a write is under way, so that legs may differ for now.
    pub fn is_busy(&self, nr: u64) -> bool {
        self.map
            .get(&nr)
            .is_some_and(|region| !region.pending.is_empty())
    }

    pub fn is_recovering(&self, nr: u64) -> bool {
        let region = self.map.get(&nr);
        region.is_some_and(|region| region.state == State::Recovering)
    }

    /// Whether a recovery that was begun may copy.
    pub fn is_quiesced(&self, nr: u64) -> bool {
        let region = self.map.get(&nr);
        region.is_some_and(|region| region.state == State::Recovering && region.pending.is_empty())
    }

    /// A counted write did not reach all legs: they differ until a recovery. What waits for a recovery that so ends.
    pub fn mark_out_of_sync(&mut self, nr: u64) -> Option<Vec<Io>> {
        let region = self.map.get_mut(&nr)?;
        let was_recovering = region.state == State::Recovering;
        region.state = State::OutOfSync;
        was_recovering.then(|| std::mem::take(&mut region.waiting))
    }

    /// Begins the recovery of a region; whether no write is under way in it.
    pub fn begin_recovery(&mut self, nr: u64) -> bool {
        let new = Region::new(State::Recovering, true);
        let region = self.map.entry(nr).or_insert(new);
        region.state = State::Recovering;
        region.pending.is_empty()
    }

    /// Ends it; what waited. A region that is in sync now is dirty, and idle, as far as the log goes.
    pub fn end_recovery(&mut self, nr: u64, recovered: bool) -> Vec<Io> {
        let Some(region) = self.map.get_mut(&nr) else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut region.waiting);
        if recovered {
            region.state = State::Dirty;
            region.is_marked = true;
            region.round = self.round;
            if !region.is_listed {
                region.is_listed = true;
                self.idle.push(nr);
            }
        } else if region.pending.is_empty() {
            self.map.remove(&nr);
        } else {
            region.state = State::OutOfSync;
        }
        waiting
    }

    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Takes regions out that were idle for a whole round, or with `all` that are idle now. They are clean.
    pub fn take_clean(&mut self, all: bool) -> Vec<u64> {
        self.round += 1;
        let mut clean = Vec::new();
        let listed = std::mem::take(&mut self.idle);
        for nr in listed {
            let Some(region) = self.map.get_mut(&nr) else {
                continue;
            };
            region.is_listed = false;
            if region.state != State::Dirty || !region.pending.is_empty() {
                continue;
            }
            if all || region.round + 1 < self.round {
                self.map.remove(&nr);
                clean.push(nr);
            } else {
                region.is_listed = true;
                self.idle.push(nr);
            }
        }
        clean
    }

    /// Takes every write that waits.
    pub fn take_waiting(&mut self) -> Vec<Io> {
        let regions = self.map.values_mut();
        regions
            .flat_map(|region| std::mem::take(&mut region.waiting))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes to one sector: of regions of 8, in sync, with a log on a device unless said otherwise.
    fn ask(regions: &mut Regions, sector: u64, marks: bool, by_worker: bool) -> Admission {
        regions.admit(sector / 8, sector..sector + 1, true, marks, by_worker)
    }

    fn leave(regions: &mut Regions, sector: u64, in_sync: bool) -> bool {
        let left = regions.leave(sector / 8, sector, in_sync);
        assert!(left.waiting.is_empty());
        left.wakes
    }

    #[test]
    fn a_write_to_a_clean_region_waits_for_the_log() {
        let mut regions = Regions::default();
        assert_eq!(ask(&mut regions, 8, true, false), Admission::Mark);
        assert!(!regions.is_busy(1), "not counted");
        assert_eq!(ask(&mut regions, 8, true, true), Admission::Mark);
        assert!(regions.is_busy(1));
        // The log is being written.
        assert_eq!(ask(&mut regions, 9, true, false), Admission::Mark);
        regions.marked(1);
        assert_eq!(ask(&mut regions, 9, true, false), Admission::All);
        assert!(!leave(&mut regions, 8, true));
        assert!(leave(&mut regions, 9, true), "idle");
        // A log in memory needs none of this.
        assert_eq!(ask(&mut regions, 16, false, false), Admission::All);
    }

    #[test]
    fn a_region_is_clean_when_it_was_idle_for_a_round() {
        let mut regions = Regions::default();
        let write = |regions: &mut Regions, nr: u64| {
            assert_eq!(ask(regions, nr * 8, false, false), Admission::All);
            leave(regions, nr * 8, true)
        };
        assert!(write(&mut regions, 1));
        assert!(regions.take_clean(false).is_empty());
        assert!(!write(&mut regions, 2));
        assert_eq!(regions.take_clean(false), [1]);
        assert!(!write(&mut regions, 2));
        assert!(regions.take_clean(false).is_empty());
        assert_eq!(regions.take_clean(false), [2]);
        assert!(!regions.has_idle());
        assert!(write(&mut regions, 3));
        assert_eq!(ask(&mut regions, 32, false, false), Admission::All);
        assert_eq!(regions.take_clean(true), [3], "4 has a write under way");
    }

    #[test]
    fn a_recovery_waits_for_writes_and_writes_for_it() {
        let mut regions = Regions::default();
        let ask = |regions: &mut Regions, nr: u64, in_sync| {
            regions.admit(nr, nr * 8..nr * 8 + 1, in_sync, true, false)
        };
        assert_eq!(ask(&mut regions, 1, false), Admission::Default);
        assert!(!regions.begin_recovery(1));
        assert_eq!(ask(&mut regions, 1, false), Admission::Wait);
        assert!(!regions.is_quiesced(1));
        assert!(leave(&mut regions, 8, false));
        assert!(regions.is_quiesced(1));
        assert!(regions.end_recovery(1, true).is_empty());
        // The log says dirty already.
        assert_eq!(ask(&mut regions, 1, true), Admission::All);
        assert!(regions.begin_recovery(2));
        assert!(regions.end_recovery(2, false).is_empty());
        assert_eq!(ask(&mut regions, 2, false), Admission::Default);
    }

    #[test]
    fn a_failed_write_leaves_its_region_out_of_sync() {
        let mut regions = Regions::default();
        assert_eq!(ask(&mut regions, 8, false, false), Admission::All);
        assert!(regions.mark_out_of_sync(1).is_none());
        let next = regions.admit(1, 9..10, false, false, false);
        assert_eq!(next, Admission::Default);
        assert!(!leave(&mut regions, 8, false));
        assert!(!leave(&mut regions, 9, false));
        assert!(!regions.has_idle());
        // After a flush that failed no region becomes clean.
        regions.flush_failed = true;
        assert_eq!(ask(&mut regions, 16, false, false), Admission::All);
        assert!(!leave(&mut regions, 16, true));
        assert_eq!(ask(&mut regions, 16, false, false), Admission::Default);
    }

    #[test]
    fn writes_that_overlap_go_one_after_another() {
        let mut regions = Regions::default();
        let ask = |regions: &mut Regions, sectors| regions.admit(0, sectors, true, false, false);
        assert_eq!(ask(&mut regions, 2..4), Admission::All);
        for overlapping in [0..3, 3..8, 2..4, 0..8] {
            assert_eq!(ask(&mut regions, overlapping), Admission::Wait);
        }
        assert_eq!(ask(&mut regions, 0..2), Admission::All);
        assert_eq!(ask(&mut regions, 4..8), Admission::All);
        assert!(!leave(&mut regions, 2, true));
        assert_eq!(ask(&mut regions, 2..3), Admission::All);
    }
}
