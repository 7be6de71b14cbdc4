//! A bit for each region, read by any thread without a lock.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// See the module.
pub(super) struct Bits {
    words: Vec<AtomicU64>,
    len: u64,
}

impl Bits {
    /// So many bits, all clear; `None` when there is no memory for them.
    pub fn new(len: u64) -> Option<Self> {
        let count = usize::try_from(len.div_ceil(64)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, AtomicU64::default);
        Some(Self { words, len })
    }

    pub fn test(&self, bit: u64) -> bool {
        let word = self.word(bit);
        word.is_some_and(|word| word.load(SeqCst) & mask(bit) != 0)
    }

    /// Sets a bit; whether it was clear.
    pub fn set(&self, bit: u64) -> bool {
        let word = self.word(bit);
        word.is_some_and(|word| word.fetch_or(mask(bit), SeqCst) & mask(bit) == 0)
    }

    /// Clears a bit; whether it was set.
    pub fn clear(&self, bit: u64) -> bool {
        let word = self.word(bit);
        word.is_some_and(|word| word.fetch_and(!mask(bit), SeqCst) & mask(bit) != 0)
    }

    /// The first clear bit at or behind `from`.
    pub fn next_clear(&self, from: u64) -> Option<u64> {
        let mut bit = from;
        while bit < self.len {
            let clear = !self.word(bit)?.load(SeqCst) >> (bit % 64);
            if clear != 0 {
                let found = bit + u64::from(clear.trailing_zeros());
                return (found < self.len).then_some(found);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }

    fn word(&self, bit: u64) -> Option<&AtomicU64> {
        debug_assert!(bit < self.len, "region {bit} of {}", self.len);
        self.words.get(usize::try_from(bit / 64).ok()?)
    }
}

fn mask(bit: u64) -> u64 {
    1 << (bit % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_clear_bit_is_found_over_the_ends_of_words() {
        let bits = Bits::new(130).expect("memory");
        (0..130).for_each(|bit| assert!(bits.set(bit)));
        assert_eq!(bits.next_clear(0), None);
        assert!(!bits.set(5), "it was set");
        for clear in [129, 64, 63, 0] {
            assert!(bits.clear(clear));
            assert!(!bits.clear(clear), "it was clear");
            assert_eq!(bits.next_clear(0), Some(clear));
        }
        assert_eq!(bits.next_clear(1), Some(63));
        assert_eq!(bits.next_clear(65), Some(129));
        assert_eq!(bits.next_clear(130), None);
        assert!(bits.test(1) && !bits.test(64));
    }
}
