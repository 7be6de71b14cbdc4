//! Which path each region takes: as many bits for each as the number of paths needs, packed.
//!
//! Read by every request without a lock; written by one message at a time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Memory that a table of regions may take. It is filled at a load: a second of work.
const TABLE_BYTES_MAX: u64 = 1 << 26;

/// See the module.
pub(super) struct Regions {
    count: u64,
    entry_bits: u32,
    entries_in_word: u64,
    words: Vec<AtomicU64>,
}

impl Regions {
    /// `count` regions on `paths` paths in turn; `None` when that takes too much memory.
    pub fn in_turn(count: u64, paths: u32) -> Option<Self> {
        let entry_bits = (u32::BITS - (paths - 1).leading_zeros()).max(1);
        let entries_in_word = u64::from(u64::BITS / entry_bits);
        let words = count.div_ceil(entries_in_word);
        if words.checked_mul(8)? > TABLE_BYTES_MAX {
            return None;
        }
        let words = usize::try_from(words).ok()?;
        let mut table = Vec::new();
        table.try_reserve_exact(words).ok()?;
        table.resize_with(words, AtomicU64::default);
        let regions = Self {
            count,
            entry_bits,
            entries_in_word,
            words: table,
        };
        for (region, path) in (0..count).zip((0..paths).cycle()) {
            regions.set(region, path);
        }
        Some(regions)
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    fn place(&self, region: u64) -> (usize, u64) {
        // The first is an index of `words`, which are in memory.
        let word = (region / self.entries_in_word) as usize;
        let shift = region % self.entries_in_word * u64::from(self.entry_bits);
        (word, shift)
    }

    fn mask(&self) -> u64 {
        (1 << self.entry_bits) - 1
    }

    /// The path of a region, 0 for one that there is not.
    pub fn path(&self, region: u64) -> u32 {
        let (word, shift) = self.place(region);
        let word = self.words.get(word).map_or(0, |word| word.load(Relaxed));
        u32::try_from(word >> shift & self.mask()).unwrap_or(0)
    }

    /// Sets the path of a region. The caller sees to it that nobody else does so meanwhile.
    pub fn set(&self, region: u64, path: u32) {
        let (word, shift) = self.place(region);
        if let Some(word) = self.words.get(word) {
            let others = word.load(Relaxed) & !(self.mask() << shift);
            word.store(others | u64::from(path) << shift, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_keep_their_paths_whatever_the_bits() {
        for paths in [1, 2, 3, 4, 5, 16, 17, 1000, 262_140] {
            let regions = Regions::in_turn(1000, paths).expect("room");
            for region in 0..1000 {
                assert_eq!(u64::from(regions.path(region)), region % u64::from(paths));
            }
            regions.set(500, paths - 1);
            assert_eq!(regions.path(500), paths - 1);
            assert_eq!(u64::from(regions.path(501)), 501 % u64::from(paths));
            assert_eq!(u64::from(regions.path(499)), 499 % u64::from(paths));
        }
        assert!(Regions::in_turn(1 << 40, 2).is_none());
    }
}
