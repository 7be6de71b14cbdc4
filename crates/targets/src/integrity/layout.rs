//! What lies where: superblock, journal, and either runs of tags between runs of data, or all tags on a device of their own.
//! See `docs/internals/integrity.md`.

use thinmap_units::Sector;

use super::superblock::{SUPERBLOCK_SECTORS, Superblock, flag};

/// Sectors at the beginning of a journal section: its entries, spread over all of them.
pub(super) const ENTRY_SECTORS: usize = 8;
/// Bytes at the end of each journal sector: the commit id.
pub(super) const COMMIT_ID_BYTES: usize = 8;
/// Bytes before the commit id in a section's first sectors: their part of the section's signature.
pub(super) const MAC_BYTES: usize = 8;
/// Sectors that must be left behind the journal.
const PADDING_SECTORS: u64 = 8;
/// Of a tag; an entry with one and eight sectors must fit a journal sector.
pub(super) const TAG_BYTES_MAX: u32 = 424;

/// How the journal's sections look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub sections: u32,
    /// Blocks that a section holds.
    pub entries: u32,
    /// Sectors of a section.
    pub sectors: u32,
    pub entry_bytes: usize,
}

impl Shape {
    /// Of blocks of `1 << log2_block` sectors.
    pub fn new(tag_size: u32, log2_block: u8, has_mac: bool, sections: u32) -> Self {
        let entry_bytes = (8 + (8 << log2_block) + tag_size as usize).next_multiple_of(8);
        let mac_bytes = if has_mac { MAC_BYTES } else { 0 };
        let in_sector = (512 - COMMIT_ID_BYTES - mac_bytes) / entry_bytes;
        let entries = (in_sector * ENTRY_SECTORS) as u32;
        Self {
            sections,
            entries,
            sectors: (entries << log2_block) + ENTRY_SECTORS as u32,
            entry_bytes,
        }
    }

    /// Blocks that the journal holds.
    pub fn all_entries(&self) -> u64 {
        u64::from(self.sections) * u64::from(self.entries)
    }

    pub fn all_sectors(&self) -> u64 {
        u64::from(self.sections) * u64::from(self.sectors)
    }
}

/// Where a block's tag begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TagPlace {
    /// Which buffer of tags.
    pub buffer: u64,
    /// Byte in it.
    pub offset: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub start: u64,
    /// Tags have a device of their own.
    pub separate: bool,
    pub tag_size: u32,
    pub log2_block: u8,
    pub log2_interleave: u8,
    pub log2_buffer: u8,
    fixed_padding: bool,
    has_mac: bool,
    data_sectors: u64,
    meta_sectors: u64,
    pub shape: Shape,
    /// Superblock and journal.
    pub initial_sectors: u32,
    /// Sectors of tags before a run of data.
    pub metadata_run: u64,
    /// Sectors that the line may have.
    pub provided: u64,
}

/// What a table says of it.
pub(super) struct Wanted {
    pub start: u64,
    pub separate: bool,
    pub tag_size: u32,
    pub log2_block: u8,
    pub log2_buffer: u8,
    /// Sectors of the devices.
    pub data_sectors: u64,
    pub meta_sectors: u64,
}

impl Layout {
    /// Of a device that has this superblock; not looked at yet whether it fits.
    pub fn of(wanted: &Wanted, sb: &Superblock) -> Self {
        let has_mac = sb.has(flag::JOURNAL_MAC);
        Self {
            start: wanted.start,
            separate: wanted.separate,
            tag_size: wanted.tag_size,
            log2_block: wanted.log2_block,
            log2_interleave: sb.log2_interleave,
            log2_buffer: wanted.log2_buffer,
            fixed_padding: sb.has(flag::FIXED_PADDING),
            has_mac,
            data_sectors: wanted.data_sectors,
            meta_sectors: wanted.meta_sectors,
            shape: Shape::new(
                wanted.tag_size,
                wanted.log2_block,
                has_mac,
                sb.journal_sections,
            ),
            initial_sectors: 0,
            metadata_run: 1,
            provided: 0,
        }
    }

    /// Puts journal and tags where they belong; whether there is room for them and for `provided` sectors of data.
    pub fn fits(&mut self) -> bool {
        self.shape = Shape::new(
            self.tag_size,
            self.log2_block,
            self.has_mac,
            self.shape.sections,
        );
        let initial = SUPERBLOCK_SECTORS + self.shape.all_sectors();
        let Ok(initial_sectors) = u32::try_from(initial) else {
            return false;
        };
        if initial + PADDING_SECTORS >= self.meta_sectors {
            return false;
        }
        self.initial_sectors = initial_sectors;
        if self.separate {
            let bytes = (self.provided >> self.log2_block).saturating_mul(self.tag_size.into());
            let buffers = bytes.div_ceil(512 << self.log2_buffer);
            self.metadata_run = 1;
            return (buffers << self.log2_buffer)
                .checked_add(initial)
                .is_some_and(|end| end <= self.meta_sectors);
        }
        let padding: u64 = if self.fixed_padding { 4096 } else { 512 << 8 };
        let run = u64::from(self.tag_size) << (self.log2_interleave - self.log2_block);
        self.metadata_run = run.next_multiple_of(padding) >> 9;
        let last = self.provided.checked_sub(1);
        last.and_then(|last| self.checked_data_sector(last))
            .is_some_and(|sector| sector < self.meta_sectors)
    }

    /// As many sectors as there is room for.
    pub fn provide(&mut self) {
        if self.separate {
            self.provided = self.data_sectors & !(self.block_sectors() - 1);
            return;
        }
        self.provided = 0;
        for bit in (3..u64::BITS - self.meta_sectors.leading_zeros()).rev() {
            self.provided |= 1 << bit;
            if !self.fits() {
                self.provided &= !(1 << bit);
            }
        }
    }

    /// Chooses how many sections a new journal of `wanted` ones has on a device of its own: as many as there is room for.
    /// Smaller buffers may make room.
    pub fn choose_sections(&mut self, wanted: u32) -> bool {
        loop {
            self.shape.sections = 0;
            for bit in (0..u32::BITS - wanted.leading_zeros()).rev() {
                let before = self.shape.sections;
                if before | 1 << bit > wanted {
                    continue;
                }
                self.shape.sections = before | 1 << bit;
                if !self.fits() {
                    self.shape.sections = before;
                }
            }
            if self.shape.sections > 0 {
                return true;
            }
            if !self.shrink_buffers() {
                return false;
            }
        }
    }

    /// Makes buffers half as large.
    pub fn shrink_buffers(&mut self) -> bool {
        let may = self.separate && self.log2_buffer > 3;
        self.log2_buffer -= u8::from(may);
        may
    }

    /// So that no buffer holds tags of two runs, or data.
    pub fn align_buffers(&mut self) {
        if !self.separate {
            let log2 = self.metadata_run.trailing_zeros() as u8;
            self.log2_buffer = self.log2_buffer.min(log2);
        }
    }

    pub fn block_sectors(&self) -> u64 {
        1 << self.log2_block
    }

    pub fn block_bytes(&self) -> usize {
        512 << self.log2_block
    }

    /// Sectors up to which requests are cut.
    pub fn interleave(&self) -> u64 {
        1 << self.log2_interleave
    }

    fn area_and_offset(&self, sector: u64) -> (u64, u64) {
        if self.separate {
            return (0, sector);
        }
        (
            sector >> self.log2_interleave,
            sector & (self.interleave() - 1),
        )
    }

    fn checked_data_sector(&self, sector: u64) -> Option<u64> {
        let (area, offset) = self.area_and_offset(sector);
        let tags = (area + 1).checked_mul(self.metadata_run)?;
        (area << self.log2_interleave)
            .checked_add(tags)?
            .checked_add(u64::from(self.initial_sectors) + offset)?
            .checked_add(self.start)
    }

    /// Where a sector of the line is on the data device.
    pub fn data_sector(&self, sector: u64) -> Sector {
        if self.separate {
            return Sector(sector);
        }
        // It fits: the last one was looked at.
        Sector(self.checked_data_sector(sector).unwrap_or(u64::MAX >> 9))
    }

    /// Where the first run of data begins, as far as the core is told.
    pub fn first_data_sector(&self) -> Sector {
        if self.separate {
            return Sector::ZERO;
        }
        Sector(self.start + u64::from(self.initial_sectors) + self.metadata_run)
    }

    /// Where the tag of the block at a sector of the line is.
    pub fn tag_place(&self, sector: u64) -> TagPlace {
        let (area, offset) = self.area_and_offset(sector);
        let first = ((area << self.log2_interleave) + area * self.metadata_run) >> self.log2_buffer;
        let byte = (offset >> self.log2_block) * u64::from(self.tag_size);
        let log2_bytes = self.log2_buffer + 9;
        TagPlace {
            buffer: first + (byte >> log2_bytes),
            offset: (byte & ((1 << log2_bytes) - 1)) as usize,
        }
    }

    /// Where the journal begins.
    pub fn journal_sector(&self) -> Sector {
        Sector(self.start + SUPERBLOCK_SECTORS)
    }

    /// Where buffers of tags are counted from.
    pub fn tags_sector(&self) -> Sector {
        Sector(self.start + u64::from(self.initial_sectors))
    }
}
