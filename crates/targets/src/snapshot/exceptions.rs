//! The exceptions of a snapshot in memory: old chunk to new chunk, consecutive ones as one run.

use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub(super) struct Exceptions {
    /// By the first old chunk.
    runs: BTreeMap<u64, Run>,
}

#[derive(Clone, Copy)]
struct Run {
    new: u64,
    len: u64,
}

impl Exceptions {
    /// Where `old` lies in the COW device.
    pub fn find(&self, old: u64) -> Option<u64> {
        let (begin, run) = self.runs.range(..=old).next_back()?;
        let into = old - begin;
        // A damaged store may name any chunk: one that does not exist fails as a request out of range.
        (into < run.len).then(|| run.new.saturating_add(into))
    }

    /// Whether every chunk of `first..=last` has one.
    pub fn cover(&self, first: u64, last: u64) -> bool {
        let mut at = first;
        loop {
            let Some((begin, run)) = self.runs.range(..=at).next_back() else {
                return false;
            };
            if at - begin >= run.len {
                return false;
            }
            // The run's last chunk.
            let end = begin + (run.len - 1);
            if end >= last {
                return true;
            }
            at = end + 1;
        }
    }

    /// Adds one; a chunk that has one already gets the new place.
    pub fn insert(&mut self, old: u64, new: u64) {
        self.remove(old);
        if let Some((begin, run)) = self.runs.range_mut(..=old).next_back()
            && old - begin == run.len
            && run.new.checked_add(run.len) == Some(new)
        {
            run.len += 1;
            return;
        }
        self.runs.insert(old, Run { new, len: 1 });
    }

    /// Takes one out, if it is there.
    pub fn remove(&mut self, old: u64) {
        let Some((&begin, &run)) = self.runs.range(..=old).next_back() else {
            return;
        };
        let into = old - begin;
        if into >= run.len {
            return;
        }
        self.runs.remove(&begin);
        if into > 0 {
            self.runs.insert(begin, Run { len: into, ..run });
        }
        if into + 1 < run.len {
            let rest = Run {
                new: run.new.saturating_add(into + 1),
                len: run.len - into - 1,
            };
            self.runs.insert(old + 1, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn model_of_a_map() {
        let mut rng = SmallRng::seed_from_u64(7);
        let (mut runs, mut map) = (Exceptions::default(), HashMap::new());
        let mut new = 1;
        for _ in 0..20_000 {
            let old = rng.random_range(0..200);
            if rng.random_range(0..3) == 0 {
                runs.remove(old);
                map.remove(&old);
            } else {
                new = if rng.random() {
                    new + 1
                } else {
                    rng.random_range(1..1000)
                };
                runs.insert(old, new);
                map.insert(old, new);
            }
            let probe = rng.random_range(0..200);
            assert_eq!(runs.find(probe), map.get(&probe).copied());
            let last = probe + rng.random_range(0..6);
            let all = (probe..=last).all(|chunk| map.contains_key(&chunk));
            assert_eq!(runs.cover(probe, last), all);
        }
    }

    #[test]
    fn consecutive_chunks_are_one_run() {
        let mut runs = Exceptions::default();
        (0..1000).for_each(|i| runs.insert(i, i + 2));
        assert_eq!(runs.runs.len(), 1);
        runs.insert(u64::MAX, u64::MAX);
        assert_eq!(runs.find(u64::MAX), Some(u64::MAX));
        assert!(!runs.cover(u64::MAX - 1, u64::MAX));
    }
}
