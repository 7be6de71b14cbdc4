//! The stripes that are being worked on: who may begin, who waits, how much memory there is.
//!
//! A stripe is the same stretch of all members, inside one row. Entries of one stripe that overlap are worked on one after another;
//! those that wait meanwhile for the same or neighbouring sectors go on together, so that small writes one behind the other share
//! their parity. Nobody waits in a thread: an entry that cannot begin lies in its stripe's queue.
//!
//! INVARIANT: no two jobs hold overlapping ranges of the members. All that a job reads, computes and writes is inside its range.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use thinmap_runtime::{BufferPool, IoBuf};
use thinmap_units::Sector;

use super::super::members::Members;
use super::geometry::Geometry;
use super::job::Job;
use super::request::{Entry, overlap, touch};

/// See the module.
pub(super) struct Engine {
    pub(super) members: Arc<Members>,
    pub(super) geometry: Geometry,
    /// Sectors that a stripe has on each member; divides the chunk.
    pub(super) stripe: Sector,
    small: BufferPool,
    large: BufferPool,
    state: Mutex<State>,
}

struct State {
    stripes: HashMap<u64, Stripe>,
    /// Bytes that jobs may still take.
    free: u64,
    jobs: usize,
    /// Stripes that could begin something if there were memory, longest wait first.
    starved: VecDeque<u64>,
    /// Stripes that may be able to begin something.
    next: VecDeque<u64>,
    /// A thread is in [`Engine::release`] and begins what can begin.
    is_starting: bool,
}

#[derive(Default)]
struct Stripe {
    /// What jobs hold.
    active: SmallVec<[Range<Sector>; 2]>,
    waiting: VecDeque<Entry>,
}

/// Entries that become one job.
pub(super) struct Seed {
    pub(super) entries: Vec<Entry>,
    pub(super) hold: Hold,
}

/// What a job holds while it runs.
#[derive(Clone)]
pub(super) struct Hold {
    pub(super) range: Range<Sector>,
    bytes: u64,
}

enum Pull {
    Nothing,
    NoMemory,
    Seed(Seed),
}

impl Engine {
    /// An engine whose jobs hold at most `cache` sectors of each member in memory at once (one job may always run).
    pub(super) fn new(members: Arc<Members>, geometry: Geometry, cache: Sector) -> Arc<Self> {
        let stripe = geometry.chunk().min(STRIPE_MAX);
        Arc::new(Self {
            small: BufferPool::new(SMALL_BUFFERS, SMALL_BYTES),
            large: BufferPool::new(2 * geometry.members(), stripe.bytes() as usize),
            state: Mutex::new(State {
                stripes: HashMap::new(),
                free: cache.bytes() * geometry.members() as u64,
                jobs: 0,
                starved: VecDeque::new(),
                next: VecDeque::new(),
                is_starting: false,
            }),
            members,
            geometry,
            stripe,
        })
    }

    /// Begins entries, or has them wait.
    pub(super) fn submit(self: &Arc<Self>, entries: impl IntoIterator<Item = Entry>) {
        let mut seeds: SmallVec<[Seed; 1]> = SmallVec::new();
        {
            let mut state = self.state.lock();
            let mut touched: SmallVec<[u64; 4]> = SmallVec::new();
            for entry in entries {
                let number = self.number(entry.range.start);
                let stripe = state.stripes.entry(number).or_default();
                stripe.waiting.push_back(entry);
                if !touched.contains(&number) {
                    touched.push(number);
                }
            }
            for number in touched {
                let mut pulled = Pull::NoMemory;
                while state.starved.is_empty() {
                    pulled = self.pull(&mut state, number);
                    match pulled {
                        Pull::Seed(seed) => seeds.push(seed),
                        Pull::Nothing | Pull::NoMemory => break,
                    }
                    pulled = Pull::NoMemory;
                }
                if matches!(pulled, Pull::NoMemory) && !state.starved.contains(&number) {
                    state.starved.push_back(number);
                }
            }
        }
        for seed in seeds {
            Job::start(self, seed);
        }
    }

    /// A job has ended: what waited for it, or for memory, begins.
    pub(super) fn release(self: &Arc<Self>, hold: &Hold) {
        let number = self.number(hold.range.start);
        let mut state = self.state.lock();
        state.free += hold.bytes;
        state.jobs -= 1;
        if let Some(stripe) = state.stripes.get_mut(&number) {
            stripe.active.retain(|range| *range != hold.range);
            if stripe.active.is_empty() && stripe.waiting.is_empty() {
                state.stripes.remove(&number);
            } else {
                state.next.push_back(number);
            }
        }
        // Jobs on synchronous devices end in here: they must not nest.
        if state.is_starting {
            return;
        }
        state.is_starting = true;
        while let Some(seed) = self.next(&mut state) {
            drop(state);
            Job::start(self, seed);
            state = self.state.lock();
        }
        state.is_starting = false;
    }

    /// Those that starve first.
    fn next(&self, state: &mut State) -> Option<Seed> {
        while let Some(number) = state.starved.front().copied() {
            match self.pull(state, number) {
                Pull::Seed(seed) => return Some(seed),
                Pull::NoMemory => return None,
                Pull::Nothing => {
                    state.starved.pop_front();
                }
            }
        }
        while let Some(number) = state.next.front().copied() {
            match self.pull(state, number) {
                Pull::Seed(seed) => return Some(seed),
                Pull::NoMemory => {
                    state.next.pop_front();
                    state.starved.push_back(number);
                    return None;
                }
                Pull::Nothing => {
                    state.next.pop_front();
                }
            }
        }
        None
    }

    fn pull(&self, state: &mut State, number: u64) -> Pull {
        let Some(stripe) = state.stripes.get_mut(&number) else {
            return Pull::Nothing;
        };
        let Some((range, picked)) = stripe.pick() else {
            return Pull::Nothing;
        };
        let bytes = (range.end - range.start).bytes() * self.geometry.members() as u64;
        if bytes > state.free && state.jobs > 0 {
            return Pull::NoMemory;
        }
        let entries = stripe.take(&picked);
        stripe.active.push(range.clone());
        // One that is larger than all memory there is runs alone.
        let bytes = bytes.min(state.free);
        state.free -= bytes;
        state.jobs += 1;
        let hold = Hold { range, bytes };
        Pull::Seed(Seed { entries, hold })
    }

    fn number(&self, sector: Sector) -> u64 {
        sector.raw() / self.stripe.raw()
    }

    /// A buffer that holds whatever it held last.
    pub(super) fn buffer(&self, bytes: usize) -> IoBuf {
        let pool = if bytes <= self.small.buffer_bytes() {
            &self.small
        } else {
            &self.large
        };
        pool.take_or_alloc().split_to(bytes)
    }
}

impl Stripe {
    /// The entries that can be worked on next, by index, and the range that they cover.
    fn pick(&self) -> Option<(Range<Sector>, Vec<usize>)> {
        let mut barred: SmallVec<[Range<Sector>; 4]> = self.active.iter().cloned().collect();
        let mut picked: Vec<usize> = Vec::new();
        let mut range: Option<Range<Sector>> = None;
        for (index, entry) in self.waiting.iter().enumerate() {
            let is_free = !barred.iter().any(|other| overlap(other, &entry.range));
            let goes_along = match &range {
                None => is_free,
                Some(range) => {
                    let mut others = picked.iter().filter_map(|i| self.waiting.get(*i));
                    is_free
                        && touch(range, &entry.range)
                        && others.all(|other| other.joins() && !other.collides(entry))
                        && entry.joins()
                }
            };
            if !goes_along {
                // What comes later must not overtake it.
                barred.push(entry.range.clone());
                continue;
            }
            picked.push(index);
            range = Some(match range {
                None => entry.range.clone(),
                Some(range) => range.start.min(entry.range.start)..range.end.max(entry.range.end),
            });
        }
        range.map(|range| (range, picked))
    }

    fn take(&mut self, picked: &[usize]) -> Vec<Entry> {
        let last_first = picked.iter().rev();
        let mut entries: Vec<Entry> = last_first
            .filter_map(|index| self.waiting.remove(*index))
            .collect();
        entries.reverse();
        entries
    }
}

/// 64 KiB of each member.
const STRIPE_MAX: Sector = Sector(128);
const SMALL_BYTES: usize = 4096;
const SMALL_BUFFERS: usize = 64;
