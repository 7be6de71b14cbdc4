//! The journal in memory, byte for byte as it is on disk: a ring of sections, each of which holds blocks and says where they
//! belong. See `docs/internals/integrity.md`.
//!
//! INVARIANT: sections from the oldest on are committed, then uncommitted, then free; `newest` has, for each block that is in the
//! journal, the entry written last.

use std::collections::BTreeMap;
use std::ops::Range;

use super::hash::Hash;
use super::layout::{COMMIT_ID_BYTES, ENTRY_SECTORS, Layout, MAC_BYTES, Shape};

/// Commit ids by sequence number; XORed with a sector's place.
pub(super) type CommitIds = [u64; 4];
/// Those of a journal that is not encrypted.
pub(super) const COMMIT_IDS: CommitIds = [
    0x1111_1111_1111_1111,
    0x2222_2222_2222_2222,
    0x3333_3333_3333_3333,
    0x4444_4444_4444_4444,
];
/// In the upper half of an entry's sector number: there is no block.
const UNUSED: u32 = u32::MAX;
const COMMIT_ID_AT: usize = 512 - COMMIT_ID_BYTES;
const MAC_AT: usize = COMMIT_ID_AT - MAC_BYTES;

/// The sequence number after one.
pub(super) fn next_seq(seq: u8) -> u8 {
    (seq + 1) % 4
}

/// The sequence number before one.
pub(super) fn prev_seq(seq: u8) -> u8 {
    (seq + 3) % 4
}

/// What sections are signed with.
#[derive(Clone, Copy)]
pub(super) struct Signer<'a> {
    pub mac: &'a Hash,
    /// Where salt and section number are signed too.
    pub salt: Option<&'a [u8; 16]>,
}

/// Sections one after another in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u32,
    pub count: u32,
}

/// See the module.
pub(super) struct Journal {
    shape: Shape,
    log2_block: u8,
    tag_size: usize,
    ids: CommitIds,
    bytes: Vec<u8>,
    newest: BTreeMap<u64, u32>,
    pub commit_seq: u8,
    committed: Span,
    uncommitted: Span,
    free_section: u32,
    free_entry: u32,
    /// Blocks for which there is room.
    free: u64,
}

impl Journal {
    /// An empty one, as a device has it that was just formatted.
    pub fn blank(layout: &Layout, ids: CommitIds) -> Self {
        let shape = layout.shape;
        let mut journal = Self {
            shape,
            log2_block: layout.log2_block,
            tag_size: layout.tag_size as usize,
            ids,
            bytes: vec![0; shape.all_sectors() as usize * 512],
            newest: BTreeMap::new(),
            commit_seq: 0,
            committed: Span::default(),
            uncommitted: Span::default(),
            free_section: 0,
            free_entry: 0,
            free: shape.all_entries(),
        };
        (0..shape.sections).for_each(|section| journal.make_blank(section, 0));
        journal
    }

    /// Takes everything out of a section.
    fn make_blank(&mut self, section: u32, seq: u8) {
        let bytes = self.section_bytes(section, 1);
        self.bytes[bytes].fill(0);
        for entry in 0..self.shape.entries {
            self.set_unused(section, entry);
        }
        for sector in 0..self.shape.sectors {
            self.set_commit_id(section, sector, seq);
        }
    }

    /// The bytes of one empty section on disk.
    pub fn blank_section(
        layout: &Layout,
        ids: CommitIds,
        (section, seq): (u32, u8),
        signer: Option<Signer>,
    ) -> Vec<u8> {
        let mut one = layout.clone();
        one.shape.sections = 1;
        let mut journal = Self::blank(&one, ids);
        for sector in 0..journal.shape.sectors {
            let id = commit_id(&ids, section, sector, seq);
            journal.put_commit_id(0, sector, id);
        }
        if let Some(signer) = signer {
            let mac = journal.section_mac(0, section, signer);
            journal.set_mac(0, &mac);
        }
        journal.bytes
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// A section, as on disk but for encryption.
    pub fn section(&self, section: u32) -> &[u8] {
        &self.bytes[self.section_bytes(section, 1)]
    }

    fn section_bytes(&self, first: u32, count: u32) -> Range<usize> {
        let sectors = self.shape.sectors as usize;
        first as usize * sectors * 512..(first + count) as usize * sectors * 512
    }

    /// All of it, as on disk.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn entry_at(&self, section: u32, entry: u32) -> usize {
        let sector =
            section as usize * self.shape.sectors as usize + entry as usize % ENTRY_SECTORS;
        sector * 512 + entry as usize / ENTRY_SECTORS * self.shape.entry_bytes
    }

    fn data_at(&self, section: u32, entry: u32) -> usize {
        let first = section as usize * self.shape.sectors as usize + ENTRY_SECTORS;
        (first + ((entry as usize) << self.log2_block)) * 512
    }

    fn place_of(&self, position: u32) -> (u32, u32) {
        (position / self.shape.entries, position % self.shape.entries)
    }

    /// The sector of the line whose block an entry has.
    pub fn sector(&self, section: u32, entry: u32) -> Option<u64> {
        let at = self.entry_at(section, entry);
        let mut le = [0; 8];
        le.copy_from_slice(&self.bytes[at..at + 8]);
        let sector = u64::from_le_bytes(le);
        (sector >> 32 != u64::from(UNUSED)).then_some(sector)
    }

    fn set_unused(&mut self, section: u32, entry: u32) {
        let at = self.entry_at(section, entry);
        self.bytes[at + 4..at + 8].copy_from_slice(&UNUSED.to_le_bytes());
    }

    fn put_commit_id(&mut self, section: u32, sector: u32, id: u64) {
        let at = (section as usize * self.shape.sectors as usize + sector as usize) * 512;
        self.bytes[at + COMMIT_ID_AT..at + 512].copy_from_slice(&id.to_le_bytes());
    }

    fn set_commit_id(&mut self, section: u32, sector: u32, seq: u8) {
        let id = commit_id(&self.ids, section, sector, seq);
        self.put_commit_id(section, sector, id);
    }

    /// The sequence number of a sector's commit id; `None` when it is no commit id of this place.
    pub fn commit_seq_of(&self, section: u32, sector: u32) -> Option<u8> {
        let at = (section as usize * self.shape.sectors as usize + sector as usize) * 512;
        let mut le = [0; 8];
        le.copy_from_slice(&self.bytes[at + COMMIT_ID_AT..at + 512]);
        let id = u64::from_le_bytes(le);
        (0..4).find(|seq| commit_id(&self.ids, section, sector, *seq) == id)
    }

    fn section_mac(&self, section: u32, number: u32, signer: Signer) -> [u8; 64] {
        let number = u64::from(number).to_le_bytes();
        let head: [&[u8]; 2] = match signer.salt {
            Some(salt) => [salt, &number],
            None => [&[], &[]],
        };
        let sectors = (0..self.shape.entries).map(|entry| {
            let at = self.entry_at(section, entry);
            &self.bytes[at..at + 8]
        });
        let mut mac = [0; MAC_BYTES * ENTRY_SECTORS];
        signer.mac.digest(head.into_iter().chain(sectors), &mut mac);
        mac
    }

    fn set_mac(&mut self, section: u32, mac: &[u8; 64]) {
        let first = section as usize * self.shape.sectors as usize;
        for (sector, part) in mac.chunks(MAC_BYTES).enumerate() {
            let at = (first + sector) * 512;
            self.bytes[at + MAC_AT..at + COMMIT_ID_AT].copy_from_slice(part);
        }
    }

    /// Whether a section's signature is right.
    pub fn is_signed(&self, section: u32, signer: Signer) -> bool {
        let mac = self.section_mac(section, section, signer);
        let first = section as usize * self.shape.sectors as usize;
        mac.chunks(MAC_BYTES).enumerate().all(|(sector, part)| {
            let at = (first + sector) * 512;
            self.bytes[at + MAC_AT..at + COMMIT_ID_AT] == *part
        })
    }

    /// The ring begins at a section, empty.
    pub fn begin_at(&mut self, section: u32, commit_seq: u8) {
        for section in 0..self.shape.sections {
            for entry in 0..self.shape.entries {
                self.set_unused(section, entry);
            }
        }
        let here = Span {
            first: section,
            count: 0,
        };
        (self.committed, self.uncommitted) = (here, here);
        self.commit_seq = commit_seq;
        (self.free_section, self.free_entry) = (section, 0);
        self.free = self.shape.all_entries();
        self.newest.clear();
    }

    /// Blocks for which there is room.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// The entry that the next block gets.
    pub fn position(&self) -> u32 {
        self.free_section * self.shape.entries + self.free_entry
    }

    /// Where the next section to be written is.
    pub fn free_section(&self) -> u32 {
        self.free_section
    }

    /// Puts blocks that belong at `sector` into the journal, as many as there is room for; how many.
    pub fn put(&mut self, sector: u64, blocks: &[u8], tags: &[u8]) -> usize {
        let block_bytes = 512 << self.log2_block;
        let parts = blocks.chunks(block_bytes).zip(tags.chunks(self.tag_size));
        let mut sector = sector;
        let mut count = 0;
        for (block, tag) in parts {
            if self.free == 0 {
                break;
            }
            self.put_one(sector, block, tag);
            sector += 1 << self.log2_block;
            count += 1;
        }
        count
    }

    fn put_one(&mut self, sector: u64, block: &[u8], tag: &[u8]) {
        let (section, entry) = (self.free_section, self.free_entry);
        let data = self.data_at(section, entry);
        self.bytes[data..data + block.len()].copy_from_slice(block);
        let at = self.entry_at(section, entry);
        self.bytes[at..at + 8].copy_from_slice(&sector.to_le_bytes());
        let last_at = at + 8;
        for (i, part) in block.chunks(512).enumerate() {
            let to = last_at + i * 8;
            self.bytes[to..to + 8].copy_from_slice(&part[COMMIT_ID_AT..]);
        }
        let tag_at = last_at + (8 << self.log2_block);
        self.bytes[tag_at..tag_at + self.tag_size].copy_from_slice(tag);
        self.newest
            .insert(sector, section * self.shape.entries + entry);
        self.free -= 1;
        self.free_entry += 1;
        if self.free_entry == self.shape.entries {
            self.end_section();
        }
    }

    fn end_section(&mut self) {
        self.free_entry = 0;
        self.free_section = (self.free_section + 1) % self.shape.sections;
        self.uncommitted.count += 1;
    }

    /// Whether a commit would write anything.
    pub fn has_uncommitted(&self) -> bool {
        self.uncommitted.count > 0 || self.free_entry > 0
    }

    pub fn has_committed(&self) -> bool {
        self.committed.count > 0
    }

    /// Closes the section that is begun. The sections to be written.
    pub fn begin_commit(&mut self) -> Span {
        if self.free_entry > 0 {
            self.free -= u64::from(self.shape.entries - self.free_entry);
            self.end_section();
        }
        self.uncommitted
    }

    /// Makes a section's bytes those that are to be written: the next one in order.
    pub fn seal(&mut self, section: u32, signer: Option<Signer>) {
        for sector in 0..self.shape.sectors {
            self.set_commit_id(section, sector, self.commit_seq);
        }
        if let Some(signer) = signer {
            let mac = self.section_mac(section, section, signer);
            self.set_mac(section, &mac);
        }
        if section + 1 == self.shape.sections {
            self.commit_seq = next_seq(self.commit_seq);
        }
    }

    /// Those sections are durable.
    pub fn end_commit(&mut self, span: Span) {
        self.uncommitted.first = (self.uncommitted.first + span.count) % self.shape.sections;
        self.uncommitted.count -= span.count;
        self.committed.count += span.count;
    }

    /// The sections to be written to where their blocks belong.
    pub fn committed(&self) -> Span {
        self.committed
    }

    /// The blocks of sections, the last one of each, in the order of their places.
    pub fn blocks_of(&self, span: Span) -> BTreeMap<u64, u32> {
        let mut blocks = BTreeMap::new();
        for i in 0..span.count {
            let section = (span.first + i) % self.shape.sections;
            for entry in 0..self.shape.entries {
                if let Some(sector) = self.sector(section, entry) {
                    blocks.insert(sector, section * self.shape.entries + entry);
                }
            }
        }
        blocks
    }

    /// An entry's block as it was put, and its tag.
    pub fn get(&self, position: u32, block: &mut [u8], tag: &mut [u8]) {
        let (section, entry) = self.place_of(position);
        let data = self.data_at(section, entry);
        block.copy_from_slice(&self.bytes[data..data + block.len()]);
        let last_at = self.entry_at(section, entry) + 8;
        for (i, part) in block.chunks_mut(512).enumerate() {
            let from = last_at + i * 8;
            part[COMMIT_ID_AT..].copy_from_slice(&self.bytes[from..from + 8]);
        }
        let tag_at = last_at + (8 << self.log2_block);
        tag.copy_from_slice(&self.bytes[tag_at..tag_at + tag.len()]);
    }

    /// The entry is written where it belongs; a newer one of the same block, if any, is not.
    pub fn is_home(&mut self, sector: u64, position: u32) {
        if self.newest.get(&sector) == Some(&position) {
            self.newest.remove(&sector);
        }
    }

    /// What was committed is where it belongs: its room is free.
    pub fn end_write_out(&mut self, span: Span) {
        for i in 0..span.count {
            let section = (span.first + i) % self.shape.sections;
            for entry in 0..self.shape.entries {
                self.set_unused(section, entry);
            }
        }
        self.committed.first = (self.committed.first + span.count) % self.shape.sections;
        self.committed.count -= span.count;
        self.free += u64::from(span.count) * u64::from(self.shape.entries);
    }

    /// Whether the journal has a block of these sectors.
    pub fn has_any(&self, range: &Range<u64>) -> bool {
        self.newest.range(range.clone()).next().is_some()
    }

    /// Whether the journal has all blocks of these sectors.
    pub fn has_all(&self, range: &Range<u64>) -> bool {
        let blocks = (range.end - range.start) >> self.log2_block;
        self.newest
            .range(range.clone())
            .take(blocks as usize)
            .count() as u64
            == blocks
    }

    /// Lays what the journal has of these sectors over what was read; which blocks that are, by number.
    pub fn overlay(&self, range: &Range<u64>, buf: &mut [u8], hit: &mut dyn FnMut(usize)) {
        let block_bytes = 512 << self.log2_block;
        let mut tag = [0; super::layout::TAG_BYTES_MAX as usize];
        for (sector, position) in self.newest.range(range.clone()) {
            let number = ((sector - range.start) >> self.log2_block) as usize;
            let at = number * block_bytes;
            let tag = &mut tag[..self.tag_size];
            self.get(*position, &mut buf[at..at + block_bytes], tag);
            hit(number);
        }
    }
}

/// COMPAT: another one for each place, so that a sector written to a wrong place is noticed.
fn commit_id(ids: &CommitIds, section: u32, sector: u32, seq: u8) -> u64 {
    ids[usize::from(seq)] ^ (u64::from(section) << 32 ^ u64::from(sector))
}
