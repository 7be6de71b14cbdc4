//! The simulated process: disks, actors, clients and the schedule, one step at a time on one thread.
//!
//! A step ends a disk's request, gives an actor a turn, or has a client submit something; when nothing of that can be
//! done, time moves on. After a step a power cut may be looked at. Nothing here depends on the machine.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op};
use thinmap_runtime::{IoBuf, Simulation, Waiting, set_simulation};
use thinmap_sim::{Content, Image, Loss, SECTOR, SimDisk, SimExecutor, mix};
use thinmap_units::{BlkStatus, Sector};

use crate::cut;
use crate::oracle::{CELLS, Oracle, Value};
use crate::swarm::{Disk, Swarm, choose};

/// More steps than this in one life are taken for an endless loop.
const STEPS_MAX: u64 = 400_000;
/// Whether to say what happens.
pub static LOG: AtomicBool = AtomicBool::new(false);
const REAPER: &str = "thinmap-reaper";
/// Of the process.
const DISKS: usize = 5;
/// Of a mirror's log: room for 45,000 regions.
const LOG_SECTORS: u64 = 16;

/// See the module.
pub struct World {
    /// Actors and time.
    pub executor: Arc<SimExecutor>,
    /// The metadata device.
    pub metadata: Arc<SimDisk>,
    /// The data device.
    pub data: Arc<SimDisk>,
    /// The external origin.
    pub origin: Arc<SimDisk>,
    /// The second leg of the mirror that the data lie on, and its log; empty without one.
    pub leg: Arc<SimDisk>,
    /// See `leg`.
    pub log: Arc<SimDisk>,
    /// What this run is like.
    pub swarm: Swarm,
    state: Mutex<State>,
}

struct State {
    rng: SmallRng,
    oracle: Oracle,
    open: BTreeMap<u32, Arc<dyn BlockDevice>>,
    /// Volumes of which a flush has failed since they were opened.
    unflushed: BTreeSet<u32>,
    requests: BTreeMap<u64, Request>,
    last_request: u64,
    left: u32,
    pause_until: Duration,
    failure: Option<String>,
    cuts_left: u32,
    /// Cuts looked at, with the moment of the oracle.
    looked_at: HashSet<(u64, u64)>,
    /// Distinct images among them.
    images: Vec<u64>,
    cuts_in_all: u64,
    cuts_with_every_subset: u64,
    steps: u64,
    trace: u64,
    /// The power is gone: what ends now tells nothing.
    over: bool,
}

struct Request {
    volume: u32,
    op: Op,
    cells: Range<u64>,
    submitted: u64,
    fua: bool,
}

/// What a life leaves to the next.
pub struct Remains {
    /// The metadata device.
    pub metadata: Image,
    /// The data device.
    pub data: Image,
    /// What should be on them.
    pub oracle: Oracle,
    /// Number of the last request.
    pub last_request: u64,
}

/// What a life adds to the figures.
#[derive(Default)]
pub struct Tally {
    /// Hashes of the images of power cuts that were looked at.
    pub images: Vec<u64>,
    /// Steps after which every subset was to be looked at, and after which it was.
    pub cuts: [u64; 2],
    /// Steps.
    pub steps: u64,
    /// Hash of all that happened.
    pub trace: u64,
    /// A planned fault has struck.
    pub struck: bool,
    /// What went wrong.
    pub failure: Option<String>,
}

impl World {
    /// A process that finds `remains` on its disks.
    pub fn new(swarm: Swarm, remains: Remains, rng: &mut SmallRng) -> Arc<Self> {
        let mut fork = || SmallRng::seed_from_u64(rng.random());
        let layout = swarm.layout;
        let mut content = Image::new(layout.origin);
        for sector in 0..layout.origin {
            content.set(sector, Content::Word(layout.origin_word(sector)));
        }
        let disk = |image, rng| Arc::new(SimDisk::new(image, swarm.manners, rng));
        let (leg, log) = match swarm.mirror {
            Some(plan) if plan.in_sync => (remains.data.clone(), LOG_SECTORS),
            Some(_) => (Image::new(remains.data.sectors()), LOG_SECTORS),
            None => (Image::new(0), 0),
        };
        let mut spare = || match swarm.mirror {
            Some(_) => fork(),
            None => SmallRng::seed_from_u64(0),
        };
        let (leg, log) = (disk(leg, spare()), disk(Image::new(log), spare()));
        let world = Self {
            executor: SimExecutor::new(),
            metadata: disk(remains.metadata, fork()),
            data: disk(remains.data, fork()),
            origin: disk(content, fork()),
            leg,
            log,
            state: Mutex::new(State {
                rng: fork(),
                oracle: remains.oracle,
                open: BTreeMap::new(),
                unflushed: BTreeSet::new(),
                requests: BTreeMap::new(),
                last_request: remains.last_request,
                left: swarm.requests,
                pause_until: Duration::ZERO,
                failure: None,
                cuts_left: swarm.cuts,
                looked_at: HashSet::new(),
                images: Vec::new(),
                cuts_in_all: 0,
                cuts_with_every_subset: 0,
                steps: 0,
                trace: 0,
                over: false,
            }),
            swarm,
        };
        let of_mirror = world.swarm.mirror.and_then(|plan| plan.fault);
        for (disk, plan) in world.swarm.fault.into_iter().chain(of_mirror) {
            world.disk(disk).set_faults(plan);
        }
        let world = Arc::new(world);
        set_simulation(Some(Rc::new(Steps(world.clone()))));
        world
    }

    fn disk(&self, disk: Disk) -> &SimDisk {
        match disk {
            Disk::Metadata => &self.metadata,
            Disk::Data => &self.data,
            Disk::Leg => &self.leg,
        }
    }

    fn disks(&self) -> [&Arc<SimDisk>; DISKS] {
        [
            &self.metadata,
            &self.data,
            &self.origin,
            &self.leg,
            &self.log,
        ]
    }

    /// The disk that has the data: the first leg of a mirror unless that has failed.
    fn data_now(&self) -> &SimDisk {
        let mirrored = self.swarm.mirror.is_some();
        if mirrored && self.data.fault_struck() {
            &self.leg
        } else {
            &self.data
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

    /// Lets chance decide.
    pub fn with_rng<R>(&self, decide: impl FnOnce(&mut SmallRng) -> R) -> R {
        decide(&mut self.state.lock().rng)
    }

    /// Clients use this volume from now on.
    pub fn open(&self, id: u32, device: Arc<dyn BlockDevice>) {
        let mut state = self.state.lock();
        state.open.insert(id, device);
        if state.unflushed.remove(&id) {
            state.oracle.doubt(id);
        }
    }

    /// Clients no longer use it.
    pub fn close(&self, id: u32) {
        self.state.lock().open.remove(&id);
    }

    /// Something is wrong. The first to say so is heard.
    pub fn fail(&self, failure: impl Into<String>) {
        self.state.lock().failure.get_or_insert(failure.into());
    }

    /// Whether something is wrong.
    pub fn failed(&self) -> bool {
        self.state.lock().failure.is_some()
    }

    /// Whether clients have nothing more to do and wait for nothing.
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
            let disks = self.disks();
            let ready = disks.map(|disk| disk.ready(now));
            let actors = self.executor.runnable(|name| may_run(waiting, name));
            let clients = usize::from(self.may_submit(now));
            let others = [2 * actors.len(), 2 * clients];
            let weights: Vec<u32> = (ready.iter().chain(&others))
                .map(|weight| u32::try_from(*weight).unwrap_or(u32::MAX))
                .collect();
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
                    0..DISKS => ready[chosen],
                    DISKS => actors.len(),
                    _ => 1,
                };
                (chosen, state.rng.random_range(0..of))
            };
            match chosen {
                0..DISKS => disks[chosen].end_one(which),
                DISKS => self.executor.run(actors[which]),
                _ => self.submit_something(),
            }
            self.after_step(chosen, which);
            return true;
        }
    }

    fn let_time_pass(&self, now: Duration, waiting: Option<Waiting>) -> bool {
        let disks = self.disks();
        let mut next: Vec<Duration> = disks.iter().filter_map(|disk| disk.next_ready()).collect();
        next.extend(self.executor.next_turn(|name| may_run(waiting, name)));
        let state = self.state.lock();
        if state.wants_to_submit(self.swarm.depth) {
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
        let state = &mut *state;
        let pause = Duration::from_micros(state.rng.random_range(0..20));
        self.executor.sim_clock().advance_to(now + pause);
        state.steps += 1;
        let what = (chosen as u64) << 32 | which as u64;
        state.trace = mix(state.trace ^ mix(what ^ now.as_nanos() as u64));
        if state.steps > STEPS_MAX {
            let steps = format!("no end after {STEPS_MAX} steps, at {now:?}");
            state.failure.get_or_insert(steps);
        }
        if let Some(bound) = self.swarm.every_subset_of {
            return self.look_at_every_subset(state, bound);
        }
        let due = state.rng.random_range(0..self.swarm.cut_one_in) == 0;
        if due
            && state.cuts_left > 0
            && !state.over
            && state.failure.is_none()
            && !state.oracle.damaged
        {
            self.look_at_a_cut(state);
        }
    }

    /// What a power cut now would leave.
    fn cut(&self, state: &mut State, losses: [Loss; 2]) -> (Image, Image) {
        let metadata = self.metadata.after_cut(losses[0], &mut state.rng);
        let data = self.data_now().after_cut(losses[1], &mut state.rng);
        let may_differ = self.swarm.manners.discards;
        if !may_differ && self.swarm.mirror.is_some_and(|plan| plan.disk_log) {
            self.look_at_the_log(state, losses, &data);
        }
        (metadata, data)
    }

    /// Regions that the mirror's log calls clean after a power cut read the same on both legs.
    fn look_at_the_log(&self, state: &mut State, losses: [Loss; 2], data: &Image) {
        let other = if self.data.fault_struck() {
            &self.data
        } else {
            &self.leg
        };
        let (log, other) = (
            self.log.after_cut(losses[0], &mut state.rng),
            other.after_cut(losses[1], &mut state.rng),
        );
        let mut bits = [0; SECTOR];
        let Some(plan) = self.swarm.mirror else {
            return;
        };
        for region in 0..data.sectors().div_ceil(plan.region) {
            // The bits begin in the third sector.
            let (sector, bit) = (2 + region / 4096, (region % 4096) as usize);
            if bit == 0 {
                log.get(sector).fill(&mut bits);
            }
            if bits[bit / 8] >> (bit % 8) & 1 == 0 {
                continue;
            }
            let end = ((region + 1) * plan.region).min(data.sectors());
            for place in region * plan.region..end {
                let read = |image: &Image| {
                    let mut bytes = [0; SECTOR];
                    image.get(place).fill(&mut bytes);
                    bytes
                };
                if read(data) != read(&other) {
                    let wrong = format!(
                        "after a power cut ({losses:?}): legs differ at {place}, {:x?} and {:x?}, in region {region}, which the log calls clean; {plan:?}",
                        data.get(place),
                        other.get(place)
                    );
                    state.failure.get_or_insert(wrong);
                    return;
                }
            }
        }
    }

    fn look_at_a_cut(&self, state: &mut State) {
        let losses = [(); 2].map(|()| Loss::ALL[[0, 1, 2, 3, 3][state.rng.random_range(0..5)]]);
        let (metadata, data) = self.cut(state, losses);
        let hash = mix(metadata.hash()) ^ data.hash();
        if !state.looked_at.insert((hash, state.oracle.now())) {
            return;
        }
        state.cuts_left -= 1;
        state.images.push(hash);
        if let Err(wrong) = cut::look(&state.oracle, &metadata, &data) {
            state
                .failure
                .get_or_insert(format!("after a power cut ({losses:?}): {wrong}"));
        }
    }

    /// Looks at what each subset of the unflushed writes would leave; at none where they are more than `bound`.
    fn look_at_every_subset(&self, state: &mut State, bound: usize) {
        let (metadata, data) = (
            self.metadata.unflushed_writes(),
            self.data.unflushed_writes(),
        );
        let writes = metadata.len() + data.len();
        if state.over || state.failure.is_some() {
            return;
        }
        state.cuts_in_all += 1;
        if writes > bound {
            return;
        }
        state.cuts_with_every_subset += 1;
        for mask in 0..1_u32 << writes {
            let kept = |writes: &[u64], first: usize| -> Vec<u64> {
                let bit = |i: usize| mask >> (first + i) & 1 == 1;
                let kept = writes.iter().enumerate().filter(|(i, _)| bit(*i));
                kept.map(|(_, write)| *write).collect()
            };
            let left = self.metadata.after_cut_keeping(&kept(&metadata, 0));
            let data = self.data.after_cut_keeping(&kept(&data, metadata.len()));
            let hash = mix(left.hash()) ^ data.hash();
            if !state.looked_at.insert((hash, state.oracle.now())) {
                continue;
            }
            state.images.push(hash);
            if let Err(wrong) = cut::look(&state.oracle, &left, &data) {
                state
                    .failure
                    .get_or_insert(format!("after a power cut (subset {mask:b}): {wrong}"));
                return;
            }
        }
    }

    /// Cuts the power for good. Every request fails from now on; what is on the disks is for the next life.
    pub fn cut_power(&self, losses: [Loss; 2]) {
        let (metadata, data) = {
            let mut state = self.state.lock();
            state.over = true;
            state.left = 0;
            self.cut(&mut state, losses)
        };
        self.disks().iter().for_each(|disk| disk.cut_power());
        self.found(metadata, data);
    }

    /// The daemon has ended in good order, and only what is durable counts.
    pub fn ended_well(&self) {
        let (metadata, data) = {
            let mut state = self.state.lock();
            state.over = true;
            self.cut(&mut state, [Loss::DropAll; 2])
        };
        self.found(metadata, data);
    }

    fn found(&self, metadata: Image, data: Image) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let hash = mix(metadata.hash()) ^ data.hash();
        self.metadata.replace(metadata.clone());
        self.data.replace(data.clone());
        if state.oracle.damaged {
            return;
        }
        state.images.push(hash);
        match cut::look(&state.oracle, &metadata, &data) {
            Ok(found) => state.oracle.restarted(&found),
            Err(wrong) => {
                state
                    .failure
                    .get_or_insert(format!("at the end of a life: {wrong}"));
            }
        }
    }

    /// Ends the process.
    pub fn end(self: Arc<Self>) -> (Remains, Tally) {
        set_simulation(None);
        self.executor.forget_all();
        let mut state = self.state.lock();
        let disks = self.metadata.trace() ^ self.data.trace().rotate_left(1);
        let disks = disks ^ self.leg.trace().rotate_left(2) ^ self.log.trace().rotate_left(3);
        let layout = state.oracle.layout;
        let remains = Remains {
            metadata: self.metadata.content(),
            data: self.data.content(),
            oracle: std::mem::replace(&mut state.oracle, Oracle::new(layout)),
            last_request: state.last_request,
        };
        let tally = Tally {
            images: std::mem::take(&mut state.images),
            cuts: [state.cuts_in_all, state.cuts_with_every_subset],
            steps: state.steps,
            trace: mix(state.trace) ^ disks,
            struck: self.disks().iter().any(|disk| disk.fault_struck()),
            failure: state.failure.take(),
        };
        state.open.clear();
        (remains, tally)
    }

    fn may_submit(&self, now: Duration) -> bool {
        let state = self.state.lock();
        state.wants_to_submit(self.swarm.depth) && state.pause_until <= now
    }

    fn submit_something(self: &Arc<Self>) {
        let Some((id, device, blocks)) = self.some_volume() else {
            return;
        };
        let swarm = &self.swarm;
        let mut state = self.state.lock();
        state.left -= 1;
        if state.rng.random_range(0..10) == 0 && swarm.pause > Duration::ZERO {
            let micros = state.rng.random_range(0..=swarm.pause.as_micros() as u64);
            state.pause_until = self.executor.clock_now() + Duration::from_micros(micros);
        }
        let op = match choose(&swarm.request_weights, &mut state.rng) {
            Some(1) => Op::Read,
            Some(2) => Op::Flush,
            Some(3) => Op::Discard,
            Some(4) => Op::WriteZeroes,
            _ => Op::Write,
        };
        let cells = draw_cells(&mut state.rng, blocks, swarm.long_requests);
        let flags = thinmap_block::IoFlags {
            fua: matches!(op, Op::Write | Op::WriteZeroes)
                && state.rng.random_range(0..swarm.fua_one_in) == 0,
            no_unmap: state.rng.random_range(0..4) == 0,
        };
        drop(state);
        self.submit(id, &device, op, cells, flags);
    }

    /// An open volume, its device and blocks.
    fn some_volume(&self) -> Option<(u32, Arc<dyn BlockDevice>, u64)> {
        let mut state = self.state.lock();
        let open = state.open.len().max(1);
        let nth = state.rng.random_range(0..open);
        let (id, device) = state.open.iter().nth(nth)?;
        let (id, device) = (*id, device.clone());
        let blocks = device.size().raw() / self.swarm.layout.block;
        if blocks == 0 {
            state.left = state.left.saturating_sub(1);
            return None;
        }
        Some((id, device, blocks))
    }

    /// Reads all of a volume, as a client that waits for it.
    pub fn read_all(self: &Arc<Self>, id: u32, device: &Arc<dyn BlockDevice>) {
        let blocks = device.size().raw() / self.swarm.layout.block;
        for block in 0..blocks {
            let cells = block * CELLS..(block + 1) * CELLS;
            self.submit(id, device, Op::Read, cells, Default::default());
        }
        while self.in_flight() > 0 && !self.failed() {
            if !self.step(None) {
                return self.fail("a read after the restart never ends");
            }
        }
    }

    fn submit(
        self: &Arc<Self>,
        id: u32,
        device: &Arc<dyn BlockDevice>,
        op: Op,
        cells: Range<u64>,
        flags: thinmap_block::IoFlags,
    ) {
        let layout = self.swarm.layout;
        let (first, end) = (layout.edge(cells.start), layout.edge(cells.end));
        let mut state = self.state.lock();
        state.last_request += 1;
        let number = state.last_request;
        let cells = match op {
            // Only whole blocks are unmapped.
            Op::Discard => {
                let whole = cells.start.div_ceil(CELLS)..cells.end / CELLS;
                whole.start * CELLS..whole.end.max(whole.start) * CELLS
            }
            _ => cells,
        };
        match op {
            Op::Write => state
                .oracle
                .submitted(id, cells.clone(), Value::Request(number), number),
            Op::WriteZeroes => state
                .oracle
                .submitted(id, cells.clone(), Value::Zero, number),
            Op::Discard => state
                .oracle
                .submitted(id, cells.clone(), Value::Discarded, number),
            Op::Read | Op::Flush => {}
        }
        let submitted = match op {
            Op::Read => state.oracle.read_submitted(),
            _ => state.oracle.now(),
        };
        let request = Request {
            volume: id,
            op,
            cells,
            submitted,
            fua: flags.fua,
        };
        state.requests.insert(number, request);
        drop(state);
        let sink = Arc::new(Client(Arc::downgrade(self)));
        let io = client_io(number, (op, flags), first..end, sink);
        let (at, sectors) = (io.sector, io.sectors);
        self.log(|| format!("submit {number} volume {id} {op:?} {at}+{sectors} {flags:?}"));
        device.submit(io);
    }

    fn ended(&self, io: &Io, number: u64, status: BlkStatus) {
        self.log(|| format!("ended {number} {status:?}"));
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(request) = state.requests.remove(&number) else {
            state
                .failure
                .get_or_insert(format!("request {number} ended twice"));
            return;
        };
        state.trace = mix(state.trace ^ number ^ (status.errno() as u64) << 48);
        if state.over {
            return;
        }
        let ok = status.is_ok();
        let Request { volume, cells, .. } = request;
        if !ok && (request.op == Op::Flush || request.fua) {
            state.unflushed.insert(volume);
        }
        let oracle = &mut state.oracle;
        if request.op == Op::Read {
            oracle.read_ended(request.submitted);
        }
        match request.op {
            Op::Read if ok => {
                if let Err(wrong) = self.compare(oracle, volume, &cells, request.submitted, io) {
                    state.failure.get_or_insert(wrong);
                }
            }
            Op::Read => {
                if !self.swarm.has_faults() && state.open.contains_key(&volume) {
                    let failure = format!("a read of volume {volume} failed: {status:?}");
                    state.failure.get_or_insert(failure);
                }
            }
            Op::Flush if ok => oracle.flushed(volume, request.submitted),
            Op::Flush => {}
            _ if status == BlkStatus::NotSupp => oracle.refused(volume, cells, number),
            op => {
                let done = ok && (op != Op::Discard || self.swarm.discards_are_done());
                oracle.ended(volume, cells, number, done, request.fua);
            }
        }
    }

    fn compare(
        &self,
        oracle: &Oracle,
        id: u32,
        cells: &Range<u64>,
        submitted: u64,
        io: &Io,
    ) -> Result<(), String> {
        let layout = self.swarm.layout;
        // A transaction that was given up takes back what no flush was answered for.
        let since = (!self.swarm.has_faults()).then_some(submitted);
        let first = layout.edge(cells.start);
        for cell in cells.clone() {
            for sector in layout.edge(cell)..layout.edge(cell + 1) {
                let at = (sector - first) as usize * SECTOR;
                let content = Content::new(&io.buf.as_slice()[at..at + SECTOR]);
                if !oracle.may_read(id, cell, sector, &content, since) {
                    let allowed = oracle.volumes.get(&id).map(|v| oracle.describe(v, cell));
                    return Err(format!(
                        "volume {id}: sector {sector} reads as {content:x?}, submitted at {submitted}; known: {allowed:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl State {
    fn wants_to_submit(&self, depth: usize) -> bool {
        self.left > 0
            && self.requests.len() < depth
            && !self.open.is_empty()
            && self.failure.is_none()
    }
}

/// Whether an actor may have a turn while something waits.
pub fn may_run(waiting: Option<Waiting>, name: &str) -> bool {
    match waiting {
        None => true,
        // It would take the lock of the command that waits.
        Some(Waiting::ForActors) => name != REAPER,
        Some(Waiting::ForDevices) => false,
    }
}

/// A client's request of these sectors; what it writes says who wrote it, and where.
pub fn client_io(
    number: u64,
    (op, flags): (Op, IoFlags),
    sectors: Range<u64>,
    sink: Arc<dyn EndIo>,
) -> Io {
    let count = sectors.end - sectors.start;
    let mut buf = IoBuf::empty();
    if matches!(op, Op::Read | Op::Write) {
        buf = IoBuf::alloc(count as usize * SECTOR);
    }
    if op == Op::Write {
        for (sector, bytes) in sectors
            .clone()
            .zip(buf.as_mut_slice().chunks_exact_mut(SECTOR))
        {
            Content::Word(Value::word(number, sector)).fill(bytes);
        }
    }
    let (first, count) = match op {
        Op::Flush => (Sector::ZERO, Sector::ZERO),
        _ => (Sector(sectors.start), Sector(count)),
    };
    let mut io = Io::new(op, first, count, buf, sink, number);
    io.flags = flags;
    io
}

/// What a request covers.
pub fn draw_cells(rng: &mut SmallRng, blocks: u64, long: bool) -> Range<u64> {
    let cells = blocks * CELLS;
    let block = rng.random_range(0..blocks);
    match rng.random_range(0..8) {
        // A block, whole.
        0..2 => block * CELLS..(block + 1) * CELLS,
        // Several, whole.
        2 => block * CELLS..rng.random_range(block + 1..=blocks) * CELLS,
        kind => {
            let start = rng.random_range(0..cells);
            let max = if long || kind == 3 { cells } else { 4 };
            start..rng.random_range(start + 1..=cells.min(start + max))
        }
    }
}

/// Clients' end of a request.
struct Client(Weak<World>);

impl EndIo for Client {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if let Some(world) = self.0.upgrade() {
            world.ended(&io, tag, status);
        }
    }
}

struct Steps(Arc<World>);

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
