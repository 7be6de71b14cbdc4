//! What the line's requests, messages and suspends share: the groups, which one is in use, and the requests that have no path.
//!
//! A request that failed on a path, or that a path came back for, is sent by whoever brings the news, one thread at a time: a path that
//! fails at once only adds to the list that this thread works through, so nothing nests and nothing waits.
//!
//! INVARIANT: all atomics here but the turns of paths change under `state`'s lock, so what is decided under it (to keep a request because
//! there is no path) holds when the list is written. No device is called and no request ends under it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

use parking_lot::{Mutex, MutexGuard};
use thinmap_block::Io;
use thinmap_dm::{ConstructCx, TableEvent};
use thinmap_units::{BlkStatus, DevNo};

use super::args::{Arguments, Features};
use super::path::Path;
use super::selector::Ring;
use super::timeout::Timeout;

/// See the module.
pub(super) struct Routing {
    /// The mapped device, for the log.
    pub(super) dev_no: DevNo,
    pub(super) features: Features,
    pub(super) handler: Option<String>,
    pub(super) groups: Vec<Group>,
    event: Arc<TableEvent>,
    valid_paths: AtomicUsize,
    /// Index of the group in use, or [`NONE`].
    current: AtomicUsize,
    /// Index of the group that the next request begins to use, or [`NONE`].
    next: AtomicUsize,
    /// No request has found a group yet. The kernel holds requests back then; here it only shows in the status.
    pub(super) queue_io: AtomicBool,
    pub(super) pg_init_count: AtomicU32,
    queue_if_no_path: AtomicBool,
    /// What it was before a suspend.
    saved_queue_if_no_path: AtomicBool,
    /// A suspend without flush is under way: requests without a path go back to the core.
    pushing_back: AtomicBool,
    state: Mutex<State>,
    /// Ends the waiting for a path, where that was asked for.
    pub(super) timeout: Option<Arc<Timeout>>,
}

/// Paths of the same priority.
pub(super) struct Group {
    pub(super) ring: Arc<Ring>,
    pub(super) paths: Vec<Arc<Path>>,
    /// Used only when no other group has a path.
    bypassed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Requests without a path.
    waiting: VecDeque<Io>,
    /// Requests to be sent.
    ready: VecDeque<Io>,
    /// A thread works through `ready`.
    sending: bool,
}

/// What became of a request.
pub(super) enum Route<'a> {
    /// To this path.
    Path(Io, &'a Arc<Path>),
    /// It waits for one.
    Held,
    /// Back to the core.
    PushBack(Io),
    /// There is none.
    Fail(Io),
}

impl Routing {
    pub(super) fn new(
        arguments: Arguments,
        timeout: Option<Arc<Timeout>>,
        cx: &ConstructCx<'_>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|routing| {
            let group = |group: super::args::GroupArguments| {
                let clock = cx.env.clock.clone();
                let ring = Arc::new(Ring::new(group.selector, group.paths.len(), clock));
                let paths = group.paths.into_iter().enumerate();
                let paths = paths.map(|(index, (device, words))| {
                    Path::new(device, words, index, &ring, routing.clone())
                });
                Group {
                    paths: paths.collect(),
                    ring,
                    bypassed: AtomicBool::new(false),
                }
            };
            let groups: Vec<Group> = arguments.groups.into_iter().map(group).collect();
            Self {
                dev_no: cx.dev_no,
                features: arguments.features,
                handler: arguments.handler,
                event: cx.event.clone(),
                valid_paths: AtomicUsize::new(groups.iter().map(|g| g.paths.len()).sum()),
                groups,
                current: AtomicUsize::new(NONE),
                next: AtomicUsize::new(arguments.initial.unwrap_or(NONE)),
                queue_io: AtomicBool::new(true),
                pg_init_count: AtomicU32::new(0),
                queue_if_no_path: AtomicBool::new(arguments.features.queue_if_no_path),
                saved_queue_if_no_path: AtomicBool::new(false),
                pushing_back: AtomicBool::new(false),
                state: Mutex::default(),
                timeout,
            }
        })
    }

    pub(super) fn queues_if_no_path(&self) -> bool {
        self.queue_if_no_path.load(SeqCst)
    }

    pub(super) fn has_path(&self) -> bool {
        self.valid_paths.load(SeqCst) > 0
    }

    /// Index of the group in use.
    pub(super) fn current(&self) -> Option<usize> {
        Some(self.current.load(SeqCst)).filter(|index| *index != NONE)
    }

    /// Number of the group that is or will be used, from 1; 0 without groups.
    pub(super) fn group_number(&self) -> usize {
        let next = Some(self.next.load(SeqCst)).filter(|index| *index != NONE);
        let first = (!self.groups.is_empty()).then_some(0);
        next.or(self.current())
            .or(first)
            .map_or(0, |index| index + 1)
    }

    /// Finds a request its way.
    pub(super) fn route(&self, mut io: Io) -> Route<'_> {
        loop {
            if let Some(path) = self.choose(io.sectors.bytes()) {
                path.begin(&mut io);
                return Route::Path(io, path);
            }
            let mut state = self.state.lock();
            if self.has_path() {
                // It came back in between.
                continue;
            }
            self.current.store(NONE, SeqCst);
            self.queue_io.store(false, SeqCst);
            if self.pushing_back.load(SeqCst) {
                return Route::PushBack(io);
            }
            if !self.queues_if_no_path() {
                return Route::Fail(io);
            }
            state.waiting.push_back(io);
            return Route::Held;
        }
    }

    fn choose(&self, bytes: u64) -> Option<&Arc<Path>> {
        if !self.has_path() {
            return None;
        }
        if self.next.load(SeqCst) != NONE {
            let next = {
                let _state = self.state.lock();
                self.next.swap(NONE, SeqCst)
            };
            if let Some(path) = self.choose_in(next, bytes) {
                return Some(path);
            }
        }
        // Until it has no path left.
        if let Some(path) = self.choose_in(self.current.load(SeqCst), bytes) {
            return Some(path);
        }
        [false, true].into_iter().find_map(|bypassed| {
            let fitting = |group: &&Group| group.is_bypassed() == bypassed;
            let mut groups = self.groups.iter().enumerate();
            groups.find_map(|(index, group)| {
                fitting(&group)
                    .then(|| self.choose_in(index, bytes))
                    .flatten()
            })
        })
    }

    fn choose_in(&self, index: usize, bytes: u64) -> Option<&Arc<Path>> {
        let group = self.groups.get(index)?;
        let path = group.ring.select(&group.paths, bytes)?;
        if self.current.load(SeqCst) != index {
            let _state = self.state.lock();
            self.current.store(index, SeqCst);
            self.queue_io.store(false, SeqCst);
            // A handler would have to prepare the group first; there are none, so that is done at once.
            let prepared = u32::from(self.handler.is_some());
            self.pg_init_count.store(prepared, SeqCst);
            if self.handler.is_some() {
                group.bypassed.store(false, SeqCst);
            }
        }
        Some(path)
    }

    /// Sends a request that failed on one path to another, if there is one or may be.
    pub(super) fn try_again(&self, io: Io) {
        let mut state = self.state.lock();
        // COMPAT: not looked for, so the group stays in use until the next request finds none.
        if !self.has_path() && !self.queues_if_no_path() {
            let status = match self.pushing_back.load(SeqCst) {
                true => BlkStatus::Requeue,
                false => BlkStatus::IoErr,
            };
            drop(state);
            return io.complete(status);
        }
        state.ready.push_back(io);
        self.send(state);
    }

    /// Looks again at the requests that wait for a path.
    pub(super) fn look_again(&self) {
        let mut state = self.state.lock();
        let mut waiting = std::mem::take(&mut state.waiting);
        state.ready.append(&mut waiting);
        self.send(state);
    }

    fn send<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.sending {
            return;
        }
        state.sending = true;
        while let Some(io) = state.ready.pop_front() {
            drop(state);
            match self.route(io) {
                Route::Path(io, path) => path.device.dev.submit(io),
                Route::Held => {}
                Route::PushBack(io) => io.complete(BlkStatus::Requeue),
                Route::Fail(io) => io.complete(BlkStatus::IoErr),
            }
            state = self.state.lock();
        }
        state.sending = false;
    }

    /// Takes a path out of use.
    pub(super) fn fail_path(&self, path: &Path) {
        let state = self.state.lock();
        if !path.fail() {
            return;
        }
        self.valid_paths.fetch_sub(1, SeqCst);
        drop(state);
        tracing::warn!(dev = %self.dev_no, path = %path.device, "multipath: failing path");
        self.event.trigger();
        self.watch_for_path();
    }

    /// Brings a path into use again.
    pub(super) fn reinstate_path(&self, path: &Path) {
        let state = self.state.lock();
        if !path.reinstate() {
            return;
        }
        self.valid_paths.fetch_add(1, SeqCst);
        drop(state);
        tracing::warn!(dev = %self.dev_no, path = %path.device, "multipath: reinstating path");
        self.event.trigger();
        if let Some(timeout) = &self.timeout {
            timeout.disarm();
        }
        self.look_again();
    }

    /// Avoids a group, or no longer.
    pub(super) fn bypass(&self, group: &Group, bypassed: bool) {
        let state = self.state.lock();
        group.bypassed.store(bypassed, SeqCst);
        self.current.store(NONE, SeqCst);
        drop(state);
        self.event.trigger();
    }

    /// Uses a group from the next request on; no group before it is avoided any more.
    pub(super) fn switch_to(&self, index: usize) {
        let state = self.state.lock();
        for group in &self.groups {
            group.bypassed.store(false, SeqCst);
        }
        self.current.store(NONE, SeqCst);
        self.next.store(index, SeqCst);
        drop(state);
        self.event.trigger();
    }

    /// Lets requests wait when there is no path, or fails them.
    pub(super) fn set_queue_if_no_path(&self, wait: bool) {
        let state = self.state.lock();
        self.queue_if_no_path.store(wait, SeqCst);
        if !wait {
            self.saved_queue_if_no_path.store(false, SeqCst);
        }
        drop(state);
        if wait {
            self.watch_for_path();
        } else {
            if let Some(timeout) = &self.timeout {
                timeout.disarm();
            }
            self.look_again();
        }
    }

    /// Begins to wait for the time after which requests without a path fail.
    pub(super) fn watch_for_path(&self) {
        if let Some(timeout) = &self.timeout
            && self.queues_if_no_path()
            && !self.has_path()
        {
            timeout.arm();
        }
    }

    /// A suspend begins. A flush can end only when every request has: none waits for a path until the resume.
    pub(super) fn presuspend(&self, noflush: bool) {
        let state = self.state.lock();
        self.pushing_back.store(noflush, SeqCst);
        if self.features.bio_based || !noflush {
            let waits = self.queue_if_no_path.swap(false, SeqCst);
            // A second suspend keeps what the first one saw.
            if waits || !self.saved_queue_if_no_path.load(SeqCst) {
                self.saved_queue_if_no_path.store(waits, SeqCst);
            }
        }
        drop(state);
        self.look_again();
    }

    /// No suspend is under way any more.
    pub(super) fn suspend_ended(&self) {
        let _state = self.state.lock();
        self.pushing_back.store(false, SeqCst);
    }

    pub(super) fn resume(&self) {
        let _state = self.state.lock();
        if self.saved_queue_if_no_path.swap(false, SeqCst) {
            self.queue_if_no_path.store(true, SeqCst);
        }
    }
}

impl Group {
    pub(super) fn is_bypassed(&self) -> bool {
        self.bypassed.load(SeqCst)
    }
}

/// No group.
const NONE: usize = usize::MAX;
