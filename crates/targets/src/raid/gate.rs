//! Keeps writes and sync windows apart: while a window is held no write to it is under way, and new ones wait.
//!
//! INVARIANT: a write is counted in before it looks whether a window is held, and a window is announced before the writes
//! counted until then are outwaited. Both are sequentially consistent: one of the two sees the other.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thinmap_block::Io;
use thinmap_dm::kit::{DeferredSet, Ticket};
use thinmap_runtime::{Waiting, simulate};
use thinmap_units::Sector;

use super::level::SyncRanges;

/// See the module.
#[derive(Default)]
pub(super) struct Gate {
    under_way: DeferredSet,
    is_held: AtomicBool,
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    held: SyncRanges,
    waiting: Vec<Io>,
}

/// How long the holder sleeps without being told that a write has left.
const POLL: Duration = Duration::from_millis(20);

impl Gate {
    /// Counts a write of a part of the sync space in, or keeps it until the window is done.
    pub fn enter(&self, range: &Range<Sector>, io: Io) -> Option<(Ticket, Io)> {
        let ticket = self.under_way.enter();
        if !self.is_held.load(SeqCst) {
            return Some((ticket, io));
        }
        let mut state = self.state.lock();
        let overlaps = |held: &Range<Sector>| held.start < range.end && range.start < held.end;
        if !state.held.iter().any(overlaps) {
            return Some((ticket, io));
        }
        state.waiting.push(io);
        drop(state);
        self.leave(ticket);
        None
    }

    /// Counts it out.
    pub fn leave(&self, ticket: Ticket) {
        if self.under_way.leave(ticket) {
            let _state = self.state.lock();
            self.left.notify_all();
        }
    }

    /// Holds a window: returns when no write to it is under way. For the sync thread only, one window at a time.
    pub fn hold(&self, ranges: SyncRanges) {
        self.state.lock().held = ranges;
        self.is_held.store(true, SeqCst);
        let mut generation = None;
        let mut drained = || {
            if generation.is_none() {
                generation = self.under_way.close();
            }
            generation.is_some_and(|generation| self.under_way.drained(generation))
        };
        while !drained() && simulate(Waiting::ForActors) {}
        let mut state = self.state.lock();
        while !drained() {
            self.left.wait_for(&mut state, POLL);
        }
    }

    /// Gives the window back; the writes that waited for it.
    #[must_use = "they wait"]
    pub fn release(&self) -> Vec<Io> {
        let mut state = self.state.lock();
        state.held.clear();
        self.is_held.store(false, SeqCst);
        std::mem::take(&mut state.waiting)
    }
}
