//! The policy: stochastic multiqueue, after the description of the kernel's. See decision 0180.
//!
//! Two queues hold the blocks that are cached, clean ones and dirty ones. A third one, of *hot spots* (larger stretches of the origin),
//! has what is asked for and not cached: what gets high enough there is let in.
//!
//! INVARIANT: a block of the cache is in exactly one of: `free`, one of the queues, or pending (work on it was given out or waits).

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::queue::{LEVELS, Node, Queue};
use super::{Access, Found, Task, Work};

const WRITEBACK_PERIOD: Duration = Duration::from_secs(10);
const HOTSPOT_PERIOD: Duration = Duration::from_secs(1);
const CACHE_PERIOD: Duration = Duration::from_secs(60);

/// Cache blocks in a hot spot, at most.
const HOTSPOT_BLOCKS_MAX: u64 = 16;
const HOTSPOTS_MIN: u32 = 1024;
/// Levels above this are for few hot spots.
const HOTSPOT_TOP_LEVELS: u8 = 8;
/// Use of this level or a higher one counts as foreseen.
const FORESEEN_LEVEL: u8 = LEVELS * 3 / 4;
/// Demotions go on until so much of the cache is free.
const FREE_PERCENT: u64 = 25;

const ALLOCATED: u8 = 1;
const DIRTY: u8 = 2;
const PENDING: u8 = 4;

/// See the module.
pub(in crate::cache) struct Smq {
    nodes: Vec<Node>,
    by_block: HashMap<u64, u32>,
    free: VecDeque<u32>,
    clean: Queue,
    dirty: Queue,
    /// Counts periods of write-back.
    period: u32,
    /// Counts periods of the cache: a block rises once in each.
    cache_round: u32,
    spots: Vec<Node>,
    by_spot: HashMap<u64, u32>,
    hot: Queue,
    /// Counts rounds of requests: a hot spot rises once in each.
    round: u32,
    blocks_per_spot: u64,
    foreseen: Stats,
    /// Hot spots rise so many levels.
    jump: u8,
    /// From this level on they are let in.
    promote_level: u8,
    work: VecDeque<Work>,
    pending: HashSet<u64>,
    demotions: u32,
    next_writeback: Duration,
    next_hotspot: Duration,
    next_cache: Duration,
}

/// How well the queue of hot spots foresees what comes.
#[derive(Clone, Copy, Default)]
struct Stats {
    hits: u64,
    misses: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Confidence {
    Poor,
    Fair,
    Well,
}

impl Stats {
    fn confidence(self) -> Confidence {
        let all = (self.hits + self.misses).max(1);
        match self.hits * 16 / all {
            0 => Confidence::Poor,
            1 => Confidence::Fair,
            _ => Confidence::Well,
        }
    }
}

impl Smq {
    /// For a cache of so many blocks, all free, before an origin of so many; `None` when there is no memory for it.
    pub fn new(blocks: u32, origin_blocks: u64, now: Duration) -> Option<Self> {
        let spots = (blocks / 4).max(HOTSPOTS_MIN);
        let mut blocks_per_spot = HOTSPOT_BLOCKS_MAX;
        while blocks_per_spot > 1 && blocks_per_spot * u64::from(spots) > origin_blocks {
            blocks_per_spot /= 2;
        }
        let in_top = (spots / u32::from(LEVELS)).min(blocks / blocks_per_spot as u32);
        let mut nodes = Vec::new();
        nodes.try_reserve_exact(blocks as usize).ok()?;
        nodes.resize(blocks as usize, Node::FREE);
        let mut by_block = HashMap::new();
        by_block.try_reserve(blocks as usize).ok()?;
        let mut free = VecDeque::new();
        free.try_reserve_exact(blocks as usize).ok()?;
        free.extend(0..blocks);
        Some(Self {
            nodes,
            by_block,
            free,
            clean: Queue::new((0, 0)),
            dirty: Queue::new((0, 0)),
            period: 2,
            cache_round: 1,
            spots: Vec::with_capacity(spots as usize),
            by_spot: HashMap::with_capacity(spots as usize),
            hot: Queue::new((HOTSPOT_TOP_LEVELS, in_top)),
            round: 1,
            blocks_per_spot,
            foreseen: Stats::default(),
            jump: 1,
            promote_level: LEVELS,
            work: VecDeque::new(),
            pending: HashSet::new(),
            demotions: 0,
            next_writeback: now + WRITEBACK_PERIOD,
            next_hotspot: now,
            next_cache: now,
        })
    }

    /// A block that the metadata know of; whether that was possible. [`Smq::loaded`] follows.
    pub fn load(&mut self, cblock: u32, oblock: u64, dirty: bool, hint: Option<u32>) -> bool {
        let Some(node) = self.nodes.get_mut(cblock as usize) else {
            return false;
        };
        if node.flags != 0 || self.by_block.insert(oblock, cblock).is_some() {
            return false;
        }
        node.block = oblock;
        node.flags = ALLOCATED | if dirty { DIRTY } else { 0 };
        node.level = match hint {
            Some(hint) => hint.min(u32::from(LEVELS - 1)) as u8,
            // COMPAT: the kernel's spread, since it shows in the hints.
            None => (cblock.wrapping_mul(0x61c8_8647) >> 23) as u8 % LEVELS,
        };
        // First to be written and to go: nobody has asked for it yet.
        let queue = queue(&mut self.clean, &mut self.dirty, dirty);
        queue.push_front(&mut self.nodes, cblock);
        true
    }

    /// All blocks were loaded.
    pub fn loaded(&mut self) {
        let nodes = &self.nodes;
        self.free
            .retain(|cblock| nodes[*cblock as usize].flags == 0);
    }

    /// Blocks that hold something, or are kept for something.
    pub fn residency(&self) -> u64 {
        self.nodes.len() as u64 - self.free.len() as u64
    }

    /// What is noted for block `cblock` at a clean shutdown.
    pub fn hints(&self) -> Vec<u32> {
        let hint = |node: &Node| match node.flags {
            0 => 0,
            _ => u32::from(node.level),
        };
        self.nodes.iter().map(hint).collect()
    }

    /// Where a block is, without counting that as use.
    pub fn place(&self, oblock: u64) -> Option<u32> {
        self.by_block.get(&oblock).copied()
    }

    /// Which block of the origin a block of the cache holds.
    pub fn holds(&self, cblock: u32) -> Option<u64> {
        let node = self.nodes.get(cblock as usize)?;
        (self.by_block.get(&node.block) == Some(&cblock)).then_some(node.block)
    }

    /// A request uses a block.
    pub fn look_up(&mut self, oblock: u64, access: Access) -> Found {
        if let Some(&cblock) = self.by_block.get(&oblock) {
            self.hit(cblock);
            return Found::Hit(cblock);
        }
        let level = self.miss(oblock);
        let wanted = match access.write && access.cheap && !self.free.is_empty() {
            true => true,
            false => level >= self.promote_level,
        };
        if !wanted || !access.may_migrate {
            return Found::Miss;
        }
        match self.promotion(oblock) {
            Some(work) if access.write && access.cheap => Found::MissPromote(work),
            Some(work) => {
                self.work.push_back(work);
                Found::Miss
            }
            None => Found::Miss,
        }
    }

    fn hit(&mut self, cblock: u32) {
        let node = &mut self.nodes[cblock as usize];
        if node.flags & PENDING != 0 || node.used == self.cache_round {
            return;
        }
        node.used = self.cache_round;
        node.since = self.period;
        let dirty = node.flags & DIRTY != 0;
        queue(&mut self.clean, &mut self.dirty, dirty).used(&mut self.nodes, cblock, 1);
    }

    /// Notes the use of a hot spot; the level it was at.
    fn miss(&mut self, oblock: u64) -> u8 {
        let block = oblock / self.blocks_per_spot;
        if let Some(&at) = self.by_spot.get(&block) {
            let spot = &mut self.spots[at as usize];
            match spot.level >= FORESEEN_LEVEL {
                true => self.foreseen.hits += 1,
                false => self.foreseen.misses += 1,
            }
            let again = std::mem::replace(&mut spot.used, self.round) == self.round;
            let jump = if again { 0 } else { self.jump };
            self.hot.used(&mut self.spots, at, jump);
            return self.spots[at as usize].level;
        }
        self.foreseen.misses += 1;
        let at = match self.spots.len() < self.spots.capacity() {
            true => {
                self.spots.push(Node::FREE);
                self.spots.len() as u32 - 1
            }
            false => {
                let Some(at) = self.hot.oldest(&self.spots, LEVELS, None) else {
                    return 0;
                };
                self.hot.remove(&mut self.spots, at);
                self.by_spot.remove(&self.spots[at as usize].block);
                at
            }
        };
        // One that takes another's place begins at the level of that: the lowest one in use.
        let spot = &mut self.spots[at as usize];
        (spot.block, spot.used) = (block, 0);
        let level = spot.level;
        self.by_spot.insert(block, at);
        self.hot.push_back(&mut self.spots, at);
        level
    }

    /// Keeps a free block for a block of the origin. A full cache lets another one go instead.
    fn promotion(&mut self, oblock: u64) -> Option<Work> {
        if self.pending.contains(&oblock) {
            return None;
        }
        let Some(cblock) = self.free.pop_front() else {
            if !self.enough_free() {
                self.queue_demotion();
            }
            return None;
        };
        let node = &mut self.nodes[cblock as usize];
        node.flags = ALLOCATED | PENDING;
        node.level = 0;
        self.pending.insert(oblock);
        Some(Work {
            task: Task::Promote,
            oblock,
            cblock,
        })
    }

    fn enough_free(&self) -> bool {
        let free = self.free.len() as u64 + u64::from(self.demotions);
        free >= self.nodes.len() as u64 * FREE_PERCENT / 100
    }

    /// The least used clean block goes; if there is none, an old dirty one is written.
    fn queue_demotion(&mut self) {
        match self.clean.oldest(&self.nodes, LEVELS / 2, None) {
            Some(cblock) => {
                self.demotions += 1;
                self.queue_work(Task::Demote, cblock);
            }
            None => self.queue_writeback(false),
        }
    }

    /// Unless it is `idle`, only what was not used for a period is written.
    fn queue_writeback(&mut self, idle: bool) {
        let before = (!idle).then_some(self.period.saturating_sub(1));
        if let Some(cblock) = self.dirty.oldest(&self.nodes, LEVELS, before) {
            self.queue_work(Task::Writeback, cblock);
        }
    }

    fn queue_work(&mut self, task: Task, cblock: u32) {
        let dirty = self.nodes[cblock as usize].flags & DIRTY != 0;
        queue(&mut self.clean, &mut self.dirty, dirty).remove(&mut self.nodes, cblock);
        let node = &mut self.nodes[cblock as usize];
        node.flags |= PENDING;
        self.pending.insert(node.block);
        self.work.push_back(Work {
            task,
            oblock: node.block,
            cblock,
        });
    }

    /// Something to do; when the devices are `idle`, dirty blocks are written.
    pub fn next_work(&mut self, idle: bool) -> Option<Work> {
        if self.work.is_empty() && idle {
            self.queue_writeback(true);
        }
        self.work.pop_front()
    }

    /// Something is waiting to be done.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Work has ended, well or not.
    pub fn done(&mut self, work: Work, well: bool) {
        self.pending.remove(&work.oblock);
        let node = &mut self.nodes[work.cblock as usize];
        node.flags &= !PENDING;
        match (work.task, well) {
            (Task::Promote, true) => {
                node.block = work.oblock;
                node.level = LEVELS - 1;
                node.since = self.period;
                // What a write brings along is told by `set_dirty`.
                self.by_block.insert(work.oblock, work.cblock);
                self.clean.push_back(&mut self.nodes, work.cblock);
            }
            (Task::Promote, false) => self.set_free(work.cblock),
            (Task::Demote, true) => {
                self.demotions -= 1;
                self.by_block.remove(&work.oblock);
                self.set_free(work.cblock);
            }
            (Task::Demote, false) => {
                self.demotions -= 1;
                self.push(work.cblock);
            }
            (Task::Writeback, _) => self.push(work.cblock),
        }
    }

    fn push(&mut self, cblock: u32) {
        let dirty = self.nodes[cblock as usize].flags & DIRTY != 0;
        queue(&mut self.clean, &mut self.dirty, dirty).push_back(&mut self.nodes, cblock);
    }

    fn set_free(&mut self, cblock: u32) {
        self.nodes[cblock as usize].flags = 0;
        self.free.push_back(cblock);
    }

    /// A block of the cache differs from the origin, or no longer.
    pub fn set_dirty(&mut self, cblock: u32, dirty: bool) {
        let node = &mut self.nodes[cblock as usize];
        let was = node.flags & DIRTY != 0;
        node.flags = node.flags & !DIRTY | if dirty { DIRTY } else { 0 };
        if node.flags & PENDING == 0 && was != dirty {
            node.since = self.period;
            queue(&mut self.clean, &mut self.dirty, was).remove(&mut self.nodes, cblock);
            queue(&mut self.clean, &mut self.dirty, dirty).push_back(&mut self.nodes, cblock);
        }
    }

    /// Forgets a clean block; whether it held anything, and nothing is being done with it.
    pub fn invalidate(&mut self, cblock: u32) -> bool {
        let Some(node) = self.nodes.get(cblock as usize) else {
            return false;
        };
        if node.flags & ALLOCATED == 0 || node.flags & PENDING != 0 {
            return false;
        }
        let dirty = node.flags & DIRTY != 0;
        self.by_block.remove(&node.block);
        queue(&mut self.clean, &mut self.dirty, dirty).remove(&mut self.nodes, cblock);
        self.set_free(cblock);
        true
    }

    /// Requests from here on count as another round.
    pub fn next_round(&mut self) {
        self.round = self.round.wrapping_add(1).max(1);
        self.promote_level = match self.foreseen.confidence() {
            Confidence::Poor => LEVELS - LEVELS / 4,
            Confidence::Fair => LEVELS - LEVELS / 2,
            Confidence::Well => 0,
        };
    }

    /// Time has come this far.
    pub fn tick(&mut self, now: Duration) {
        self.next_round();
        if now >= self.next_writeback {
            self.next_writeback = now + WRITEBACK_PERIOD;
            self.period += 1;
        }
        if now >= self.next_hotspot {
            self.next_hotspot = now + HOTSPOT_PERIOD;
            self.jump = match self.foreseen.confidence() {
                Confidence::Poor => 4,
                Confidence::Fair => 2,
                Confidence::Well => 1,
            };
            self.hot.redistribute(&mut self.spots);
            self.foreseen = Stats::default();
        }
        if now >= self.next_cache {
            self.next_cache = now + CACHE_PERIOD;
            self.cache_round = self.cache_round.wrapping_add(1).max(1);
            self.clean.redistribute(&mut self.nodes);
            self.dirty.redistribute(&mut self.nodes);
        }
    }
}

fn queue<'a>(clean: &'a mut Queue, dirty: &'a mut Queue, is_dirty: bool) -> &'a mut Queue {
    match is_dirty {
        true => dirty,
        false => clean,
    }
}
