//! A writer that remembers which of its writes were flushed, for tests that take the ground from under it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Mode, OFlags};
use thinmap_runtime::IoBuf;

const WRITE_BYTES: usize = 4096;

/// What was written and flushed, block by block: a generation number each.
pub struct FlushLog {
    sectors: u64,
    /// Block to the generation that a flush has covered.
    pub flushed: HashMap<u64, u64>,
    /// Block to the highest generation ever submitted: anything between the two may be there.
    submitted: HashMap<u64, u64>,
    generation: u64,
    /// Flushes that were answered well.
    pub flushes: u64,
}

impl FlushLog {
    /// For a volume of so many sectors.
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors,
            flushed: HashMap::new(),
            submitted: HashMap::new(),
            generation: 0,
            flushes: 0,
        }
    }

    /// Writes random blocks and flushes every few, until `stop` or the device fails.
    pub fn write_until(&mut self, path: &Path, stop: &AtomicBool, seed: u64) {
        let Ok(fd) = open(path, OFlags::RDWR) else {
            return;
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let blocks = self.sectors * 512 / WRITE_BYTES as u64;
        let mut buf = IoBuf::alloc(WRITE_BYTES);
        while !stop.load(Ordering::Relaxed) {
            let mut pending = Vec::new();
            for _ in 0..rng.random_range(1..16) {
                let block = rng.random_range(0..blocks);
                self.generation += 1;
                fill(&mut buf, block, self.generation);
                self.submitted.insert(block, self.generation);
                if rustix::io::pwrite(&fd, buf.as_slice(), block * WRITE_BYTES as u64)
                    != Ok(WRITE_BYTES)
                {
                    return;
                }
                pending.push((block, self.generation));
            }
            if rustix::fs::fdatasync(&fd).is_err() {
                return;
            }
            self.flushes += 1;
            self.flushed.extend(pending);
        }
    }

    /// Writes random blocks and flushes every few, until `refusals` writes have failed. No flush may.
    pub fn write_until_refused(&mut self, path: &Path, refusals: u32, seed: u64) {
        let fd = open(path, OFlags::RDWR).expect("the volume opens");
        let mut rng = StdRng::seed_from_u64(seed);
        let blocks = self.sectors * 512 / WRITE_BYTES as u64;
        let mut buf = IoBuf::alloc(WRITE_BYTES);
        let mut refused = 0;
        while refused < refusals {
            let mut pending = Vec::new();
            for _ in 0..rng.random_range(1..64) {
                let block = rng.random_range(0..blocks);
                self.generation += 1;
                fill(&mut buf, block, self.generation);
                self.submitted.insert(block, self.generation);
                match rustix::io::pwrite(&fd, buf.as_slice(), block * WRITE_BYTES as u64) {
                    Ok(WRITE_BYTES) => pending.push((block, self.generation)),
                    _ => refused += 1,
                }
            }
            rustix::fs::fdatasync(&fd).expect("no flush fails for want of space");
            self.flushes += 1;
            self.flushed.extend(pending);
        }
    }

    /// Every flushed block holds its flushed generation, or one that was submitted later.
    pub fn verify(&self, path: &Path, round: u32) {
        let fd = open(path, OFlags::RDONLY).expect("the volume opens again");
        let mut buf = IoBuf::alloc(WRITE_BYTES);
        for (block, least) in &self.flushed {
            let read = rustix::io::pread(&fd, buf.as_mut_slice(), block * WRITE_BYTES as u64);
            assert_eq!(read, Ok(WRITE_BYTES), "round {round}: block {block}");
            let (at, generation) = header(&buf);
            let most = self.submitted[block];
            assert!(
                at == *block && (*least..=most).contains(&generation),
                "round {round}: block {block} holds block {at} generation {generation}, not {least}..={most}"
            );
            let mut expected = IoBuf::alloc(WRITE_BYTES);
            fill(&mut expected, *block, generation);
            assert!(
                buf.as_slice() == expected.as_slice(),
                "round {round}: block {block} is torn"
            );
        }
    }
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        flags | OFlags::DIRECT | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn fill(buf: &mut IoBuf, block: u64, generation: u64) {
    let bytes = buf.as_mut_slice();
    for (i, chunk) in bytes.chunks_exact_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&(block + (i as u64) * 3).to_le_bytes());
        chunk[8..].copy_from_slice(&generation.to_le_bytes());
    }
}

fn header(buf: &IoBuf) -> (u64, u64) {
    let word =
        |at: usize| u64::from_le_bytes(buf.as_slice()[at..at + 8].try_into().expect("8 bytes"));
    (word(0), word(8))
}
