//! The entries in memory: which block holds which sector, which were written first, which are free.
//!
//! A sector has several versions while one is leaving (on its way to the origin, or discarded) and was written anew meanwhile.
//!
//! INVARIANT: the tree leads to the newest version, from which `older` leads to others, all of them leaving. What is on the list,
//! oldest first, is in the tree and not leaving. A block is free only when its entry is clear on the medium and no request is under way on it.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use super::disk::CLEARED;
use super::free::FreeBlocks;

/// No block.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Of the line.
    pub sector: u64,
    pub seq: u64,
    /// The next one on the list that was inserted later, and the one before.
    later: u32,
    earlier: u32,
    pub older: u32,
    /// When it was inserted, in milliseconds of the clock's, wrapping.
    pub since: u32,
    /// Requests under way.
    pub readers: u32,
    pub writers: u32,
    /// On its way out: never written in place.
    pub leaving: bool,
    /// Is to be written to the medium as clear.
    pub clearing: bool,
    /// Never written since it was inserted: no read may see it.
    pub unwritten: bool,
    /// Clear on the medium, and free when the last request on it has ended.
    gone: bool,
}

const EMPTY: Entry = Entry {
    sector: u64::MAX,
    seq: CLEARED,
    later: NONE,
    earlier: NONE,
    older: NONE,
    since: 0,
    readers: 0,
    writers: 0,
    leaving: false,
    clearing: false,
    unwritten: false,
    gone: false,
};

impl Entry {
    pub fn is_busy(&self) -> bool {
        self.readers > 0 || self.writers > 0
    }

    /// Whether nothing is under way that stands against writing it back.
    pub fn is_settled(&self) -> bool {
        !self.leaving && !self.unwritten && self.writers == 0 && self.older == NONE
    }
}

/// See the module.
pub(super) struct Entries {
    list: Vec<Entry>,
    tree: BTreeMap<u64, u32>,
    free: FreeBlocks,
    newest: u32,
    oldest: u32,
}

impl Entries {
    /// So many entries, none of them free; `None` without the memory.
    pub fn new(blocks: u32) -> Option<Self> {
        let mut list = Vec::new();
        list.try_reserve_exact(blocks as usize).ok()?;
        list.resize(blocks as usize, EMPTY);
        Some(Self {
            list,
            tree: BTreeMap::new(),
            free: FreeBlocks::new(blocks as usize)?,
            newest: NONE,
            oldest: NONE,
        })
    }

    /// As after [`Entries::new`].
    pub fn reset(&mut self) {
        self.list.fill(EMPTY);
        self.tree.clear();
        self.free.clear();
        (self.newest, self.oldest) = (NONE, NONE);
    }

    pub fn free_count(&self) -> usize {
        self.free.count()
    }

    /// The newest version of a sector.
    pub fn at(&self, sector: u64) -> Option<u32> {
        self.tree.get(&sector).copied()
    }

    /// The first sector from here on that is in the cache.
    pub fn following(&self, sector: u64) -> Option<u64> {
        self.tree.range(sector..).next().map(|(found, _)| *found)
    }

    /// Newest versions of these sectors, in order.
    pub fn range(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.tree
            .range(from..to)
            .map(|(sector, index)| (*sector, *index))
    }

    /// How many blocks from `index` on hold the sectors from `sector` on, one after another, and satisfy `fits`; at least one, at
    /// most `max`.
    pub fn run(
        &self,
        (sector, index): (u64, u32),
        block_sectors: u64,
        max: u64,
        fits: impl Fn(&Entry) -> bool,
    ) -> u32 {
        let mut count = 1;
        let Some(after) = sector.checked_add(block_sectors) else {
            return count;
        };
        for (found, block) in self.tree.range(after..) {
            let expected = block_sectors.checked_mul(u64::from(count));
            let follows = expected.and_then(|by| sector.checked_add(by)) == Some(*found)
                && index.checked_add(count) == Some(*block);
            if u64::from(count) >= max || !follows || !fits(&self[*block]) {
                break;
            }
            count += 1;
        }
        count
    }

    /// The block that is taken next.
    pub fn next_free(&self) -> Option<u32> {
        self.free.next()
    }

    /// Takes the next free block for a sector that is not in the cache, or leaving.
    pub fn insert_free(&mut self, sector: u64, seq: u64, since: u32) -> Option<u32> {
        let index = self.free.take()?;
        self.insert(index, sector, seq, since);
        self[index].unwritten = true;
        Some(index)
    }

    /// Has an entry hold a sector, as its newest version.
    pub fn insert(&mut self, index: u32, sector: u64, seq: u64, since: u32) {
        let older = self.tree.insert(sector, index).unwrap_or(NONE);
        debug_assert!(
            older == NONE || self[older].leaving,
            "only one version stays"
        );
        let earlier = std::mem::replace(&mut self.newest, index);
        self[index] = Entry {
            sector,
            seq,
            earlier,
            older,
            since,
            ..EMPTY
        };
        match earlier {
            NONE => self.oldest = index,
            earlier => self[earlier].later = index,
        }
    }

    /// The one on the list that was inserted first.
    pub fn oldest(&self) -> Option<u32> {
        some(self.oldest)
    }

    /// The one on the list that was inserted after this one.
    pub fn later(&self, index: u32) -> Option<u32> {
        some(self[index].later)
    }

    /// It is on its way out.
    pub fn begin_leaving(&mut self, index: u32) {
        self.unlist(index);
        self[index].leaving = true;
    }

    /// It is clear on the medium.
    pub fn end_leaving(&mut self, index: u32) {
        let Entry { sector, older, .. } = self[index];
        let mut at = self.at(sector).unwrap_or(NONE);
        if at == index {
            match older {
                NONE => drop(self.tree.remove(&sector)),
                older => drop(self.tree.insert(sector, older)),
            }
        }
        while at != NONE {
            let next = self[at].older;
            if next == index {
                self[at].older = older;
            }
            at = next;
        }
        let entry = &mut self[index];
        *entry = Entry {
            readers: entry.readers,
            writers: entry.writers,
            gone: true,
            sector: entry.sector,
            ..EMPTY
        };
        self.release(index);
    }

    /// Sees whether a block is free now; whether it is.
    pub fn release(&mut self, index: u32) -> bool {
        let entry = &mut self[index];
        let freed = entry.gone && !entry.is_busy();
        if freed {
            entry.gone = false;
            self.free.put(index);
        }
        freed
    }

    /// An entry that maps nothing is free, when the cache is opened.
    pub fn add_free(&mut self, index: u32, sector: u64) {
        self[index] = Entry { sector, ..EMPTY };
        self.free.put(index);
    }

    /// The older of two versions that a cache held which is being opened.
    pub fn supersede(&mut self, index: u32) {
        self.unlist(index);
        let sector = self[index].sector;
        self.tree.remove(&sector);
        self.add_free(index, sector);
    }

    fn unlist(&mut self, index: u32) {
        let Entry { later, earlier, .. } = self[index];
        match earlier {
            NONE if self.oldest == index => self.oldest = later,
            NONE => {}
            earlier => self[earlier].later = later,
        }
        match later {
            NONE if self.newest == index => self.newest = earlier,
            NONE => {}
            later => self[later].earlier = earlier,
        }
        (self[index].later, self[index].earlier) = (NONE, NONE);
    }
}

impl Index<u32> for Entries {
    type Output = Entry;

    fn index(&self, index: u32) -> &Entry {
        &self.list[index as usize]
    }
}

impl IndexMut<u32> for Entries {
    fn index_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.list[index as usize]
    }
}

fn some(index: u32) -> Option<u32> {
    (index != NONE).then_some(index)
}
