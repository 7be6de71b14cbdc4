//! The bitmap in memory: a word for each region of the sync space.
//!
//! INVARIANT: a region with a write under way (a count above zero, counted before [`Regions::begin`] said that it may go) is
//! dirty on disk, and stays so until the count is zero.
//! INVARIANT: a region that is `NEEDED` or being synced is not made clean.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use thinmap_units::Sector;

/// The disk says dirty.
const ON_DISK: u32 = 1 << 31;
/// Some member may lack what the others have.
const NEEDED: u32 = 1 << 30;
/// A sync is at work in it.
const SYNCING: u32 = 1 << 29;
/// Nothing was written since the last look.
const IDLE: u32 = 1 << 28;
const COUNT: u32 = IDLE - 1;

/// See the module.
pub(super) struct Regions {
    region: u64,
    words: Vec<AtomicU32>,
}

/// Some regions in a row: fits a request's tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub first: u32,
    pub count: u32,
}

impl Span {
    /// Every region of it.
    pub fn iter(self) -> Range<usize> {
        let first = self.first as usize;
        first..first + self.count as usize
    }
}

impl Regions {
    /// All clean.
    pub fn new(region: Sector, len: Sector) -> Self {
        let count = len.raw().div_ceil(region.raw());
        Self {
            region: region.raw(),
            words: (0..count).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Length of each.
    pub fn region(&self) -> Sector {
        Sector(self.region)
    }

    /// Those that a part of the sync space touches.
    pub fn span(&self, range: &Range<Sector>) -> Span {
        if range.start >= range.end {
            return Span { first: 0, count: 0 };
        }
        let last = (self.words.len() as u64).saturating_sub(1);
        let first = (range.start.raw() / self.region).min(last);
        let end = ((range.end.raw() - 1) / self.region).min(last) + 1;
        // There are at most 2^21 of them.
        Span {
            first: first as u32,
            count: (end - first) as u32,
        }
    }

    /// Counts a write in; whether it may go at once. If not it may when all its regions are dirty on disk.
    pub fn begin(&self, span: Span) -> bool {
        let mut dirty = true;
        for word in &self.words[span.iter()] {
            dirty &= word.fetch_add(1, SeqCst) & ON_DISK != 0;
        }
        dirty
    }

    /// Counts it out. `missed`: some member does not have what it wrote.
    pub fn end(&self, span: Span, missed: bool) {
        for word in &self.words[span.iter()] {
            if missed {
                word.fetch_or(NEEDED, SeqCst);
            }
            if word.fetch_sub(1, SeqCst) & IDLE != 0 {
                word.fetch_and(!IDLE, SeqCst);
            }
        }
    }

    /// Whether the disk says that a region is dirty.
    pub fn is_on_disk(&self, index: usize) -> bool {
        self.words[index].load(SeqCst) & ON_DISK != 0
    }

    /// The disk says so now.
    pub fn set_on_disk(&self, index: usize) {
        self.words[index].fetch_or(ON_DISK, SeqCst);
    }

    /// Makes a region one that must be looked at; the disk says dirty.
    pub fn set_needed(&self, index: usize) {
        self.words[index].fetch_or(ON_DISK | NEEDED, SeqCst);
    }

    /// Whether it must be looked at.
    pub fn is_needed(&self, index: usize) -> bool {
        self.words[index].load(SeqCst) & (NEEDED | SYNCING) != 0
    }

    /// Whether any region must.
    pub fn any_needed(&self) -> bool {
        (0..self.words.len()).any(|index| self.is_needed(index))
    }

    /// A sync begins with a region: what is missed from now on counts again.
    pub fn begin_sync(&self, index: usize) {
        let word = &self.words[index];
        word.fetch_or(SYNCING, SeqCst);
        word.fetch_and(!NEEDED, SeqCst);
    }

    /// It has ended; `still` when the region must be looked at again.
    pub fn end_sync(&self, index: usize, still: bool) {
        let word = &self.words[index];
        if still {
            word.fetch_or(ON_DISK | NEEDED, SeqCst);
        }
        word.fetch_and(!SYNCING, SeqCst);
    }

    /// Regions that nobody has written to since the last call, now marked clean in memory: the disk may say so afterwards. A write that
    /// begins from here on waits for the disk again. With `all` those count, too, that have just become idle.
    pub fn take_clean(&self, all: bool) -> Vec<usize> {
        let mut clean = Vec::new();
        for (index, word) in self.words.iter().enumerate() {
            let now = word.load(SeqCst);
            if now & ON_DISK == 0 || now & (NEEDED | SYNCING | COUNT) != 0 {
                continue;
            }
            let to = if now & IDLE != 0 || all {
                0
            } else {
                now | IDLE
            };
            // Someone who comes in between is seen at the next look.
            let swapped = word.compare_exchange(now, to, SeqCst, SeqCst);
            if swapped.is_ok() && to == 0 {
                clean.push(index);
            }
        }
        clean
    }

    /// Whether some region is dirty on disk that may become clean.
    pub fn has_dirty(&self) -> bool {
        let dirty = |word: &AtomicU32| {
            let now = word.load(SeqCst);
            now & ON_DISK != 0 && now & NEEDED == 0
        };
        self.words.iter().any(dirty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions() -> Regions {
        Regions::new(Sector(1024), Sector(10_000))
    }

    #[test]
    fn a_first_write_waits_for_the_disk_and_later_ones_do_not() {
        let regions = regions();
        assert_eq!(regions.len(), 10);
        let span = regions.span(&(Sector(1000)..Sector(1030)));
        assert_eq!(span, Span { first: 0, count: 2 });
        assert!(!regions.begin(span));
        span.iter().for_each(|index| regions.set_on_disk(index));
        assert!(regions.begin(span));
        regions.end(span, false);
        assert_eq!(regions.take_clean(true), []);
        regions.end(span, false);
        assert_eq!(regions.take_clean(false), []);
        assert_eq!(regions.take_clean(false), [0, 1]);
        assert!(!regions.begin(span));
    }

    #[test]
    fn a_write_between_two_looks_keeps_a_region_dirty() {
        let regions = regions();
        let span = regions.span(&(Sector(0)..Sector(1)));
        regions.set_on_disk(0);
        assert_eq!(regions.take_clean(false), []);
        assert!(regions.begin(span));
        regions.end(span, false);
        assert_eq!(regions.take_clean(false), []);
        assert_eq!(regions.take_clean(false), [0]);
    }

    #[test]
    fn what_a_member_missed_is_needed_until_it_was_synced() {
        let regions = regions();
        let span = regions.span(&(Sector(5000)..Sector(5008)));
        regions.begin(span);
        regions.set_on_disk(4);
        regions.end(span, true);
        assert!(regions.is_needed(4) && !regions.is_needed(5));
        assert_eq!(regions.take_clean(true), []);
        regions.begin_sync(4);
        assert_eq!(regions.take_clean(true), []);
        regions.end_sync(4, false);
        assert!(!regions.any_needed());
        assert_eq!(regions.take_clean(true), [4]);
    }
}
