//! What a simulated medium holds: sectors of 512 bytes, cheap to copy whole, cheap to compare.
//!
//! A sector that is one 8-byte word over and over (zeroes, and what simulated clients write) is stored as that word. Copies
//! share what neither of them has changed.

use std::sync::Arc;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Sectors that are copied together when one of them changes.
const CHUNK: usize = 64;

/// One sector's content.
#[derive(Clone, Debug)]
pub enum Content {
    /// This word, little-endian, 64 times.
    Word(u64),
    /// Anything else, with its hash.
    Bytes(Arc<(u64, [u8; SECTOR])>),
}

impl Content {
    /// From a sector's bytes.
    ///
    /// # Panics
    /// When they are not a sector's length.
    pub fn new(bytes: &[u8]) -> Self {
        let sector: &[u8; SECTOR] = bytes.try_into().expect("a whole sector");
        let (words, _) = sector.as_chunks::<8>();
        let first = words[0];
        if words.iter().all(|word| *word == first) {
            return Self::Word(u64::from_le_bytes(first));
        }
        let mixed = |hash, word: &[u8; 8]| mix(hash ^ u64::from_le_bytes(*word));
        let hash = words.iter().fold(1, mixed);
        Self::Bytes(Arc::new((hash, *sector)))
    }

    /// Into a sector's bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        match self {
            Self::Word(0) => bytes.fill(0),
            Self::Word(word) => {
                let word = word.to_le_bytes();
                bytes
                    .chunks_exact_mut(8)
                    .for_each(|to| to.copy_from_slice(&word));
            }
            Self::Bytes(content) => bytes.copy_from_slice(&content.1),
        }
    }

    fn hash(&self) -> u64 {
        match self {
            Self::Word(word) => *word,
            Self::Bytes(content) => content.0,
        }
    }
}

/// A good mixture of a number's bits.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

type Chunk = [Content; CHUNK];

/// A medium's content. INVARIANT: `hash` is that of all sectors, whatever the order of changes was.
#[derive(Clone)]
pub struct Image {
    chunks: Vec<Arc<Chunk>>,
    sectors: u64,
    hash: u64,
}

impl Image {
    /// `sectors` sectors of zeroes.
    pub fn new(sectors: u64) -> Self {
        let mut image = Self {
            chunks: Vec::new(),
            sectors: 0,
            hash: 0,
        };
        image.grow(sectors);
        image
    }

    /// Adds zeroes at the end.
    pub fn grow(&mut self, sectors: u64) {
        let chunks = usize::try_from(sectors)
            .expect("fits memory")
            .div_ceil(CHUNK);
        let zeroes: Arc<Chunk> = Arc::new(std::array::from_fn(|_| Content::Word(0)));
        while self.chunks.len() < chunks {
            self.chunks.push(zeroes.clone());
        }
        self.sectors = self.sectors.max(sectors);
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Equal images have equal hashes; others hardly ever.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// One sector.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn get(&self, sector: u64) -> &Content {
        let (chunk, at) = place(sector);
        &self.chunks[chunk][at]
    }

    /// Changes one sector.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn set(&mut self, sector: u64, content: Content) {
        let (chunk, at) = place(sector);
        let slot = &mut Arc::make_mut(&mut self.chunks[chunk])[at];
        self.hash ^= sector_hash(sector, slot) ^ sector_hash(sector, &content);
        *slot = content;
    }

    /// Reads sectors from `sector` on into `bytes`.
    pub fn read(&self, sector: u64, bytes: &mut [u8]) {
        for (at, part) in (sector..).zip(bytes.chunks_exact_mut(SECTOR)) {
            self.get(at).fill(part);
        }
    }

    /// All bytes, for other tools to look at.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.sectors).expect("fits memory") * SECTOR];
        self.read(0, &mut bytes);
        bytes
    }
}

fn place(sector: u64) -> (usize, usize) {
    let sector = usize::try_from(sector).expect("fits memory");
    (sector / CHUNK, sector % CHUNK)
}

fn sector_hash(sector: u64, content: &Content) -> u64 {
    match content {
        // So that zeroes at the end do not count.
        Content::Word(0) => 0,
        content => mix(content.hash() ^ mix(sector + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_comes_back_and_copies_are_apart() {
        let mut image = Image::new(100);
        let mut bytes = [7; SECTOR];
        bytes[100] = 1;
        image.set(70, Content::new(&bytes));
        image.set(71, Content::new(&[9; SECTOR]));
        let before = image.clone();
        image.set(70, Content::Word(0));
        let mut back = [0; 2 * SECTOR];
        before.read(70, &mut back);
        assert_eq!(
            (&back[..SECTOR], &back[SECTOR..]),
            (&bytes[..], &[9; SECTOR][..])
        );
        assert!(matches!(before.get(71), Content::Word(_)));
        assert_ne!(before.hash(), image.hash());
        image.set(70, Content::new(&bytes));
        assert_eq!(before.hash(), image.hash());
    }
}
