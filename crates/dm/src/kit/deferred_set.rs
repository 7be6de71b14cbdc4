//! A deferred set: tells when all requests that were in flight at some moment have ended.
//!
//! A request [enters](DeferredSet::enter) on its way down and [leaves](DeferredSet::leave) at its end.
//! Somebody who must outwait the requests in flight [closes](DeferredSet::close) the present generation and asks now and then
//! whether it has [drained](DeferredSet::drained). Requests that come later belong to the next
//! generation and are not waited for.
//!
//! Entering and leaving are the fast path: one atomic addition each on a counter that few threads share,
//! and two loads.
//!
//! INVARIANT: a request counted in a generation entered before the generation was closed; one that races with
//! the closing moves itself to the next (see `enter`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Generations that may be open or draining at once.
const GENERATIONS: u64 = 16;
/// Counters per generation, so that queue threads rarely share a cache line.
const SHARDS: usize = 8;

/// A closed generation, to ask [`DeferredSet::drained`] about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Generation(u64);

/// What a request keeps while it is in the set: 1..=255, so that 0 can mean "in no set".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u8);

impl Ticket {
    /// As a number that fits eight bits and is not zero.
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// Back from [`Ticket::raw`]; `None` for zero.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }
}

#[repr(align(64))]
#[derive(Default)]
struct Shard {
    counts: [AtomicU32; GENERATIONS as usize],
}

/// See the module.
#[derive(Default)]
pub struct DeferredSet {
    /// The number of the generation that takes entrants.
    current: AtomicU64,
    /// Every generation below this one has drained. Moved by those who ask.
    drained_below: AtomicU64,
    shards: [Shard; SHARDS],
}

const _: () = assert!(GENERATIONS as usize * SHARDS < 256);

thread_local! {
    static SHARD: usize = {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, SeqCst) as usize % SHARDS
    };
}

impl DeferredSet {
    /// Counts a request in.
    pub fn enter(&self) -> Ticket {
        let shard = SHARD.with(|s| *s);
        loop {
            let generation = self.current.load(SeqCst);
            let slot = slot_of(generation);
            self.shards[shard].counts[slot].fetch_add(1, SeqCst);
            // Either this load sees that the generation was closed meanwhile, or the closer's count
            // sees the addition: both are sequentially consistent.
            if self.current.load(SeqCst) == generation {
                return Ticket((slot * SHARDS + shard) as u8 + 1);
            }
            self.shards[shard].counts[slot].fetch_sub(1, SeqCst);
        }
    }

    /// Counts a request out. `true` when somebody may be waiting for this: tell them to ask [`DeferredSet::drained`] again.
    #[must_use = "someone may wait for the generation that this ends"]
    pub fn leave(&self, ticket: Ticket) -> bool {
        let index = usize::from(ticket.0 - 1);
        let (slot, shard) = (index / SHARDS, index % SHARDS);
        let before = self.shards[shard].counts[slot].fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "left a set more often than entered");
        before == 1 && slot_of(self.current.load(SeqCst)) != slot
    }

    /// Ends the present generation. `None` when too many are still draining: ask again when one has.
    pub fn close(&self) -> Option<Generation> {
        let generation = self.current.load(SeqCst);
        self.advance_drained();
        // The slot that entrants move to must not hold a generation that is still waited for.
        if generation + 1 - self.drained_below.load(SeqCst) >= GENERATIONS {
            return None;
        }
        self.current.store(generation + 1, SeqCst);
        Some(Generation(generation))
    }

    /// Whether every request that entered in `generation` or before has left.
    pub fn drained(&self, generation: Generation) -> bool {
        self.advance_drained();
        self.drained_below.load(SeqCst) > generation.0
    }

    /// Whether no request at all is in the set.
    pub fn is_empty(&self) -> bool {
        (0..GENERATIONS as usize).all(|slot| self.count(slot) == 0)
    }

    fn advance_drained(&self) {
        let current = self.current.load(SeqCst);
        let mut below = self.drained_below.load(SeqCst);
        while below < current && self.count(slot_of(below)) == 0 {
            below += 1;
        }
        self.drained_below.fetch_max(below, SeqCst);
    }

    fn count(&self, slot: usize) -> u64 {
        let load = |s: &Shard| u64::from(s.counts[slot].load(SeqCst));
        self.shards.iter().map(load).sum()
    }
}

const fn slot_of(generation: u64) -> usize {
    (generation % GENERATIONS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_drains_when_its_own_requests_have_left() {
        let set = DeferredSet::default();
        let early = set.enter();
        let closed = set.close().expect("room");
        let late = set.enter();
        assert!(!set.drained(closed));
        assert!(set.leave(early), "somebody waits");
        assert!(set.drained(closed));
        assert!(!set.leave(late), "nobody waits");
        assert!(set.is_empty());
    }

    #[test]
    fn closing_is_refused_while_all_slots_drain() {
        let set = DeferredSet::default();
        let held = set.enter();
        let mut closed = Vec::new();
        while let Some(generation) = set.close() {
            closed.push(generation);
        }
        assert_eq!(closed.len() as u64, GENERATIONS - 1);
        assert!(!set.drained(closed[closed.len() - 1]));
        assert!(set.leave(held));
        assert!(closed.iter().all(|g| set.drained(*g)));
        assert!(set.close().is_some());
    }

    #[test]
    fn many_threads_never_outlive_a_drained_generation() {
        use std::sync::atomic::AtomicU64;
        let set = DeferredSet::default();
        // Each thread tells which era it saw before entering; a drained generation closed after an
        // era ended must leave no thread of that era inside.
        let era = AtomicU64::new(0);
        let inside: [AtomicU64; 200] = std::array::from_fn(|_| AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let ticket = set.enter();
                        let mine = era.load(SeqCst) as usize;
                        if mine >= inside.len() {
                            let _ = set.leave(ticket);
                            return;
                        }
                        inside[mine].fetch_add(1, SeqCst);
                        std::hint::spin_loop();
                        inside[mine].fetch_sub(1, SeqCst);
                        let _ = set.leave(ticket);
                    }
                });
            }
            for (now, inside_now) in inside.iter().enumerate() {
                era.store(now as u64 + 1, SeqCst);
                let generation = loop {
                    if let Some(generation) = set.close() {
                        break generation;
                    }
                    std::thread::yield_now();
                };
                while !set.drained(generation) {
                    std::thread::yield_now();
                }
                assert_eq!(inside_now.load(SeqCst), 0);
            }
        });
    }
}
