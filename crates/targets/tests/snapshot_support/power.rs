//! Disks with a write cache that lose power at one moment: what was flushed stays, of what was not each sector by chance.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_units::{BlkStatus, Sector};

/// Some disks behind one lock, so that a cut hits them at one moment. `T` is what the test notes of the guest: a copy of it is
/// taken at the cut.
pub struct Machine<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    rng: SmallRng,
    disks: Vec<Disk>,
    /// Requests until the cut.
    left: u32,
    notes: T,
    cut: Option<(Vec<Vec<u8>>, T)>,
}

struct Disk {
    durable: Vec<u8>,
    /// Writes since the last flush, in order, and whether each is durable already (FUA).
    cached: Vec<(usize, Vec<u8>, bool)>,
}

impl Disk {
    fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.durable[at..at + into.len()]);
        for (start, bytes, _) in &self.cached {
            let (begin, end) = ((*start).max(at), (start + bytes.len()).min(at + into.len()));
            if begin < end {
                into[begin - at..end - at].copy_from_slice(&bytes[begin - start..end - start]);
            }
        }
    }

    fn flush(&mut self) {
        for (start, bytes, _) in self.cached.drain(..) {
            self.durable[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn after_cut(&self, rng: &mut SmallRng) -> Vec<u8> {
        let mut image = self.durable.clone();
        // All, nothing, or something.
        let keep = [0, 100, rng.random_range(0..=100)][rng.random_range(0..3)];
        for (start, bytes, durable) in &self.cached {
            for (i, sector) in bytes.chunks(512).enumerate() {
                if *durable || rng.random_range(0..100) < keep {
                    let at = start + i * 512;
                    image[at..at + 512].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

impl<T: Clone + Send + 'static> Machine<T> {
    /// Disks of these sizes, zeroed, and power until [`Machine::cut_in`].
    pub fn new(seed: u64, sectors: &[u64], notes: T) -> Arc<Self> {
        let disk = |sectors: &u64| Disk {
            durable: vec![0; (sectors * 512) as usize],
            cached: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::new(State {
                rng: SmallRng::seed_from_u64(seed),
                disks: sectors.iter().map(disk).collect(),
                left: u32::MAX,
                notes,
                cut: None,
            }),
        })
    }

    pub fn disk(self: &Arc<Self>, which: usize) -> Arc<dyn BlockDevice> {
        Arc::new(View {
            machine: self.clone(),
            which,
        })
    }

    /// Cuts the power before a request from now on. Everything goes on as if nothing had been, on disks that nobody will see.
    pub fn cut_in(&self, requests: u32) {
        self.state.lock().left = requests;
    }

    pub fn is_cut(&self) -> bool {
        self.state.lock().cut.is_some()
    }

    /// Changes what the test notes.
    pub fn note(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.state.lock().notes);
    }

    /// The disks as they are found, and the notes of the moment. Cuts now if it did not happen.
    pub fn found(&self) -> (Vec<Vec<u8>>, T) {
        let mut state = self.state.lock();
        state.cut_now();
        state.cut.clone().expect("cut")
    }
}

impl<T: Clone> State<T> {
    fn cut_now(&mut self) {
        if self.cut.is_none() {
            let Self { rng, disks, .. } = self;
            let images = disks.iter().map(|disk| disk.after_cut(rng)).collect();
            self.cut = Some((images, self.notes.clone()));
        }
    }
}

struct View<T> {
    machine: Arc<Machine<T>>,
    which: usize,
}

impl<T: Clone + Send + 'static> BlockDevice for View<T> {
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            write_cache: true,
            ..MemoryDevice::new(Sector(0)).limits()
        }
    }

    fn size(&self) -> Sector {
        let state = self.machine.state.lock();
        Sector::from_bytes(state.disks[self.which].durable.len() as u64)
    }

    fn submit(&self, mut io: Io) {
        let mut state = self.machine.state.lock();
        if state.left == 0 {
            state.cut_now();
        }
        state.left = state.left.saturating_sub(1);
        let disk = &mut state.disks[self.which];
        let (at, len) = (io.sector.bytes() as usize, io.sectors.bytes() as usize);
        let fua = io.flags.fua;
        if io.op != Op::Flush && at + len > disk.durable.len() {
            drop(state);
            return io.complete(BlkStatus::IoErr);
        }
        match io.op {
            Op::Read => disk.read(at, io.buf.as_mut_slice()),
            Op::Write => disk.cached.push((at, io.buf.as_slice().to_vec(), fua)),
            Op::Discard | Op::WriteZeroes => disk.cached.push((at, vec![0; len], fua)),
            Op::Flush => disk.flush(),
        }
        drop(state);
        io.complete(BlkStatus::Ok);
    }
}
