//! What a simulated disk has, cache and medium.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::image::{Content, Image, SECTOR, mix};

/// What reads see, what survives a power cut for certain, and what may.
#[derive(Clone)]
pub struct Medium {
    pub(crate) now: Image,
    pub(crate) durable: Image,
    /// By sector: what may have reached the medium since, oldest first.
    pub(crate) unflushed: BTreeMap<u64, SmallVec<[Candidate; 2]>>,
    /// Counts submissions and ends of requests.
    pub(crate) ticks: u64,
}

#[derive(Clone)]
pub(crate) struct Candidate {
    /// Of the write.
    pub write: u64,
    pub content: Content,
    /// When its write ended, in requests of this disk; `None` while it is in flight.
    pub ended: Option<u64>,
}

impl From<Image> for Medium {
    /// All of it is durable.
    fn from(image: Image) -> Self {
        Self {
            now: image.clone(),
            durable: image,
            unflushed: BTreeMap::new(),
            ticks: 0,
        }
    }
}

impl Medium {
    /// Equal media have equal hashes; others hardly ever.
    pub fn hash(&self) -> u64 {
        mix(self.now.hash()) ^ self.durable.hash()
    }

    /// What is read from `sector` on.
    pub fn read(&self, sector: u64, bytes: &mut [u8]) {
        self.now.read(sector, bytes);
    }

    /// Writes whole sectors, durably.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        for (at, part) in (sector..).zip(bytes.chunks_exact(SECTOR)) {
            self.set(at, Content::new(part));
        }
    }

    pub(crate) fn set(&mut self, sector: u64, content: Content) {
        self.now.set(sector, content.clone());
        self.durable.set(sector, content);
        self.unflushed.remove(&sector);
    }
}
