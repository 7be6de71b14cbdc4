//! Devices for pools that are filled: large ones of which little is kept, and ones that break.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_units::{BlkStatus, Sector};

/// A large device of which little is ever written.
pub struct Sparse {
    size: Sector,
    sectors: Mutex<BTreeMap<u64, [u8; 512]>>,
}

impl Sparse {
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            size: Sector(size),
            sectors: Mutex::default(),
        })
    }
}

impl BlockDevice for Sparse {
    fn limits(&self) -> QueueLimits {
        MemoryDevice::new(Sector(0)).limits()
    }

    fn size(&self) -> Sector {
        self.size
    }

    fn submit(&self, mut io: Io) {
        let mut sectors = self.sectors.lock();
        let numbers = io.sector.raw()..(io.sector + io.sectors).raw();
        match io.op {
            Op::Read => {
                for (at, bytes) in numbers.zip(io.buf.as_mut_slice().chunks_mut(512)) {
                    bytes.copy_from_slice(sectors.get(&at).unwrap_or(&[0; 512]));
                }
            }
            Op::Write => {
                for (at, bytes) in numbers.zip(io.buf.as_slice().chunks(512)) {
                    match bytes.iter().any(|byte| *byte != 0) {
                        true => sectors.insert(at, bytes.try_into().unwrap()),
                        false => sectors.remove(&at),
                    };
                }
            }
            Op::Discard | Op::WriteZeroes => {
                let gone: Vec<u64> = sectors.range(numbers).map(|(at, _)| *at).collect();
                for at in gone {
                    sectors.remove(&at);
                }
            }
            Op::Flush => {}
        }
        drop(sectors);
        io.complete(BlkStatus::Ok);
    }
}

/// A device that fails whatever it is told to.
pub struct Breaker {
    below: Arc<dyn BlockDevice>,
    broken: AtomicU8,
}

/// What a [`Breaker`] fails.
#[repr(u8)]
pub enum Fails {
    Nothing,
    Changes,
    Everything,
}

impl Breaker {
    pub fn new(below: Arc<dyn BlockDevice>) -> Arc<Self> {
        let broken = AtomicU8::new(0);
        Arc::new(Self { below, broken })
    }

    pub fn set(&self, fails: Fails) {
        self.broken.store(fails as u8, Ordering::SeqCst);
    }
}

impl BlockDevice for Breaker {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        let broken = self.broken.load(Ordering::SeqCst);
        let fails = match io.op {
            Op::Read => Fails::Everything,
            _ => Fails::Changes,
        };
        if broken >= fails as u8 {
            return io.complete(BlkStatus::IoErr);
        }
        self.below.submit(io);
    }
}
