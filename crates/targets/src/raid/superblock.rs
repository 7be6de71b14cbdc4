//! dm-raid's superblock: the first logical block of a member's metadata device, numbers little-endian.

use thinmap_units::Sector;

use super::members::MAX_SECTOR;

/// Bytes that mean something; the rest of the block is zero.
pub(super) const SUPERBLOCK_BYTES: usize = 148;

const MAGIC: u32 = 0x6452_6d44;
/// What lies behind `stripe_sectors` is there.
const FEATURE_V190: u32 = 1;
const FLAG_RESHAPE: u32 = 1;

/// Which members have failed, by position.
pub(super) type FailedBits = [u64; 4];

/// The fields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SuperblockDisk {
    /// 0, or 1 for the extended format of dm-raid 1.9.
    pub compat_features: u32,
    pub members: u32,
    /// Which member this is.
    pub position: u32,
    /// Grows with every update; the highest is right.
    pub events: u64,
    pub failed: FailedBits,
    /// This member is good up to there.
    pub recovered: Sector,
    /// The members agree up to there.
    pub resynced: Sector,
    pub level: u32,
    pub layout: u32,
    pub chunk: u32,
    pub flags: u32,
    pub reshape_position: Sector,
    pub new_level: u32,
    pub new_layout: u32,
    pub new_chunk: u32,
    pub delta_disks: u32,
    pub array_len: Sector,
    pub data_offset: Sector,
    pub new_data_offset: Sector,
    /// What is used of each member.
    pub member_len: Sector,
    pub incompat_features: u32,
}

impl SuperblockDisk {
    /// Reads a block; `None` when it is no superblock.
    pub fn unpack(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < SUPERBLOCK_BYTES || u32_at(bytes, 0) != MAGIC {
            return None;
        }
        let extended = u32_at(bytes, 4) & FEATURE_V190 != 0;
        let sector = |at| Sector(u64_at(bytes, at));
        let (level, layout, chunk) = (u32_at(bytes, 48), u32_at(bytes, 52), u32_at(bytes, 56));
        let mut failed = [u64_at(bytes, 24), 0, 0, 0];
        if extended {
            for (nr, bits) in failed.iter_mut().enumerate().skip(1) {
                *bits = u64_at(bytes, 112 + 8 * nr);
            }
        }
        let mut found = Self {
            compat_features: u32_at(bytes, 4),
            members: u32_at(bytes, 8),
            position: u32_at(bytes, 12),
            events: u64_at(bytes, 16),
            failed,
            recovered: sector(32),
            resynced: sector(40),
            level,
            layout,
            chunk,
            flags: 0,
            reshape_position: MAX_SECTOR,
            new_level: level,
            new_layout: layout,
            new_chunk: chunk,
            delta_disks: 0,
            array_len: Sector::ZERO,
            data_offset: Sector::ZERO,
            new_data_offset: Sector::ZERO,
            member_len: Sector::ZERO,
            incompat_features: u32_at(bytes, 144),
        };
        if extended {
            found.flags = u32_at(bytes, 60);
            found.reshape_position = sector(64);
            found.new_level = u32_at(bytes, 72);
            found.new_layout = u32_at(bytes, 76);
            found.new_chunk = u32_at(bytes, 80);
            found.delta_disks = u32_at(bytes, 84);
            found.array_len = sector(88);
            found.data_offset = sector(96);
            found.new_data_offset = sector(104);
            found.member_len = sector(112);
        }
        Some(found)
    }

    /// Writes the fields to the begin of a zeroed block.
    pub fn pack(&self, bytes: &mut [u8]) {
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let words = [
            (0, MAGIC),
            (4, FEATURE_V190),
            (8, self.members),
            (12, self.position),
            (48, self.level),
            (52, self.layout),
            (56, self.chunk),
            (60, self.flags),
            (72, self.new_level),
            (76, self.new_layout),
            (80, self.new_chunk),
            (84, self.delta_disks),
            (144, self.incompat_features),
        ];
        for (at, word) in words {
            put(at, &word.to_le_bytes());
        }
        let longs = [
            (16, self.events),
            (24, self.failed[0]),
            (32, self.recovered.raw()),
            (40, self.resynced.raw()),
            (64, self.reshape_position.raw()),
            (88, self.array_len.raw()),
            (96, self.data_offset.raw()),
            (104, self.new_data_offset.raw()),
            (112, self.member_len.raw()),
            (120, self.failed[1]),
            (128, self.failed[2]),
            (136, self.failed[3]),
        ];
        for (at, long) in longs {
            put(at, &long.to_le_bytes());
        }
    }

    /// Whether the superblock says that a member has failed.
    pub fn has_failed(&self, position: usize) -> bool {
        let word = self.failed.get(position / 64);
        word.is_some_and(|bits| bits >> (position % 64) & 1 != 0)
    }

    /// Whether it has the extended fields.
    pub fn is_extended(&self) -> bool {
        self.compat_features & FEATURE_V190 != 0
    }

    /// Whether a reshape is under way.
    pub fn is_reshaping(&self) -> bool {
        self.flags & FLAG_RESHAPE != 0
    }

    /// Whether it says something that nobody knows.
    pub fn has_unknown_features(&self) -> bool {
        self.compat_features & !FEATURE_V190 != 0
    }
}

/// Notes a failed member.
pub(super) fn set_failed(bits: &mut FailedBits, position: usize) {
    if let Some(word) = bits.get_mut(position / 64) {
        *word |= 1 << (position % 64);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_from_where_the_kernel_keeps_them() {
        let mut failed = [0; 4];
        set_failed(&mut failed, 1);
        set_failed(&mut failed, 65);
        let written = SuperblockDisk {
            compat_features: 1,
            members: 4,
            position: 2,
            events: 77,
            failed,
            recovered: MAX_SECTOR,
            resynced: Sector(4096),
            level: 10,
            layout: 0x102,
            chunk: 128,
            flags: 0,
            reshape_position: MAX_SECTOR,
            new_level: 10,
            new_layout: 0x102,
            new_chunk: 128,
            delta_disks: 0,
            array_len: Sector(1 << 20),
            data_offset: Sector(8),
            new_data_offset: Sector(9),
            member_len: Sector(1 << 19),
            incompat_features: 0,
        };
        let mut block = [0; 512];
        written.pack(&mut block);
        assert_eq!(&block[..4], b"DmRd");
        assert_eq!(block[16], 77);
        assert_eq!(block[24], 2);
        assert_eq!(block[120], 2);
        let read = SuperblockDisk::unpack(&block).expect("a superblock");
        assert_eq!(read, written);
        assert!(read.has_failed(1) && read.has_failed(65) && !read.has_failed(0));
        assert_eq!(SuperblockDisk::unpack(&[0; 512]), None);
    }
}
