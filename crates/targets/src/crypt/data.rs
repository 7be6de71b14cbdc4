//! Requests on their way through the cipher.
//!
//! A write is encrypted into a buffer of ours, never in place: its own buffer may be written again (held over a suspend,
//! sent to several devices). A read is decrypted in place once its data is there. Requests above [`SHARED_BYTES`] are
//! cut in pieces that the bringing thread and the crypt workers take in turn; whoever ends the last sends the whole on.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use thinmap_block::{EndIo, Io, Op};
use thinmap_dm::{DeviceUse, MapOutcome};
use thinmap_runtime::{BufferPool, IoBuf, SecretSome, scrub_stack};
use thinmap_units::{BlkStatus, Sector};

use super::engine::{Engine, STACK_BYTES};
use super::features::Features;
use crate::workers::{Job, Workers};

/// What requests need to know of a mapping.
pub(super) struct Data {
    pub(super) begin: Sector,
    pub(super) start: Sector,
    pub(super) iv_offset: u64,
    pub(super) device: DeviceUse,
    pub(super) features: Features,
    pub(super) engine: Arc<ArcSwapOption<SecretSome<Engine>>>,
    pub(super) workers: Arc<Workers>,
    pub(super) buffers: Arc<Buffers>,
}

impl Data {
    pub(super) fn map<'a>(self: &'a Arc<Self>, mut io: Io) -> MapOutcome<'a> {
        if io.op == Op::Flush {
            return MapOutcome::Remapped(io, &self.device.dev);
        }
        let offset = (io.sector - self.begin).raw();
        io.sector = Sector(offset.wrapping_add(self.start.raw()));
        match io.op {
            Op::Flush | Op::Discard => MapOutcome::Remapped(io, &self.device.dev),
            // The limits say that there are none; zeroes below would not be zeroes here.
            Op::WriteZeroes => MapOutcome::Kill(io, BlkStatus::NotSupp),
            // Aligned by the device's block size, unless the line begins between two blocks.
            _ if !(offset | io.sectors.raw()).is_multiple_of(self.features.sectors.sectors()) => {
                MapOutcome::Kill(io, BlkStatus::IoErr)
            }
            Op::Read => {
                io.push_end_io(self.clone(), offset.wrapping_add(self.iv_offset));
                MapOutcome::Remapped(io, &self.device.dev)
            }
            Op::Write => self.write(io, offset.wrapping_add(self.iv_offset)),
        }
    }

    /// `first` counts as initial vectors do.
    fn write(self: &Arc<Self>, mut io: Io, first: u64) -> MapOutcome<'_> {
        let features = self.features;
        let alone = features.no_write_workqueue || features.same_cpu_crypt;
        let cipher = self.buffers.take(io.buf.len());
        let plain = std::mem::replace(&mut io.buf, IoBuf::empty());
        if !alone && self.is_worth_sharing(plain.len()) {
            Batch::start(self, io, Direction::Encrypt, plain, cipher, first);
            return MapOutcome::Submitted;
        }
        let mut piece = Piece {
            plain,
            cipher,
            first,
        };
        if !self.encrypt(&mut piece) {
            io.buf = piece.plain;
            return MapOutcome::Kill(io, BlkStatus::IoErr);
        }
        seal(&mut io, piece.plain, piece.cipher);
        MapOutcome::Remapped(io, &self.device.dev)
    }

    fn is_worth_sharing(&self, bytes: usize) -> bool {
        bytes > SHARED_BYTES && self.workers.count() > 0
    }

    fn encrypt(&self, piece: &mut Piece) -> bool {
        let engine = self.engine.load();
        if let Some(engine) = &*engine {
            engine.encrypt(
                piece.plain.as_slice(),
                piece.cipher.as_mut_slice(),
                piece.first,
            );
            scrub_stack::<STACK_BYTES>();
        }
        engine.is_some()
    }

    fn decrypt(&self, piece: &mut Piece) -> bool {
        let engine = self.engine.load();
        if let Some(engine) = &*engine {
            engine.decrypt(piece.plain.as_mut_slice(), piece.first);
            scrub_stack::<STACK_BYTES>();
        }
        engine.is_some()
    }
}

/// A read has its data.
impl EndIo for Data {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        if !status.is_ok() {
            io.complete(status);
            return;
        }
        let plain = std::mem::replace(&mut io.buf, IoBuf::empty());
        let features = self.features;
        let alone = features.no_read_workqueue || features.same_cpu_crypt;
        if !alone && self.is_worth_sharing(plain.len()) {
            Batch::start(&self, io, Direction::Decrypt, plain, IoBuf::empty(), tag);
            return;
        }
        let mut piece = Piece {
            plain,
            cipher: IoBuf::empty(),
            first: tag,
        };
        let done = self.decrypt(&mut piece);
        io.buf = piece.plain;
        io.complete(if done {
            BlkStatus::Ok
        } else {
            BlkStatus::IoErr
        });
    }
}

/// Gives a write its encrypted data, and has it get its own back at its end.
fn seal(io: &mut Io, plain: IoBuf, cipher: IoBuf) {
    io.buf = cipher;
    io.push_end_io(Arc::new(Sealed(Mutex::new(plain))), 0);
}

struct Sealed(Mutex<IoBuf>);

impl EndIo for Sealed {
    fn end_io(self: Arc<Self>, mut io: Io, _: u64, status: BlkStatus) {
        io.buf = std::mem::replace(&mut *self.0.lock(), IoBuf::empty());
        io.complete(status);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

struct Piece {
    plain: IoBuf,
    /// Empty when decrypting.
    cipher: IoBuf,
    first: u64,
}

/// A large request on its way through the cipher.
struct Batch {
    data: Arc<Data>,
    direction: Direction,
    state: Mutex<BatchState>,
}

struct BatchState {
    /// Last piece first.
    todo: Vec<Piece>,
    /// In order, `None` while not done.
    done: Vec<Option<Piece>>,
    left: usize,
    ok: bool,
    io: Option<Io>,
}

impl Batch {
    fn start(
        data: &Arc<Data>,
        io: Io,
        direction: Direction,
        mut plain: IoBuf,
        mut cipher: IoBuf,
        mut first: u64,
    ) {
        let mut todo = Vec::with_capacity(plain.len().div_ceil(PIECE_BYTES));
        while !plain.is_empty() {
            let bytes = PIECE_BYTES.min(plain.len());
            todo.push(Piece {
                plain: plain.split_to(bytes),
                cipher: cipher.split_to(bytes.min(cipher.len())),
                first,
            });
            first = first.wrapping_add(Sector::from_bytes(bytes as u64).raw());
        }
        todo.reverse();
        let pieces = todo.len();
        let batch = Arc::new(Self {
            data: data.clone(),
            direction,
            state: Mutex::new(BatchState {
                done: todo.iter().map(|_| None).collect(),
                todo,
                left: pieces,
                ok: true,
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

    /// Works on pieces until none is left to take; sends the request on after the last.
    fn work(&self) {
        loop {
            let (index, mut piece) = {
                let mut state = self.state.lock();
                let Some(piece) = state.todo.pop() else {
                    return;
                };
                (state.done.len() - state.todo.len() - 1, piece)
            };
            let ok = match self.direction {
                Direction::Encrypt => self.data.encrypt(&mut piece),
                Direction::Decrypt => self.data.decrypt(&mut piece),
            };
            let finished = {
                let mut state = self.state.lock();
                state.done[index] = Some(piece);
                state.ok &= ok;
                state.left -= 1;
                (state.left == 0).then(|| state.join()).flatten()
            };
            if let Some((io, whole, ok)) = finished {
                self.finish(io, whole, ok);
                return;
            }
        }
    }

    fn finish(&self, mut io: Io, whole: Piece, ok: bool) {
        if self.direction == Direction::Encrypt && ok {
            seal(&mut io, whole.plain, whole.cipher);
            self.data.device.dev.submit(io);
            return;
        }
        io.buf = whole.plain;
        io.complete(if ok { BlkStatus::Ok } else { BlkStatus::IoErr });
    }
}

impl BatchState {
    /// The request and its buffers in one piece again.
    fn join(&mut self) -> Option<(Io, Piece, bool)> {
        let mut whole = Piece {
            plain: IoBuf::empty(),
            cipher: IoBuf::empty(),
            first: 0,
        };
        for piece in self.done.drain(..).flatten() {
            let joined = [
                whole.plain.unsplit(piece.plain),
                whole.cipher.unsplit(piece.cipher),
            ];
            debug_assert!(joined.iter().all(Result::is_ok), "cut from one buffer");
        }
        Some((self.io.take()?, whole, self.ok))
    }
}

/// Buffers for encrypted data, of a few sizes, shared by all crypt devices.
pub(super) struct Buffers([BufferPool; 4]);

impl Default for Buffers {
    fn default() -> Self {
        // A buffer of another size is fresh memory, page by page: that costs more than its encryption.
        let pools = [
            (256, 4 << 10),
            (32, 64 << 10),
            (16, 256 << 10),
            (8, 1 << 20),
        ];
        Self(pools.map(|(count, bytes)| BufferPool::new(count, bytes)))
    }
}

impl Buffers {
    fn take(&self, bytes: usize) -> IoBuf {
        let fits = |pool: &&BufferPool| pool.buffer_bytes() >= bytes;
        match self.0.iter().find(fits) {
            Some(pool) => pool.take_or_alloc().split_to(bytes),
            None => IoBuf::alloc(bytes),
        }
    }
}

/// Requests up to here are not worth another thread's wake-up.
const SHARED_BYTES: usize = 256 << 10;
const PIECE_BYTES: usize = 128 << 10;
