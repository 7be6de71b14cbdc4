//! Which regions the destination has: read by every request without a lock.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// See the module.
pub(super) struct Regions {
    count: u64,
    words: Vec<AtomicU64>,
    hydrated: AtomicU64,
}

impl Regions {
    /// `count` regions, of which the words tell the state; the error is that of a word.
    pub fn load<E>(count: u64, word: impl Fn(u64) -> Result<u64, E>) -> Result<Option<Self>, E> {
        let len = count.div_ceil(64);
        let mut words = Vec::new();
        let Ok(capacity) = usize::try_from(len) else {
            return Ok(None);
        };
        if words.try_reserve_exact(capacity).is_err() {
            return Ok(None);
        }
        let mut hydrated = 0;
        for index in 0..len {
            let mut bits = word(index)?;
            let beyond = (index + 1) * 64 - count.min((index + 1) * 64);
            bits &= u64::MAX >> beyond;
            hydrated += u64::from(bits.count_ones());
            words.push(AtomicU64::new(bits));
        }
        Ok(Some(Self {
            count,
            words,
            hydrated: AtomicU64::new(hydrated),
        }))
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many the destination has.
    pub fn hydrated(&self) -> u64 {
        self.hydrated.load(SeqCst)
    }

    pub fn is_done(&self) -> bool {
        self.hydrated() == self.count
    }

    /// Whether the destination has this one. One that there is not is nobody's: no request gets so far.
    pub fn has(&self, region: u64) -> bool {
        self.word(region / 64) >> (region % 64) & 1 == 1
    }

    pub fn word(&self, index: u64) -> u64 {
        let word = usize::try_from(index)
            .ok()
            .and_then(|at| self.words.get(at));
        word.map_or(0, |word| word.load(SeqCst))
    }

    /// The destination has it from now on; whether that is new.
    pub fn set(&self, region: u64) -> bool {
        let at = usize::try_from(region / 64).ok();
        let Some(word) = at.and_then(|at| self.words.get(at)) else {
            return false;
        };
        if region >= self.count {
            return false;
        }
        let bit = 1 << (region % 64);
        let is_new = word.fetch_or(bit, SeqCst) & bit == 0;
        self.hydrated.fetch_add(u64::from(is_new), SeqCst);
        is_new
    }

    /// The next one at or after `from` that the destination has not.
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        let mut region = from;
        while region < self.count {
            let missing = !self.word(region / 64) >> (region % 64);
            if missing != 0 {
                region += u64::from(missing.trailing_zeros());
                return (region < self.count).then_some(region);
            }
            region = (region / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_found_until_all_are_there() {
        let load = |word: u64| {
            Regions::load::<()>(130, |_| Ok(word))
                .expect("words")
                .expect("room")
        };
        assert!(load(u64::MAX).is_done());
        let regions = load(0);
        assert_eq!(regions.next_missing(0), Some(0));
        for region in (0..130).filter(|region| *region != 64) {
            assert!(regions.set(region) && !regions.set(region));
        }
        assert_eq!(regions.hydrated(), 129);
        assert_eq!(regions.next_missing(0), Some(64));
        assert_eq!(regions.next_missing(65), None);
        assert!(regions.set(64) && regions.is_done());
        assert!(!regions.set(130));
    }
}
