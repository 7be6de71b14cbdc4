//! A prison: ranges of blocks that are being worked on, and those who wait for them.
//!
//! Whoever changes what a range means (provisions it, copies it, unmaps it) first holds it as a *cell*. Others
//! that meet a held range leave themselves in the cell and are handed back when it is released, in order.
//!
//! INVARIANT: no two held cells of one group overlap. The prison itself never waits and never
//! runs anything.

use std::collections::BTreeMap;
use std::ops::Range;

/// Cells of many groups (a group is one address space, a thin volume say), holding items of type `T`.
pub struct Prison<T> {
    cells: BTreeMap<(u32, u64), Cell<T>>,
}

struct Cell<T> {
    end: u64,
    waiting: Vec<T>,
}

impl<T> Default for Prison<T> {
    fn default() -> Self {
        Self {
            cells: BTreeMap::new(),
        }
    }
}

impl<T> Prison<T> {
    /// Holds `range` (not empty) of `group`; `false`, and no change, when part of it is held already.
    #[must_use]
    pub fn hold(&mut self, group: u32, range: Range<u64>) -> bool {
        debug_assert!(!range.is_empty(), "a cell of nothing");
        if self.first_overlap(group, &range).is_some() {
            return false;
        }
        self.cells.insert(
            (group, range.start),
            Cell {
                end: range.end,
                waiting: Vec::new(),
            },
        );
        true
    }

    /// Leaves `item` with the first held cell that overlaps `range`; gives it back when there is none.
    pub fn detain(&mut self, group: u32, range: Range<u64>, item: T) -> Result<(), T> {
        match self.first_overlap(group, &range) {
            Some(begin) => {
                if let Some(cell) = self.cells.get_mut(&(group, begin)) {
                    cell.waiting.push(item);
                }
                Ok(())
            }
            None => Err(item),
        }
    }

    /// Whether any block of `range` is held.
    pub fn is_held(&self, group: u32, range: Range<u64>) -> bool {
        self.first_overlap(group, &range).is_some()
    }

    /// Releases the cell that begins at `begin`; those who waited, in order of arrival.
    pub fn release(&mut self, group: u32, begin: u64) -> Vec<T> {
        match self.cells.remove(&(group, begin)) {
            Some(cell) => cell.waiting,
            None => {
                debug_assert!(false, "released a cell that nobody holds");
                Vec::new()
            }
        }
    }

    /// Takes everything that waits, cells stay held: for errors that concern all.
    pub fn drain_waiting(&mut self) -> Vec<T> {
        self.cells
            .values_mut()
            .flat_map(|cell| std::mem::take(&mut cell.waiting))
            .collect()
    }

    /// How many cells are held.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    fn first_overlap(&self, group: u32, range: &Range<u64>) -> Option<u64> {
        let before = self
            .cells
            .range((group, 0)..=(group, range.start))
            .next_back();
        if let Some((&(_, begin), cell)) = before
            && cell.end > range.start
        {
            return Some(begin);
        }
        self.cells
            .range((group, range.start)..(group, range.end.max(range.start)))
            .next()
            .map(|(&(_, begin), _)| begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_never_overlap_within_a_group() {
        let mut prison = Prison::<u8>::default();
        assert!(prison.hold(1, 10..20));
        for overlapping in [10..11, 19..25, 5..11, 0..100, 12..13] {
            assert!(!prison.hold(1, overlapping.clone()), "{overlapping:?}");
        }
        assert!(prison.hold(1, 20..21));
        assert!(prison.hold(1, 9..10));
        assert!(prison.hold(2, 10..20), "another group is another space");
        assert_eq!(prison.len(), 4);
    }

    #[test]
    fn those_who_wait_come_back_in_order() {
        let mut prison = Prison::default();
        assert!(prison.hold(7, 4..8));
        assert_eq!(prison.detain(7, 7..8, 'a'), Ok(()));
        assert_eq!(prison.detain(7, 0..5, 'b'), Ok(()));
        assert_eq!(prison.detain(7, 8..9, 'c'), Err('c'));
        assert!(prison.is_held(7, 5..6));
        assert_eq!(prison.release(7, 4), ['a', 'b']);
        assert!(prison.is_empty());
    }
}
