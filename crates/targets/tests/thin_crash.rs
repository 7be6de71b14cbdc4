//! Power cuts: at a random request both devices keep what was flushed and a random part of what was not, sector by
//! sector. The pool that is found then must be clean and hold every write that was flushed.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op, QueueLimits};
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use support::{read_bytes, request};
use thin_support::{Lab, check_clean, flagged, info, message};

const BLOCK: u64 = 128;
const VOLUME: u64 = 16 * BLOCK;
const META: u64 = 8192;
const DATA: u64 = 60 * BLOCK;

/// Both devices behind one lock, so that a cut hits them at one moment.
struct Machine {
    state: Mutex<State>,
}

struct State {
    rng: SmallRng,
    disks: [Disk; 2],
    requests_left: u32,
    image: Option<[Vec<u8>; 2]>,
    /// Per cell of the guest: (version that was flushed, version last written), as of the cut.
    cells: Vec<(u32, u32)>,
    cells_at_cut: Vec<(u32, u32)>,
}

struct Disk {
    durable: Vec<u8>,
    /// Writes since the last flush, in order.
    cached: Vec<(usize, Vec<u8>)>,
}

impl Disk {
    fn new(sectors: u64) -> Self {
        Self {
            durable: vec![0; (sectors * 512) as usize],
            cached: Vec::new(),
        }
    }

    fn current(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.durable[at..at + into.len()]);
        for (start, bytes) in &self.cached {
            let (begin, end) = ((*start).max(at), (start + bytes.len()).min(at + into.len()));
            if begin < end {
                into[begin - at..end - at].copy_from_slice(&bytes[begin - start..end - start]);
            }
        }
    }

    fn flush(&mut self) {
        for (start, bytes) in self.cached.drain(..) {
            self.durable[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn cut(&self, rng: &mut SmallRng) -> Vec<u8> {
        let mut image = self.durable.clone();
        let keep = rng.random_range(0..=100);
        for (start, bytes) in &self.cached {
            for (i, sector) in bytes.chunks(512).enumerate() {
                if rng.random_range(0..100) < keep {
                    let at = start + i * 512;
                    image[at..at + 512].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

struct View {
    machine: Arc<Machine>,
    which: usize,
}

impl BlockDevice for View {
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            write_cache: true,
            ..MemoryDevice::new(Sector(0)).limits()
        }
    }

    fn size(&self) -> Sector {
        Sector::from_bytes(self.machine.state.lock().disks[self.which].durable.len() as u64)
    }

    fn submit(&self, mut io: thinmap_block::Io) {
        let mut state = self.machine.state.lock();
        let state_ref = &mut *state;
        if state_ref.requests_left == 0 && state_ref.image.is_none() {
            let State { rng, disks, .. } = state_ref;
            state_ref.image = Some([disks[0].cut(rng), disks[1].cut(rng)]);
            state_ref.cells_at_cut = state_ref.cells.clone();
        }
        state_ref.requests_left = state_ref.requests_left.saturating_sub(1);
        let disk = &mut state_ref.disks[self.which];
        let (at, len) = (io.sector.bytes() as usize, io.sectors.bytes() as usize);
        if io.op != Op::Flush && at + len > disk.durable.len() {
            drop(state);
            return io.complete(BlkStatus::IoErr);
        }
        match io.op {
            Op::Read => disk.current(at, io.buf.as_mut_slice()),
            Op::Write => disk.cached.push((at, io.buf.as_slice().to_vec())),
            Op::Discard | Op::WriteZeroes => disk.cached.push((at, vec![0; len])),
            Op::Flush => disk.flush(),
        }
        if io.flags.fua {
            disk.flush();
        }
        drop(state);
        io.complete(BlkStatus::Ok);
    }
}

/// A cell is eight sectors, each holding the cell's version.
fn cell_bytes(version: u32) -> IoBuf {
    let mut buf = IoBuf::alloc(4096);
    for sector in buf.as_mut_slice().chunks_mut(512) {
        sector[..4].copy_from_slice(&version.to_le_bytes());
    }
    buf
}

const CELLS: u64 = VOLUME / 8;

fn run(seed: u64, requests: u32, features: &str, beside: bool) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let machine = Arc::new(Machine {
        state: Mutex::new(State {
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed),
            disks: [Disk::new(META), Disk::new(DATA)],
            requests_left: u32::MAX,
            image: None,
            cells: vec![(0, 0); CELLS as usize],
            cells_at_cut: Vec::new(),
        }),
    });
    let lab = Lab::new();
    for (which, name) in ["meta", "data"].into_iter().enumerate() {
        let machine = machine.clone();
        lab.add(name, Arc::new(View { machine, which }));
    }
    let table = format!("0 {DATA} thin-pool meta data {BLOCK} 0 {features}");
    let pool = lab.live("pool", &table);
    message(&pool, "create_thin 0").unwrap();
    message(&pool, "create_thin 999").unwrap();
    let t = lab.live("t", &format!("0 {VOLUME} thin pool 0"));
    let scrap = lab.live("scrap", &format!("0 {VOLUME} thin pool 999"));
    machine.state.lock().requests_left = requests;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Provisions beside it, so that commits find work in flight.
        scope.spawn(|| {
            let mut at = 0;
            while beside && !stop.load(Ordering::SeqCst) {
                at = (at + 5 * BLOCK + 3) % (VOLUME - 8);
                let flags = IoFlags::default();
                assert!(flagged(&*scrap, Op::Write, flags, at, 8, 1).is_ok());
            }
        });
        write_until_cut(&machine, &mut rng, &pool, &t, &scrap);
        check_live(seed, &machine, &t);
        stop.store(true, Ordering::SeqCst);
    });
    t.destroy();
    scrap.destroy();
    pool.destroy();
    verify(seed, &machine);
}

/// Before anything is cut off, `t` reads as it was written, to the last version.
fn check_live(seed: u64, machine: &Machine, t: &MappedDevice) {
    let cells = machine.state.lock().cells.clone();
    for (i, (_, written)) in cells.iter().enumerate() {
        let (bytes, status) = read_bytes(t, i as u64 * 8, 8);
        assert!(status.is_ok());
        for sector in bytes.chunks(512) {
            let found = u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
            assert_eq!(found, *written, "seed {seed}: live cell {i}");
        }
    }
}

/// The workload whose promises are checked: writes, flushes and snapshots of one volume, discards of another.
fn write_until_cut(
    machine: &Machine,
    rng: &mut SmallRng,
    pool: &MappedDevice,
    t: &MappedDevice,
    scrap: &MappedDevice,
) {
    let mut snap = None;
    let mut version = 0;
    while machine.state.lock().image.is_none() {
        version += 1;
        match rng.random_range(0..100) {
            0..60 => {
                let cell = rng.random_range(0..CELLS);
                machine.state.lock().cells[cell as usize].1 = version;
                let (_, status) = thinmap_block::write(t, Sector(cell * 8), cell_bytes(version));
                assert!(status.is_ok());
            }
            60..70 => {
                let written: Vec<u32> = machine.state.lock().cells.iter().map(|c| c.1).collect();
                assert!(request(t, Op::Flush, 0, 0).is_ok());
                let cells = &mut machine.state.lock().cells;
                cells.iter_mut().zip(written).for_each(|(c, v)| c.0 = v);
            }
            70..75 => {
                let cell = rng.random_range(0..CELLS);
                machine.state.lock().cells[cell as usize].1 = version;
                let fua = IoFlags {
                    fua: true,
                    no_unmap: false,
                };
                let write = (
                    Op::Write,
                    fua,
                    Sector(cell * 8),
                    Sector(8),
                    cell_bytes(version),
                );
                assert!(thinmap_block::submit_and_wait(t, write).1.is_ok());
                machine.state.lock().cells[cell as usize].0 = version;
            }
            75..80 => match snap.take() {
                None => {
                    message(pool, &format!("create_snap {version} 0")).unwrap();
                    snap = Some(version);
                }
                Some(id) => message(pool, &format!("delete {id}")).unwrap(),
            },
            _ => assert!(request(scrap, Op::Discard, 0, VOLUME).is_ok()),
        }
    }
}

fn verify(seed: u64, machine: &Machine) {
    let (image, cells) = {
        let mut state = machine.state.lock();
        (state.image.take().unwrap(), state.cells_at_cut.clone())
    };
    let lab = Lab::new();
    let meta = lab.memory("meta", META);
    let data = lab.memory("data", DATA);
    for (dev, bytes) in [(&meta, &image[0]), (&data, &image[1])] {
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        assert!(thinmap_block::write(&**dev, Sector(0), buf).1.is_ok());
    }
    check_clean(&meta);
    let pool = lab.live("pool", &format!("0 {DATA} thin-pool meta data {BLOCK} 0"));
    assert!(
        info(&pool).contains(" - rw "),
        "seed {seed}: {}",
        info(&pool)
    );
    let t = lab.live("t", &format!("0 {VOLUME} thin pool 0"));
    for (i, (flushed, written)) in cells.iter().enumerate() {
        let (bytes, status) = read_bytes(&*t, i as u64 * 8, 8);
        assert!(status.is_ok());
        for sector in bytes.chunks(512) {
            let found = u32::from_le_bytes([sector[0], sector[1], sector[2], sector[3]]);
            assert!(
                (*flushed..=*written).contains(&found),
                "seed {seed}: cell {i} has version {found}, flushed {flushed}, written {written}"
            );
        }
    }
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

fn cut_many(features: [&str; 2], beside: bool) {
    let seeds = std::env::var("THINMAP_SEEDS")
        .map_or(150, |n| n.parse().expect("THINMAP_SEEDS is a number"));
    for seed in 0..seeds {
        let requests = 1 + (seed * 37 % 400) as u32;
        run(seed, requests, features[seed as usize % 2], beside);
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut_at_any_request() {
    cut_many(["", "1 skip_block_zeroing"], false);
}

/// Not with skip_block_zeroing: there an unwritten part of a new block may show old data, as the kernel's does.
#[test]
fn what_was_flushed_survives_a_power_cut_beside_another_writer() {
    cut_many(["", "1 no_discard_passdown"], true);
}
