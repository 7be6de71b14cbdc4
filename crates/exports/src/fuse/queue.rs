//! A queue thread's work: take requests out of the kernel in batches, route them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::IoSliceMut;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::io::Errno;
use thinmap_block::{QueueHandler, Turn};
use thinmap_runtime::{BufferPool, IoBuf};
use zerocopy::FromBytes;

use super::abi::{InHeader, WRITE_HEAD_BYTES, opcode};
use super::channel::{self, Channel};
use super::data::Sinks;
use super::file::Files;
use super::ringing::Ringing;
use super::server::REQUEST_BYTES_MAX;
use super::uring::{RingQueue, RingRequest, is_ring_tag};

/// One queue's handler.
pub(super) struct Queue {
    pub(super) channel: Arc<Channel>,
    pub(super) files: Arc<Files>,
    /// Ways back per file, made at its first request on this queue.
    pub(super) sinks: HashMap<u64, Sinks, NodeIdHash>,
    pub(super) buffers: Buffers,
    head: [u8; WRITE_HEAD_BYTES],
    /// Where the next request's data goes: page-aligned, so that a large write goes on to the backing from here.
    payload: IoBuf,
    /// Which of the queue threads this is, and of how many.
    place: (usize, usize),
    pub(super) ringing: Arc<Ringing>,
    /// io_uring was agreed on in the handshake.
    pub(super) agreed: bool,
    ring: Option<RingQueue>,
    gone: bool,
}

impl Queue {
    pub(super) fn new(
        channel: Arc<Channel>,
        files: Arc<Files>,
        ringing: Arc<Ringing>,
        place: (usize, usize),
    ) -> Self {
        let buffers = Buffers::new();
        let payload = touched(buffers.take(REQUEST_BYTES_MAX));
        channel::collect_replies(&channel);
        Self {
            channel,
            files,
            sinks: HashMap::default(),
            buffers,
            head: [0; WRITE_HEAD_BYTES],
            payload,
            place,
            ringing,
            agreed: false,
            ring: None,
            gone: false,
        }
    }

    /// Takes one request; `false` when there is none now.
    fn take_one(&mut self) -> bool {
        let mut parts = [
            IoSliceMut::new(&mut self.head),
            IoSliceMut::new(self.payload.as_mut_slice()),
        ];
        let received = match rustix::io::readv(self.channel.fd(), &mut parts) {
            Ok(received) => received,
            // NOENT: the request was taken back while we were reading it.
            Err(Errno::INTR | Errno::NOENT) => return true,
            Err(Errno::AGAIN) => return false,
            Err(errno) => {
                // NODEV: unmounted. Anything else would only repeat.
                if errno != Errno::NODEV {
                    tracing::error!(%errno, "FUSE: cannot take requests");
                }
                self.gone = true;
                return false;
            }
        };
        let Ok((header, _)) =
            InHeader::read_from_prefix(&self.head[..received.min(WRITE_HEAD_BYTES)])
        else {
            tracing::error!(received, "FUSE: a request without a header");
            return true;
        };
        // It would be answered over the ring.
        if is_ring_tag(header.unique) {
            tracing::error!(
                header.unique,
                "FUSE: a request with a number that no kernel gives"
            );
            return true;
        }
        self.route(&header, received);
        true
    }

    fn route(&mut self, header: &InHeader, received: usize) {
        const HEADER_BYTES: usize = size_of::<InHeader>();
        if header.opcode == opcode::WRITE {
            let args = self.head;
            return self.write(
                header,
                &args[HEADER_BYTES..],
                received.saturating_sub(WRITE_HEAD_BYTES),
            );
        }
        if received <= WRITE_HEAD_BYTES {
            let args = self.head;
            return self.dispatch(header, &args[HEADER_BYTES..received]);
        }
        let mut args = self.head[HEADER_BYTES..].to_vec();
        args.extend_from_slice(&self.payload.as_slice()[..received - WRITE_HEAD_BYTES]);
        self.dispatch(header, &args);
    }

    fn dispatch(&mut self, header: &InHeader, args: &[u8]) {
        match header.opcode {
            opcode::READ => self.read(header, args),
            opcode::FSYNC => self.fsync(header),
            opcode::FALLOCATE => self.fallocate(header, args),
            _ => self.meta(header, args),
        }
    }

    /// The data of the write just received: small ones copied out, so that one busy device does not pin a
    /// large buffer for each 4 KiB; large ones go on in the buffer they came in.
    pub(super) fn take_payload(&mut self, tag: u64, len: usize) -> IoBuf {
        if let Some(ring) = self.ring.as_mut().filter(|_| is_ring_tag(tag)) {
            return ring.take_payload(tag, len);
        }
        if len <= COPY_BYTES_MAX {
            let mut buf = self.buffers.take(len);
            buf.as_mut_slice()
                .copy_from_slice(&self.payload.as_slice()[..len]);
            return buf;
        }
        let next = touched(self.buffers.take(REQUEST_BYTES_MAX));
        let mut full = std::mem::replace(&mut self.payload, next);
        full.split_to(len)
    }

    pub(super) fn payload(&self, tag: u64, len: usize) -> &[u8] {
        match &self.ring {
            Some(ring) if is_ring_tag(tag) => ring.payload(tag, len),
            _ => &self.payload.as_slice()[..len],
        }
    }

    /// A buffer for what a request reads.
    pub(super) fn take_buffer(&mut self, tag: u64, len: usize) -> IoBuf {
        match &mut self.ring {
            Some(ring) if is_ring_tag(tag) => ring.take_payload(tag, len),
            _ => self.buffers.take(len),
        }
    }
}

impl QueueHandler for Queue {
    fn turn(&mut self) -> Turn {
        let turn = self.take_requests();
        // Also what has ended since the last turn.
        channel::send_replies();
        if let Some(ring) = &mut self.ring {
            ring.send_replies();
        }
        turn
    }

    fn poll(&self, out: &mut Vec<(RawFd, i16)>) {
        if !self.gone && !self.channel.is_full() {
            out.push((self.channel.raw_fd(), libc::POLLIN));
        }
        if let Some(ring) = self.ring.as_ref().filter(|_| !self.gone) {
            out.push((ring.raw_fd(), libc::POLLIN));
        }
    }
}

impl Queue {
    fn take_requests(&mut self) -> Turn {
        if self.gone || self.channel.is_closing() {
            self.gone = true;
            self.channel.expect_end();
            return if self.channel.is_idle() {
                Turn::Stop
            } else {
                Turn::Idle
            };
        }
        if self.ring.is_some() {
            match self.take_from_ring() {
                Some(turn) => return turn,
                // Here come only requests that the kernel does not send over the ring: forgotten and interrupted ones.
                None if !self.take_one() => {
                    return if self.gone { Turn::Again } else { Turn::Idle };
                }
                None => return Turn::Again,
            }
        }
        if let Some(queues) = self.ringing.to_register() {
            let (first, step) = self.place;
            let ring = RingQueue::register(&self.channel, first, step, queues);
            self.ringing
                .registered(ring.map(|ring| self.ring = Some(ring)));
            return Turn::Again;
        }
        for taken in 0..BATCH {
            if self.channel.is_full() {
                return Turn::Idle;
            }
            if !self.take_one() {
                return self.nothing_more(taken > 0);
            }
        }
        Turn::Again
    }

    /// No request is there now; in this turn some were `found` or not.
    fn nothing_more(&self, found: bool) -> Turn {
        if self.gone {
            Turn::Again
        } else if self.channel.is_idle() {
            Turn::Watch { found }
        } else {
            // Others work on requests, and may need this processor for it.
            Turn::Idle
        }
    }
}

impl Queue {
    /// A batch of requests out of the ring; `None` when there were none.
    fn take_from_ring(&mut self) -> Option<Turn> {
        for taken in 0..BATCH {
            let ring = self.ring.as_mut()?;
            match ring.next() {
                Ok(Some(request)) => self.route_ring(&request),
                Ok(None) if taken == 0 => return None,
                Ok(None) => break,
                Err(()) => {
                    self.gone = true;
                    break;
                }
            }
        }
        Some(Turn::Again)
    }

    fn route_ring(&mut self, request: &RingRequest) {
        let header = &request.header;
        let op_in = &request.op_in[..request.op_in_len];
        if header.opcode == opcode::WRITE {
            return self.write(header, op_in, request.payload_len);
        }
        if request.payload_len == 0 {
            return self.dispatch(header, op_in);
        }
        let args = [op_in, self.payload(header.unique, request.payload_len)].concat();
        self.dispatch(header, &args);
    }
}

/// Node ids are small numbers of our own, not chosen by anybody: spread over the table, nothing more.
pub(super) type NodeIdHash = BuildHasherDefault<NodeIdHasher>;

#[derive(Default)]
pub(super) struct NodeIdHasher(u64);

impl Hasher for NodeIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Buffers made ahead, by size class.
pub(crate) struct Buffers {
    classes: Vec<BufferPool>,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let pool = |&(count, bytes): &(usize, usize)| BufferPool::new(count, bytes);
        Self {
            classes: CLASSES.iter().map(pool).collect(),
        }
    }

    /// A buffer of exactly `len` bytes with arbitrary content.
    pub(crate) fn take(&self, len: usize) -> IoBuf {
        match self
            .classes
            .iter()
            .find(|class| class.buffer_bytes() >= len)
        {
            Some(class) => {
                let mut buf = class.take_or_alloc();
                if buf.len() > len {
                    buf.split_to(len)
                } else {
                    buf
                }
            }
            None => IoBuf::alloc(len),
        }
    }
}

/// A buffer whose pages are there: the kernel fails a request whose data it cannot copy because the reader was killed while a
/// page had to be found.
fn touched(mut buf: IoBuf) -> IoBuf {
    for page in buf.as_mut_slice().chunks_mut(4096) {
        page[0] = std::hint::black_box(0);
    }
    buf
}

/// Requests taken before what they started is sent to the backing and replies go out: with more, those who wait for the
/// replies idle meanwhile.
const BATCH: usize = 8;
/// Writes up to this size are copied once.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Count and bytes of the buffers made ahead; memory is touched at first use only.
const CLASSES: [(usize, usize); 3] = [(256, 4 << 10), (64, 64 << 10), (64, REQUEST_BYTES_MAX)];
