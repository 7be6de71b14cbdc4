//! Sync windows of raid1 and raid10.
//!
//! Copies are compared in pieces of at most 128 sectors, md's unit of a mismatch, and only pieces that differ are written: a new
//! array of sparse files stays sparse.

use std::ops::Range;

use thinmap_block::Op;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::copies::{Placement, Places};
use super::level::{SyncKind, SyncRanges, Synced};
use super::members::{MemberState, Members};
use super::transfer::{Transfer, transfer_all};

/// md's RESYNC_BLOCK_SIZE in sectors.
const PIECE_SECTORS: u64 = 128;

/// See the module.
pub(super) struct CopiesSync<'a> {
    pub members: &'a Members,
    pub placement: &'a Placement,
    pub kind: SyncKind,
}

/// A stretch whose copies each lie in one place.
struct Piece {
    len: Sector,
    places: Places,
}

impl CopiesSync<'_> {
    /// The parts of the array that a window concerns.
    pub fn ranges(&self, window: Range<Sector>) -> SyncRanges {
        if self.kind != SyncKind::Recover || matches!(self.placement, Placement::Everywhere { .. })
        {
            return SyncRanges::from_iter([window]);
        }
        let mut ranges = SyncRanges::new();
        for (_, array) in self.parts(&window, &|_| true) {
            match ranges.iter_mut().find(|range| is_near(range, &array)) {
                Some(range) => {
                    range.start = range.start.min(array.start);
                    range.end = range.end.max(array.end);
                }
                None => ranges.push(array),
            }
        }
        ranges
    }

    /// What lies in a window of some members' sectors: the member, and the part of the array.
    fn parts(
        &self,
        window: &Range<Sector>,
        wanted: &dyn Fn(usize) -> bool,
    ) -> Vec<(usize, Range<Sector>)> {
        let mut parts = Vec::new();
        for member in (0..self.members.len()).filter(|member| wanted(*member)) {
            let mut at = window.start;
            while at < window.end {
                // Chunks begin at the same sectors of array and member.
                let end = self.placement.chunk_end(at).min(window.end);
                let len = end - at;
                if let Some(array) = self.placement.at(member, at) {
                    parts.push((member, array..array + len));
                }
                at = end;
            }
        }
        parts
    }

    /// Goes through a window.
    pub fn run(&self, window: Range<Sector>) -> Result<Synced, BlkStatus> {
        if self.kind == SyncKind::Recover {
            let rebuilt = |member: usize| self.members.state(member) == MemberState::Rebuilding;
            return self.recover(&window, &rebuilt).map(|()| Synced::default());
        }
        let mut pieces = Vec::new();
        let mut at = window.start;
        while at < window.end {
            let cut = (at.raw() / PIECE_SECTORS + 1) * PIECE_SECTORS;
            let end = Sector(cut)
                .min(self.placement.chunk_end(at))
                .min(window.end);
            pieces.push(Piece {
                len: end - at,
                places: self.by_trust(self.placement.places(at)),
            });
            at = end;
        }
        let mut synced = Synced::default();
        // raid1's copies lie in one stretch, and are read so.
        for batch in pieces.chunks(PIECES_AT_ONCE) {
            synced.mismatches += self.compare(batch)?;
        }
        Ok(synced)
    }

    /// The copy that readers were given where copies may differ comes first (`Shared::choose`): what was read once stays.
    fn by_trust(&self, mut places: Places) -> Places {
        places.sort_by_key(|(member, _)| self.members.member(*member).write_mostly);
        places
    }

    /// Reads all copies of each piece, and writes those that differ from the first, unless only asked to count.
    fn compare(&self, pieces: &[Piece]) -> Result<u64, BlkStatus> {
        let mut reads = Vec::new();
        let mut owners = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            for &(member, sector) in &piece.places {
                if self.members.is_readable(member, sector, sector + piece.len) {
                    reads.push(Transfer::read(member, sector, piece.len));
                    owners.push((index, member, sector));
                }
            }
        }
        let mut first: Vec<Option<IoBuf>> = pieces.iter().map(|_| None).collect();
        let (mut mismatches, mut writes, mut cured) = (0, Vec::new(), Vec::new());
        let mut unread = Vec::new();
        let results = transfer_all(self.members, reads);
        for ((index, member, sector), (buf, status)) in owners.into_iter().zip(results) {
            if !status.is_ok() {
                unread.push((index, member, sector));
                continue;
            }
            let Some(right) = &first[index] else {
                first[index] = Some(buf);
                continue;
            };
            if right.as_slice() != buf.as_slice() {
                mismatches += pieces[index].len.raw();
                if self.kind != SyncKind::Check {
                    writes.push(Transfer::write(member, sector, right.as_slice()));
                }
            }
        }
        for (index, member, sector) in unread {
            let right = first[index].as_ref().ok_or(BlkStatus::IoErr)?;
            writes.push(Transfer::write(member, sector, right.as_slice()));
            cured.push(member);
        }
        if first.iter().any(Option::is_none) {
            return Err(BlkStatus::IoErr);
        }
        self.write(writes);
        for member in cured {
            self.members.corrected_read(member);
        }
        Ok(mismatches)
    }

    fn write(&self, writes: Vec<Transfer>) {
        let members: Vec<usize> = writes.iter().map(|write| write.member).collect();
        let results = transfer_all(self.members, writes);
        for (member, (_, status)) in members.into_iter().zip(results) {
            if !status.is_ok() {
                self.members.fail(member);
            }
        }
    }

    /// Writes what lies in a window of some members from other copies.
    fn recover(
        &self,
        window: &Range<Sector>,
        wanted: &dyn Fn(usize) -> bool,
    ) -> Result<(), BlkStatus> {
        let parts = self.parts(window, wanted);
        for batch in parts.chunks(PIECES_AT_ONCE) {
            let contents = self.read_parts(batch)?;
            let mut writes = Vec::new();
            for ((member, array), content) in batch.iter().zip(contents) {
                let places = self.placement.places(array.start);
                let mine = places
                    .iter()
                    .filter(|(owner, sector)| owner == member && window.contains(sector));
                for (owner, sector) in mine {
                    writes.push(Transfer::write(*owner, *sector, content.as_slice()));
                }
            }
            self.write(writes);
        }
        Ok(())
    }

    /// Content of parts of the array from any copy but the one on the member that it is for.
    fn read_parts(&self, parts: &[(usize, Range<Sector>)]) -> Result<Vec<IoBuf>, BlkStatus> {
        let mut contents: Vec<Option<IoBuf>> = parts.iter().map(|_| None).collect();
        let mut tried: Vec<Vec<usize>> = parts.iter().map(|(member, _)| vec![*member]).collect();
        loop {
            let (mut reads, mut owners) = (Vec::new(), Vec::new());
            for (index, (_, array)) in parts.iter().enumerate() {
                if contents[index].is_some() {
                    continue;
                }
                let len = array.end - array.start;
                let places = self.placement.places(array.start);
                let (member, sector) = places
                    .into_iter()
                    .find(|(member, sector)| {
                        !tried[index].contains(member)
                            && self.members.is_readable(*member, *sector, *sector + len)
                    })
                    .ok_or(BlkStatus::IoErr)?;
                tried[index].push(member);
                reads.push(Transfer::read(member, sector, len));
                owners.push(index);
            }
            if reads.is_empty() {
                return Ok(contents.into_iter().flatten().collect());
            }
            let results = transfer_all(self.members, reads);
            for (index, (buf, status)) in owners.into_iter().zip(results) {
                if status.is_ok() {
                    contents[index] = Some(buf);
                }
            }
        }
    }

    /// Writes a part of a member anew that could not be read, and reads it again.
    pub fn heal(&self, member: usize, window: Range<Sector>) {
        if self.members.state(member) != MemberState::InSync {
            return;
        }
        if self.recover(&window, &|other| other == member).is_err() {
            // Gone from the other copies, too: nothing to write.
            return;
        }
        if !self.members.is_writable(member) {
            return;
        }
        let again = Transfer {
            op: Op::Read,
            ..Transfer::read(member, window.start, window.end - window.start)
        };
        let is_cured = transfer_all(self.members, vec![again])
            .iter()
            .all(|(_, status)| status.is_ok());
        if is_cured {
            tracing::warn!(member, from = %window.start, to = %window.end, "raid: a read error was corrected");
            self.members.corrected_read(member);
        } else {
            self.members.fail(member);
        }
    }
}

/// Whether two ranges touch or nearly do, so that holding both in one costs nothing.
fn is_near(a: &Range<Sector>, b: &Range<Sector>) -> bool {
    let gap = 4 * PIECE_SECTORS * 16;
    a.start.raw() <= b.end.raw() + gap && b.start.raw() <= a.end.raw() + gap
}

/// Pieces that are read at once: bounds the memory of a window.
const PIECES_AT_ONCE: usize = 64;
