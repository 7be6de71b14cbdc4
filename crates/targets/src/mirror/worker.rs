//! A mirror's worker: it writes the log, and recovers regions.
//!
//! Its turn may wait for the log's device and for a flush of the legs; never for a guest's request.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use thinmap_block::{Io, Op, flush};
use thinmap_runtime::{Actor, NextTurn};
use thinmap_units::BlkStatus;

use super::disk_log::DiskLog;
use super::legs::Failure;
use super::recovery::{Recovered, Recovery};
use super::regions::Admission;
use super::set::MirrorSet;

/// A region becomes clean when it was idle for one to two of these: a region in use costs no write of the log for each of its own.
const ROUND: Duration = Duration::from_millis(500);
/// Of a turn. A recovery from one fast device to another must not become a turn without end.
const STEPS_MAX: usize = 64;

/// What reaches the worker.
pub(super) enum Event {
    /// A write that may need the log; not counted.
    Write(Io),
    /// A region that was to be recovered has lost a write meanwhile.
    GiveUp(u64),
    /// A region was copied, or not.
    Recovered(Recovered),
    /// Something that somebody waits for. Its sender is told, or dropped, when it is done.
    Ask(Ask, mpsc::Sender<()>),
    /// The line goes.
    Stop,
}

/// What may be asked of the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// Read the log and begin to recover.
    Resume,
    /// Begin to recover again.
    StartRecovery,
    /// Let no copy be under way.
    StopRecovery,
    /// No request is under way: the log is to say what is clean.
    WriteLog,
}

impl Event {
    /// Fails what is in the event.
    pub fn fail(self) {
        if let Self::Write(io) = self {
            io.complete(BlkStatus::IoErr);
        }
    }
}

/// What the worker keeps from turn to turn.
pub(super) struct WorkerState {
    pub disk_log: Option<DiskLog>,
    pub recovery: Recovery,
    /// Where the next region to recover is looked for.
    pub search: u64,
    /// Who waits for the recovery to stop.
    pub stop_recovery: Vec<mpsc::Sender<()>>,
    /// Writes that are not counted yet.
    pub writes: Vec<Io>,
    /// When idle regions are looked at next.
    next_round: Option<Duration>,
    is_stopping: bool,
}

impl WorkerState {
    pub fn new(disk_log: Option<DiskLog>) -> Self {
        Self {
            disk_log,
            recovery: Recovery::Stopped,
            search: 0,
            stop_recovery: Vec::new(),
            writes: Vec::new(),
            next_round: None,
            is_stopping: false,
        }
    }
}

/// The worker as the runtime knows it.
pub(super) struct MirrorActor(pub Arc<MirrorSet>);

/// The worker during a turn.
pub(super) struct Worker<'a> {
    pub set: &'a Arc<MirrorSet>,
    pub state: &'a mut WorkerState,
}

impl Actor for MirrorActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let mut state = self.0.worker.lock();
        let mut worker = Worker {
            set: &self.0,
            state: &mut state,
        };
        worker.turn(now)
    }

    fn panicked(&self) {
        tracing::error!("mirror: the worker panicked: writes fail from now on");
        self.0.log_failed.store(true, SeqCst);
        let events = self.0.die();
        let lost = {
            let mut worker = self.0.worker.lock();
            worker.stop_recovery.clear();
            std::mem::take(&mut worker.writes)
        };
        events.into_iter().for_each(Event::fail);
        lost.into_iter()
            .for_each(|io| io.complete(BlkStatus::IoErr));
        self.0.fail_all();
    }
}

impl Worker<'_> {
    fn turn(&mut self, now: Duration) -> NextTurn {
        let is_done = (0..STEPS_MAX).any(|_| !self.step(now));
        if self.state.is_stopping {
            self.set.die().into_iter().for_each(Event::fail);
            self.set.fail_all();
            return NextTurn::Stop;
        }
        if !is_done {
            return NextTurn::At(now);
        }
        match self.state.next_round {
            Some(at) => NextTurn::At(at),
            None => NextTurn::WhenWoken,
        }
    }

    /// Works through what is there now; whether there was anything.
    fn step(&mut self, now: Duration) -> bool {
        let events = self.set.take_inbox();
        let any = !events.is_empty();
        for event in events {
            self.take(event);
        }
        self.clean_idle(now);
        self.recover();
        self.write_all();
        any
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Write(io) => self.state.writes.push(io),
            Event::GiveUp(region) => self.give_up_recovery(region),
            Event::Recovered(end) => self.recovered(end),
            Event::Ask(what, waiting) => self.answer(what, waiting),
            Event::Stop => self.state.is_stopping = true,
        }
    }

    fn answer(&mut self, what: Ask, waiting: mpsc::Sender<()>) {
        match what {
            Ask::Resume => {
                self.open_log();
                self.state.search = 0;
                self.state.recovery = Recovery::Between;
            }
            Ask::StartRecovery => self.state.recovery = Recovery::Between,
            Ask::StopRecovery => {
                self.state.stop_recovery.push(waiting);
                return self.stop_recovery();
            }
            Ask::WriteLog => {
                self.clean(true);
                self.write_log();
            }
        }
        let _ = waiting.send(());
    }

    /// The log may have been changed by somebody else since.
    fn open_log(&mut self) {
        let Some(disk_log) = &mut self.state.disk_log else {
            return;
        };
        let log = &self.set.log;
        if let Err(failure) = disk_log.open(log.sync()) {
            log.fail(failure);
        }
        let _regions = self.set.regions.lock();
        for region in 0..log.regions {
            log.set_in_sync(region, disk_log.is_clean(region));
        }
    }

    /// Once in a round: regions that were idle are clean.
    fn clean_idle(&mut self, now: Duration) {
        if self.state.next_round.is_some_and(|at| at <= now) {
            self.state.next_round = None;
            self.clean(false);
            self.write_log();
        }
        if self.state.next_round.is_none() && self.set.regions.lock().has_idle() {
            self.state.next_round = Some(now + ROUND);
        }
    }

    fn clean(&mut self, all: bool) {
        let clean = self.set.regions.lock().take_clean(all);
        if let Some(disk_log) = &mut self.state.disk_log {
            for region in clean {
                disk_log.mark_clean(region);
            }
        }
    }

    /// Whether the log on the medium says what it should.
    fn write_log(&mut self) -> bool {
        let set = self.set;
        let Some(disk_log) = &mut self.state.disk_log else {
            return true;
        };
        match disk_log.write(|| flush_legs(set)) {
            Ok(()) => true,
            Err(failure) => {
                set.log.fail(failure);
                false
            }
        }
    }

    /// Counts writes in, writes the log once for all of them, and sends them off.
    fn write_all(&mut self) {
        let writes = std::mem::take(&mut self.state.writes);
        if writes.is_empty() {
            return;
        }
        let (mut to_all, mut to_default) = (Vec::new(), Vec::new());
        for io in writes {
            if io.op == Op::Flush {
                to_all.push((io, None));
                continue;
            }
            let region = self.set.region_at(self.set.offset(io.sector));
            match self.set.admit(io, true) {
                Some((io, Admission::Default)) => to_default.push(io),
                Some((io, _)) => {
                    if let Some(disk_log) = &mut self.state.disk_log {
                        disk_log.mark_dirty(region);
                    }
                    to_all.push((io, Some(region)));
                }
                None => {}
            }
        }
        // COMPAT: a log that has failed stays so until another table is loaded.
        if !self.write_log() {
            self.set.log_failed.store(true, SeqCst);
        }
        if self.set.waits_for_log() {
            to_all.into_iter().for_each(|(io, _)| self.set.failed(io));
        } else {
            {
                let mut regions = self.set.regions.lock();
                let marked = to_all.iter().filter_map(|(_, region)| *region);
                marked.for_each(|region| regions.marked(region));
            }
            to_all
                .into_iter()
                .for_each(|(io, _)| self.set.write_legs(io));
        }
        for io in to_default {
            self.set.submit_default(io);
        }
    }
}

/// Makes durable what all legs hold; whether each did.
fn flush_legs(set: &MirrorSet) -> bool {
    let mut well = true;
    for (index, leg) in set.legs.list.iter().enumerate() {
        if !flush(&**leg.dev()).is_ok() {
            set.legs.fail(index, Failure::Flush);
            well = false;
        }
    }
    well
}
