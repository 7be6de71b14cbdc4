//! The clients: what they submit, and whether what they read may be.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::Rng;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op};
use thinmap_sim::{Content, SECTOR, mix};
use thinmap_units::BlkStatus;

use super::bench::{Bench, Request, State};
use crate::oracle::Value;
use crate::swarm::choose;
use crate::world::{client_io, draw_cells};

impl Bench {
    /// A client submits a request.
    pub(super) fn submit_something(self: &Arc<Self>) {
        let plan = &self.plan;
        let mut state = self.state.lock();
        let open = state.open.len().max(1);
        let nth = state.rng.random_range(0..open);
        let Some((id, device)) = state.open.iter().nth(nth).map(|(id, d)| (*id, d.clone())) else {
            return;
        };
        state.left -= 1;
        if state.rng.random_range(0..10) == 0 && plan.pause > Duration::ZERO {
            let micros = state.rng.random_range(0..=plan.pause.as_micros() as u64);
            state.pause_until = self.executor.clock_now() + Duration::from_micros(micros);
        }
        let op = match choose(&plan.weights, &mut state.rng) {
            Some(1) => Op::Read,
            Some(2) => Op::Flush,
            Some(3) => Op::Discard,
            Some(4) => Op::WriteZeroes,
            _ => Op::Write,
        };
        let cells = draw_cells(&mut state.rng, plan.blocks, plan.long_requests);
        let changes = matches!(op, Op::Write | Op::WriteZeroes);
        let flags = IoFlags {
            fua: changes && state.rng.random_range(0..plan.fua_one_in) == 0,
            no_unmap: true,
        };
        drop(state);
        self.submit(id, &device, op, cells, flags);
    }

    /// This one.
    pub(super) fn submit(
        self: &Arc<Self>,
        id: u32,
        device: &Arc<dyn BlockDevice>,
        op: Op,
        cells: Range<u64>,
        flags: IoFlags,
    ) {
        let layout = self.plan.layout;
        let (first, end) = (layout.edge(cells.start), layout.edge(cells.end));
        let mut locked = self.state.lock();
        let state = &mut *locked;
        state.last_request += 1;
        let number = state.last_request;
        let value = match op {
            Op::Write => Some(Value::Request(number)),
            Op::WriteZeroes => Some(Value::Zero),
            _ => None,
        };
        if let Some(value) = value {
            state.oracle.submitted(id, cells.clone(), value, number);
            for cell in cells.clone() {
                *state.under_way.entry((id, cell)).or_default() += 1;
                state.touched.insert((id, cell), None);
                for sector in layout.edge(cell)..layout.edge(cell + 1) {
                    state.seen.remove(&(id, sector));
                }
            }
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
        // It may end at once.
        drop(locked);
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
            let twice = format!("request {number} ended twice");
            state.failure.get_or_insert(twice);
            return;
        };
        state.trace = mix(state.trace ^ number ^ (status.errno() as u64) << 48);
        if state.over {
            return;
        }
        let ok = status.is_ok();
        let Request { volume, op, .. } = request;
        if !ok && status != BlkStatus::NotSupp && !state.excused.contains(&volume) {
            let text = format!("{op:?} {number} of volume {volume} failed: {status:?}");
            state.failure.get_or_insert(text);
        }
        let cells = request.cells.clone();
        match op {
            Op::Read => {
                state.oracle.read_ended(request.submitted);
                if ok && let Err(wrong) = self.compare(state, &request, io) {
                    state.failure.get_or_insert(wrong);
                }
            }
            Op::Flush if ok => state.oracle.flushed(volume, request.submitted),
            Op::Flush => {}
            _ if status == BlkStatus::NotSupp => state.oracle.refused(volume, cells, number),
            _ => state.oracle.ended(volume, cells, number, ok, request.fua),
        }
        if matches!(op, Op::Write | Op::WriteZeroes) {
            let now = state.oracle.now();
            for cell in request.cells {
                let left = state.under_way.entry((volume, cell)).or_default();
                *left -= 1;
                let when = (*left == 0).then_some(now);
                state.touched.insert((volume, cell), when);
            }
        }
    }

    fn compare(&self, state: &mut State, request: &Request, io: &Io) -> Result<(), String> {
        let (id, layout) = (request.volume, self.plan.layout);
        let first = layout.edge(request.cells.start);
        for cell in request.cells.clone() {
            let stable = match state.touched.get(&(id, cell)) {
                None => true,
                Some(when) => when.is_some_and(|when| when < request.submitted),
            };
            for sector in layout.edge(cell)..layout.edge(cell + 1) {
                let at = (sector - first) as usize * SECTOR;
                let content = Content::new(&io.buf.as_slice()[at..at + SECTOR]);
                let oracle = &state.oracle;
                if !oracle.may_read(id, cell, sector, &content, Some(request.submitted)) {
                    let allowed = oracle.volumes.get(&id).map(|v| oracle.describe(v, cell));
                    return Err(format!(
                        "volume {id}: sector {sector} reads as {content:x?}, submitted at {}; known: {allowed:?}",
                        request.submitted
                    ));
                }
                if !stable || self.plan.has_faults() {
                    continue;
                }
                if let Some(before) = state.seen.get(&(id, sector)) {
                    if !is_same(before, &content) {
                        return Err(format!(
                            "volume {id}: sector {sector} reads as {content:x?}, and was {before:x?} before, with nobody writing"
                        ));
                    }
                } else {
                    state.seen.insert((id, sector), content);
                }
            }
        }
        Ok(())
    }
}

fn is_same(a: &Content, b: &Content) -> bool {
    match (a, b) {
        (Content::Word(a), Content::Word(b)) => a == b,
        (Content::Bytes(a), Content::Bytes(b)) => a.1 == b.1,
        _ => false,
    }
}

/// Clients' end of a request.
struct Client(Weak<Bench>);

impl EndIo for Client {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        if let Some(bench) = self.0.upgrade() {
            bench.ended(&io, tag, status);
        }
    }
}
