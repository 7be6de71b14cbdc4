//! Which blocks of the cache are free, and which of them comes next: the one behind the last one taken, so that the cache is written
//! in order.

/// A set of indices, with summaries: a bit of a level says whether the word below it has any.
pub(super) struct FreeBlocks {
    levels: Vec<Vec<u64>>,
    count: usize,
    current: Option<u32>,
}

impl FreeBlocks {
    /// Room for so many, none of them free; `None` without the memory.
    pub fn new(blocks: usize) -> Option<Self> {
        let mut levels = Vec::new();
        let mut bits = blocks;
        loop {
            let words = bits.div_ceil(64);
            let mut level = Vec::new();
            level.try_reserve_exact(words).ok()?;
            level.resize(words, 0);
            levels.push(level);
            if words <= 1 {
                break;
            }
            bits = words;
        }
        Some(Self {
            levels,
            count: 0,
            current: None,
        })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// No block is free any more.
    pub fn clear(&mut self) {
        self.levels.iter_mut().for_each(|level| level.fill(0));
        (self.count, self.current) = (0, None);
    }

    /// The one that comes next.
    pub fn next(&self) -> Option<u32> {
        self.current
    }

    pub fn take(&mut self) -> Option<u32> {
        let taken = self.current?;
        let mut at = taken as usize;
        for level in &mut self.levels {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                break;
            }
            at /= 64;
        }
        self.count -= 1;
        let next = self
            .first_from(taken as usize)
            .or_else(|| self.first_from(0));
        self.current = next.map(|next| next as u32);
        Some(taken)
    }

    pub fn put(&mut self, index: u32) {
        let mut at = index as usize;
        for level in &mut self.levels {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
        self.count += 1;
        self.current.get_or_insert(index);
    }

    fn first_from(&self, index: usize) -> Option<usize> {
        let mut at = index;
        for (height, level) in self.levels.iter().enumerate() {
            let bits = level.get(at / 64)? & (u64::MAX << (at % 64));
            if bits != 0 {
                let found = at / 64 * 64 + bits.trailing_zeros() as usize;
                let below = self.levels[..height].iter().rev();
                return Some(below.fold(found, |found, level| {
                    found * 64 + level[found].trailing_zeros() as usize
                }));
            }
            at = at / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn behaves_like_a_sorted_set_with_a_place_in_it() {
        let mut rng = SmallRng::seed_from_u64(1);
        for blocks in [1_u32, 63, 64, 65, 5000, 300_000] {
            let mut free = FreeBlocks::new(blocks as usize).expect("memory");
            let (mut model, mut place) = (BTreeSet::new(), None);
            for step in 0..4000 {
                let index = rng.random_range(0..blocks);
                if rng.random_range(0..3) > 0 && step < 3000 {
                    if model.insert(index) {
                        free.put(index);
                        place = place.or(Some(index));
                    }
                } else {
                    assert_eq!(free.take(), place);
                    if let Some(taken) = place {
                        model.remove(&taken);
                        place = model.range(taken..).chain(&model).next().copied();
                    }
                }
                assert_eq!((free.count(), free.next()), (model.len(), place));
            }
        }
    }
}
