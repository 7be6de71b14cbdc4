//! Reads on their way back: every block is held against its digest before anybody sees it.
//!
//! Whoever brings the data verifies it, as long as the tree's blocks for it are in memory; else it goes on when they are.
//! Requests above [`SHARED_BYTES`] are cut in pieces which that thread and the process's workers take in turn; whoever ends the last
//! completes the whole. Progress never depends on a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::{DeviceUse, MapOutcome};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::corruption::Kind;
use super::fec::Repair;
use super::hasher::Digest;
use super::nodes::{Found, Nodes};
use crate::workers::{Job, Workers};

/// What requests need to know of a line.
pub(super) struct Data {
    pub(super) begin: Sector,
    pub(super) device: DeviceUse,
    pub(super) block_bytes: usize,
    pub(super) nodes: Arc<Nodes>,
    /// Blocks that need no look any more (check_at_most_once).
    pub(super) checked: Option<Checked>,
    /// The digest of a block of zeroes (ignore_zero_blocks).
    pub(super) zeroes: Option<Digest>,
    pub(super) workers: Arc<Workers>,
}

impl Data {
    pub(super) fn map<'a>(self: &'a Arc<Self>, mut io: Io) -> MapOutcome<'a> {
        match io.op {
            Op::Flush => return MapOutcome::Kill(io, BlkStatus::Ok),
            Op::Read if !self.nodes.corruption.has_stopped() => {}
            _ => return MapOutcome::Kill(io, BlkStatus::IoErr),
        }
        io.sector -= self.begin;
        let block_sectors = Sector::from_bytes(self.block_bytes as u64).raw();
        // Aligned by the device's block size, unless the line begins between two blocks.
        if !(io.sector.raw() | io.sectors.raw()).is_multiple_of(block_sectors) {
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        let first = io.sector.raw() / block_sectors;
        self.prefetch(first, io.sectors.raw() / block_sectors);
        io.push_end_io(self.clone(), first);
        MapOutcome::Remapped(io, &self.device.dev)
    }

    /// Has the tree's blocks read for some data while the data itself is.
    fn prefetch(&self, first: u64, blocks: u64) {
        let is_checked = |block: u64| self.checked.as_ref().is_some_and(|c| c.contains(block));
        let geometry = &self.nodes.geometry;
        let ends = [first, first + blocks.saturating_sub(1)];
        let [from, to] = ends.map(|block| geometry.leaf_of(block));
        let (Some(from), Some(to)) = (from, to) else {
            return;
        };
        if ends.into_iter().all(is_checked) {
            return;
        }
        for nr in (from.nr..=to.nr).take(PREFETCHED_MAX) {
            self.nodes.prefetch(super::geometry::NodeId { nr, ..from });
        }
    }
}

/// A read has its data.
impl EndIo for Data {
    fn end_io(self: Arc<Self>, mut io: Io, first: u64, status: BlkStatus) {
        // With error correction a disk's error is corruption that shows in the digests.
        let unread = (!status.is_ok()).then_some(status);
        if let (Some(status), None) = (unread, &self.nodes.fec) {
            io.complete(status);
            return;
        }
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        if buf.len() > SHARED_BYTES && self.workers.count() > 0 && unread.is_none() {
            Batch::start(&self, io, buf, first);
            return;
        }
        let piece = Piece {
            data: self,
            buf,
            first,
            done: 0,
            unread,
            owner: Owner::Request(io),
        };
        piece.verify();
    }
}

/// A stretch of data of one request.
pub(super) struct Piece {
    data: Arc<Data>,
    buf: IoBuf,
    /// The number of its first block.
    first: u64,
    /// Bytes that have been verified.
    done: usize,
    /// The data could not be read: what is in the buffer counts only where it matches.
    unread: Option<BlkStatus>,
    owner: Owner,
}

/// Of some blocks.
enum Verdict {
    /// They may be seen.
    Right,
    Wrong,
    /// The block that comes next should have this digest.
    Repair(Digest),
}

enum Owner {
    Request(Io),
    /// Which piece of it this is.
    Batch(Arc<Batch>, usize),
}

impl Piece {
    /// Goes on until all is verified or a block of the tree is missing.
    fn verify(mut self) {
        loop {
            self.skip_checked();
            if self.done == self.buf.len() {
                return self.finish(BlkStatus::Ok);
            }
            let leaf = self.data.nodes.geometry.leaf_of(self.block());
            let verdict = match leaf {
                None => self.verify_under(None),
                Some(id) => {
                    let node = match self.data.nodes.cached(id) {
                        Some(node) => node,
                        None => {
                            let nodes = self.data.nodes.clone();
                            let Some((piece, node)) = nodes.wait(id, self) else {
                                return;
                            };
                            self = piece;
                            node
                        }
                    };
                    self.verify_under(Some(&node))
                }
            };
            match verdict {
                Verdict::Right => {}
                Verdict::Wrong => return self.finish(BlkStatus::IoErr),
                Verdict::Repair(expected) => return self.repair(expected),
            }
        }
    }

    fn repair(self, expected: Digest) {
        let nodes = self.data.nodes.clone();
        if let Some(fec) = &nodes.fec {
            fec.ask(Repair::Data(Box::new(self), expected));
        }
    }

    /// What error correction has made of the block that comes next, or nothing.
    pub(super) fn repaired(mut self, content: Option<Vec<u8>>) {
        let block = self.block();
        let from = self.done;
        self.done += self.data.block_bytes;
        if let Some(content) = content {
            self.buf.as_mut_slice()[from..self.done].copy_from_slice(&content);
        } else if let Some(status) = self.unread {
            return self.finish(status);
        } else if !self.data.nodes.corruption.note(Kind::Data, block) {
            return self.finish(BlkStatus::IoErr);
        }
        self.verify();
    }

    pub(super) fn nodes(&self) -> Arc<Nodes> {
        self.data.nodes.clone()
    }

    /// The block of the tree that it waited for is there.
    pub(super) fn go_on(mut self, found: Found) {
        match found {
            Err(status) => self.finish(status),
            Ok(node) => match self.verify_under(Some(&node)) {
                Verdict::Right => self.verify(),
                Verdict::Wrong => self.finish(BlkStatus::IoErr),
                Verdict::Repair(expected) => self.repair(expected),
            },
        }
    }

    /// The number of the block that comes next.
    pub(super) fn block(&self) -> u64 {
        self.first + (self.done / self.data.block_bytes) as u64
    }

    fn skip_checked(&mut self) {
        if let (Some(checked), None) = (&self.data.checked, self.unread) {
            while self.done < self.buf.len() && checked.contains(self.block()) {
                self.done += self.data.block_bytes;
            }
        }
    }

    /// Verifies the blocks whose digests are in `leaf`, or in the root hash.
    fn verify_under(&mut self, leaf: Option<&IoBuf>) -> Verdict {
        let Data {
            nodes,
            checked,
            zeroes,
            block_bytes,
            ..
        } = &*self.data;
        let leaf_id = nodes.geometry.leaf_of(self.block());
        loop {
            let block = self.block();
            if self.done == self.buf.len() || nodes.geometry.leaf_of(block) != leaf_id {
                return Verdict::Right;
            }
            let content = &mut self.buf.as_mut_slice()[self.done..self.done + block_bytes];
            self.done += block_bytes;
            let expected = match leaf {
                Some(leaf) => &leaf.as_slice()[nodes.geometry.digest_of(block)],
                None => nodes.root.as_slice(),
            };
            if zeroes.is_some_and(|zeroes| zeroes.as_slice() == expected) {
                content.fill(0);
            } else if checked.as_ref().is_some_and(|c| c.contains(block)) && self.unread.is_none() {
            } else if nodes.hasher.digest(content).as_slice() == expected {
                if let Some(checked) = checked {
                    checked.insert(block);
                }
            } else if nodes.fec.is_some() {
                let expected = Digest::new(expected);
                self.done -= block_bytes;
                return Verdict::Repair(expected);
            } else if !nodes.corruption.note(Kind::Data, block) {
                return Verdict::Wrong;
            }
        }
    }

    fn finish(self, status: BlkStatus) {
        match self.owner {
            Owner::Request(mut io) => {
                io.buf = self.buf;
                io.complete(status);
            }
            Owner::Batch(batch, index) => batch.done(index, self.buf, status),
        }
    }
}

/// A large request.
struct Batch {
    data: Arc<Data>,
    state: Mutex<BatchState>,
}

struct BatchState {
    /// Last piece first: number of its first block, data.
    todo: Vec<(u64, IoBuf)>,
    /// In order, `None` while not done.
    done: Vec<Option<IoBuf>>,
    left: usize,
    status: BlkStatus,
    io: Option<Io>,
}

impl Batch {
    fn start(data: &Arc<Data>, io: Io, mut buf: IoBuf, mut first: u64) {
        let mut todo = Vec::with_capacity(buf.len().div_ceil(PIECE_BYTES));
        while !buf.is_empty() {
            let bytes = PIECE_BYTES.min(buf.len());
            todo.push((first, buf.split_to(bytes)));
            first += (bytes / data.block_bytes) as u64;
        }
        todo.reverse();
        let pieces = todo.len();
        let batch = Arc::new(Self {
            data: data.clone(),
            state: Mutex::new(BatchState {
                done: todo.iter().map(|_| None).collect(),
                todo,
                left: pieces,
                status: BlkStatus::Ok,
                io: Some(io),
            }),
        });
        let helpers = data.workers.count().min(pieces.saturating_sub(1));
        let help = (0..helpers).map(|_| {
            let batch = batch.clone();
            Box::new(move || batch.work()) as Job
        });
        data.workers.share(help);
        batch.work();
    }

    /// Takes pieces until none is left to take.
    fn work(self: &Arc<Self>) {
        loop {
            let (index, first, buf) = {
                let mut state = self.state.lock();
                let Some((first, buf)) = state.todo.pop() else {
                    return;
                };
                (state.done.len() - state.todo.len() - 1, first, buf)
            };
            let piece = Piece {
                data: self.data.clone(),
                buf,
                first,
                done: 0,
                unread: None,
                owner: Owner::Batch(self.clone(), index),
            };
            piece.verify();
        }
    }

    fn done(&self, index: usize, buf: IoBuf, status: BlkStatus) {
        let finished = {
            let mut state = self.state.lock();
            state.done[index] = Some(buf);
            state.status = state.status.and(status);
            state.left -= 1;
            (state.left == 0).then(|| state.join()).flatten()
        };
        if let Some((io, status)) = finished {
            io.complete(status);
        }
    }
}

impl BatchState {
    /// The request with its buffer in one piece again.
    fn join(&mut self) -> Option<(Io, BlkStatus)> {
        let mut io = self.io.take()?;
        for piece in self.done.drain(..).flatten() {
            let joined = io.buf.unsplit(piece);
            debug_assert!(joined.is_ok(), "cut from one buffer");
        }
        Some((io, self.status))
    }
}

/// A bit for each data block.
pub(super) struct Checked(Vec<AtomicU64>);

impl Checked {
    /// `None` when there is no memory for it.
    pub(super) fn new(blocks: u64) -> Option<Self> {
        let words = usize::try_from(blocks.div_ceil(64)).ok()?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).ok()?;
        bits.resize_with(words, AtomicU64::default);
        Some(Self(bits))
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(block / 64).ok()?)
    }

    fn contains(&self, block: u64) -> bool {
        let bit = 1 << (block % 64);
        self.word(block).is_some_and(|w| w.load(Relaxed) & bit != 0)
    }

    fn insert(&self, block: u64) {
        if let Some(word) = self.word(block) {
            word.fetch_or(1 << (block % 64), Relaxed);
        }
    }
}

/// Requests up to here are not worth another thread's wake-up.
const SHARED_BYTES: usize = 64 << 10;
/// A multiple of every block size.
const PIECE_BYTES: usize = 32 << 10;
/// Blocks of the tree that are asked for before the data is there.
const PREFETCHED_MAX: usize = 16;
