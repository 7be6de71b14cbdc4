//! The simulated process around one target: disks, actors, clients, one step at a time. As [`crate::world`], with any number of
//! disks and nothing of a pool.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_runtime::{Simulation, Waiting, set_simulation};
use thinmap_sim::{Content, Loss, Medium, SimDisk, SimExecutor, mix};

use super::keeper::{Keeper, Kept};
use super::plan::{Kind, MAIN, Plan, SNAP};
use crate::oracle::Oracle;
use crate::swarm::choose;
use crate::world::{LOG, may_run};

const STEPS_MAX: u64 = 400_000;

/// See the module.
pub struct Bench {
    /// Actors and time.
    pub executor: Arc<SimExecutor>,
    /// By number.
    pub disks: Vec<Arc<SimDisk>>,
    /// What this run is like.
    pub plan: Plan,
    /// Which life.
    pub life: usize,
    /// What the last daemon has left, until this one takes it.
    pub kept: Mutex<Option<Kept>>,
    pub(super) state: Mutex<State>,
}

/// What a life leaves to the next.
pub struct Remains {
    /// What is on the disks.
    pub media: Vec<Medium>,
    /// What should be there.
    pub oracle: Oracle,
    /// Number of the last request.
    pub last_request: u64,
    /// What a sector was when it was read and nobody has written since: it stays that.
    pub seen: BTreeMap<(u32, u64), Content>,
    /// What a daemon that died had been given, and may not be durable.
    pub touched: BTreeMap<(u32, u64), Option<u64>>,
    /// What it has left with its keeper.
    pub kept: Option<Kept>,
}

/// How a life ended.
#[derive(Default)]
pub struct End {
    /// What is on the disks.
    pub media: Vec<Medium>,
    /// By the daemon's death.
    pub died: bool,
    /// What it has left.
    pub kept: Option<Kept>,
}

/// What changes.
pub(super) struct State {
    pub(super) rng: SmallRng,
    pub(super) oracle: Oracle,
    pub(super) open: BTreeMap<u32, Arc<dyn BlockDevice>>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) last_request: u64,
    pub(super) left: u32,
    pub(super) pause_until: Duration,
    pub(super) failure: Option<String>,
    pub(super) seen: BTreeMap<(u32, u64), Content>,
    /// Cells that were written to in this life, and when the last such request ended; `None`: under way.
    pub(super) touched: BTreeMap<(u32, u64), Option<u64>>,
    pub(super) under_way: BTreeMap<(u32, u64), u32>,
    pub(super) steps: u64,
    pub(super) trace: u64,
    pub(super) over: bool,
    pub(super) is_quiet: bool,
    /// Volumes that may answer with errors.
    pub(super) excused: BTreeSet<u32>,
}

/// A request in flight.
pub(super) struct Request {
    pub(super) volume: u32,
    pub(super) op: Op,
    pub(super) cells: Range<u64>,
    pub(super) submitted: u64,
    pub(super) fua: bool,
}

impl Bench {
    /// A process that finds `remains` on its disks.
    pub fn new(plan: Plan, life: usize, remains: Remains, rng: &mut SmallRng) -> Arc<Self> {
        let mut fork = || SmallRng::seed_from_u64(rng.random());
        let mut disks = Vec::new();
        for medium in remains.media {
            disks.push(Arc::new(SimDisk::new(medium, plan.manners, fork())));
        }
        let fault = plan.faults.get(life).copied().flatten();
        let mut excused = BTreeSet::new();
        if fault.is_some() && !plan.is_redundant {
            excused.extend([MAIN, SNAP]);
        }
        let was_struck = plan.faults[..life].iter().any(Option::is_some);
        if plan.is_direct || plan.may_lack_tags && was_struck {
            excused.insert(MAIN);
        }
        if plan.kind == Kind::Snapshot || plan.kind == Kind::Merge {
            // It may become full, and invalid.
            excused.insert(SNAP);
        }
        let bench = Arc::new(Self {
            executor: SimExecutor::new(),
            disks,
            life,
            kept: Mutex::new(remains.kept),
            state: Mutex::new(State {
                rng: fork(),
                oracle: remains.oracle,
                open: BTreeMap::new(),
                requests: BTreeMap::new(),
                last_request: remains.last_request,
                left: plan.requests,
                pause_until: Duration::ZERO,
                failure: None,
                seen: remains.seen,
                touched: remains.touched,
                under_way: BTreeMap::new(),
                steps: 0,
                trace: 0,
                over: false,
                is_quiet: true,
                excused,
            }),
            plan,
        });
        set_simulation(Some(Rc::new(Steps(bench.clone()))));
        // Otherwise once the members agree.
        if !bench.plan.has_write_hole {
            bench.arm();
        }
        bench
    }

    /// This life's fault may strike from now on.
    pub fn arm(&self) {
        let fault = self.plan.faults.get(self.life).copied().flatten();
        if let (Some(fault), Some(disk)) = (fault, self.disks.get(self.plan.victim)) {
            disk.set_faults(fault);
        }
    }

    /// With `--log`: says what happens.
    pub fn log(&self, what: impl FnOnce() -> String) {
        if LOG.load(Relaxed) {
            println!("{} {}", self.executor.clock_now().as_micros(), what());
        }
    }

    /// Works with the oracle.
    pub fn with_oracle<R>(&self, work: impl FnOnce(&mut Oracle) -> R) -> R {
        work(&mut self.state.lock().oracle)
    }

    /// A number below `end`.
    pub fn draw(&self, end: u32) -> u32 {
        self.state.lock().rng.random_range(0..end)
    }

    /// Clients may use this volume.
    pub fn open(&self, id: u32, device: Arc<dyn BlockDevice>) {
        self.state.lock().open.insert(id, device);
    }

    /// Clients no longer use it.
    pub fn close(&self, id: u32) {
        self.state.lock().open.remove(&id);
    }

    /// Clients begin.
    pub fn go_on(&self) {
        self.state.lock().is_quiet = false;
    }

    /// Something is wrong.
    pub fn fail(&self, failure: impl Into<String>) {
        self.state.lock().failure.get_or_insert(failure.into());
    }

    /// Whether something is wrong.
    pub fn failed(&self) -> bool {
        self.state.lock().failure.is_some()
    }

    /// Whether the fault has struck.
    pub fn struck(&self) -> bool {
        self.disks.iter().any(|disk| disk.fault_struck())
    }

    /// Whether clients have nothing more to do.
    pub fn clients_are_done(&self) -> bool {
        let state = self.state.lock();
        state.requests.is_empty() && (state.left == 0 || state.open.is_empty())
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.state.lock().requests.len()
    }

    /// Clients submit no more.
    pub fn stop_clients(&self) {
        self.state.lock().left = 0;
    }

    /// One step; `false` when there is nothing to do and never will be.
    pub fn step(self: &Arc<Self>, waiting: Option<Waiting>) -> bool {
        loop {
            let now = self.executor.clock_now();
            let ready: Vec<usize> = self.disks.iter().map(|disk| disk.ready(now)).collect();
            let actors = self.executor.runnable(|name| may_run(waiting, name));
            let may_submit = {
                let state = self.state.lock();
                state.wants_to_submit(self.plan.depth) && state.pause_until <= now
            };
            let others = [2 * actors.len(), 2 * usize::from(may_submit)];
            let weights: Vec<u32> = ready.iter().chain(&others).map(|w| *w as u32).collect();
            let count = self.disks.len();
            let (chosen, which) = {
                let mut state = self.state.lock();
                let Some(chosen) = choose(&weights, &mut state.rng) else {
                    drop(state);
                    if self.let_time_pass(now, waiting) {
                        continue;
                    }
                    return false;
                };
                let of = match chosen {
                    i if i < count => ready[i],
                    i if i == count => actors.len(),
                    _ => 1,
                };
                (chosen, state.rng.random_range(0..of))
            };
            if chosen < count {
                self.disks[chosen].end_one(which);
            } else if chosen == count {
                self.executor.run(actors[which]);
            } else {
                self.submit_something();
            }
            self.after_step(chosen, which);
            return true;
        }
    }

    fn let_time_pass(&self, now: Duration, waiting: Option<Waiting>) -> bool {
        let mut next: Vec<Duration> = self.disks.iter().filter_map(|d| d.next_ready()).collect();
        next.extend(self.executor.next_turn(|name| may_run(waiting, name)));
        let state = self.state.lock();
        if state.wants_to_submit(self.plan.depth) {
            next.push(state.pause_until);
        }
        drop(state);
        let Some(next) = next.into_iter().min().filter(|next| *next > now) else {
            return false;
        };
        self.executor.sim_clock().advance_to(next);
        true
    }

    fn after_step(&self, chosen: usize, which: usize) {
        if let Some(actor) = self.executor.panicked() {
            self.fail(format!("{actor} has panicked"));
        }
        let now = self.executor.clock_now();
        let mut state = self.state.lock();
        let pause = Duration::from_micros(state.rng.random_range(0..20));
        self.executor.sim_clock().advance_to(now + pause);
        state.steps += 1;
        let what = (chosen as u64) << 32 | which as u64;
        state.trace = mix(state.trace ^ mix(what ^ now.as_nanos() as u64));
        if state.steps > STEPS_MAX {
            let steps = format!("no end after {STEPS_MAX} steps, at {now:?}");
            state.failure.get_or_insert(steps);
        }
    }

    /// Clients stop, and all that they have written is durable.
    pub fn quiet(self: &Arc<Self>) {
        self.state.lock().is_quiet = true;
        self.drain();
        for (id, device) in self.devices() {
            self.submit(id, &device, Op::Flush, 0..1, IoFlags::default());
        }
        self.drain();
        self.state.lock().is_quiet = false;
    }

    /// The first volume is what the snapshot was, which is gone.
    pub fn main_becomes_snap(&self) {
        let mut state = self.state.lock();
        state.oracle.become_other(MAIN, SNAP);
        state.seen.clear();
        // It is not known what was read there.
        let cells = (0..self.plan.cells()).map(|cell| ((MAIN, cell), None));
        state.touched = cells.collect();
        state.under_way.clear();
        state.excused.remove(&SNAP);
    }

    /// Until no request is in flight.
    pub fn drain(self: &Arc<Self>) {
        while self.in_flight() > 0 && !self.failed() {
            if !self.step(None) {
                return self.fail("requests never end");
            }
        }
    }

    /// Reads all of all volumes.
    pub fn read_all(self: &Arc<Self>) {
        for (id, device) in self.devices() {
            let cells = self.plan.cells();
            let step = 5;
            for first in (0..cells).step_by(step as usize) {
                let cells = first..cells.min(first + step);
                self.submit(id, &device, Op::Read, cells, IoFlags::default());
                if self.in_flight() > 8 {
                    self.drain();
                }
            }
        }
        self.drain();
    }

    fn devices(&self) -> BTreeMap<u32, Arc<dyn BlockDevice>> {
        self.state.lock().open.clone()
    }

    /// Cuts the power, or, when the daemon has ended in good order, keeps only what is durable.
    pub fn cut(&self, losses: &dyn Fn(&mut SmallRng) -> Loss) -> End {
        let media = {
            let mut state = self.state.lock();
            state.over = true;
            state.left = 0;
            let mut media = Vec::new();
            for disk in &self.disks {
                let loss = losses(&mut state.rng);
                media.push(disk.after_cut(loss, &mut state.rng).into());
            }
            media
        };
        self.disks.iter().for_each(|disk| disk.cut_power());
        End {
            media,
            ..End::default()
        }
    }

    /// The daemon dies.
    pub fn die(&self, keeper: Option<&Keeper>) -> End {
        let kept = keeper.map(Keeper::content);
        self.log(|| "the daemon dies".to_owned());
        {
            let mut state = self.state.lock();
            state.over = true;
            state.left = 0;
        }
        let media = self.disks.iter().map(|disk| disk.orphan()).collect();
        let died = true;
        End { media, died, kept }
    }

    /// Ends the process: what is left, its steps and the hash of all that happened, and what went wrong.
    pub fn end(self: Arc<Self>, end: End) -> (Remains, (u64, u64), Option<String>) {
        set_simulation(None);
        self.executor.forget_all();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.open.clear();
        let layout = self.plan.layout;
        for (id, cell) in state.touched.keys() {
            for sector in layout.edge(*cell)..layout.edge(cell + 1) {
                state.seen.remove(&(*id, sector));
            }
        }
        if self.plan.has_faults() {
            state.seen.clear();
        }
        let mut touched = BTreeMap::new();
        if end.died {
            let now = state.oracle.now();
            let cells = std::mem::take(&mut state.touched).into_keys();
            touched = cells.map(|cell| (cell, Some(now))).collect();
        }
        let remains = Remains {
            media: end.media,
            touched,
            kept: end.kept,
            oracle: std::mem::replace(&mut state.oracle, Oracle::new(layout)),
            last_request: state.last_request,
            seen: std::mem::take(&mut state.seen),
        };
        let disks = self
            .disks
            .iter()
            .fold(0_u64, |all, disk| all.rotate_left(1) ^ disk.trace());
        let trace = mix(state.trace) ^ disks;
        (remains, (state.steps, trace), state.failure.take())
    }
}

impl State {
    fn wants_to_submit(&self, depth: usize) -> bool {
        self.left > 0
            && !self.is_quiet
            && self.requests.len() < depth
            && !self.open.is_empty()
            && self.failure.is_none()
    }
}

struct Steps(Arc<Bench>);

impl Simulation for Steps {
    fn go_on(&self, waiting: Waiting) {
        if !self.0.step(Some(waiting)) {
            panic!("waits for ever");
        }
        if self.0.state.lock().steps > STEPS_MAX {
            panic!("waits without end, at {:?}", self.0.executor.clock_now());
        }
    }
}
