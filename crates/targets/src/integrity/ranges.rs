//! Which sectors somebody is at work on: data and tags of a range change together, seen from outside.
//!
//! INVARIANT: no two held ranges overlap. Who holds a range never waits for another one, but for the worker, for whose sake nobody
//! new gets what overlaps the range it waits for.

use std::collections::BTreeMap;
use std::ops::Range;

use thinmap_block::Io;

/// See the module. Sectors of the line.
#[derive(Default)]
pub(super) struct Ranges {
    /// By first sector: the sector after the last one.
    held: BTreeMap<u64, u64>,
    waiting: Vec<(Range<u64>, Io)>,
    /// The worker waits for this.
    wanted: Option<Range<u64>>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Ranges {
    /// Takes the range, if nobody has or wants any of it.
    pub fn take(&mut self, range: &Range<u64>) -> bool {
        if self.wanted.as_ref().is_some_and(|w| overlap(w, range)) || !self.is_free(range) {
            return false;
        }
        self.held.insert(range.start, range.end);
        true
    }

    fn is_free(&self, range: &Range<u64>) -> bool {
        let before = self.held.range(..range.end).next_back();
        before.is_none_or(|(_, end)| *end <= range.start)
    }

    /// A request that could not have its range comes back from a [`Ranges::release`].
    pub fn wait(&mut self, range: Range<u64>, io: Io) {
        self.waiting.push((range, io));
    }

    /// Gives a range back; these requests may try again.
    #[must_use]
    pub fn release(&mut self, range: &Range<u64>) -> Vec<Io> {
        self.held.remove(&range.start);
        let freed = self.waiting.extract_if(.., |(of, _)| overlap(of, range));
        freed.map(|(_, io)| io).collect()
    }

    /// The worker wants this range next; it asks for it with [`Ranges::take_wanted`].
    pub fn want(&mut self, range: Range<u64>) {
        self.wanted = Some(range);
    }

    /// Takes what the worker wants, if nobody has any of it.
    pub fn take_wanted(&mut self) -> bool {
        let Some(range) = self.wanted.take() else {
            return true;
        };
        if !self.is_free(&range) {
            self.wanted = Some(range);
            return false;
        }
        self.held.insert(range.start, range.end);
        true
    }

    /// Everybody who waits, for good.
    pub fn give_up(&mut self) -> Vec<Io> {
        self.wanted = None;
        self.waiting.drain(..).map(|(_, io)| io).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_exclude_each_other() {
        let mut ranges = Ranges::default();
        assert!(ranges.take(&(8..16)));
        for overlapping in [0..9, 8..16, 10..12, 15..20, 0..100] {
            assert!(!ranges.take(&overlapping), "{overlapping:?}");
        }
        assert!(ranges.take(&(0..8)));
        assert!(ranges.take(&(16..24)));
        assert!(ranges.release(&(8..16)).is_empty());
        assert!(ranges.take(&(9..10)));
    }

    #[test]
    fn nobody_gets_ahead_of_the_worker() {
        let mut ranges = Ranges::default();
        assert!(ranges.take(&(8..16)));
        ranges.want(0..12);
        assert!(!ranges.take_wanted());
        assert!(!ranges.take(&(0..4)));
        assert!(ranges.take(&(16..20)));
        assert!(ranges.release(&(8..16)).is_empty());
        assert!(ranges.take_wanted());
        assert!(ranges.take(&(12..16)));
        assert!(!ranges.take(&(0..4)));
    }
}
