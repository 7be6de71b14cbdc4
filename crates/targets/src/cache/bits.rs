//! Bits that count themselves.

/// See the module.
#[derive(Clone, Default, Debug)]
pub(super) struct Bits {
    words: Vec<u64>,
    count: u64,
    ones: u64,
}

impl Bits {
    /// So many bits, none of them set; `None` when there is no memory for them.
    pub fn new(count: u64) -> Option<Self> {
        let len = usize::try_from(count.div_ceil(64)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(len).ok()?;
        words.resize(len, 0);
        Some(Self {
            words,
            count,
            ones: 0,
        })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many are set.
    pub fn ones(&self) -> u64 {
        self.ones
    }

    /// Whether it is set; one that there is not never is.
    pub fn has(&self, bit: u64) -> bool {
        let word = usize::try_from(bit / 64)
            .ok()
            .and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Sets or clears a bit; whether that is a change.
    pub fn put(&mut self, bit: u64, value: bool) -> bool {
        if bit >= self.count || self.has(bit) == value {
            return false;
        }
        self.words[(bit / 64) as usize] ^= 1 << (bit % 64);
        match value {
            true => self.ones += 1,
            false => self.ones -= 1,
        }
        true
    }

    /// All of them, 64 to a word.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_count_themselves_and_end_where_they_end() {
        let mut bits = Bits::new(70).expect("memory");
        assert!(bits.put(69, true) && !bits.put(69, true) && bits.put(3, true));
        assert!(!bits.put(70, true) && !bits.has(70) && !bits.has(u64::MAX));
        assert_eq!((bits.ones(), bits.words()[1]), (2, 1 << 5));
        assert!(bits.put(3, false) && !bits.put(3, false));
        assert_eq!((bits.ones(), bits.has(69)), (1, true));
    }
}
