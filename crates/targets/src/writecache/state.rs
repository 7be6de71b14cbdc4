//! What is in the cache, and where each request goes: decisions only, all of them under one lock that nobody holds over I/O.
//!
//! Writes belong to the *epoch* in which they were mapped. A commit ends an epoch, and waits for its writes; those that come meanwhile
//! belong to the next one.

use std::sync::Arc;
use std::time::Duration;

use thinmap_block::Io;
use thinmap_units::Sector;

use super::disk::Geometry;
use super::entries::Entries;
use super::journal::Journal;
use super::worker::Inbox;

/// See the module.
pub(super) struct State {
    pub entries: Entries,
    /// Of entries that are inserted now. Those with a lower one are committed, or being committed.
    pub seq: u64,
    /// As the superblock on the medium says.
    pub seq_on_disk: u64,
    /// Entries of the present epoch.
    pub open: usize,
    /// Committed blocks were written in place since the last commit.
    pub overwrote: bool,
    /// A commit is under way.
    pub committing: bool,
    /// Blocks written since the last commit, as the kernel counts them.
    pub uncommitted: u32,
    pub commit_at: Option<Duration>,
    pub epoch: usize,
    /// Writes to the cache under way, by epoch.
    pub writes: [u64; 2],
    /// Pages of the metadata that differ from the medium's.
    pub dirty: Vec<u64>,
    /// Blocks on their way to the origin.
    pub writeback: u64,
    /// Writing back has begun and not reached its end.
    pub is_draining: bool,
    pub cleaner: bool,
    /// Free blocks at which writing back begins, and at which it ends.
    pub marks: [u64; 2],
    /// Writes past the cache under way, and when the last one ended.
    pub around: u64,
    pub around_ended: Option<Duration>,
    pub stats: Stats,
    /// A device has failed: nothing is written any more. Until another table is loaded.
    pub failed: bool,
    /// Requests may be mapped.
    pub is_live: bool,
    /// Between resume and suspend.
    pub is_running: bool,
    pub flush_on_suspend: bool,
    /// Writes that wait for a free block, and reads for the first write of their block.
    pub waiting: Vec<Io>,
    /// Counts what those who wait may wait for.
    pub stirs: u64,
    /// The worker would have written a block back, but for a write to it that is under way.
    pub skipped: bool,
    /// Copies to the origin under way.
    pub copies: usize,
    pub inbox: Inbox,
    /// Where something keeps memory for the next process.
    pub journal: Option<Arc<Journal>>,
}

/// As the status counts.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Stats {
    pub reads: u64,
    pub read_hits: u64,
    pub writes: u64,
    pub write_hits_uncommitted: u64,
    pub write_hits_committed: u64,
    pub writes_around: u64,
    pub writes_allocate: u64,
    pub writes_blocked: u64,
    pub flushes: u64,
    pub discards: u64,
}

/// Where the first so many sectors of a request go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// To the cache: this block, and those behind it. A write belongs to that epoch.
    Cache {
        index: u32,
        blocks: u32,
        epoch: usize,
    },
    /// To the origin.
    Origin(Sector),
    /// Nowhere yet: something must stir beyond this count first.
    Wait(u64),
    /// Nowhere: the cache has failed.
    Fail,
}

/// What does not change while a line is there.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub autocommit_blocks: u32,
    pub autocommit_time: Duration,
    pub metadata_only: bool,
}

impl State {
    pub fn new(
        geometry: &Geometry,
        entries: Entries,
        marks: [u64; 2],
        journal: Option<Arc<Journal>>,
    ) -> Self {
        Self {
            entries,
            seq: 0,
            seq_on_disk: 0,
            open: 0,
            overwrote: false,
            committing: false,
            uncommitted: 0,
            commit_at: None,
            epoch: 0,
            writes: [0; 2],
            dirty: vec![0; geometry.pages().div_ceil(64)],
            writeback: 0,
            is_draining: false,
            cleaner: false,
            marks,
            around: 0,
            around_ended: None,
            stats: Stats::default(),
            failed: false,
            is_live: false,
            is_running: false,
            flush_on_suspend: false,
            waiting: Vec::new(),
            stirs: 0,
            skipped: false,
            copies: 0,
            inbox: Inbox::default(),
            journal,
        }
    }

    pub fn is_committed(&self, index: u32) -> bool {
        self.entries[index].seq < self.seq
    }

    /// The journal's half of the present epoch is for the entries of now.
    pub fn begin_epoch(&self) {
        if let Some(journal) = &self.journal {
            journal.begin(self.epoch, self.seq);
        }
    }

    /// The page of an entry is to be written.
    pub fn touch(&mut self, geometry: &Geometry, index: u32) {
        let page = geometry.page_of(index);
        self.dirty[page / 64] |= 1 << (page % 64);
    }

    /// From now on everything is written back, and nothing new comes into the cache.
    pub fn become_cleaner(&mut self, blocks: u64) {
        (self.cleaner, self.flush_on_suspend) = (true, true);
        self.marks = [blocks; 2];
    }

    /// Free blocks, and those that will be soon.
    pub fn room(&self) -> u64 {
        self.entries.free_count() as u64 + self.writeback
    }

    /// Whether writing back begins, and did not before.
    pub fn verify_watermark(&mut self) -> bool {
        let begins = self.room() <= self.marks[0] && !self.is_draining;
        self.is_draining |= begins;
        begins
    }

    /// Where a read of `sectors` from `sector` on begins.
    pub fn place_read(&mut self, geometry: &Geometry, sector: u64, sectors: u64) -> Place {
        let block = geometry.block_sectors();
        let Some(index) = self.entries.at(sector) else {
            let here = self.up_to_next(sector, sectors);
            self.stats.reads += here / block;
            return Place::Origin(Sector(here));
        };
        if self.entries[index].unwritten {
            return Place::Wait(self.stirs);
        }
        let blocks = self
            .entries
            .run((sector, index), block, sectors / block, |entry| {
                !entry.unwritten
            });
        self.stats.reads += u64::from(blocks);
        self.stats.read_hits += u64::from(blocks);
        for block in index..index + blocks {
            self.entries[block].readers += 1;
        }
        Place::Cache {
            index,
            blocks,
            epoch: 0,
        }
    }

    /// Where a write begins.
    ///
    /// COMPAT: counts as the kernel does, which calls all but the first block of a write allocated, also those written in place.
    pub fn place_write(
        &mut self,
        (geometry, rules): (&Geometry, &Rules),
        sector: u64,
        sectors: u64,
        since: u32,
    ) -> Place {
        let block = geometry.block_sectors();
        if self.failed {
            self.stats.writes += sectors / block;
            return Place::Fail;
        }
        let found = self.entries.at(sector);
        let (index, blocks) = match found {
            Some(index) if !self.entries[index].leaving => (
                index,
                self.overwrite((sector, index), block, sectors / block),
            ),
            None if self.cleaner || rules.metadata_only => {
                return self.write_around(block, sector, sectors);
            }
            _ => {
                self.stats.write_hits_committed += u64::from(found.is_some());
                let taken = self.entries.insert_free(sector, self.seq, since);
                let Some(index) = taken else {
                    if found.is_none() {
                        return self.write_around(block, sector, sectors);
                    }
                    self.stats.writes_blocked += 1;
                    return Place::Wait(self.stirs);
                };
                self.stats.writes_allocate += 1;
                (
                    index,
                    self.allocate((sector, index), block, sectors / block, since),
                )
            }
        };
        for block in index..index + blocks {
            self.entries[block].writers += 1;
            if self.entries[block].unwritten {
                self.touch(geometry, block);
            }
        }
        self.writes[self.epoch] += 1;
        self.stats.writes += u64::from(blocks);
        self.stats.writes_allocate += u64::from(blocks - 1);
        Place::Cache {
            index,
            blocks,
            epoch: self.epoch,
        }
    }

    /// How many blocks of a write go in place.
    fn overwrite(&mut self, at: (u64, u32), block: u64, max: u64) -> u32 {
        if self.is_committed(at.1) {
            self.stats.write_hits_committed += 1;
        } else {
            self.stats.write_hits_uncommitted += 1;
        }
        let blocks = self.entries.run(at, block, max, |entry| !entry.leaving);
        self.overwrote |= (at.1..at.1 + blocks).any(|index| self.is_committed(index));
        blocks
    }

    /// How many blocks of a write go to free blocks, of which the first was taken.
    ///
    /// COMPAT: a kernel goes on over sectors that are in the cache already, and so may have two entries for one sector and sequence number.
    fn allocate(&mut self, (sector, index): (u64, u32), block: u64, max: u64, since: u32) -> u32 {
        let mut blocks = 1;
        while u64::from(blocks) < max && self.entries.next_free() == Some(index + blocks) {
            let sector = sector + u64::from(blocks) * block;
            if self.entries.at(sector).is_some() {
                break;
            }
            self.entries.insert_free(sector, self.seq, since);
            blocks += 1;
        }
        self.open += blocks as usize;
        self.uncommitted = self.uncommitted.saturating_add(blocks);
        blocks
    }

    fn write_around(&mut self, block: u64, sector: u64, sectors: u64) -> Place {
        let here = self.up_to_next(sector, sectors);
        self.stats.writes_around += here / block;
        self.stats.writes += here / block;
        self.around += 1;
        Place::Origin(Sector(here))
    }

    /// Sectors before the next one that is in the cache.
    fn up_to_next(&self, sector: u64, sectors: u64) -> u64 {
        let next = self.entries.following(sector);
        next.map_or(sectors, |next| sectors.min(next - sector))
    }

    /// After a write to the cache was placed: it is committed some time. Whether the worker must be told.
    pub fn schedule_commit(&mut self, rules: &Rules, now: Duration) -> bool {
        if self.uncommitted >= rules.autocommit_blocks {
            self.uncommitted = 0;
            self.commit_at = Some(now);
            return true;
        }
        let is_new = self.commit_at.is_none();
        self.commit_at.get_or_insert(now + rules.autocommit_time);
        is_new
    }

    /// A read of the cache has ended. Whether the worker must be told.
    pub fn read_ended(&mut self, index: u32, blocks: u32) -> bool {
        let mut freed = false;
        for block in index..index + blocks {
            self.entries[block].readers -= 1;
            freed |= self.entries.release(block);
        }
        self.stirs += u64::from(freed);
        freed && !self.waiting.is_empty()
    }

    /// A write to the cache has ended.
    pub fn write_ended(&mut self, index: u32, blocks: u32, epoch: usize, well: bool) -> WriteEnd {
        let (mut stirred, mut lost, mut noted) = (false, false, true);
        for block in index..index + blocks {
            let entry = &mut self.entries[block];
            entry.writers -= 1;
            if entry.unwritten && well {
                entry.unwritten = false;
                stirred = true;
                if let Some(journal) = &self.journal {
                    noted &= journal.note(epoch, block, entry.sector);
                }
            }
            lost |= entry.unwritten && !well;
            stirred |= self.entries.release(block);
        }
        if lost {
            self.inbox.lost.push((index, blocks));
        }
        self.writes[epoch] -= 1;
        self.stirs += u64::from(stirred);
        WriteEnd {
            noted,
            wake: lost || self.skipped || stirred && !self.waiting.is_empty(),
        }
    }
}

/// What follows from the end of a write to the cache.
pub(super) struct WriteEnd {
    /// The next process will know of it; otherwise only a commit lets it be told of.
    pub noted: bool,
    /// The worker must be told.
    pub wake: bool,
}

/// Pages of the metadata.
impl State {
    /// All pages are to be written.
    pub fn dirty_all(&mut self, geometry: &Geometry) {
        for page in 0..geometry.pages() {
            self.dirty[page / 64] |= 1 << (page % 64);
        }
    }

    /// The first pages that are to be written and lie one after another, at most so many; they are no more.
    pub fn take_dirty(&mut self, max: usize) -> Option<std::ops::Range<usize>> {
        let word = self.dirty.iter().position(|word| *word != 0)?;
        let first = word * 64 + self.dirty[word].trailing_zeros() as usize;
        let mut end = first;
        while end - first < max
            && let Some(word) = self.dirty.get_mut(end / 64)
            && *word >> (end % 64) & 1 == 1
        {
            *word &= !(1 << (end % 64));
            end += 1;
        }
        Some(first..end)
    }
}
