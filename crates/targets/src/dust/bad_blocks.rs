//! The list of bad blocks.

use std::collections::BTreeMap;

/// Blocks whose reads fail, with how many writes of each fail before one heals it.
#[derive(Default)]
pub(super) struct BadBlocks(BTreeMap<u64, u8>);

/// What a write to a block does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Write {
    /// The block is good.
    Passes,
    /// The block was bad, and is good now.
    Heals,
    Fails,
}

impl BadBlocks {
    pub fn contains(&self, block: u64) -> bool {
        self.0.contains_key(&block)
    }

    /// A write comes to `block`.
    pub fn write(&mut self, block: u64) -> Write {
        match self.0.get_mut(&block) {
            None => Write::Passes,
            Some(0) => {
                self.0.remove(&block);
                Write::Heals
            }
            Some(failures) => {
                *failures -= 1;
                Write::Fails
            }
        }
    }

    /// Whether the block was good.
    pub fn add(&mut self, block: u64, write_failures: u8) -> bool {
        let entry = self.0.entry(block);
        let is_new = matches!(entry, std::collections::btree_map::Entry::Vacant(_));
        entry.or_insert(write_failures);
        is_new
    }

    /// Whether the block was bad.
    pub fn remove(&mut self, block: u64) -> bool {
        self.0.remove(&block).is_some()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Ascending.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.keys().copied()
    }

    /// Whether there were any.
    pub fn clear(&mut self) -> bool {
        let any = !self.0.is_empty();
        self.0.clear();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_heals_after_the_failures_that_were_asked_for() {
        let mut bad = BadBlocks::default();
        assert!(bad.add(7, 2));
        assert!(!bad.add(7, 0), "it is there");
        assert_eq!(bad.write(6), Write::Passes);
        let writes: Vec<Write> = (0..4).map(|_| bad.write(7)).collect();
        assert_eq!(
            writes,
            [Write::Fails, Write::Fails, Write::Heals, Write::Passes]
        );
        assert!(!bad.contains(7) && !bad.remove(7) && !bad.clear());
    }
}
