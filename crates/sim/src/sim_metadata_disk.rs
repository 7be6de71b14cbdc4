//! A simulated metadata device: sparse memory, a record of every write and flush, faults on demand,
//! and the images that a power cut could leave.
//!
//! The fault model is the one that `MetadataDevice` documents: what was flushed stays; of what was
//! not, each 512-byte sector independently holds any of the contents it was given since the last
//! flush, or the one before. [`Loss`] picks the corner cases and random mixtures of that.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use thinmap_persistent_data::{Block4k, MetadataDevice};
use thinmap_units::MetaBlock;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

type Bytes = Arc<[u8; BLOCK]>;
type Image = BTreeMap<u64, Bytes>;

/// One recorded operation.
#[derive(Clone)]
enum Event {
    Write(u64, Bytes),
    Flush,
}

/// What a power cut does to writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of them are lost.
    DropAll,
    /// None of them is lost.
    KeepAll,
    /// Each write as a whole is kept or lost by chance.
    DropSome,
    /// Each sector of each write is kept or lost by chance.
    Tear,
}

impl Loss {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::DropAll, Self::KeepAll, Self::DropSome, Self::Tear];
}

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation with this number (counted from when the fault is set) fails, once.
    Once(u64),
    /// That operation and all later ones fail.
    From(u64),
    /// Writes and flushes fail from that operation on, reads still work.
    WritesFrom(u64),
}

#[derive(Default)]
struct State {
    blocks: u64,
    image: Image,
    /// The image when recording began.
    start: Image,
    events: Vec<Event>,
    fault: Option<Fault>,
    operations: u64,
    reads: u64,
}

impl State {
    fn operation(&mut self, is_write: bool) -> io::Result<()> {
        let number = self.operations;
        self.operations += 1;
        let fails = match self.fault {
            None => false,
            Some(Fault::Once(at)) => number == at,
            Some(Fault::From(at)) => number >= at,
            Some(Fault::WritesFrom(at)) => is_write && number >= at,
        };
        if fails {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }
}

/// The simulated device. Clone the `Arc` it is made in to keep a hold on it.
pub struct SimMetadataDisk {
    state: Mutex<State>,
}

impl SimMetadataDisk {
    /// A zeroed device of `blocks` blocks.
    pub fn new(blocks: u64) -> Arc<Self> {
        Self::with_image(blocks, Image::new())
    }

    fn with_image(blocks: u64, image: Image) -> Arc<Self> {
        let state = State {
            blocks,
            start: image.clone(),
            image,
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// A device with the content of a file, without the blocks that are all zeroes.
    pub fn from_file(path: &Path) -> io::Result<Arc<Self>> {
        Ok(Self::from_bytes(&std::fs::read(path)?))
    }

    /// A device with this content; a part of a block at the end is ignored.
    pub fn from_bytes(bytes: &[u8]) -> Arc<Self> {
        let mut image = Image::new();
        for (at, chunk) in bytes.chunks_exact(BLOCK).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                let mut block = [0; BLOCK];
                block.copy_from_slice(chunk);
                image.insert(at as u64, Arc::new(block));
            }
        }
        Self::with_image((bytes.len() / BLOCK) as u64, image)
    }

    /// Writes the content to a (sparse) file, for other tools to look at.
    pub fn to_file(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let state = self.state.lock();
        let file = std::fs::File::create(path)?;
        file.set_len(state.blocks * BLOCK as u64)?;
        for (block, bytes) in &state.image {
            file.write_all_at(&bytes[..], block * BLOCK as u64)?;
        }
        Ok(())
    }

    /// A copy that shares nothing with this one and has recorded nothing.
    pub fn copy(&self) -> Arc<Self> {
        let state = self.state.lock();
        Self::with_image(state.blocks, state.image.clone())
    }

    /// Changes the size. What is cut off is gone.
    pub fn resize(&self, blocks: u64) {
        let mut state = self.state.lock();
        state.blocks = blocks;
        state.image.split_off(&blocks);
    }

    /// Sets which operations fail, counting from now; `None` heals the device.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        state.fault = fault;
        state.operations = 0;
    }

    /// Operations since the fault was last set, or since the device was made.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Blocks read since the device was made.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Changes bytes behind the engine's back.
    pub fn damage(&self, block: u64, change: impl FnOnce(&mut [u8; BLOCK])) {
        let mut state = self.state.lock();
        let mut bytes = state.image.get(&block).map_or([0; BLOCK], |b| **b);
        change(&mut bytes);
        state.image.insert(block, Arc::new(bytes));
    }

    /// The blocks that hold anything but zeroes, ascending.
    pub fn written_blocks(&self) -> Vec<u64> {
        self.state.lock().image.keys().copied().collect()
    }

    /// Forgets what was recorded: what is there now counts as flushed.
    pub fn start_recording(&self) {
        let mut state = self.state.lock();
        state.start = state.image.clone();
        state.events.clear();
    }

    /// How many writes (of one block) and flushes were recorded.
    pub fn recorded(&self) -> usize {
        self.state.lock().events.len()
    }

    /// Writes (of one block) that a power cut before recorded event `cut` would find unflushed.
    pub fn unflushed(&self, cut: usize) -> usize {
        let state = self.state.lock();
        let events = state.events[..cut].iter().rev();
        events
            .take_while(|event| matches!(event, Event::Write(..)))
            .count()
    }

    /// The device as it is found after that cut when of those writes the ones are kept that `keep` says, by their order.
    pub fn crash_keeping(&self, cut: usize, keep: impl Fn(usize) -> bool) -> Arc<Self> {
        let unflushed = self.unflushed(cut);
        let state = self.state.lock();
        let mut image = state.start.clone();
        let first = cut - unflushed;
        for (at, event) in state.events[..cut].iter().enumerate() {
            if let Event::Write(block, bytes) = event
                && (at < first || keep(at - first))
            {
                image.insert(*block, Arc::clone(bytes));
            }
        }
        Self::with_image(state.blocks, image)
    }

    /// The device as it may be found after power was cut before recorded event `cut`.
    pub fn crash(&self, cut: usize, loss: Loss, rng: &mut SmallRng) -> Arc<Self> {
        let state = self.state.lock();
        let events = &state.events[..cut];
        let is_flush = |event: &Event| matches!(event, Event::Flush);
        let flushed = events.iter().rposition(is_flush).map_or(0, |at| at + 1);
        let mut image = state.start.clone();
        for (at, event) in events.iter().enumerate() {
            let Event::Write(block, bytes) = event else {
                continue;
            };
            if at < flushed || loss == Loss::KeepAll {
                image.insert(*block, Arc::clone(bytes));
                continue;
            }
            let mut mixed = image.get(block).map_or([0; BLOCK], |b| **b);
            let whole = rng.random::<bool>();
            for start in (0..BLOCK).step_by(SECTOR) {
                let keep = match loss {
                    Loss::DropAll | Loss::KeepAll => false,
                    Loss::DropSome => whole,
                    Loss::Tear => rng.random(),
                };
                if keep {
                    mixed[start..start + SECTOR].copy_from_slice(&bytes[start..start + SECTOR]);
                }
            }
            image.insert(*block, Arc::new(mixed));
        }
        Self::with_image(state.blocks, image)
    }
}

impl MetadataDevice for SimMetadataDisk {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.state.lock().blocks)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()> {
        let mut state = self.state.lock();
        assert!(block.raw() < state.blocks, "read past the end: {block}");
        state.operation(false)?;
        state.reads += 1;
        match state.image.get(&block.raw()) {
            Some(bytes) => buf.0 = **bytes,
            None => buf.0.fill(0),
        }
        Ok(())
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()> {
        let mut state = self.state.lock();
        for (block, bytes) in batch {
            assert!(block.raw() < state.blocks, "write past the end: {block}");
            state.operation(true)?;
            let bytes = Arc::new(bytes.0);
            state
                .events
                .push(Event::Write(block.raw(), Arc::clone(&bytes)));
            state.image.insert(block.raw(), bytes);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation(true)?;
        state.events.push(Event::Flush);
        Ok(())
    }
}
