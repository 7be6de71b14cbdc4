//! What a job does between its reads and its writes: parity, what is lost, what is given to readers.

use std::sync::atomic::{AtomicU64, Ordering};

use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use super::blocks::{Blocks, make_parity, recover_data, update_parity};
use super::galois::xor;
use super::geometry::Row;
use super::plan::{MemberSet, Task, Way};
use super::request::{Ask, Entry};

/// One member's part of a job's range.
pub(super) struct Block(pub(super) IoBuf);

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl AsMut<[u8]> for Block {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

/// What is known of the job.
pub(super) struct Compute<'a> {
    pub(super) row: &'a Row,
    pub(super) task: &'a Task,
    /// Where the job's range begins.
    pub(super) begin: Sector,
    /// Makes a block of the range's length.
    pub(super) fresh: &'a dyn Fn() -> Block,
}

/// Members to be written, and which of them because they could not be read.
type Writes = (MemberSet, MemberSet);

impl Compute<'_> {
    /// Reads and writes of the array.
    pub(super) fn requests(
        &self,
        blocks: &mut Blocks<Block>,
        entries: &mut [Entry],
        way: Way,
    ) -> Writes {
        if way == Way::Recover {
            self.recover(blocks);
        }
        for entry in entries.iter_mut() {
            if let Ask::Read(member) = entry.ask
                && let Some(block) = &blocks[member]
            {
                let place = self.place(entry);
                let into = entry.io.buf.as_mut_slice();
                into.copy_from_slice(&block.as_ref()[place]);
            }
        }
        let cures = self.cures(way);
        let parities = self.task.parities_written(self.row);
        let written = self.task.partly.and(&self.task.wholly);
        if way == Way::Modify {
            for member in written.iter() {
                self.modify(blocks, entries, member, !parities.is_empty());
            }
        } else {
            for member in written.iter() {
                self.overlay(blocks, entries, member);
            }
            self.make_parities(blocks, parities.and(&self.parities_of(cures)));
        }
        let data = self.writable(written);
        (data.and(&parities).and(&cures), cures)
    }

    /// Content for members that are being rebuilt.
    pub(super) fn rebuild(&self, blocks: &mut Blocks<Block>, targets: MemberSet) -> Writes {
        self.recover(blocks);
        let cures = self.cures(Way::Recover);
        let writes = self.writable(targets).and(&cures);
        self.make_parities(blocks, self.parities_of(writes));
        (writes, cures)
    }

    /// Counts, in `mismatches`, the sectors whose parity does not fit the data; the parity is set right if `repair`.
    pub(super) fn scrub(
        &self,
        blocks: &mut Blocks<Block>,
        repair: bool,
        mismatches: &AtomicU64,
    ) -> Writes {
        if self.task.have.is_empty() {
            return Writes::default();
        }
        self.recover(blocks);
        let parities = [Some(self.row.p), self.row.q].into_iter().flatten();
        let found: Vec<(usize, Option<Block>)> = parities
            .map(|parity| (parity, blocks[parity].take()))
            .collect();
        let all = MemberSet::of(self.task.members, |m| found.iter().any(|(p, _)| *p == m));
        self.make_parities(blocks, all);
        let mut wrong = MemberSet::default();
        let mut wrong_units = Vec::new();
        for (parity, found) in &found {
            let (Some(found), Some(made)) = (found, &blocks[*parity]) else {
                continue;
            };
            let units = found.as_ref().chunks(UNIT_BYTES);
            for (unit, (found, made)) in units.zip(made.as_ref().chunks(UNIT_BYTES)).enumerate() {
                if found != made {
                    wrong.insert(*parity);
                    wrong_units.push(unit);
                }
            }
        }
        // One in which both parities are wrong counts once.
        wrong_units.sort_unstable();
        wrong_units.dedup();
        mismatches.fetch_add(wrong_units.len() as u64 * UNIT_SECTORS, Ordering::Relaxed);
        let cures = self.cures(Way::Recover);
        if repair {
            (self.writable(wrong).and(&cures), cures)
        } else {
            (cures, cures)
        }
    }

    fn recover(&self, blocks: &mut Blocks<Block>) {
        let found = recover_data(self.row, blocks, self.fresh);
        debug_assert!(
            found.is_ok(),
            "the plan has seen to it that enough is known"
        );
    }

    /// Fresh buffers for parities that have none, and their content from all data.
    fn make_parities(&self, blocks: &mut Blocks<Block>, parities: MemberSet) {
        if parities.is_empty() {
            return;
        }
        for parity in parities.iter() {
            blocks[parity].get_or_insert_with(self.fresh);
        }
        make_parity(self.row, blocks);
    }

    fn parities_of(&self, members: MemberSet) -> MemberSet {
        MemberSet::of(self.task.members, |member| {
            members.contains(member) && (member == self.row.p || Some(member) == self.row.q)
        })
    }

    fn writable(&self, members: MemberSet) -> MemberSet {
        members.without(&members.without(&self.task.writable))
    }

    /// Members that could not be read and whose content is known now.
    fn cures(&self, way: Way) -> MemberSet {
        if way == Way::Recover {
            self.writable(self.task.unread)
        } else {
            MemberSet::default()
        }
    }

    /// Puts new data over a block.
    fn overlay(&self, blocks: &mut Blocks<Block>, entries: &[Entry], member: usize) {
        let block = blocks[member].get_or_insert_with(self.fresh).as_mut();
        for entry in entries {
            if matches!(entry.ask, Ask::Write(to) if to == member) {
                block[self.place(entry)].copy_from_slice(entry.io.buf.as_slice());
            }
        }
    }

    /// Puts new data over a block, and the change into the parity.
    fn modify(
        &self,
        blocks: &mut Blocks<Block>,
        entries: &[Entry],
        member: usize,
        has_parity: bool,
    ) {
        let old = blocks[member].as_ref().filter(|_| has_parity);
        let change = old.map(|old| {
            let mut change = (self.fresh)();
            change.as_mut().copy_from_slice(old.as_ref());
            change
        });
        self.overlay(blocks, entries, member);
        if let (Some(mut change), Some(new)) = (change, &blocks[member]) {
            xor(change.as_mut(), new.as_ref());
            update_parity(self.row, blocks, member, change.as_ref());
        }
    }

    /// An entry's bytes in a block.
    fn place(&self, entry: &Entry) -> std::ops::Range<usize> {
        let bytes = |sector: Sector| (sector - self.begin).bytes() as usize;
        bytes(entry.range.start)..bytes(entry.range.end)
    }
}

/// md counts in stripes of a page.
const UNIT_SECTORS: u64 = 8;
const UNIT_BYTES: usize = 4096;
