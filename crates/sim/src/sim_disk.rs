//! A simulated disk behind the block interface: requests end when, and in the order in which, the simulation says; a record
//! is kept of what a power cut could leave.
//!
//! The model is that of `docs/internals/crash-model.md`, with requests that overlap in time: a flush that ended well has made
//! those writes durable that had ended before it was submitted. Of all other writes, in flight ones among them, a cut
//! leaves for each sector any one of the contents that it was given, or the durable one.

use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use thinmap_block::{BlockDevice, Io, Op, QueueLimits, SECTORS_UNLIMITED, out_of_range};
use thinmap_units::{BlkStatus, Sector};

use crate::Loss;
use crate::fault_plan::{FaultPlan, Faults};
use crate::image::{Content, Image, SECTOR, mix};
use crate::medium::{Candidate, Medium};

/// What reads of a discarded sector may give.
pub const JUNK: u64 = 0xdead_d15c_a4d0_dead;

/// How a disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct DiskManners {
    /// A request takes up to this long...
    pub usual: Duration,
    /// ... but one of so many...
    pub slow_one_in: u32,
    /// ... up to this long.
    pub slow: Duration,
    /// One request of so many ends inside `submit`; 0 means none.
    pub at_once_one_in: u32,
    /// Discards are taken.
    pub discards: bool,
}

/// See the module.
pub struct SimDisk {
    state: Mutex<State>,
    manners: DiskManners,
}

struct InFlight {
    number: u64,
    ready_at: Duration,
    io: Io,
}

struct State {
    medium: Medium,
    in_flight: Vec<InFlight>,
    faults: Faults,
    rng: SmallRng,
    time: Duration,
    dead: bool,
    /// Over all that happened here.
    trace: u64,
}

impl SimDisk {
    /// A disk that holds this; `rng` decides what is left to chance.
    pub fn new(medium: impl Into<Medium>, manners: DiskManners, rng: SmallRng) -> Self {
        Self {
            state: Mutex::new(State {
                medium: medium.into(),
                in_flight: Vec::new(),
                faults: Faults::new(FaultPlan::None),
                rng,
                time: Duration::ZERO,
                dead: false,
                trace: 0,
            }),
            manners,
        }
    }

    /// Makes a new plan of which requests fail.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.state.lock().faults = Faults::new(plan);
    }

    /// Whether the plan's fault has struck.
    pub fn fault_struck(&self) -> bool {
        self.state.lock().faults.struck()
    }

    /// Adds room, zeroed, durable at once.
    pub fn grow(&self, sectors: u64) {
        let mut state = self.state.lock();
        state.medium.now.grow(sectors);
        state.medium.durable.grow(sectors);
    }

    /// Changes the medium behind everybody's back, durably.
    pub fn damage(&self, sector: u64, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state.lock();
        let mut bytes = [0; SECTOR];
        state.medium.now.get(sector).fill(&mut bytes);
        change(&mut bytes);
        state.medium.set(sector, Content::new(&bytes));
    }

    /// Another medium in its place, as it may be found later.
    pub fn replace(&self, image: Image) {
        self.state.lock().medium = image.into();
    }

    /// Power is gone: every request fails from now on and nothing changes any more.
    pub fn cut_power(&self) {
        let failed = {
            let mut state = self.state.lock();
            state.dead = true;
            std::mem::take(&mut state.in_flight)
        };
        for request in failed {
            request.io.complete(BlkStatus::IoErr);
        }
    }

    /// Who uses the disk has died: what it had submitted is done, in any order, and nothing of its changes anything any more. What the
    /// next one finds.
    pub fn orphan(&self) -> Medium {
        let mut state = self.state.lock();
        let mut ended = Vec::new();
        while !state.in_flight.is_empty() {
            let count = state.in_flight.len();
            let which = state.rng.random_range(0..count);
            let request = state.in_flight.swap_remove(which);
            ended.push(state.perform(request).0);
        }
        state.dead = true;
        let medium = state.medium.clone();
        drop(state);
        for io in ended {
            io.complete(BlkStatus::IoErr);
        }
        medium
    }

    /// Requests in flight that may end at `time`.
    pub fn ready(&self, time: Duration) -> usize {
        let mut state = self.state.lock();
        state.time = time;
        let ready = |request: &&InFlight| request.ready_at <= time;
        state.in_flight.iter().filter(ready).count()
    }

    /// When the next request may end.
    pub fn next_ready(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.in_flight.iter().map(|request| request.ready_at).min()
    }

    /// Ends the `which`-th of those that are [ready](Self::ready).
    pub fn end_one(&self, which: usize) {
        let (io, status) = {
            let mut state = self.state.lock();
            let time = state.time;
            let mut ready =
                (0..state.in_flight.len()).filter(|i| state.in_flight[*i].ready_at <= time);
            let Some(index) = ready.nth(which) else {
                return;
            };
            let request = state.in_flight.remove(index);
            state.perform(request)
        };
        io.complete(status);
    }

    /// What is found after a power cut now.
    pub fn after_cut(&self, loss: Loss, rng: &mut SmallRng) -> Image {
        let state = self.state.lock();
        let mut image = state.medium.durable.clone();
        let lost = rng.random::<u64>();
        for (sector, candidates) in &state.medium.unflushed {
            let kept = match loss {
                Loss::DropAll => None,
                Loss::KeepAll => candidates.last(),
                Loss::DropSome => candidates.iter().rfind(|c| mix(c.write ^ lost) & 1 == 0),
                Loss::Tear => {
                    let which = rng.random_range(0..=candidates.len());
                    which.checked_sub(1).map(|i| &candidates[i])
                }
            };
            if let Some(kept) = kept {
                image.set(*sector, kept.content.clone());
            }
        }
        image
    }

    /// The numbers of the writes that a power cut now might lose, whole or in part.
    pub fn unflushed_writes(&self) -> Vec<u64> {
        let state = self.state.lock();
        let all = state.medium.unflushed.values().flatten();
        let mut writes: Vec<u64> = all.map(|candidate| candidate.write).collect();
        writes.sort_unstable();
        writes.dedup();
        writes
    }

    /// What is found after a power cut now when of those writes these are kept and the others lost.
    pub fn after_cut_keeping(&self, kept: &[u64]) -> Image {
        let state = self.state.lock();
        let mut image = state.medium.durable.clone();
        for (sector, candidates) in &state.medium.unflushed {
            if let Some(last) = candidates.iter().rfind(|c| kept.contains(&c.write)) {
                image.set(*sector, last.content.clone());
            }
        }
        image
    }

    /// Sectors whose content a power cut now would leave to chance.
    pub fn unflushed_sectors(&self) -> usize {
        self.state.lock().medium.unflushed.len()
    }

    /// What reads see now.
    pub fn content(&self) -> Image {
        self.state.lock().medium.now.clone()
    }

    /// A hash of all requests and their ends so far.
    pub fn trace(&self) -> u64 {
        self.state.lock().trace
    }
}

impl State {
    /// The contents that a write, a write-zeroes or a discard gives to its sectors.
    fn contents(&self, io: &Io, number: u64) -> impl Iterator<Item = (u64, Content)> + use<> {
        let mut contents = Vec::new();
        for (i, sector) in (io.sector.raw()..io.end().raw()).enumerate() {
            contents.push((
                sector,
                match io.op {
                    Op::Write => Content::new(&io.buf.as_slice()[i * SECTOR..(i + 1) * SECTOR]),
                    Op::Discard => match mix(sector ^ (number << 20)) % 3 {
                        0 => self.medium.now.get(sector).clone(),
                        1 => Content::Word(0),
                        _ => Content::Word(JUNK),
                    },
                    _ => Content::Word(0),
                },
            ));
        }
        contents.into_iter()
    }

    fn submitted(&mut self, io: &Io) -> u64 {
        self.medium.ticks += 1;
        let number = self.medium.ticks;
        self.note(io, number);
        if io.is_write() {
            for (sector, content) in self.contents(io, number) {
                self.medium
                    .unflushed
                    .entry(sector)
                    .or_default()
                    .push(Candidate {
                        write: number,
                        content,
                        ended: None,
                    });
            }
        }
        number
    }

    fn note(&mut self, io: &Io, what: u64) {
        let place = io.sector.raw() << 16 ^ io.sectors.raw() << 3 ^ io.op as u64;
        self.trace = mix(self.trace ^ mix(place ^ what << 40));
    }

    /// The request takes effect, or fails.
    fn perform(&mut self, request: InFlight) -> (Io, BlkStatus) {
        self.medium.ticks += 1;
        let InFlight { number, mut io, .. } = request;
        let fails = self.faults.fails(io.op);
        self.note(&io, number ^ u64::from(fails) << 8);
        match io.op {
            Op::Read if !fails => self.medium.now.read(io.sector.raw(), io.buf.as_mut_slice()),
            Op::Flush if !fails => self.flushed(number),
            Op::Read | Op::Flush => {}
            _ => self.written(&io, number, fails),
        }
        let status = if fails {
            BlkStatus::IoErr
        } else {
            BlkStatus::Ok
        };
        (io, status)
    }

    fn written(&mut self, io: &Io, number: u64, fails: bool) {
        let now = self.medium.ticks;
        // One that fails may have been done in part.
        let done = if fails {
            self.rng.random_range(0..=io.sectors.raw())
        } else {
            io.sectors.raw()
        };
        for (i, sector) in (0..).zip(io.sector.raw()..io.end().raw()) {
            let Some(candidates) = self.medium.unflushed.get_mut(&sector) else {
                continue;
            };
            let Some(mine) = candidates.iter().position(|c| c.write == number) else {
                continue;
            };
            let mut candidate = candidates.remove(mine);
            candidate.ended = Some(now);
            let content = candidate.content.clone();
            if i >= done {
                // Never reached the medium.
            } else if io.flags.fua && !fails {
                self.medium.durable.set(sector, candidate.content);
                candidates.retain(|c| c.ended.is_none());
            } else {
                candidates.push(candidate);
            }
            if candidates.is_empty() {
                self.medium.unflushed.remove(&sector);
            }
            if i < done {
                self.medium.now.set(sector, content);
            }
        }
    }

    /// A flush submitted as number `flush` has ended well.
    fn flushed(&mut self, flush: u64) {
        let durable = &mut self.medium.durable;
        self.medium.unflushed.retain(|sector, candidates| {
            let covered = |c: &Candidate| c.ended.is_some_and(|ended| ended < flush);
            if let Some(last) = candidates.iter().rfind(|c| covered(c)) {
                durable.set(*sector, last.content.clone());
                candidates.retain(|c| !covered(c));
            }
            !candidates.is_empty()
        });
    }
}

impl BlockDevice for SimDisk {
    fn limits(&self) -> QueueLimits {
        let discards = self.manners.discards;
        QueueLimits {
            discard_granularity: if discards { 512 } else { 0 },
            max_discard: if discards {
                SECTORS_UNLIMITED
            } else {
                Sector::ZERO
            },
            max_write_zeroes: SECTORS_UNLIMITED,
            write_cache: true,
            ..QueueLimits::STACKING
        }
    }

    fn size(&self) -> Sector {
        Sector(self.state.lock().medium.now.sectors())
    }

    fn submit(&self, io: Io) {
        let ended = {
            let mut state = self.state.lock();
            if state.dead || out_of_range(&io, Sector(state.medium.now.sectors())) {
                Some((io, BlkStatus::IoErr))
            } else {
                let number = state.submitted(&io);
                let manners = &self.manners;
                let max = match state.rng.random_range(0..manners.slow_one_in.max(1)) {
                    0 if manners.slow_one_in > 0 => manners.slow,
                    _ => manners.usual,
                };
                let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
                let wait = Duration::from_nanos(state.rng.random_range(0..=nanos));
                let request = InFlight {
                    number,
                    ready_at: state.time + wait,
                    io,
                };
                let at_once = manners.at_once_one_in > 0
                    && state.rng.random_range(0..manners.at_once_one_in) == 0;
                if at_once {
                    Some(state.perform(request))
                } else {
                    state.in_flight.push(request);
                    None
                }
            }
        };
        if let Some((io, status)) = ended {
            io.complete(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use thinmap_block::EndIo;
    use thinmap_runtime::IoBuf;

    use super::*;

    #[derive(Default)]
    struct Ended(Mutex<Vec<(u64, BlkStatus)>>);

    impl EndIo for Ended {
        fn end_io(self: Arc<Self>, _io: Io, tag: u64, status: BlkStatus) {
            self.0.lock().push((tag, status));
        }
    }

    fn disk() -> SimDisk {
        let manners = DiskManners {
            usual: Duration::ZERO,
            slow_one_in: 0,
            slow: Duration::ZERO,
            at_once_one_in: 0,
            discards: true,
        };
        SimDisk::new(Image::new(16), manners, SmallRng::seed_from_u64(1))
    }

    fn write(disk: &SimDisk, sector: u64, byte: u8, sink: &Arc<Ended>) {
        let mut buf = IoBuf::alloc(SECTOR);
        buf.as_mut_slice().fill(byte);
        disk.submit(Io::write(
            Sector(sector),
            buf,
            sink.clone(),
            u64::from(byte),
        ));
    }

    fn word(image: &Image, sector: u64) -> u8 {
        match image.get(sector) {
            Content::Word(word) => word.to_le_bytes()[0],
            Content::Bytes(_) => panic!("not one word"),
        }
    }

    #[test]
    fn a_flush_covers_what_had_ended_before_it_was_submitted() {
        let (disk, sink) = (disk(), Arc::new(Ended::default()));
        let mut rng = SmallRng::seed_from_u64(2);
        write(&disk, 0, 1, &sink);
        write(&disk, 1, 2, &sink);
        assert_eq!(disk.ready(Duration::ZERO), 2);
        disk.end_one(0);
        disk.submit(Io::flush(sink.clone(), 9));
        disk.end_one(0);
        disk.end_one(0);
        let ends: Vec<u64> = sink.0.lock().iter().map(|end| end.0).collect();
        assert_eq!(ends, [1, 2, 9]);
        let image = disk.after_cut(Loss::DropAll, &mut rng);
        assert_eq!((word(&image, 0), word(&image, 1)), (1, 0));
        let image = disk.after_cut(Loss::KeepAll, &mut rng);
        assert_eq!((word(&image, 0), word(&image, 1)), (1, 2));
        assert_eq!(disk.unflushed_sectors(), 1);
    }

    #[test]
    fn a_tear_leaves_any_content_that_was_ever_on_its_way() {
        let (disk, sink) = (disk(), Arc::new(Ended::default()));
        let mut rng = SmallRng::seed_from_u64(3);
        write(&disk, 0, 1, &sink);
        write(&disk, 0, 2, &sink);
        disk.ready(Duration::ZERO);
        disk.end_one(1);
        let mut seen: Vec<u8> = (0..64)
            .map(|_| word(&disk.after_cut(Loss::Tear, &mut rng), 0))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(word(&disk.content(), 0), 2);
    }

    #[test]
    fn the_request_of_the_plan_fails_and_power_can_be_cut() {
        let (disk, sink) = (disk(), Arc::new(Ended::default()));
        disk.set_faults(FaultPlan::Once(1));
        (1..4).for_each(|byte| write(&disk, 5, byte, &sink));
        disk.ready(Duration::ZERO);
        (0..3).for_each(|_| disk.end_one(0));
        use BlkStatus::{IoErr, Ok};
        assert_eq!(*sink.0.lock(), [(1, Ok), (2, IoErr), (3, Ok)]);
        write(&disk, 5, 8, &sink);
        disk.cut_power();
        write(&disk, 5, 9, &sink);
        assert_eq!(sink.0.lock()[3..], [(8, IoErr), (9, IoErr)]);
        assert_eq!(word(&disk.content(), 5), 3);
    }
}
