//! The pool's worker: one actor that does everything which changes metadata or must wait.
//!
//! Its turn takes the inbox, processes it, and ends with at most one commit for all that wait for one. What takes time
//! besides metadata (copies, zeroing, data I/O to be outwaited) goes on without it and comes back as an [`Event`].
//!
//! INVARIANT: the turn never waits for guest I/O, only for the metadata device and the data device's flush.

mod changes;
mod commit;
mod control;
mod deletion;
mod new_mapping;
mod ranges;
mod requests;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use thinmap_block::Io;
use thinmap_dm::kit::{Copier, DeferredSet, Generation};
use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::{BlkStatus, DataBlock};

use self::commit::AfterCommit;
pub(super) use self::control::{Binding, Refusal, not_in_this_mode};
use self::ranges::RangeJob;
use super::journal::{Entry, Journal};
use super::mode::Mode;
use super::pool::Pool;
use super::tuning::Sizes;
use crate::thin::Port;

/// Metadata that changed is committed at least this often.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);
/// How long writes wait for data space before the pool gives them up.
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);
/// While something waits for requests in flight, the worker looks at least this often.
const DRAIN_PERIOD: Duration = Duration::from_millis(5);
/// Works done before the inbox is looked at and a commit made for those who wait.
const BATCH: usize = 512;
/// Of them, copies that are done by this very thread: those who wait for the first go on while the others are made.
const COPIES_PER_TURN: usize = 6;

/// What reaches the worker.
pub enum Event {
    /// A volume's request that the fast path could not serve.
    Io(Arc<Port>, Io),
    /// Something to do on the worker.
    Run(Continuation),
    /// The last user has gone.
    Stop,
}

/// A step that the worker takes later.
pub type Continuation = Box<dyn FnOnce(&mut Worker<'_>) + Send>;

/// Requests in the form in which they wait.
pub enum Work {
    /// A volume's request.
    Io(Arc<Port>, Io),
    /// A discard or a large write-zeroes, part way through.
    Range(Box<RangeJob>),
}

impl Event {
    /// Fails what is in the event; who waits for a continuation sees its answer dropped.
    pub(super) fn fail(self) {
        if let Self::Io(_, io) = self {
            io.complete(BlkStatus::IoErr);
        }
    }
}

impl Work {
    fn end(self, status: BlkStatus) {
        match self {
            Self::Io(_, io) => io.complete(status),
            Self::Range(job) => job.end(status),
        }
    }

    fn port(&self) -> &Arc<Port> {
        match self {
            Self::Io(port, _) => port,
            Self::Range(job) => &job.port,
        }
    }
}

/// What the worker keeps from turn to turn.
pub struct WorkerState {
    todo: std::collections::VecDeque<Work>,
    /// Writes that found no space.
    retry: Vec<Work>,
    /// What came while the pool was suspended.
    paused: Vec<Work>,
    after_commit: Vec<AfterCommit>,
    draining: Vec<Draining>,
    /// Data blocks and runs that are held by work in flight and by nothing on disk.
    held_blocks: Vec<(DataBlock, u64)>,
    copier: Copier,
    /// Where what is not committed yet outlives this process.
    journal: Option<Journal>,
    /// Copies and zeroings done in this turn, by this thread.
    copies: usize,
    /// Copies, zeroings, overwrites and discards in flight.
    jobs: usize,
    /// Transactions given up so far: what was allocated in one of them is gone.
    aborts: u64,
    /// Transactions taken back whose requests are still in flight: they go to data blocks that are free now.
    taken_back: u32,
    /// Mappings inserted since the last commit.
    inserted: u32,
    /// Some of them replaced a mapping: on disk more refers to a data block than its count says.
    replaced: bool,
    last_commit: Duration,
    now: Duration,
    no_space_since: Option<Duration>,
    low_water_triggered: bool,
    metadata_low_triggered: bool,
    metadata_low_water: u64,
    reflink: bool,
    sizes: Sizes,
    /// Deleted volumes may still hold space.
    deleting: bool,
    /// Metadata blocks that were left when the pool ran out of room for what it was to do.
    room_when_full: u64,
    /// Steps of deletions are being taken for want of metadata blocks.
    finding_metadata: bool,
    stop: bool,
}

struct Draining {
    /// `None`: not closed yet, too many generations were draining.
    all: Wait,
    shared: Wait,
    then: Continuation,
}

/// What to outwait of one deferred set.
#[derive(Clone, Copy)]
enum Wait {
    Nothing,
    ToClose,
    Generation(Generation),
}

impl Wait {
    fn is_over(&mut self, set: &DeferredSet) -> bool {
        if matches!(self, Self::ToClose)
            && let Some(generation) = set.close()
        {
            *self = Self::Generation(generation);
        }
        match self {
            Self::Nothing => true,
            Self::ToClose => false,
            Self::Generation(generation) => set.drained(*generation),
        }
    }
}

impl WorkerState {
    pub(super) fn new(
        copier: Copier,
        metadata_low_water: u64,
        sizes: Sizes,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            todo: Default::default(),
            retry: Vec::new(),
            paused: Vec::new(),
            after_commit: Vec::new(),
            draining: Vec::new(),
            held_blocks: Vec::new(),
            copier,
            journal,
            copies: 0,
            jobs: 0,
            aborts: 0,
            taken_back: 0,
            inserted: 0,
            replaced: false,
            last_commit: Duration::ZERO,
            now: Duration::ZERO,
            no_space_since: None,
            low_water_triggered: false,
            metadata_low_triggered: false,
            metadata_low_water,
            reflink: true,
            sizes,
            deleting: false,
            room_when_full: 0,
            finding_metadata: false,
            stop: false,
        }
    }
}

/// The worker during a turn.
pub struct Worker<'a> {
    pool: &'a Arc<Pool>,
    state: &'a mut WorkerState,
}

/// The worker as the runtime knows it.
pub(super) struct PoolActor(pub Arc<Pool>);

impl Actor for PoolActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut state = self.0.worker.lock();
        let mut worker = Worker {
            pool: &self.0,
            state: &mut state,
        };
        worker.turn(now)
    }

    fn panicked(&self) {
        tracing::error!(pool = %self.0.dev_no, "thin: the pool's worker panicked: the pool fails from now on");
        self.0.store_mode(Mode::Fail);
        self.0.trigger_event();
        self.0.die();
        let mut state = self.0.worker.lock();
        let mut stranded: Vec<Work> = state.todo.drain(..).collect();
        stranded.append(&mut state.retry);
        stranded.append(&mut state.paused);
        let waiting = std::mem::take(&mut state.after_commit);
        // Continuations own requests too: dropping them fails those and wakes whoever asked.
        let draining = std::mem::take(&mut state.draining);
        drop(state);
        stranded.append(&mut self.0.prison.lock().drain_waiting());
        stranded.into_iter().for_each(|w| w.end(BlkStatus::IoErr));
        waiting.into_iter().for_each(AfterCommit::fail);
        drop(draining);
    }
}

impl Worker<'_> {
    fn turn(&mut self, now: Duration) -> NextTurn {
        self.state.now = now;
        for event in self.pool.take_inbox() {
            match event {
                Event::Io(port, io) => self.take_in(Work::Io(port, io)),
                Event::Run(then) => then(self),
                Event::Stop => self.state.stop = true,
            }
        }
        self.check_draining();
        self.process_some();
        self.commit_if_due();
        self.delete_some();
        self.check_no_space_timeout();
        if self.state.stop && self.is_idle() {
            if let Some(journal) = &self.state.journal {
                journal.forget();
            }
            self.pool.forget_kept();
            self.pool.die();
            return NextTurn::Stop;
        }
        self.next_turn()
    }

    fn process_some(&mut self) {
        if self.pool.suspended.load(SeqCst) {
            let state = &mut *self.state;
            state.paused.extend(state.todo.drain(..));
        }
        self.state.copies = 0;
        for _ in 0..BATCH {
            if self.state.copies >= COPIES_PER_TURN {
                break;
            }
            let Some(work) = self.state.todo.pop_front() else {
                break;
            };
            self.process(work);
        }
    }

    /// Nothing is under way and nothing waits to be done.
    fn is_idle(&self) -> bool {
        self.state.jobs == 0
            && self.state.todo.is_empty()
            && self.state.draining.is_empty()
            && self.state.after_commit.is_empty()
    }

    fn next_turn(&self) -> NextTurn {
        let state = &*self.state;
        if !state.todo.is_empty() || self.deletion_goes_on() {
            return NextTurn::At(state.now);
        }
        let mut next = None;
        let mut at = |time: Duration| next = Some(next.map_or(time, |n: Duration| n.min(time)));
        if !state.draining.is_empty() {
            at(state.now + DRAIN_PERIOD);
        }
        // A pool that may not commit would wake up for it for ever; its next table, if it gets one, comes with a turn.
        if self.pool.dirty.load(SeqCst) && self.pool.mode().may_commit() {
            at(state.last_commit + COMMIT_PERIOD);
        }
        if let Some(since) = state.no_space_since {
            at(since + NO_SPACE_TIMEOUT);
        }
        next.map_or(NextTurn::WhenWoken, NextTurn::At)
    }

    /// Puts work in line, or aside while the pool is suspended.
    fn take_in(&mut self, work: Work) {
        if self.pool.suspended.load(SeqCst) {
            self.state.paused.push(work);
        } else {
            self.state.todo.push_back(work);
        }
    }

    /// Runs `then` when the requests now in flight that `all` and `shared` name have ended.
    fn when_drained(&mut self, all: bool, shared: bool, then: Continuation) {
        let wait = |wanted| if wanted { Wait::ToClose } else { Wait::Nothing };
        let mut draining = Draining {
            all: wait(all),
            shared: wait(shared),
            then,
        };
        if self.is_over(&mut draining) {
            (draining.then)(self);
        } else {
            self.state.draining.push(draining);
        }
    }

    fn is_over(&self, draining: &mut Draining) -> bool {
        // Both are asked, so that both get closed.
        let all = draining.all.is_over(&self.pool.all_io);
        let shared = draining.shared.is_over(&self.pool.shared_reads);
        all && shared
    }

    fn check_draining(&mut self) {
        let mut waiting = std::mem::take(&mut self.state.draining);
        let mut over = Vec::new();
        let mut i = 0;
        while i < waiting.len() {
            if self.is_over(&mut waiting[i]) {
                over.push(waiting.remove(i).then);
            } else {
                i += 1;
            }
        }
        self.state.draining = waiting;
        for then in over {
            then(self);
        }
    }

    /// Brings `then` to the worker from any thread, as the end of a job.
    fn job_end(&mut self) -> impl FnOnce(Continuation) + Send + 'static {
        self.state.jobs += 1;
        let pool = self.pool.clone();
        move |then| {
            pool.push(Event::Run(Box::new(move |worker: &mut Worker<'_>| {
                worker.state.jobs -= 1;
                then(worker);
            })));
        }
    }
}
