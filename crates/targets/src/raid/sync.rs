//! The syncer: the actor that goes through an array in windows, one each turn: resync, recovery, check, repair.
//!
//! Regions that are `NEEDED` when a resync or a recovery begins are its own until it has been there; what a member misses meanwhile makes
//! them needed again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::Sector;

use super::array::Array;
use super::level::{SyncKind, Synced, WINDOW_SECTORS_MAX};
use super::members::{MAX_SECTOR, MemberState};
use super::regions::Regions;

/// The actor.
pub(super) struct SyncActor(pub Arc<Array>);

/// What the syncer is at, and what it was asked for.
pub(super) struct SyncState {
    /// By a message; no sync begins until another message.
    pub frozen: bool,
    /// Suspended, or about to be.
    pub paused: bool,
    pub stop: bool,
    /// A sync ended with an error: another begins when it is asked for.
    pub blocked: bool,
    /// A check or repair was asked for.
    asked: Option<SyncKind>,
    running: Option<Run>,
    /// A window, or a cure, is being worked on.
    in_window: bool,
    /// Members may differ: resync.
    resync: bool,
    /// Rebuilding members that lack only what the bitmap says.
    pub by_bitmap: Vec<usize>,
    /// The last sync that was begun came so far (the kernel's curr_resync_completed).
    completed: Sector,
    /// The last sync was a check: its mismatches are shown.
    was_check: bool,
    mismatches: u64,
    heals: Vec<(usize, Range<Sector>)>,
    /// The table is read-only: members stay as they are.
    read_only: bool,
}

/// What is shown as the sync action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Idle,
    Frozen,
    Sync(SyncKind),
}

/// A sync under way.
#[derive(Clone)]
struct Run {
    kind: SyncKind,
    at: Sector,
    end: Sector,
    /// Regions that it has taken on.
    taken: Vec<usize>,
    /// Recovery: only what the bitmap says.
    by_bitmap: bool,
    /// Recovery: for these members.
    members: Vec<usize>,
    /// Guests' requests when its last window began.
    requests: u64,
}

/// What a message asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Frozen,
    Idle,
    /// Whatever is needed.
    Needed,
    Check,
    Repair,
}

/// Cures that may wait; more are not taken: what is read again and fails is told again.
const HEALS_MAX: usize = 256;

impl SyncState {
    /// Nothing begun; suspended.
    pub fn new(resync: bool, read_only: bool) -> Self {
        Self {
            frozen: false,
            paused: true,
            stop: false,
            blocked: false,
            asked: None,
            running: None,
            in_window: false,
            resync,
            by_bitmap: Vec::new(),
            completed: Sector::ZERO,
            was_check: false,
            mismatches: 0,
            heals: Vec::new(),
            read_only,
        }
    }

    /// Whether a suspend has to wait for the syncer.
    pub fn is_at_work(&self) -> bool {
        self.in_window || self.running.is_some()
    }

    /// Members may differ.
    pub fn ask_for_resync(&mut self) {
        self.resync = true;
    }

    /// Leaves a read error to be cured.
    pub fn add_heal(&mut self, member: usize, window: Range<Sector>) {
        let known = self
            .heals
            .iter()
            .any(|heal| *heal == (member, window.clone()));
        if !known && self.heals.len() < HEALS_MAX {
            self.heals.push((member, window));
        }
    }

    /// Mismatches of the last check.
    pub fn mismatches(&self) -> u64 {
        if self.was_check { self.mismatches } else { 0 }
    }

    /// How far the last sync has come.
    pub fn completed(&self) -> Sector {
        self.completed
    }
}

impl Array {
    /// What the syncer is at.
    pub fn action(&self) -> Action {
        let sync = self.sync.lock();
        if sync.frozen || sync.paused {
            return Action::Frozen;
        }
        if let Some(run) = &sync.running {
            return Action::Sync(run.kind);
        }
        self.pick(&sync).map_or(Action::Idle, Action::Sync)
    }

    /// Obeys a message; `false` when something else is under way.
    pub fn order(&self, order: Order) -> bool {
        let busy = matches!(self.action(), Action::Sync(_));
        {
            let mut sync = self.sync.lock();
            sync.frozen = order == Order::Frozen;
            sync.blocked = false;
            match order {
                Order::Frozen | Order::Idle => {
                    sync.asked = None;
                    sync.completed = Sector::ZERO;
                    self.give_up(&mut sync);
                }
                _ if busy => return false,
                Order::Needed => {}
                Order::Check => sync.asked = Some(SyncKind::Check),
                Order::Repair => sync.asked = Some(SyncKind::Repair),
            }
        }
        self.wake_syncer();
        true
    }

    /// What is to be done next.
    fn pick(&self, sync: &SyncState) -> Option<SyncKind> {
        if sync.blocked || sync.read_only {
            return None;
        }
        if self.members.is_rebuilding() {
            return Some(SyncKind::Recover);
        }
        if sync.resync && self.can_resync() {
            return Some(SyncKind::Resync);
        }
        sync.asked
    }

    /// Whether members can be made to agree: parity needs all of them.
    fn can_resync(&self) -> bool {
        !self.needs_all || !self.members.is_degraded()
    }

    /// Ends what is under way, unfinished: what was not reached is needed still.
    fn give_up(&self, sync: &mut SyncState) {
        let Some(run) = sync.running.take() else {
            return;
        };
        if let Some(regions) = &self.regions {
            run.taken
                .iter()
                .for_each(|index| regions.end_sync(*index, true));
        }
    }

    fn begin(&self, sync: &mut SyncState, kind: SyncKind) {
        let mut run = Run {
            kind,
            at: Sector::ZERO,
            end: self.level.sync_len(),
            taken: Vec::new(),
            by_bitmap: false,
            members: Vec::new(),
            requests: self.requests.load(SeqCst),
        };
        sync.was_check = kind == SyncKind::Check;
        if matches!(kind, SyncKind::Check | SyncKind::Repair) {
            sync.asked = None;
            sync.mismatches = 0;
        } else if let Some(regions) = &self.regions {
            let needed = (0..regions.len()).filter(|index| regions.is_needed(*index));
            run.taken = needed.collect();
            run.taken
                .iter()
                .for_each(|index| regions.begin_sync(*index));
        }
        if kind == SyncKind::Recover {
            let rebuilt = |index: &usize| self.members.state(*index) == MemberState::Rebuilding;
            run.members = (0..self.members.len()).filter(rebuilt).collect();
            run.by_bitmap = self.regions.is_some()
                && run
                    .members
                    .iter()
                    .all(|index| sync.by_bitmap.contains(index));
            run.end = self.level.recover_len();
            let marks = run
                .members
                .iter()
                .map(|i| self.members.member(*i).recovered());
            run.at = marks.min().unwrap_or(Sector::ZERO).min(run.end);
        }
        tracing::info!(?kind, from = %run.at, to = %run.end, "raid: sync begins");
        sync.completed = run.at;
        sync.running = Some(run);
    }

    fn sync_turn(self: &Arc<Self>, now: Duration) -> NextTurn {
        let (heals, run) = {
            let mut sync = self.sync.lock();
            if sync.stop || sync.paused || sync.frozen {
                self.give_up(&mut sync);
                sync.heals.clear();
                self.sync_stopped.notify_all();
                let stop = sync.stop;
                return if stop {
                    NextTurn::Stop
                } else {
                    NextTurn::WhenWoken
                };
            }
            if sync.running.is_none()
                && let Some(kind) = self.pick(&sync)
            {
                self.begin(&mut sync, kind);
            }
            let heals = std::mem::take(&mut sync.heals);
            let run = sync.running.clone();
            sync.in_window = run.is_some() || !heals.is_empty();
            (heals, run)
        };
        for (member, window) in heals {
            self.heal(member, window);
        }
        let next = match run {
            Some(run) => self.step(run, now),
            None => NextTurn::WhenWoken,
        };
        let mut sync = self.sync.lock();
        sync.in_window = false;
        if sync.paused {
            self.sync_stopped.notify_all();
            return NextTurn::At(now);
        }
        next
    }

    fn heal(self: &Arc<Self>, member: usize, window: Range<Sector>) {
        self.gate
            .hold(self.level.window_ranges(SyncKind::Recover, window.clone()));
        self.level.heal(member, window);
        self.open_gate();
    }

    fn open_gate(self: &Arc<Self>) {
        for io in self.gate.release() {
            self.write(io);
        }
    }

    /// The next window of a run, or its end.
    fn step(self: &Arc<Self>, run: Run, now: Duration) -> NextTurn {
        let Some(window) = self.next_window(&run) else {
            self.finish(&run);
            return NextTurn::At(now);
        };
        self.gate
            .hold(self.level.window_ranges(run.kind, window.clone()));
        let result = self.level.sync(run.kind, window.clone());
        if result.is_ok() && run.kind == SyncKind::Recover {
            self.advance(&run, window.end);
        }
        self.open_gate();
        match result {
            Ok(synced) => self.note(&run, &window, synced, now),
            Err(_) => {
                tracing::error!(kind = ?run.kind, at = %window.start, "raid: content cannot be had from any member: the sync ends");
                let mut sync = self.sync.lock();
                self.give_up(&mut sync);
                sync.blocked = true;
                drop(sync);
                self.ask_for_superblocks(true);
                NextTurn::At(now)
            }
        }
    }

    /// Rebuilding members are good up to there.
    fn advance(&self, run: &Run, to: Sector) {
        for index in &run.members {
            let member = self.members.member(*index);
            if member.state() == MemberState::Rebuilding && member.recovered() < to {
                member.advance(to);
            }
        }
    }

    fn note(&self, run: &Run, window: &Range<Sector>, synced: Synced, now: Duration) -> NextTurn {
        let requests = self.requests.load(SeqCst);
        let busy = requests != run.requests;
        let checkpoint = (self.level.sync_len().raw() / CHECKPOINTS).max(1);
        let crossed = window.start.raw() / checkpoint != window.end.raw() / checkpoint;
        let mut sync = self.sync.lock();
        sync.mismatches += synced.mismatches;
        if let Some(running) = &mut sync.running {
            running.at = window.end;
            running.requests = requests;
            if run.kind == SyncKind::Resync {
                self.leave_regions(running, false);
            }
            sync.completed = window.end;
        }
        drop(sync);
        if run.kind == SyncKind::Resync {
            self.members.set_consistent_to(window.end);
            if window.start <= self.resynced() && self.resynced() < window.end {
                self.set_resynced(window.end);
            }
        }
        if crossed && matches!(run.kind, SyncKind::Resync | SyncKind::Recover) {
            self.ask_for_superblocks(false);
        }
        self.pause_for(window.end - window.start, busy, now)
    }

    /// Regions that a run has gone through are no longer its own; `still` when others have to go there, too.
    fn leave_regions(&self, run: &mut Run, still: bool) {
        let Some(regions) = &self.regions else {
            return;
        };
        let at = run.at;
        let still = still || self.members.is_degraded();
        let region = regions.region().raw();
        let last = at >= run.end;
        run.taken.retain(|index| {
            let done = last || (*index as u64 + 1) * region <= at.raw();
            if done {
                regions.end_sync(*index, still);
            }
            !done
        });
    }

    /// Guests come first: a window's worth of time at the rate that holds now.
    fn pause_for(&self, window: Sector, busy: bool, now: Duration) -> NextTurn {
        let rate = if busy {
            self.pace.min_rate.max(1)
        } else {
            self.pace.max_rate
        };
        if rate == 0 {
            return NextTurn::At(now);
        }
        let micros = (window.bytes() / 1024).saturating_mul(1_000_000) / u64::from(rate);
        NextTurn::At(now + Duration::from_micros(micros))
    }

    /// What to go through next: from where the run stands to the next border, skipping what needs nothing.
    fn next_window(&self, run: &Run) -> Option<Range<Sector>> {
        let mut at = run.at;
        while at < run.end {
            let most = at + WINDOW_SECTORS_MAX;
            let end = Sector(most.raw() / WINDOW_SECTORS_MAX.raw() * WINDOW_SECTORS_MAX.raw());
            let mut window = at..end.min(run.end);
            if run.kind == SyncKind::Resync
                && let Some(regions) = &self.regions
            {
                let region = regions.region().raw();
                let border = Sector((at.raw() / region + 1) * region);
                window.end = window.end.min(border);
            }
            if self.is_wanted(run, &window) {
                return Some(window);
            }
            at = window.end;
            if run.kind == SyncKind::Recover {
                self.advance(run, at);
            }
        }
        None
    }

    fn is_wanted(&self, run: &Run, window: &Range<Sector>) -> bool {
        let by_bitmap = match run.kind {
            SyncKind::Check | SyncKind::Repair => false,
            SyncKind::Resync => true,
            SyncKind::Recover => run.by_bitmap,
        };
        let Some(regions) = self.regions.as_ref().filter(|_| by_bitmap) else {
            return true;
        };
        let ranges = self.level.window_ranges(run.kind, window.clone());
        let mut spans = ranges.iter().map(|range| regions.span(range));
        spans.any(|span| span.iter().any(|index| regions.is_needed(index)))
    }

    /// A run has come to its end.
    fn finish(&self, run: &Run) {
        tracing::info!(kind = ?run.kind, "raid: sync has ended");
        {
            let mut sync = self.sync.lock();
            let resync_follows = run.kind == SyncKind::Recover && sync.resync;
            let Some(ended) = &mut sync.running else {
                return;
            };
            ended.at = ended.end;
            self.leave_regions(ended, resync_follows);
            if run.kind == SyncKind::Recover {
                for index in &run.members {
                    self.members.member(*index).end_rebuild();
                }
                sync.by_bitmap.retain(|index| !run.members.contains(index));
            }
            if run.kind == SyncKind::Resync {
                let needed = self.regions.as_ref().is_some_and(Regions::any_needed);
                sync.resync = needed && !self.members.is_degraded();
                self.set_resynced(MAX_SECTOR);
                self.members.set_consistent_to(MAX_SECTOR);
            }
        }
        // Idle only when the superblocks say so, too.
        if matches!(run.kind, SyncKind::Resync | SyncKind::Recover) {
            self.metadata.lock().update(self.resynced());
        }
        {
            let mut sync = self.sync.lock();
            sync.running = None;
            sync.completed = Sector::ZERO;
        }
        self.event.trigger();
        // Regions can become clean now.
        self.wake_keeper();
    }
}

impl Actor for SyncActor {
    fn turn(&self, now: Duration) -> NextTurn {
        self.0.sync_turn(now)
    }

    fn panicked(&self) {
        tracing::error!("raid: the syncer panicked: nothing is synced any more");
        {
            let mut sync = self.0.sync.lock();
            sync.running = None;
            sync.in_window = false;
            sync.blocked = true;
            self.0.sync_stopped.notify_all();
        }
        self.0.open_gate();
    }
}

/// How often, over its length, it is recorded how far a sync has come.
const CHECKPOINTS: u64 = 16;
