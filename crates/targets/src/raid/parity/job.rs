//! One job: entries of one stripe, from the first read to their end.
//!
//! Reads what the plan needs, plans anew when a read failed, computes, writes, and reads what was written because it could not be
//! read. Whoever ends the last request of a step takes the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::super::members::MemberState;
use super::blocks::{Blocks, is_recoverable};
use super::compute::{Block, Compute};
use super::engine::{Engine, Hold, Seed};
use super::geometry::Row;
use super::plan::{MemberSet, Plan, Task, Way};
use super::request::{Ask, Entry};
use crate::raid::level::SyncKind;

/// See the module.
pub(super) struct Job {
    engine: Arc<Engine>,
    hold: Hold,
    row: Row,
    /// Requests under way, and one while they are being sent.
    left: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    entries: Vec<Entry>,
    step: Step,
    task: Task,
    blocks: Blocks<Block>,
    /// Requests of this step that have ended.
    ended: Vec<(usize, IoBuf, BlkStatus)>,
    /// Members written because they could not be read.
    cures: MemberSet,
    /// Members that new content was sent to.
    sent: MemberSet,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    /// Is what was cured readable?
    Verify,
}

/// What follows a step.
enum Next {
    Requests(Vec<(usize, Io)>),
    Done(BlkStatus),
    /// Too much is lost.
    Lost,
}

impl Job {
    /// Works on entries until the first request that does not end at once.
    pub(super) fn start(engine: &Arc<Engine>, seed: Seed) {
        let range = &seed.hold.range;
        let members = engine.geometry.members();
        let readable = |member: usize| engine.members.is_readable(member, range.start, range.end);
        let mut task = Task {
            members,
            readable: MemberSet::of(members, readable),
            writable: MemberSet::of(members, |member| engine.members.is_writable(member)),
            is_consistent: range.end <= engine.members.consistent_to(),
            ..Task::default()
        };
        note_entries(&mut task, &seed);
        let job = Arc::new(Self {
            row: engine.geometry.row(range.start),
            engine: engine.clone(),
            hold: seed.hold,
            left: AtomicUsize::new(0),
            state: Mutex::new(State {
                entries: seed.entries,
                step: Step::Read,
                task,
                blocks: (0..members).map(|_| None).collect(),
                ended: Vec::new(),
                cures: MemberSet::default(),
                sent: MemberSet::default(),
            }),
        });
        job.run();
    }

    fn run(self: &Arc<Self>) {
        loop {
            let next = self.next(&mut self.state.lock());
            let requests = match next {
                Next::Requests(requests) => requests,
                Next::Done(status) => return self.end(status),
                Next::Lost => return self.give_up(),
            };
            // One more: requests that end at once must not take the next step inside of this one.
            self.left.store(requests.len() + 1, Ordering::Release);
            for (member, io) in requests {
                self.engine.members.submit(member, io);
            }
            if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
        }
    }

    fn next(self: &Arc<Self>, state: &mut State) -> Next {
        match state.step {
            Step::Read => {
                self.take_reads(state);
                let Some(plan) = self.plan(state) else {
                    return Next::Lost;
                };
                let reads = plan.needs.without(&state.task.have);
                if !reads.is_empty() {
                    let bytes = self.bytes();
                    let requests = reads.iter().map(|member| {
                        let buf = self.engine.buffer(bytes);
                        (member, self.request(Op::Read, member, buf))
                    });
                    return Next::Requests(requests.collect());
                }
                let writes = self.compute(state, plan.way);
                state.step = Step::Write;
                state.sent = writes;
                if writes.is_empty() {
                    return Next::Done(BlkStatus::Ok);
                }
                self.writes(state, writes)
            }
            Step::Write => {
                let failed = self.take_writes(state);
                state.step = Step::Verify;
                let cured = state.cures.without(&failed);
                if cured.is_empty() {
                    return Next::Done(self.outcome(state));
                }
                let requests = cured.iter().filter_map(|member| {
                    let Block(buf) = state.blocks[member].take()?;
                    Some((member, self.request(Op::Read, member, buf)))
                });
                Next::Requests(requests.collect())
            }
            Step::Verify => {
                // As in the kernel a cure that can be read again costs nothing, however many there were.
                for (member, _, status) in state.ended.drain(..) {
                    if !status.is_ok() {
                        self.engine.members.fail(member);
                    }
                }
                Next::Done(self.outcome(state))
            }
        }
    }

    fn take_reads(&self, state: &mut State) {
        for (member, buf, status) in state.ended.drain(..) {
            if status.is_ok() {
                state.blocks[member] = Some(Block(buf));
                state.task.have.insert(member);
            } else {
                tracing::warn!(member, sector = %self.hold.range.start, "raid: a member could not be read");
                state.task.readable.remove(member);
                state.task.unread.insert(member);
            }
        }
    }

    /// Those that failed.
    fn take_writes(&self, state: &mut State) -> MemberSet {
        let mut failed = MemberSet::default();
        for (member, buf, status) in state.ended.drain(..) {
            state.blocks[member] = Some(Block(buf));
            if !status.is_ok() {
                self.engine.members.fail(member);
                failed.insert(member);
            }
        }
        state.sent = state.sent.without(&failed);
        failed
    }

    fn plan(&self, state: &State) -> Option<Plan> {
        let task = &state.task;
        match state.entries.first().map(|entry| &entry.ask) {
            Some(Ask::Sync(SyncKind::Recover, _)) => task.recover(&self.row),
            Some(Ask::Sync(..)) if task.unread.is_empty() => Some(self.plan_scrub(task)),
            Some(Ask::Sync(..)) => task.recover(&self.row),
            // As in the kernel nothing is written where too much is lost already, even if it could be.
            _ if task.is_writing() && !self.is_whole(|m| task.is_intact(m)) => None,
            _ => task.plan(&self.row),
        }
    }

    /// All that can be compared, if anything can.
    fn plan_scrub(&self, task: &Task) -> Plan {
        let recover = task.recover(&self.row);
        let is_spare = task.readable.len() > self.engine.geometry.data_chunks();
        let needs = recover
            .filter(|_| is_spare)
            .map(|plan| plan.needs.and(&task.readable));
        Plan {
            way: Way::Recover,
            needs: needs.unwrap_or_default(),
        }
    }

    fn is_whole(&self, is_known: impl Fn(usize) -> bool) -> bool {
        is_recoverable(&self.row, is_known, self.engine.geometry.members())
    }

    /// What is to be written then.
    fn compute(&self, state: &mut State, way: Way) -> MemberSet {
        let is_rebuilding =
            |member: usize| self.engine.members.state(member) == MemberState::Rebuilding;
        let compute = Compute {
            row: &self.row,
            task: &state.task,
            begin: self.hold.range.start,
            fresh: &|| Block(self.engine.buffer(self.bytes())),
        };
        let (blocks, entries) = (&mut state.blocks, &mut state.entries);
        let (writes, cures) = match entries.first().map(|entry| entry.ask.clone()) {
            Some(Ask::Sync(SyncKind::Recover, _)) => {
                compute.rebuild(blocks, MemberSet::of(state.task.members, is_rebuilding))
            }
            Some(Ask::Sync(kind, mismatches)) => {
                compute.scrub(blocks, kind != SyncKind::Check, &mismatches)
            }
            _ => compute.requests(blocks, entries, way),
        };
        state.cures = cures;
        writes
    }

    fn writes(self: &Arc<Self>, state: &mut State, writes: MemberSet) -> Next {
        let is_fua = |entry: &Entry| matches!(entry.ask, Ask::Write(_)) && entry.io.flags.fua;
        let fua = state.entries.iter().any(is_fua);
        let requests = writes.iter().filter_map(|member| {
            let Block(buf) = state.blocks[member].take()?;
            let mut io = self.request(Op::Write, member, buf);
            io.flags.fua = fua;
            Some((member, io))
        });
        Next::Requests(requests.collect())
    }

    fn request(self: &Arc<Self>, op: Op, member: usize, buf: IoBuf) -> Io {
        let range = &self.hold.range;
        let sectors = range.end - range.start;
        Io::new(op, range.start, sectors, buf, self.clone(), member as u64)
    }

    fn bytes(&self) -> usize {
        // A stripe's length, in memory.
        (self.hold.range.end - self.hold.range.start).bytes() as usize
    }

    /// Whether what was written can be had again from what is left.
    fn outcome(&self, state: &State) -> BlkStatus {
        let known = |member: usize| {
            let holds = state.task.is_intact(member) || state.sent.contains(member);
            holds && self.engine.members.is_writable(member)
        };
        if self.is_whole(known) {
            BlkStatus::Ok
        } else {
            BlkStatus::IoErr
        }
    }

    fn end(&self, status: BlkStatus) {
        let entries = std::mem::take(&mut self.state.lock().entries);
        for entry in entries {
            // What was read is good whatever became of the writes beside it.
            let status = match entry.ask {
                Ask::Read(_) => BlkStatus::Ok,
                Ask::Write(_) | Ask::Sync(..) => status,
            };
            entry.end(&self.engine.members, status);
        }
    }

    /// Less at a time may be less that is lost.
    fn give_up(&self) {
        let (entries, has_unread) = {
            let mut state = self.state.lock();
            let entries = std::mem::take(&mut state.entries);
            (entries, !state.task.unread.is_empty())
        };
        let is_long = self.hold.range.end - self.hold.range.start > FINE && has_unread;
        let is_divisible = is_long || entries.len() > 1;
        let mut fine = Vec::new();
        for entry in entries {
            if is_divisible && !entry.is_fine {
                fine.extend(entry.into_fine(&self.engine.members, FINE));
            } else {
                entry.end(&self.engine.members, BlkStatus::IoErr);
            }
        }
        if !fine.is_empty() {
            self.engine.submit(fine);
        }
    }
}

fn note_entries(task: &mut Task, seed: &Seed) {
    let whole = seed.hold.range.end - seed.hold.range.start;
    let mut written = vec![Sector::ZERO; task.members];
    for entry in &seed.entries {
        match entry.ask {
            Ask::Read(member) => task.wanted.insert(member),
            Ask::Write(member) => written[member] += entry.range.end - entry.range.start,
            Ask::Sync(..) => {}
        }
    }
    // Entries of one job do not overlap on a member.
    task.wholly = MemberSet::of(task.members, |member| written[member] == whole);
    task.partly = MemberSet::of(task.members, |member| {
        written[member] > Sector::ZERO && written[member] < whole
    });
}

impl EndIo for Job {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        let member = usize::try_from(tag).unwrap_or_default();
        self.state.lock().ended.push((member, buf, status));
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.run();
        }
    }
}

/// The last request has ended, or a panic has taken it.
impl Drop for Job {
    fn drop(&mut self) {
        self.engine.release(&self.hold);
    }
}

/// 4 KiB, md's unit: the least that is lost where more than one member cannot be read.
const FINE: Sector = Sector(8);
