//! The regions that something is going on in: writes under way, writes that wait, recovery. Any other region is as the log says.
//!
//! INVARIANT: a region that is being recovered has no write under way, once its copy has begun.

use std::collections::HashMap;

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
    /// Writes under way.
    pending: u32,
    /// It is in the list of the idle.
    is_listed: bool,
    /// The round in which the last write ended.
    round: u64,
    /// Writes that wait for the recovery's end.
    delayed: Vec<Io>,
}

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// To all legs. It is counted.
    All,
    /// To the default leg. It is counted.
    Default,
    /// Nowhere now: it must wait ([`Regions::delay`]).
    Wait,
    /// To all legs, when the log says that the region is dirty. Counted only for the worker.
    Mark,
}

/// What the end of a write means for the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    Nothing,
    /// There are idle regions now, which there were not.
    Idle,
    /// A recovery can begin to copy.
    Quiesced,
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
    /// Asks for a write. `in_sync` is what the log says; `marks` whether the log has to be written before the legs, and then
    /// `by_worker` whether the worker asks, which does that.
    pub fn admit(&mut self, nr: u64, in_sync: bool, marks: bool, by_worker: bool) -> Admission {
        let may_mark = by_worker || !marks;
        let region = match self.map.get_mut(&nr) {
            Some(region) => region,
            None if in_sync && !may_mark => return Admission::Mark,
            None => self.map.entry(nr).or_insert(Region {
                state: if in_sync {
                    State::Dirty
                } else {
                    State::OutOfSync
                },
                is_marked: !marks,
                pending: 0,
                is_listed: false,
                round: 0,
                delayed: Vec::new(),
            }),
        };
        let admission = match region.state {
            State::Recovering => return Admission::Wait,
            State::OutOfSync => Admission::Default,
            State::Dirty if region.is_marked => Admission::All,
            State::Dirty if may_mark => Admission::Mark,
            State::Dirty => return Admission::Mark,
        };
        region.pending += 1;
        admission
    }

    /// The log says on the medium that the region is dirty.
    pub fn marked(&mut self, nr: u64) {
        if let Some(region) = self.map.get_mut(&nr) {
            region.is_marked = true;
        }
    }

    /// Keeps a write until the region's recovery ends.
    pub fn delay(&mut self, nr: u64, io: Io) {
        if let Some(region) = self.map.get_mut(&nr) {
            region.delayed.push(io);
        }
    }

    /// A write that was counted has ended.
    pub fn leave(&mut self, nr: u64, in_sync: bool) -> Left {
        let Some(region) = self.map.get_mut(&nr) else {
            debug_assert!(false, "a write ended in region {nr}, where none was");
            return Left::Nothing;
        };
        region.pending -= 1;
        if region.pending > 0 {
            return Left::Nothing;
        }
        match region.state {
            State::Recovering => return Left::Quiesced,
            State::Dirty if self.flush_failed => region.state = State::OutOfSync,
            State::OutOfSync if !in_sync => {
                self.map.remove(&nr);
            }
            State::OutOfSync => {}
            State::Dirty => {
                region.round = self.round;
                if !region.is_listed {
                    region.is_listed = true;
                    self.idle.push(nr);
                    if self.idle.len() == 1 {
                        return Left::Idle;
                    }
                }
            }
        }
        Left::Nothing
    }

    /// Whether a write is under way, so that legs may differ for now.
    pub fn is_busy(&self, nr: u64) -> bool {
        self.map.get(&nr).is_some_and(|region| region.pending > 0)
    }

    /// A counted write did not reach all legs: they differ until a recovery. What waits for a recovery that so ends.
    pub fn mark_out_of_sync(&mut self, nr: u64) -> Option<Vec<Io>> {
        let region = self.map.get_mut(&nr)?;
        let was_recovering = region.state == State::Recovering;
        region.state = State::OutOfSync;
        was_recovering.then(|| std::mem::take(&mut region.delayed))
    }

    /// Begins the recovery of a region; whether no write is under way in it.
    pub fn begin_recovery(&mut self, nr: u64) -> bool {
        let region = self.map.entry(nr).or_insert(Region {
            state: State::Recovering,
            is_marked: true,
            pending: 0,
            is_listed: false,
            round: 0,
            delayed: Vec::new(),
        });
        region.state = State::Recovering;
        region.pending == 0
    }

    /// Ends it; what waited. A region that is in sync now is dirty, and idle, as far as the log goes.
    pub fn end_recovery(&mut self, nr: u64, recovered: bool) -> Vec<Io> {
        let Some(region) = self.map.get_mut(&nr) else {
            return Vec::new();
        };
        let delayed = std::mem::take(&mut region.delayed);
        if recovered {
            region.state = State::Dirty;
            region.is_marked = true;
            region.round = self.round;
            if !region.is_listed {
                region.is_listed = true;
                self.idle.push(nr);
            }
        } else if region.pending == 0 {
            self.map.remove(&nr);
        } else {
            region.state = State::OutOfSync;
        }
        delayed
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
            if region.state != State::Dirty || region.pending > 0 {
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
    pub fn take_delayed(&mut self) -> Vec<Io> {
        let regions = self.map.values_mut();
        regions
            .flat_map(|region| std::mem::take(&mut region.delayed))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_a_clean_region_waits_for_the_log() {
        let mut regions = Regions::default();
        assert_eq!(regions.admit(7, true, true, false), Admission::Mark);
        assert!(!regions.is_busy(7), "not counted");
        assert_eq!(regions.admit(7, true, true, true), Admission::Mark);
        assert!(regions.is_busy(7));
        // The log is being written.
        assert_eq!(regions.admit(7, true, true, false), Admission::Mark);
        regions.marked(7);
        assert_eq!(regions.admit(7, true, true, false), Admission::All);
        assert_eq!(regions.leave(7, true), Left::Nothing);
        assert_eq!(regions.leave(7, true), Left::Idle);
        // A log in memory needs none of this.
        assert_eq!(regions.admit(8, true, false, false), Admission::All);
    }

    #[test]
    fn a_region_is_clean_when_it_was_idle_for_a_round() {
        let mut regions = Regions::default();
        let write = |regions: &mut Regions, nr| {
            assert_eq!(regions.admit(nr, true, false, false), Admission::All);
            regions.leave(nr, true)
        };
        assert_eq!(write(&mut regions, 1), Left::Idle);
        assert!(regions.take_clean(false).is_empty());
        assert_eq!(write(&mut regions, 2), Left::Nothing);
        assert_eq!(regions.take_clean(false), [1]);
        assert_eq!(write(&mut regions, 2), Left::Nothing);
        assert!(regions.take_clean(false).is_empty());
        assert_eq!(regions.take_clean(false), [2]);
        assert!(!regions.has_idle());
        assert_eq!(write(&mut regions, 3), Left::Idle);
        assert_eq!(regions.admit(4, true, false, false), Admission::All);
        assert_eq!(regions.take_clean(true), [3], "4 has a write under way");
    }

    #[test]
    fn a_recovery_waits_for_writes_and_writes_for_it() {
        let mut regions = Regions::default();
        assert_eq!(regions.admit(1, false, true, false), Admission::Default);
        assert!(!regions.begin_recovery(1));
        assert_eq!(regions.admit(1, false, true, false), Admission::Wait);
        assert_eq!(regions.leave(1, false), Left::Quiesced);
        assert!(regions.end_recovery(1, true).is_empty());
        assert_eq!(
            regions.admit(1, true, true, false),
            Admission::All,
            "the log says dirty"
        );
        assert!(regions.begin_recovery(2));
        assert!(regions.end_recovery(2, false).is_empty());
        assert_eq!(regions.admit(2, false, true, false), Admission::Default);
    }

    #[test]
    fn a_failed_write_leaves_its_region_out_of_sync() {
        let mut regions = Regions::default();
        assert_eq!(regions.admit(1, true, false, false), Admission::All);
        assert!(regions.mark_out_of_sync(1).is_none());
        assert_eq!(regions.admit(1, false, false, false), Admission::Default);
        assert_eq!(regions.leave(1, false), Left::Nothing);
        assert_eq!(regions.leave(1, false), Left::Nothing);
        assert!(!regions.has_idle());
        // After a flush that failed no region becomes clean.
        regions.flush_failed = true;
        assert_eq!(regions.admit(2, true, false, false), Admission::All);
        assert_eq!(regions.leave(2, true), Left::Nothing);
        assert_eq!(regions.admit(2, true, false, false), Admission::Default);
    }
}
