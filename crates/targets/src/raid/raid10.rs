//! Where raid10 keeps its copies: md's layouts near, far and offset.
//!
//! A row is one chunk of each member. Chunks are dealt out to the members of a row in turn, each `near` times. With far
//! copies every row is there `far` times, each time moved on by `near` members inside its *far set*: one `stride` further down (far), or
//! in the next row (offset).

use smallvec::SmallVec;
use thinmap_units::Sector;

use super::raid_type::{far_copies, is_offset, near_copies};

/// A copy: which member, and where on it.
pub(super) type Place = (usize, Sector);

/// One array's geometry.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    members: usize,
    near: usize,
    far: usize,
    offset: bool,
    /// Members of a far set; the last set has the remainder as well.
    set: usize,
    chunk: u64,
    /// From one far copy to the next, in sectors.
    stride: u64,
    /// Chunks of the array.
    chunks: u64,
}

/// In md's layout word: how far sets are formed.
const SETS_SHIFT: u32 = 17;

impl Geometry {
    /// `None` for a layout that cannot be. `member_len` is what may be used of each member.
    pub fn new(layout: u32, members: usize, chunk: Sector, member_len: Sector) -> Option<Self> {
        let (near, far) = (near_copies(layout) as usize, far_copies(layout) as usize);
        if near == 0 || far == 0 || near * far > members || near * far < 2 || chunk.raw() == 0 {
            return None;
        }
        let set = match layout >> SETS_SHIFT {
            0 => members,
            2 => near * far,
            _ => return None,
        };
        let offset = is_offset(layout);
        let count = members as u64;
        let (n, f) = (near as u64, far as u64);
        let chunks = member_len.raw() / chunk.raw() / f * count / n;
        let rows = (chunks * n * f).div_ceil(count);
        let stride = if offset { 1 } else { rows / f };
        Some(Self {
            members,
            near,
            far,
            offset,
            set,
            chunk: chunk.raw(),
            stride: stride * chunk.raw(),
            chunks,
        })
    }

    /// The array's length.
    pub fn len(&self) -> Sector {
        Sector(self.chunks * self.chunk)
    }

    /// A chunk's length.
    pub fn chunk(&self) -> Sector {
        Sector(self.chunk)
    }

    /// Copies of everything.
    #[cfg(test)]
    fn copies(&self) -> usize {
        self.near * self.far
    }

    /// First member and size of the far set that a member is in.
    fn set_of(&self, member: usize) -> (usize, usize) {
        let last = (self.members / self.set - 1) * self.set;
        if member >= last {
            (last, self.members - last)
        } else {
            (member / self.set * self.set, self.set)
        }
    }

    /// All copies of a sector of the array. What follows it in its chunk follows in each of them.
    pub fn places(&self, sector: Sector) -> SmallVec<[Place; 4]> {
        let (chunk, within) = (sector.raw() / self.chunk, sector.raw() % self.chunk);
        let first = chunk * self.near as u64;
        let count = self.members as u64;
        let mut places = SmallVec::new();
        for copy in 0..self.near as u64 {
            let row = (first + copy) / count;
            // Below the count of members.
            let member = ((first + copy) % count) as usize;
            let (begin, size) = self.set_of(member);
            for far in 0..self.far {
                let moved = begin + (member - begin + far * self.near) % size;
                let row_begin = if self.offset {
                    (row * self.far as u64 + far as u64) * self.chunk
                } else {
                    row * self.chunk + far as u64 * self.stride
                };
                places.push((moved, Sector(row_begin + within)));
            }
        }
        places
    }

    /// Which far copy a member's sector belongs to; `None` behind the last.
    pub fn far_copy(&self, sector: Sector) -> Option<usize> {
        let nr = if self.offset {
            sector.raw() / self.chunk % self.far as u64
        } else {
            sector.raw().checked_div(self.stride)?
        };
        usize::try_from(nr).ok().filter(|far| *far < self.far)
    }

    /// What a member's sector is a copy of; `None` where it holds nothing.
    pub fn at(&self, member: usize, sector: Sector) -> Option<Sector> {
        let far = self.far_copy(sector)?;
        let row = if self.offset {
            sector.raw() / self.chunk / self.far as u64
        } else {
            sector.raw() % self.stride / self.chunk
        };
        let (begin, size) = self.set_of(member);
        let back = far * self.near % size;
        let original = begin + (member - begin + size - back) % size;
        let chunk = (row * self.members as u64 + original as u64) / self.near as u64;
        (chunk < self.chunks).then(|| Sector(chunk * self.chunk + sector.raw() % self.chunk))
    }

    /// Whether everything is on at least one of those members.
    pub fn is_enough(&self, is_good: &dyn Fn(usize) -> bool) -> bool {
        // After so many chunks it begins again.
        (0..self.members as u64).all(|chunk| {
            let places = self.places(Sector(chunk * self.chunk));
            places.iter().any(|(member, _)| is_good(*member))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::raid_type::{RAID10_FAR, RAID10_NEAR, RAID10_OFFSET, raid10_layout};
    use super::*;

    /// Formats, copies and members that the kernel takes.
    fn all() -> Vec<Geometry> {
        let mut all = Vec::new();
        for format in [RAID10_NEAR, RAID10_FAR, RAID10_OFFSET] {
            for members in 2..8 {
                for copies in 2..=members.min(4) {
                    for near_sets in [false, true] {
                        let layout = raid10_layout(format, copies as u32, near_sets);
                        let made = Geometry::new(layout, members, Sector(8), Sector(8 * 37));
                        all.push(made.expect("a layout"));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_place_holds_one_thing_and_says_which() {
        for geometry in all() {
            let mut held = HashMap::new();
            for chunk in 0..geometry.len().raw() / 8 {
                let sector = Sector(chunk * 8 + 3);
                let places = geometry.places(sector);
                assert_eq!(places.len(), geometry.copies());
                for place in places {
                    assert!(place.1 < Sector(8 * 37), "{geometry:?} leaves the member");
                    assert_eq!(geometry.at(place.0, place.1), Some(sector), "{geometry:?}");
                    assert_eq!(held.insert(place, sector), None, "{geometry:?}");
                }
            }
        }
    }

    #[test]
    fn copies_are_on_different_members() {
        for geometry in all() {
            for chunk in 0..geometry.members as u64 {
                let places = geometry.places(Sector(chunk * 8));
                let mut members: Vec<usize> = places.iter().map(|place| place.0).collect();
                members.sort_unstable();
                members.dedup();
                assert_eq!(members.len(), geometry.copies(), "{geometry:?}");
            }
            for lost in 0..geometry.members {
                assert!(geometry.is_enough(&|member| member != lost));
            }
            assert!(!geometry.is_enough(&|_| false));
        }
    }

    #[test]
    fn two_near_copies_lie_side_by_side() {
        let layout = raid10_layout(RAID10_NEAR, 2, false);
        let geometry = Geometry::new(layout, 4, Sector(8), Sector(80)).expect("a layout");
        let places = |sector| geometry.places(Sector(sector)).to_vec();
        assert_eq!(places(9), [(2, Sector(1)), (3, Sector(1))]);
        assert_eq!(places(16), [(0, Sector(8)), (1, Sector(8))]);
        assert!(geometry.is_enough(&|member| member == 1 || member == 2));
        assert!(!geometry.is_enough(&|member| member < 2));
    }
}
