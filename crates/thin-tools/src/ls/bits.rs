//! Numbers seen never, once, or more often.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words in a part (a million numbers, 256 KiB).
const PART_WORDS: u64 = 1 << 14;

/// A count of up to two for each number below a limit; changed from many threads.
///
/// Memory goes with the parts in which a number was counted, not with the limit, which a damaged image may set
/// to anything.
pub struct TwiceSet {
    parts: Vec<OnceLock<Part>>,
    len: u64,
}

type Part = Box<[Word]>;

/// The counts of 64 numbers.
#[derive(Default)]
struct Word {
    once: AtomicU64,
    twice: AtomicU64,
}

impl TwiceSet {
    /// Counts for the numbers below `len`.
    pub fn new(len: u64) -> Self {
        let parts = len.div_ceil(64 * PART_WORDS);
        Self {
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
            len,
        }
    }

    /// The limit.
    pub fn len(&self) -> u64 {
        self.len
    }

    fn word(&self, number: u64) -> &Word {
        let word = number / 64;
        let part = self.parts[(word / PART_WORDS) as usize]
            .get_or_init(|| (0..PART_WORDS).map(|_| Word::default()).collect());
        &part[(word % PART_WORDS) as usize]
    }

    /// Counts `number` once more; gives the count before.
    pub fn add(&self, number: u64) -> u32 {
        let (word, bit) = (self.word(number), 1 << (number % 64));
        if word.once.fetch_or(bit, Relaxed) & bit == 0 {
            return 0;
        }
        match word.twice.fetch_or(bit, Relaxed) & bit {
            0 => 1,
            _ => 2,
        }
    }

    /// Counts `len` numbers from `first` on once more.
    pub fn add_range(&self, first: u64, len: u64) {
        let (mut at, end) = (first, first + len);
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            let word = self.word(at);
            let again = word.once.fetch_or(mask, Relaxed) & mask;
            if again != 0 {
                word.twice.fetch_or(again, Relaxed);
            }
            at += bits;
        }
    }

    /// Whether `number` was counted more than once.
    pub fn is_twice(&self, number: u64) -> bool {
        let word = number / 64;
        let part = self.parts[(word / PART_WORDS) as usize].get();
        part.is_some_and(|part| {
            let twice = part[(word % PART_WORDS) as usize].twice.load(Relaxed);
            twice >> (number % 64) & 1 != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_like_single_numbers() {
        let (ranges, singles) = (TwiceSet::new(400), TwiceSet::new(400));
        for (first, len) in [
            (0, 1),
            (3, 61),
            (60, 200),
            (255, 1),
            (0, 64),
            (399, 1),
            (128, 64),
        ] {
            ranges.add_range(first, len);
            for number in first..first + len {
                singles.add(number);
            }
        }
        for number in 0..400 {
            assert_eq!(
                ranges.is_twice(number),
                singles.is_twice(number),
                "{number}"
            );
        }
        assert_eq!(ranges.add(399), 1);
        assert_eq!(ranges.add(399), 2);
        assert_eq!(ranges.add(300), 0);
    }
}
