//! Tags in memory: buffers of them, read when they are needed, written when the worker says so.
//!
//! INVARIANT: only the worker (or who stands in for it on a suspended line) writes buffers back, a round at a time, so writes of
//! one buffer never overtake each other. A buffer that is dirty, or that somebody holds, stays in memory.

use std::collections::{HashMap, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use arc_swap::ArcSwapOption;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use thinmap_block::{BlockDevice, EndIo, Io, IoFlags, Op, submit_all_and_wait};
use thinmap_runtime::{IoBuf, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::kept::Marks;

/// Memory for tags; more only while all of it is dirty or held.
const CACHE_BYTES: usize = 32 << 20;
/// Buffers looked at when room is made.
const EVICTION_TRIES: usize = 16;
/// Buffers written at once.
const WRITES: usize = 64;

/// See the module.
pub(super) struct Tags {
    device: Arc<dyn BlockDevice>,
    first: Sector,
    bytes: usize,
    /// What a write is a multiple of, in bytes.
    unit: usize,
    buffers_max: usize,
    /// Of a tag.
    tag_bytes: i64,
    state: Mutex<State>,
    dirty: AtomicUsize,
    /// Where it is noted which tags are only in memory.
    pub marks: ArcSwapOption<Marks>,
}

#[derive(Default)]
struct State {
    buffers: HashMap<u64, Slot>,
    /// In the order in which they came, for eviction.
    order: VecDeque<u64>,
    dirty: Vec<Arc<Buffer>>,
}

enum Slot {
    Here(Arc<Buffer>),
    /// Is being read; these wait.
    Coming(Vec<Arc<Gather>>),
}

/// A buffer of tags.
pub(super) struct Buffer {
    number: u64,
    content: Mutex<Content>,
}

struct Content {
    buf: IoBuf,
    /// What the device does not have yet; empty when it has all.
    dirty: Range<usize>,
    /// The blocks of tags that were dirty since all of them were written, and all blocks whose tags are here.
    marked: Option<(Range<u64>, Range<u64>)>,
}

/// Buffers one after another.
pub(super) type Buffers = SmallVec<[Arc<Buffer>; 2]>;
type Then = Box<dyn FnOnce(Result<Buffers, BlkStatus>) + Send>;

/// Waits for several buffers.
struct Gather(Mutex<Gathered>);

struct Gathered {
    first: u64,
    buffers: Vec<Option<Arc<Buffer>>>,
    left: usize,
    status: BlkStatus,
    then: Option<Then>,
}

impl Tags {
    /// Buffers of `1 << log2_sectors` sectors from `first` on.
    pub fn new(
        device: Arc<dyn BlockDevice>,
        (first, log2_sectors): (Sector, u8),
        tag_bytes: u32,
    ) -> Arc<Self> {
        let bytes = 512 << log2_sectors;
        let unit = (device.limits().logical_block_size as usize).min(bytes);
        Arc::new(Self {
            device,
            first,
            bytes,
            unit,
            buffers_max: (CACHE_BYTES / bytes).max(16),
            tag_bytes: tag_bytes.into(),
            state: Mutex::default(),
            dirty: AtomicUsize::new(0),
            marks: ArcSwapOption::empty(),
        })
    }

    /// Goes on with these buffers, at once when they are in memory, otherwise when they have been read.
    pub fn fetch(
        self: &Arc<Self>,
        numbers: RangeInclusive<u64>,
        then: impl FnOnce(Result<Buffers, BlkStatus>) + Send + 'static,
    ) {
        let mut state = self.state.lock();
        let mut here = Buffers::new();
        for number in numbers.clone() {
            let Some(Slot::Here(buffer)) = state.buffers.get(&number) else {
                break;
            };
            here.push(buffer.clone());
        }
        let count = (numbers.end() - numbers.start() + 1) as usize;
        if here.len() == count {
            drop(state);
            return then(Ok(here));
        }
        let mut gathered = Gathered {
            first: *numbers.start(),
            buffers: vec![None; count],
            left: 0,
            status: BlkStatus::Ok,
            then: Some(Box::new(then)),
        };
        let mut awaited = Vec::new();
        for (index, number) in numbers.enumerate() {
            match state.buffers.get(&number) {
                Some(Slot::Here(buffer)) => gathered.buffers[index] = Some(buffer.clone()),
                _ => awaited.push(number),
            }
        }
        gathered.left = awaited.len();
        let gather = Arc::new(Gather(Mutex::new(gathered)));
        awaited.retain(|number| match state.buffers.get_mut(number) {
            Some(Slot::Coming(waiting)) => {
                waiting.push(gather.clone());
                false
            }
            _ => {
                let waiting = vec![gather.clone()];
                state.buffers.insert(*number, Slot::Coming(waiting));
                true
            }
        });
        drop(state);
        for number in awaited {
            let buf = IoBuf::alloc(self.bytes);
            let io = Io::read(self.sector_of(number), buf, self.clone(), number);
            self.device.submit(io);
        }
    }

    /// Begins to fetch buffers for somebody who may wait for them.
    pub fn begin(self: &Arc<Self>, numbers: RangeInclusive<u64>) -> Fetching {
        let fetching = Fetching(Arc::default());
        let told = fetching.0.clone();
        self.fetch(numbers, move |got| {
            *told.0.lock() = Some(got);
            told.1.notify_all();
        });
        fetching
    }

    fn sector_of(&self, number: u64) -> Sector {
        self.first + Sector::from_bytes(number.saturating_mul(self.bytes as u64))
    }

    /// Copies tags from byte `offset` of the first buffer on.
    pub fn get(&self, buffers: &Buffers, offset: usize, tags: &mut [u8]) {
        self.each_part(buffers, offset, tags.len(), |buffer, at, part| {
            let content = buffer.content.lock();
            tags[part].copy_from_slice(&content.buf.as_slice()[at]);
        });
    }

    /// Sets the tags of blocks from number `block` of the line on, from byte `offset` of the first buffer on.
    pub fn set(&self, buffers: &Buffers, (block, offset): (u64, usize), tags: &[u8]) {
        let marks = self.marks.load();
        self.each_part(buffers, offset, tags.len(), |buffer, at, part| {
            let mut content = buffer.content.lock();
            let Content { buf, dirty, marked } = &mut *content;
            let place = &mut buf.as_mut_slice()[at.start..at.end];
            if *place == tags[part.clone()] {
                return;
            }
            if let Some(marks) = &*marks {
                let (of_part, of_buffer) = self.blocks_of(block, &at, &part);
                // First: the data follow.
                marks.set(&of_part);
                let before = marked.take().map_or(of_part.clone(), |(before, _)| before);
                let all = before.start.min(of_part.start)..before.end.max(of_part.end);
                *marked = Some((all, of_buffer));
            }
            place.copy_from_slice(&tags[part]);
            let was_clean = dirty.start == dirty.end;
            *dirty = match was_clean {
                true => at,
                false => dirty.start.min(at.start)..dirty.end.max(at.end),
            };
            drop(content);
            if was_clean {
                self.state.lock().dirty.push(buffer.clone());
                self.dirty.fetch_add(1, SeqCst);
            }
        });
    }

    /// Blocks that a part of tags belongs to, whole or not, when the first tag is that of `block`; and blocks whose tags are in
    /// that buffer as a whole.
    fn blocks_of(
        &self,
        block: u64,
        at: &Range<usize>,
        part: &Range<usize>,
    ) -> (Range<u64>, Range<u64>) {
        let size = self.tag_bytes;
        let of_part = block + part.start as u64 / size as u64
            ..block + (part.end as u64).div_ceil(size as u64);
        let begin = part.start as i64 - at.start as i64;
        let first = block as i64 - (-begin).div_euclid(size);
        let last = block as i64 + (begin + self.bytes as i64).div_euclid(size);
        (of_part, first.max(0) as u64..last.max(0) as u64)
    }

    fn each_part(
        &self,
        buffers: &Buffers,
        offset: usize,
        len: usize,
        mut each: impl FnMut(&Arc<Buffer>, Range<usize>, Range<usize>),
    ) {
        let (mut at, mut done) = (offset, 0);
        for buffer in buffers {
            let part = (self.bytes - at).min(len - done);
            each(buffer, at..at + part, done..done + part);
            done += part;
            at = 0;
        }
        debug_assert_eq!(done, len, "as many buffers as tags need");
    }

    /// Whether so much is dirty that it should be written without being asked for.
    pub fn is_crowded(&self) -> bool {
        self.dirty.load(SeqCst) > self.buffers_max / 2
    }

    /// Writes what is dirty, and waits. No flush.
    pub fn write_dirty(&self) -> BlkStatus {
        let mut dirty = std::mem::take(&mut self.state.lock().dirty);
        self.dirty.fetch_sub(dirty.len(), SeqCst);
        dirty.sort_unstable_by_key(|buffer| buffer.number);
        let mut result = BlkStatus::Ok;
        for some in dirty.chunks(WRITES) {
            let requests = some.iter().map(|buffer| {
                let mut content = buffer.content.lock();
                let dirty = std::mem::replace(&mut content.dirty, 0..0);
                let start = dirty.start / self.unit * self.unit;
                let end = dirty.end.next_multiple_of(self.unit).min(self.bytes);
                let mut buf = IoBuf::alloc(end - start);
                buf.as_mut_slice()
                    .copy_from_slice(&content.buf.as_slice()[start..end]);
                let sector = self.sector_of(buffer.number) + Sector::from_bytes(start as u64);
                let sectors = Sector::from_bytes(buf.len() as u64);
                (Op::Write, IoFlags::default(), sector, sectors, buf)
            });
            let ended = submit_all_and_wait(&*self.device, requests.collect());
            result = ended
                .iter()
                .fold(result, |first, (_, status)| first.and(*status));
            if result.is_ok() {
                some.iter().for_each(|buffer| self.unmark(buffer));
            }
        }
        result
    }
}

impl Tags {
    /// All of a buffer has been written, unless it is dirty again.
    fn unmark(&self, buffer: &Buffer) {
        let mut content = buffer.content.lock();
        if content.dirty.start == content.dirty.end
            && let Some((blocks, whole)) = content.marked.take()
            && let Some(marks) = &*self.marks.load()
        {
            marks.clear(&blocks, &whole);
        }
    }
}

impl State {
    fn make_room(&mut self, max: usize) {
        for _ in 0..EVICTION_TRIES {
            if self.order.len() <= max {
                return;
            }
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            match self.buffers.get(&oldest) {
                // Nobody else can get hold of it: this is behind the lock.
                Some(Slot::Here(buffer)) if Arc::strong_count(buffer) == 1 => {
                    self.buffers.remove(&oldest);
                }
                _ => self.order.push_back(oldest),
            }
        }
    }
}

/// A buffer has been read.
impl EndIo for Tags {
    fn end_io(self: Arc<Self>, mut io: Io, number: u64, status: BlkStatus) {
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        let mut state = self.state.lock();
        let waiting = match state.buffers.remove(&number) {
            Some(Slot::Coming(waiting)) => waiting,
            _ => Vec::new(),
        };
        let content = Mutex::new(Content {
            buf,
            dirty: 0..0,
            marked: None,
        });
        let buffer = Arc::new(Buffer { number, content });
        if status.is_ok() {
            state.make_room(self.buffers_max);
            state.buffers.insert(number, Slot::Here(buffer.clone()));
            state.order.push_back(number);
        }
        drop(state);
        for gather in waiting {
            gather.came(&buffer, status);
        }
    }
}

impl Gather {
    fn came(&self, buffer: &Arc<Buffer>, status: BlkStatus) {
        let mut gathered = self.0.lock();
        let index = (buffer.number - gathered.first) as usize;
        gathered.buffers[index] = Some(buffer.clone());
        gathered.status = gathered.status.and(status);
        gathered.left -= 1;
        if gathered.left > 0 {
            return;
        }
        let status = gathered.status;
        let buffers = std::mem::take(&mut gathered.buffers);
        let then = gathered.then.take();
        drop(gathered);
        let buffers = buffers.into_iter().flatten().collect();
        if let Some(then) = then {
            then(if status.is_ok() {
                Ok(buffers)
            } else {
                Err(status)
            });
        }
    }
}

/// Buffers that are on their way.
pub(super) struct Fetching(Arc<(Mutex<Option<Result<Buffers, BlkStatus>>>, Condvar)>);

impl Fetching {
    /// Waits for them: for threads that may.
    pub fn wait(self) -> Result<Buffers, BlkStatus> {
        let (got, came) = &*self.0;
        while got.lock().is_none() && simulate(Waiting::ForDevices) {}
        let mut got = got.lock();
        loop {
            if let Some(got) = got.take() {
                return got;
            }
            came.wait(&mut got);
        }
    }
}
