//! One client after its handshake: requests in, device I/O out, replies back.
//!
//! Invariants:
//! - A slot is a request that has no reply yet; it is freed when its reply is queued, or when its payload is
//!   given up. The connection is not freed while a slot is with the device.
//! - Memory is bounded: at most [`REQUESTS_MAX`] requests and unsent replies, and [`BYTES_MAX`] bytes of
//!   their buffers. Beyond that the socket is not read, so a client that takes no replies stops itself.
//! - A write is submitted only when its payload is complete: a client that dies in the middle changes nothing.
//!
//! The queue thread calls it; nothing here blocks.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use thinmap_block::{Io, Op, submit_from_outside};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::askers::Askers;
use super::buffers::Buffers;
use super::command::{Action, Work, WorkKind, decide};
use super::extents::{Answer, ExtentsQuery};
use super::input::Input;
use super::negotiation::Agreement;
use super::protocol::{NbdError, REQUEST_BYTES, ReplyHead, Request};
use super::queue::ConnectionSink;
use super::transport::{Received, Transport};

/// Requests in flight and replies not sent, together.
pub const REQUESTS_MAX: usize = 256;
/// Bytes of buffers of one connection; one request of the largest size always fits.
pub const BYTES_MAX: usize = 32 << 20;

/// What a connection borrows from its queue for a turn.
pub struct Resources<'a> {
    /// Buffers for requests.
    pub buffers: &'a Buffers,
    /// Where block-status requests go.
    pub askers: &'a Arc<Askers>,
}

/// A client in transmission.
pub struct Connection {
    transport: Transport,
    sink: Arc<ConnectionSink>,
    agreement: Agreement,
    input: Input,
    state: State,
    slots: Vec<Slot>,
    free_slots: Vec<usize>,
    bytes: usize,
    replies: VecDeque<Reply>,
    /// Bytes of the first reply that are sent.
    sent: usize,
    readable: bool,
    writable: bool,
    /// The client's end of the stream is in the socket, behind what is still to be read.
    hung_up: bool,
    /// A request waits in `input` until others have made room.
    stalled: bool,
    /// `input` may hold a whole request, since others came first: no readiness of the socket will tell of it.
    unparsed: bool,
    /// Bytes of data of the requests submitted in this turn.
    turn_bytes: usize,
    /// No more requests are read, since then.
    draining: Option<Instant>,
    /// The socket failed: replies go nowhere.
    dead: bool,
}

enum State {
    /// The next bytes are a request.
    Header,
    /// The next bytes are a write's payload, from `filled` on.
    Payload {
        slot: usize,
        buf: IoBuf,
        filled: usize,
    },
    /// The next bytes are a refused write's payload.
    Skip { left: usize, refusal: ReplyHead },
}

struct Slot {
    request: Request,
    work: Work,
    /// Parts that are with the device.
    parts: u32,
    /// Of a discard: how much of it was submitted.
    submitted: Sector,
    status: BlkStatus,
    /// Of a block-status request.
    answer: Option<Arc<Answer>>,
    /// FUA on a discard, which devices do not know: a flush follows.
    then_flush: bool,
}

struct Reply {
    head: ReplyHead,
    data: IoBuf,
}

impl Connection {
    /// `input` came in behind the handshake.
    pub fn new(
        transport: Transport,
        agreement: Agreement,
        input: &[u8],
        sink: Arc<ConnectionSink>,
    ) -> Self {
        Self {
            transport,
            sink,
            agreement,
            input: Input::new(input),
            state: State::Header,
            slots: Vec::new(),
            free_slots: Vec::new(),
            bytes: 0,
            replies: VecDeque::new(),
            sent: 0,
            readable: true,
            writable: true,
            hung_up: false,
            stalled: false,
            unparsed: false,
            turn_bytes: 0,
            draining: None,
            dead: false,
        }
    }

    /// The socket, for polling.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.transport.socket()
    }

    /// The poll said so.
    pub fn ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable || hung_up;
        self.hung_up |= hung_up;
    }

    /// Whether its export was removed.
    pub fn export_is_removed(&self) -> bool {
        self.agreement.export.is_removed()
    }

    /// When it stopped to read requests.
    pub fn draining_since(&self) -> Option<Instant> {
        self.draining
    }

    /// Whether another turn would read more.
    pub fn wants_turn(&self) -> bool {
        self.draining.is_none() && !self.stalled && (self.readable || self.unparsed)
    }

    /// Whether nothing is left to be done for it.
    pub fn is_finished(&self) -> bool {
        self.draining.is_some()
            && self.in_flight() == 0
            && (self.dead || (self.replies.is_empty() && !self.transport.has_unsent()))
    }

    /// Reads no more requests; what is with the device is still answered.
    pub fn drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(Instant::now());
        if let State::Payload { slot, buf, .. } = std::mem::replace(&mut self.state, State::Header)
        {
            self.bytes -= buf.len();
            self.free_slots.push(slot);
        }
    }

    /// Gives up on the socket: nothing more is received or sent.
    pub fn cut(&mut self) {
        self.drain();
        self.dead = true;
        self.replies.clear();
        self.sent = 0;
        // What a device does not answer must not keep it open for a client that is gone: unlike I/O it has no memory of ours.
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.answer.take().is_some_and(|answer| answer.give()) {
                self.free_slots.push(index);
            }
        }
    }

    /// Receives and submits until the socket is empty, a limit is reached, or others should have their turn.
    pub fn receive(&mut self, resources: &Resources<'_>) {
        self.turn_bytes = 0;
        self.parse(resources);
        for _ in 0..RECEIVES_PER_TURN {
            if !self.wants_turn() || !self.readable || self.has_had_its_turn() {
                return;
            }
            match self.fill() {
                Ok(Received::Bytes { more, .. }) => {
                    // The end of the stream was told once already: a short read does not mean "wait".
                    self.readable = more || self.hung_up;
                    self.parse(resources);
                }
                Ok(Received::WouldBlock) => self.readable = false,
                Ok(Received::End) => self.drain(),
                Err(error) => self.lost(&error),
            }
        }
    }

    fn lost(&mut self, error: &io::Error) {
        tracing::debug!(%error, "NBD client: connection lost");
        self.cut();
    }

    /// One receive: the rest of a payload goes straight to its buffer, what follows it to the input.
    fn fill(&mut self) -> io::Result<Received> {
        if let State::Payload { buf, filled, .. } = &mut self.state {
            let missing = buf.len() - *filled;
            let mut parts = [
                IoSliceMut::new(&mut buf.as_mut_slice()[*filled..]),
                IoSliceMut::new(self.input.space()),
            ];
            let received = self.transport.receive(&mut parts)?;
            if let Received::Bytes { count, .. } = received {
                *filled += count.min(missing);
                self.input.grew(count.saturating_sub(missing));
            }
            return Ok(received);
        }
        let mut parts = [IoSliceMut::new(self.input.space())];
        let received = self.transport.receive(&mut parts)?;
        if let Received::Bytes { count, .. } = received {
            self.input.grew(count);
        }
        Ok(received)
    }

    /// Replies go out before more is read: large ones while the processor's cache still holds them.
    fn has_had_its_turn(&self) -> bool {
        self.turn_bytes >= BYTES_PER_TURN
    }

    /// Works through what was received.
    fn parse(&mut self, resources: &Resources<'_>) {
        while self.draining.is_none() && !self.stalled {
            self.unparsed = self.has_had_its_turn();
            if self.unparsed {
                return;
            }
            match &mut self.state {
                State::Payload { buf, filled, .. } => {
                    let part = self.input.take_up_to(buf.len() - *filled);
                    buf.as_mut_slice()[*filled..*filled + part.len()].copy_from_slice(part);
                    *filled += part.len();
                    if *filled < buf.len() {
                        return;
                    }
                    self.payload_complete();
                }
                State::Skip { left, refusal } => {
                    *left -= self.input.take_up_to(*left).len();
                    if *left > 0 {
                        return;
                    }
                    let refusal = *refusal;
                    self.state = State::Header;
                    self.reply(refusal, IoBuf::empty());
                }
                State::Header => {
                    let Some(header) = self.input.peek::<REQUEST_BYTES>() else {
                        return;
                    };
                    let Some(request) = Request::unpack(header) else {
                        tracing::warn!("NBD client cut off: no request where one must be");
                        return self.drain();
                    };
                    self.request(&request, resources);
                }
            }
        }
    }

    fn request(&mut self, request: &Request, resources: &Resources<'_>) {
        let action = decide(request, &self.agreement);
        let bytes = match &action {
            Action::Submit(work) => work.buffer_bytes(),
            _ => 0,
        };
        let crowded = self.in_flight() + self.replies.len() >= REQUESTS_MAX;
        if crowded || (self.bytes > 0 && self.bytes + bytes > BYTES_MAX) {
            self.stalled = true;
            self.unparsed = true;
            return;
        }
        self.input.take_up_to(REQUEST_BYTES);
        match action {
            Action::Disconnect => self.drain(),
            Action::Violation(what) => {
                tracing::warn!(what, "NBD client cut off: protocol violation");
                self.drain();
            }
            Action::Refuse { error, payload: 0 } => {
                self.reply(refusal(request, error, &self.agreement), IoBuf::empty());
            }
            Action::Refuse { error, payload } => {
                self.state = State::Skip {
                    left: payload as usize,
                    refusal: refusal(request, error, &self.agreement),
                };
            }
            Action::Submit(work) => {
                self.bytes += bytes;
                let slot = self.take_slot(*request, work);
                self.begin(slot, work, bytes, resources);
            }
        }
    }

    fn begin(&mut self, slot: usize, work: Work, bytes: usize, resources: &Resources<'_>) {
        let tag = slot as u64;
        match work.kind {
            WorkKind::Op(Op::Write) => {
                self.state = State::Payload {
                    slot,
                    buf: resources.buffers.take(bytes),
                    filled: 0,
                };
            }
            WorkKind::Op(Op::Read) => {
                let buf = resources.buffers.take(bytes);
                self.submit(Io::read(work.start, buf, self.sink.clone(), tag));
            }
            WorkKind::Op(Op::Discard) => self.submit_discard(slot, work),
            WorkKind::Op(op) => {
                let empty = IoBuf::empty();
                let mut io = Io::new(op, work.start, work.len, empty, self.sink.clone(), tag);
                io.flags = work.flags;
                self.submit(io);
            }
            WorkKind::BlockStatus { one } => {
                let query = ExtentsQuery {
                    device: self.agreement.export.device.clone(),
                    start: work.start,
                    len: work.len,
                    one,
                    sink: self.sink.clone(),
                    slot: tag,
                    answer: Arc::default(),
                };
                self.slots[slot].answer = Some(query.answer.clone());
                resources.askers.ask(query);
            }
        }
    }

    /// A discard is cut into what the device takes at once, and few of these parts are with it at a time: there may be millions.
    fn submit_discard(&mut self, slot: usize, work: Work) {
        self.slots[slot].parts = 0;
        self.slots[slot].then_flush = work.flags.fua;
        for _ in 0..DISCARD_PARTS_AT_ONCE {
            if !self.submit_discard_part(slot) {
                return;
            }
        }
    }

    /// The next part of a discard; `false` when there is none, or the request is no discard.
    fn submit_discard_part(&mut self, slot: usize) -> bool {
        let most = self.agreement.limits.max_discard.0;
        let entry = &mut self.slots[slot];
        let (work, at) = (entry.work, entry.submitted);
        let len = Sector(most.min(work.len.0 - at.0));
        if work.kind != WorkKind::Op(Op::Discard) || len == Sector::ZERO {
            return false;
        }
        entry.submitted = at + len;
        entry.parts += 1;
        let (start, empty, sink) = (work.start + at, IoBuf::empty(), self.sink.clone());
        self.submit(Io::new(Op::Discard, start, len, empty, sink, slot as u64));
        true
    }

    fn payload_complete(&mut self) {
        let State::Payload { slot, buf, .. } = std::mem::replace(&mut self.state, State::Header)
        else {
            return;
        };
        let work = self.slots[slot].work;
        let mut io = Io::write(work.start, buf, self.sink.clone(), slot as u64);
        io.flags = work.flags;
        self.submit(io);
    }

    fn submit(&mut self, io: Io) {
        self.turn_bytes += io.buf.len();
        submit_from_outside(&*self.agreement.export.device, io);
    }

    /// A part of the request in `slot` has come back.
    pub fn finished(&mut self, slot: usize, status: BlkStatus, buf: IoBuf) {
        let entry = &mut self.slots[slot];
        entry.status = entry.status.and(status);
        entry.parts -= 1;
        // One that has failed already, or that nobody waits for any more, is given up where it is.
        let goes_on = entry.status.is_ok() && !self.dead;
        if (goes_on && self.submit_discard_part(slot)) || self.slots[slot].parts > 0 {
            return;
        }
        let entry = &mut self.slots[slot];
        if entry.then_flush && entry.status.is_ok() {
            entry.then_flush = false;
            entry.parts = 1;
            return self.submit(Io::flush(self.sink.clone(), slot as u64));
        }
        entry.answer = None;
        let (request, work, status) = (entry.request, entry.work, entry.status);
        self.free_slots.push(slot);
        self.stalled = false;
        let error = NbdError::from_status(status);
        let (head, data) = match (work.kind, error) {
            (WorkKind::Op(Op::Read), NbdError::Ok) if self.agreement.structured => {
                let head = ReplyHead::offset_data(request.cookie, request.offset, request.len);
                (head, buf)
            }
            (WorkKind::Op(Op::Read), NbdError::Ok) => {
                (ReplyHead::simple(request.cookie, error), buf)
            }
            (WorkKind::BlockStatus { .. }, NbdError::Ok) => {
                let len = u32::try_from(buf.len()).expect("a bounded list");
                self.bytes += buf.len();
                (ReplyHead::block_status(request.cookie, len), buf)
            }
            (_, error) => {
                self.bytes -= work.buffer_bytes();
                (refusal(&request, error, &self.agreement), IoBuf::empty())
            }
        };
        self.reply(head, data);
    }

    /// Queues a reply; its data is accounted for already.
    fn reply(&mut self, head: ReplyHead, data: IoBuf) {
        if self.dead {
            self.bytes -= data.len();
        } else {
            self.replies.push_back(Reply { head, data });
        }
    }

    /// Sends queued replies, many per call, until done or the socket is full.
    pub fn send(&mut self) {
        while self.writable && !self.dead && !self.replies.is_empty() {
            match self.send_some() {
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => self.lost(&error),
            }
        }
        if self.writable && !self.dead && self.transport.has_unsent() {
            match self.transport.flush() {
                Ok(done) => self.writable = done,
                Err(error) => self.lost(&error),
            }
        }
    }

    fn send_some(&mut self) -> io::Result<usize> {
        let mut parts: SmallVec<[IoSlice<'_>; 2 * REPLIES_PER_SEND]> = SmallVec::new();
        let mut skip = self.sent;
        for reply in self.replies.iter().take(REPLIES_PER_SEND) {
            for bytes in [reply.head.as_slice(), reply.data.as_slice()] {
                let skipped = skip.min(bytes.len());
                skip -= skipped;
                if skipped < bytes.len() {
                    parts.push(IoSlice::new(&bytes[skipped..]));
                }
            }
        }
        self.transport.send(&parts)
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        while let Some(first) = self.replies.front() {
            let len = first.head.as_slice().len() + first.data.len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            self.bytes -= first.data.len();
            self.replies.pop_front();
            self.stalled = false;
        }
    }

    fn take_slot(&mut self, request: Request, work: Work) -> usize {
        let slot = Slot {
            request,
            work,
            parts: 1,
            submitted: Sector::ZERO,
            answer: None,
            status: BlkStatus::Ok,
            then_flush: false,
        };
        if let Some(index) = self.free_slots.pop() {
            self.slots[index] = slot;
            return index;
        }
        self.slots.push(slot);
        self.slots.len() - 1
    }

    /// Whether a request is with the device, or its reply not sent.
    pub fn is_busy(&self) -> bool {
        let arriving = usize::from(matches!(self.state, State::Payload { .. }));
        self.in_flight() > arriving || !self.replies.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }
}

/// A reply without data, in the form the client must get for that command.
fn refusal(request: &Request, error: NbdError, agreement: &Agreement) -> ReplyHead {
    use super::protocol::command::{BLOCK_STATUS, READ};
    let chunked = agreement.structured && matches!(request.command, READ | BLOCK_STATUS);
    if chunked {
        ReplyHead::error_chunk(request.cookie, error)
    } else {
        ReplyHead::simple(request.cookie, error)
    }
}

const RECEIVES_PER_TURN: usize = 8;
const BYTES_PER_TURN: usize = 256 << 10;
/// The next goes out when one has come back, in a later turn: others have theirs between.
const DISCARD_PARTS_AT_ONCE: usize = 4;
/// Two parts each; the kernel takes up to 1024 parts.
const REPLIES_PER_SEND: usize = 64;
