//! Copies and zeroes stretches of a device in bounded pieces, asynchronously, with buffers made ahead.
//!
//! A request fills one stretch of the destination from a list of sources (another device's sectors, or zeroes) and may
//! carry a guest's own write as an *overlay*: its bytes replace the sources' where they meet, so that
//! breaking sharing or provisioning and the guest's write are one write to the medium.
//!
//! INVARIANT: at most the pool's number of pieces is in flight; further ones wait for a buffer in order. Steps run
//! on one thread at a time in a loop, never nested, so devices that complete inside `submit` cannot exhaust the stack.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, EndIo, Io, Op};
use thinmap_runtime::{BufferPool, IoBuf};
use thinmap_units::{BlkStatus, Sector};

/// Where a stretch of the destination comes from.
#[derive(Clone)]
pub enum CopySource {
    /// From this device, starting at this sector.
    Device(Arc<dyn BlockDevice>, Sector),
    /// Zeroes.
    Zeroes,
}

/// A guest's write (or write-zeroes) laid over the sources.
pub struct Overlay {
    /// Where it begins, counted from the destination's begin.
    pub offset: Sector,
    /// The guest's request; given back, not completed.
    pub io: Io,
}

/// What to do.
pub struct CopyRequest {
    /// Device written to.
    pub to: Arc<dyn BlockDevice>,
    /// First sector written.
    pub to_sector: Sector,
    /// Lengths and sources, in order, one after another.
    pub segments: Vec<(Sector, CopySource)>,
    /// A guest's write on top.
    pub overlay: Option<Overlay>,
}

/// Told once when a request has ended, with the overlay's request. On any thread; must not block.
pub type CopyDone = Box<dyn FnOnce(BlkStatus, Option<Io>) + Send>;

/// The engine of one pool. Cheap to clone.
#[derive(Clone)]
pub struct Copier {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    buffers: BufferPool,
    piece: Sector,
}

#[derive(Default)]
struct State {
    jobs: Slots<Job>,
    pieces: Slots<Piece>,
    /// Jobs with pieces not yet started.
    queue: VecDeque<usize>,
    /// Pieces whose latest I/O has ended.
    ended: VecDeque<(usize, Io, BlkStatus)>,
    stepping: bool,
}

struct Job {
    request: CopyRequest,
    segment: usize,
    /// Sectors of `segment` started already.
    segment_done: Sector,
    /// Sectors of all earlier segments.
    base: Sector,
    in_flight: u32,
    status: BlkStatus,
    done: CopyDone,
}

struct Piece {
    job: usize,
    /// From the destination's begin.
    offset: Sector,
    reading: bool,
    /// The unused end of the buffer, kept so that the whole goes back to the pool at once.
    _rest: IoBuf,
}

enum Step {
    Submit(Arc<dyn BlockDevice>, Io),
    Finish(CopyDone, BlkStatus, Option<Io>),
}

impl Copier {
    /// An engine with `buffers` buffers of `piece` each, made now.
    pub fn new(piece: Sector, buffers: usize) -> Self {
        let bytes = usize::try_from(piece.bytes()).expect("a piece fits memory");
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                buffers: BufferPool::new(buffers, bytes),
                piece,
            }),
        }
    }

    /// Begins a request; `done` is told of its end, maybe before this returns.
    pub fn start(&self, mut request: CopyRequest, done: CopyDone) {
        if let Some(status) = copy_inside(&mut request) {
            return done(status, request.overlay.map(|o| o.io));
        }
        let mut state = self.shared.state.lock();
        let job = state.jobs.insert(Job {
            request,
            segment: 0,
            segment_done: Sector::ZERO,
            base: Sector::ZERO,
            in_flight: 0,
            status: BlkStatus::Ok,
            done,
        });
        state.queue.push_back(job);
        drop(state);
        self.shared.run();
    }
}

/// Has the device itself copy, where it can (see [`BlockDevice::copy_range`]), and writes the overlay behind that.
/// `None`: it cannot, and nothing was done that the usual way would not do over.
fn copy_inside(request: &mut CopyRequest) -> Option<BlkStatus> {
    let [(len, CopySource::Device(from, sector))] = request.segments.as_slice() else {
        return None;
    };
    let overlay = request.overlay.as_mut()?;
    let to = &request.to;
    if !to.is_synchronous() || !Arc::ptr_eq(from, to) || overlay.io.op != Op::Write {
        return None;
    }
    // What the overlay covers need not be copied.
    let behind = overlay.offset + overlay.io.sectors;
    for (at, end) in [(Sector::ZERO, overlay.offset), (behind, *len)] {
        if at < end {
            let copied = to.copy_range(*sector + at, request.to_sector + at, end - at);
            copied.ok()?;
        }
    }
    let buf = std::mem::replace(&mut overlay.io.buf, IoBuf::empty());
    let (buf, status) = thinmap_block::write(&**to, request.to_sector + overlay.offset, buf);
    overlay.io.buf = buf;
    Some(status)
}

impl Shared {
    /// Takes steps until there is nothing to do without waiting. Only one thread does so at a time.
    fn run(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.stepping {
            return;
        }
        state.stepping = true;
        let mut panic = None;
        while let Some(step) = self.next_step(&mut state) {
            drop(state);
            let taken = catch_unwind(AssertUnwindSafe(|| match step {
                Step::Submit(dev, io) => dev.submit(io),
                Step::Finish(done, status, io) => done(status, io),
            }));
            // A device's panic has failed its request, and must not keep the other copies from their ends.
            panic = panic.or(taken.err());
            state = self.state.lock();
        }
        state.stepping = false;
        drop(state);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn next_step(self: &Arc<Self>, state: &mut State) -> Option<Step> {
        while let Some((piece, io, status)) = state.ended.pop_front() {
            if let Some(step) = self.piece_ended(state, piece, io, status) {
                return Some(step);
            }
        }
        self.start_piece(state)
    }

    fn piece_ended(
        self: &Arc<Self>,
        state: &mut State,
        index: usize,
        mut io: Io,
        status: BlkStatus,
    ) -> Option<Step> {
        let piece = state.pieces.get_mut(index);
        let job = state.jobs.get_mut(piece.job);
        if status.is_ok() && piece.reading && job.status.is_ok() {
            piece.reading = false;
            let mut buf = std::mem::replace(&mut io.buf, IoBuf::empty());
            overlay_onto(&mut buf, piece.offset, job.request.overlay.as_ref());
            let sector = job.request.to_sector + piece.offset;
            let write = Io::write(sector, buf, self.clone(), index as u64);
            return Some(Step::Submit(job.request.to.clone(), write));
        }
        job.status = job.status.and(status);
        job.in_flight -= 1;
        let job_index = piece.job;
        drop(io);
        state.pieces.remove(index);
        finish_if_done(state, job_index)
    }

    fn start_piece(self: &Arc<Self>, state: &mut State) -> Option<Step> {
        loop {
            let &index = state.queue.front()?;
            let job = state.jobs.get_mut(index);
            let Some((total, source)) = job.segment_now() else {
                state.queue.pop_front();
                if let Some(step) = finish_if_done(state, index) {
                    return Some(step);
                }
                continue;
            };
            let left = total - job.segment_done;
            let offset = job.base + job.segment_done;
            let plain = match &job.request.overlay {
                Some(o) if offset < o.offset => left.min(o.offset - offset),
                Some(o) if offset < o.offset + o.io.sectors => Sector::ZERO,
                _ => left,
            };
            if matches!(source, CopySource::Zeroes) && plain > self.piece {
                return Some(self.zero_directly(state, index, offset, plain));
            }
            let len = left.min(self.piece);
            let mut buf = self.buffers.take()?;
            let rest = {
                let bytes = usize::try_from(len.bytes()).expect("not longer than a piece");
                let head = buf.split_to(bytes);
                std::mem::replace(&mut buf, head)
            };
            job.segment_done += len;
            job.in_flight += 1;
            let reading = matches!(source, CopySource::Device(..));
            let (to, to_sector) = (job.request.to.clone(), job.request.to_sector + offset);
            if !reading {
                buf.as_mut_slice().fill(0);
                overlay_onto(&mut buf, offset, job.request.overlay.as_ref());
            }
            let segment_at = len_before(job, len);
            let piece = state.pieces.insert(Piece {
                job: index,
                offset,
                reading,
                _rest: rest,
            });
            return Some(match source {
                CopySource::Device(dev, from) => {
                    let read = Io::read(from + segment_at, buf, self.clone(), piece as u64);
                    Step::Submit(dev, read)
                }
                CopySource::Zeroes => {
                    let write = Io::write(to_sector, buf, self.clone(), piece as u64);
                    Step::Submit(to, write)
                }
            });
        }
    }

    /// A long stretch of zeroes needs no buffer: the device writes them itself.
    fn zero_directly(
        self: &Arc<Self>,
        state: &mut State,
        index: usize,
        offset: Sector,
        len: Sector,
    ) -> Step {
        let job = state.jobs.get_mut(index);
        job.segment_done += len;
        job.in_flight += 1;
        let (to, sector) = (job.request.to.clone(), job.request.to_sector + offset);
        let piece = state.pieces.insert(Piece {
            job: index,
            offset,
            reading: false,
            _rest: IoBuf::empty(),
        });
        let mut io = Io::new(
            Op::WriteZeroes,
            sector,
            len,
            IoBuf::empty(),
            self.clone(),
            piece as u64,
        );
        io.flags.no_unmap = true;
        Step::Submit(to, io)
    }
}

impl Job {
    /// The segment to go on with; `None` when all have been started or the job has failed.
    fn segment_now(&mut self) -> Option<(Sector, CopySource)> {
        if !self.status.is_ok() {
            return None;
        }
        while let Some((len, source)) = self.request.segments.get(self.segment) {
            if self.segment_done < *len {
                return Some((*len, source.clone()));
            }
            self.base += *len;
            self.segment += 1;
            self.segment_done = Sector::ZERO;
        }
        None
    }
}

/// How far into its segment the piece of `len` begins that was just counted as started.
fn len_before(job: &Job, len: Sector) -> Sector {
    job.segment_done - len
}

fn finish_if_done(state: &mut State, index: usize) -> Option<Step> {
    let job = state.jobs.get_mut(index);
    if job.in_flight > 0 || state.queue.contains(&index) {
        return None;
    }
    let job = state.jobs.remove(index);
    let io = job.request.overlay.map(|o| o.io);
    Some(Step::Finish(job.done, job.status, io))
}

fn overlay_onto(buf: &mut IoBuf, offset: Sector, overlay: Option<&Overlay>) {
    let Some(overlay) = overlay else { return };
    let end = offset + Sector::from_bytes(buf.len() as u64);
    let begin_both = offset.max(overlay.offset);
    let end_both = end.min(overlay.offset + overlay.io.sectors);
    if begin_both >= end_both {
        return;
    }
    let bytes = |s: Sector| usize::try_from(s.bytes()).expect("inside a buffer");
    let to = bytes(begin_both - offset)..bytes(end_both - offset);
    let into = &mut buf.as_mut_slice()[to];
    if overlay.io.op == Op::WriteZeroes {
        into.fill(0);
    } else {
        let from = bytes(begin_both - overlay.offset)..bytes(end_both - overlay.offset);
        into.copy_from_slice(&overlay.io.buf.as_slice()[from]);
    }
}

impl EndIo for Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let piece = usize::try_from(tag).expect("tags are indices");
        self.state.lock().ended.push_back((piece, io, status));
        self.run();
    }
}

/// A vector with holes: indices stay the same while others come and go.
struct Slots<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    fn insert(&mut self, item: T) -> usize {
        if let Some(index) = self.free.pop() {
            self.items[index] = Some(item);
            return index;
        }
        self.items.push(Some(item));
        self.items.len() - 1
    }

    fn get_mut(&mut self, index: usize) -> &mut T {
        self.items[index].as_mut().expect("the index is in use")
    }

    fn remove(&mut self, index: usize) -> T {
        self.free.push(index);
        self.items[index].take().expect("the index is in use")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use thinmap_block::backing::MemoryDevice;
    use thinmap_block::{QueueLimits, read, write};

    use super::*;

    struct Ignore;
    impl EndIo for Ignore {
        fn end_io(self: Arc<Self>, _io: Io, _tag: u64, _status: BlkStatus) {}
    }

    fn filled(size: u64, byte: u8) -> Arc<dyn BlockDevice> {
        let dev = MemoryDevice::new(Sector(size));
        let mut buf = IoBuf::alloc((size * 512) as usize);
        buf.as_mut_slice().fill(byte);
        assert!(write(&dev, Sector(0), buf).1.is_ok());
        Arc::new(dev)
    }

    fn run(copier: &Copier, request: CopyRequest) -> (BlkStatus, Option<Io>) {
        let (tx, rx) = mpsc::channel();
        copier.start(request, Box::new(move |s, io| drop(tx.send((s, io)))));
        rx.recv().expect("told of the end")
    }

    fn guest(sectors: u64, byte: u8) -> Io {
        let mut buf = IoBuf::alloc((sectors * 512) as usize);
        buf.as_mut_slice().fill(byte);
        Io::write(Sector(999), buf, Arc::new(Ignore), 0)
    }

    fn bytes_at(dev: &dyn BlockDevice, sector: u64, sectors: u64) -> Vec<u8> {
        let (buf, status) = read(dev, Sector(sector), IoBuf::alloc((sectors * 512) as usize));
        assert!(status.is_ok());
        buf.as_slice().to_vec()
    }

    #[test]
    fn sources_and_overlay_join_into_one_image() {
        let (from, to) = (filled(4096, 7), filled(4096, 9));
        // Pieces of 8 sectors and one buffer: everything is cut and everything waits.
        let copier = Copier::new(Sector(8), 1);
        let (status, io) = run(
            &copier,
            CopyRequest {
                to: to.clone(),
                to_sector: Sector(100),
                segments: vec![
                    (Sector(50), CopySource::Device(from, Sector(3))),
                    (Sector(70), CopySource::Zeroes),
                ],
                overlay: Some(Overlay {
                    offset: Sector(45),
                    io: guest(10, 5),
                }),
            },
        );
        assert_eq!(status, BlkStatus::Ok);
        io.expect("the guest's request").complete(BlkStatus::Ok);
        let image = bytes_at(&*to, 99, 122);
        let expect = [
            (0, 9),
            (1, 7),
            (45, 7),
            (46, 5),
            (55, 5),
            (56, 0),
            (120, 0),
            (121, 9),
        ];
        for (sector, byte) in expect {
            assert_eq!(image[sector * 512], byte, "sector {sector}");
            assert_eq!(image[sector * 512 + 511], byte, "sector {sector}");
        }
    }

    #[test]
    fn a_long_copy_on_a_synchronous_device_does_not_nest() {
        let (from, to) = (filled(65536, 1), filled(65536, 0));
        let copier = Copier::new(Sector(1), 2);
        let request = CopyRequest {
            to: to.clone(),
            to_sector: Sector(0),
            segments: vec![(Sector(65536), CopySource::Device(from, Sector(0)))],
            overlay: None,
        };
        assert_eq!(run(&copier, request).0, BlkStatus::Ok);
        assert!(bytes_at(&*to, 0, 65536).iter().all(|b| *b == 1));
    }

    /// Panics on requests beyond its first sectors.
    struct Panics(Arc<dyn BlockDevice>);

    impl BlockDevice for Panics {
        fn limits(&self) -> QueueLimits {
            self.0.limits()
        }

        fn size(&self) -> Sector {
            self.0.size()
        }

        fn submit(&self, io: Io) {
            assert!(io.sector < Sector(8), "a device's fault");
            self.0.submit(io);
        }
    }

    #[test]
    fn a_device_that_panics_fails_its_copy_and_no_other() {
        let from: Arc<dyn BlockDevice> = Arc::new(Panics(filled(64, 1)));
        let to = filled(64, 0);
        let copier = Copier::new(Sector(8), 1);
        let request = |at: u64| CopyRequest {
            to: to.clone(),
            to_sector: Sector(0),
            segments: vec![(Sector(8), CopySource::Device(from.clone(), Sector(at)))],
            overlay: None,
        };
        let panicked = catch_unwind(AssertUnwindSafe(|| run(&copier, request(8))));
        assert!(panicked.is_err(), "its thread hears of it");
        assert_eq!(run(&copier, request(0)).0, BlkStatus::Ok);
    }

    #[test]
    fn a_failed_read_ends_the_request_and_gives_the_buffers_back() {
        let (short, to) = (filled(8, 1), filled(64, 0));
        let copier = Copier::new(Sector(8), 1);
        for _ in 0..3 {
            let request = CopyRequest {
                to: to.clone(),
                to_sector: Sector(0),
                segments: vec![(Sector(64), CopySource::Device(short.clone(), Sector(0)))],
                overlay: None,
            };
            assert_eq!(run(&copier, request).0, BlkStatus::IoErr);
        }
    }
}
