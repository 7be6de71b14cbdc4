//! Which chunk of the COW device an exception gets.

use thinmap_units::Sector;

/// Chunks are given out one after another, never twice; those that hold areas are left out.
pub(super) struct Room {
    chunk: Sector,
    next: u64,
    /// From one area to the next, in chunks; `None` where there are no areas.
    stride: Option<u64>,
    /// The COW device's size when it was last asked.
    size: Sector,
}

/// The area that comes first lies behind the header.
const FIRST_AREA: u64 = 1;

impl Room {
    /// Nothing is given out. With a stride header and first area are left out.
    pub fn new(chunk: Sector, stride: Option<u64>) -> Self {
        Self {
            chunk,
            next: if stride.is_some() { FIRST_AREA + 1 } else { 0 },
            stride,
            size: Sector::ZERO,
        }
    }

    /// A chunk, if one more fits the device. `size` is asked for again when it does not.
    pub fn take(&mut self, size: impl Fn() -> Sector) -> Option<u64> {
        if !self.fits() {
            self.size = size();
            if !self.fits() {
                return None;
            }
        }
        let chunk = self.next;
        self.next += 1;
        self.settle();
        Some(chunk)
    }

    fn fits(&self) -> bool {
        let end = self.next.checked_add(1);
        let end = end.and_then(|end| end.checked_mul(self.chunk.raw()));
        end.is_some_and(|end| end <= self.size.raw())
    }

    /// A chunk that a store says is in use.
    pub fn note(&mut self, chunk: u64) {
        self.next = self.next.max(chunk.saturating_add(1));
    }

    /// Leaves out the chunk that an area needs.
    pub fn settle(&mut self) {
        if self
            .stride
            .is_some_and(|stride| self.next % stride == FIRST_AREA)
        {
            self.next = self.next.saturating_add(1);
        }
    }

    /// Sets what would be given out next.
    pub fn set_next(&mut self, chunk: u64) {
        self.next = chunk;
    }

    /// Sectors before the next chunk: what the status calls allocated.
    pub fn allocated(&self) -> u64 {
        self.next.saturating_mul(self.chunk.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_left_out() {
        // Chunks of one sector: 32 slots, so areas at 1, 34, 67.
        let mut room = Room::new(Sector(1), Some(33));
        let given: Vec<u64> = std::iter::from_fn(|| room.take(|| Sector(70))).collect();
        let expected: Vec<u64> = (2..70).filter(|c| ![34, 67].contains(c)).collect();
        assert_eq!(given, expected);
        // The device has grown.
        assert_eq!(room.take(|| Sector(71)), Some(70));
    }

    #[test]
    fn a_store_that_names_impossible_chunks_has_no_room() {
        let mut room = Room::new(Sector(8), Some(257));
        room.note(u64::MAX);
        room.settle();
        assert_eq!(room.take(|| Sector(u64::MAX)), None);
        assert_eq!(room.allocated(), u64::MAX);
    }

    #[test]
    fn without_areas_everything_is_given_out() {
        let mut room = Room::new(Sector(4), None);
        let given: Vec<u64> = std::iter::from_fn(|| room.take(|| Sector(15))).collect();
        assert_eq!(given, [0, 1, 2]);
        assert_eq!(room.allocated(), 12);
    }
}
