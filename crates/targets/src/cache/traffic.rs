//! Blocks of the origin with requests under way, and blocks that are locked against them.
//!
//! INVARIANT: while a block is locked, a request that the lock keeps out waits in its lane; the step that the lock is for begins when
//! none of those is under way.

use std::collections::HashMap;
use std::ops::Range;

use thinmap_block::Io;

use super::policy::Work;

/// What a lock keeps out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lock {
    Writes,
    All,
}

/// What is done when a block has become quiet.
pub(super) enum Step {
    /// Copy it, as far as that is needed.
    Copy(Work),
    /// Take it out of the cache: what it holds is on the origin.
    Leave(Work),
    /// Bring it into the cache with this write.
    Overwrite(Work, Io),
    /// Take it out of the cache, then send this write to the origin.
    Invalidate(u32, Io),
}

#[derive(Default)]
struct Lane {
    readers: u32,
    writers: u32,
    lock: Option<Lock>,
    step: Option<Step>,
    /// Brings the block into the cache by a guest's write.
    overwrite: Option<Work>,
    waiting: Vec<Io>,
    /// Writes to origin and cache at once: these sectors.
    through: Vec<Range<u64>>,
    /// Writes to the same sectors, which must reach both in the same order.
    behind: Vec<Io>,
}

impl Lane {
    fn is_quiet(&self) -> bool {
        match self.lock {
            Some(Lock::All) => self.readers + self.writers == 0,
            _ => self.writers == 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.readers + self.writers == 0 && self.lock.is_none()
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Traffic(HashMap<u64, Lane>);

impl Traffic {
    /// Whether a lock keeps such a request out.
    pub fn is_shut(&self, block: u64, write: bool) -> bool {
        match self.0.get(&block).and_then(|lane| lane.lock) {
            None => false,
            Some(Lock::Writes) => write,
            Some(Lock::All) => true,
        }
    }

    /// A request waits until the block is unlocked.
    pub fn wait(&mut self, block: u64, io: Io) {
        self.0.entry(block).or_default().waiting.push(io);
    }

    /// A request begins.
    pub fn enter(&mut self, block: u64, write: bool) {
        let lane = self.0.entry(block).or_default();
        match write {
            true => lane.writers += 1,
            false => lane.readers += 1,
        }
    }

    /// Whether a write to the origin and the cache at once is under way to some of these sectors.
    pub fn overlaps(&self, block: u64, sectors: &Range<u64>) -> bool {
        let overlaps = |other: &Range<u64>| other.start < sectors.end && sectors.start < other.end;
        let lane = self.0.get(&block);
        lane.is_some_and(|lane| lane.through.iter().any(overlaps))
    }

    /// This one waits until it has ended.
    pub fn wait_behind(&mut self, block: u64, io: Io) {
        self.0.entry(block).or_default().behind.push(io);
    }

    /// A write that has entered goes to both.
    pub fn goes_through(&mut self, block: u64, sectors: Range<u64>) {
        self.0.entry(block).or_default().through.push(sectors);
    }

    /// If this was one that went to both: who waited for such.
    pub fn has_gone_through(&mut self, block: u64, start: u64) -> Vec<Io> {
        let Some(lane) = self.0.get_mut(&block) else {
            return Vec::new();
        };
        let known = lane.through.len();
        lane.through.retain(|sectors| sectors.start != start);
        match lane.through.len() < known {
            true => std::mem::take(&mut lane.behind),
            false => Vec::new(),
        }
    }

    /// A request has ended; the step for which the block is quiet now.
    pub fn leave(&mut self, block: u64, write: bool) -> Option<Step> {
        let lane = self.0.get_mut(&block)?;
        match write {
            true => lane.writers -= 1,
            false => lane.readers -= 1,
        }
        if lane.is_empty() {
            self.0.remove(&block);
            return None;
        }
        match lane.is_quiet() {
            true => lane.step.take(),
            false => None,
        }
    }

    pub fn is_locked(&self, block: u64) -> bool {
        self.0.get(&block).is_some_and(|lane| lane.lock.is_some())
    }

    /// Locks a block, or locks it more. The step comes back at once if the block is quiet already, else from [`Traffic::leave`].
    pub fn lock(&mut self, block: u64, lock: Lock, step: Step) -> Option<Step> {
        let lane = self.0.entry(block).or_default();
        lane.lock = Some(lock);
        match lane.is_quiet() {
            true => Some(step),
            false => {
                lane.step = Some(step);
                None
            }
        }
    }

    /// A guest's write brings a locked block into the cache.
    pub fn overwrites(&mut self, work: Work) {
        if let Some(lane) = self.0.get_mut(&work.oblock) {
            lane.overwrite = Some(work);
        }
    }

    /// That write has ended.
    pub fn overwritten(&mut self, block: u64) -> Option<Work> {
        self.0.get_mut(&block)?.overwrite.take()
    }

    /// Unlocks a block; those who waited.
    pub fn unlock(&mut self, block: u64) -> Vec<Io> {
        let Some(lane) = self.0.get_mut(&block) else {
            return Vec::new();
        };
        lane.lock = None;
        let waiting = std::mem::take(&mut lane.waiting);
        if lane.is_empty() {
            self.0.remove(&block);
        }
        waiting
    }

    /// All that waits anywhere.
    pub fn take_waiting(&mut self) -> Vec<Io> {
        let lanes = self.0.values_mut();
        lanes.flat_map(|lane| lane.waiting.drain(..)).collect()
    }
}
