//! What is on the cache device: a superblock, an entry for each block, the blocks. See `docs/internals/writecache.md`.

use thinmap_units::Sector;

const MAGIC: u32 = 0x2348_9321;
const VERSION: u32 = 1;
/// Bytes before the first entry.
const SUPERBLOCK_BYTES: u64 = 64;
/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 16;
/// The sequence number of an entry that maps nothing.
pub(super) const CLEARED: u64 = u64::MAX;
/// Bytes in which metadata are written.
pub(super) const PAGE_BYTES: usize = 4096;
/// Index 2^32 - 1 means none.
const BLOCKS_MAX: u64 = u32::MAX as u64 - 1;

/// The first 64 bytes, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SuperblockDisk {
    pub magic: u32,
    pub version: u32,
    pub block_bytes: u32,
    pub blocks: u64,
    /// Entries with a lower number are valid.
    pub seq: u64,
}

impl SuperblockDisk {
    /// Of a cache that is made anew.
    pub fn new(block_bytes: u32, blocks: u64) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            block_bytes,
            blocks,
            seq: 0,
        }
    }

    /// Fewer than 64 bytes are as zeroes behind the last one.
    pub fn unpack(bytes: &[u8]) -> Self {
        Self {
            magic: number(bytes, 0, 4) as u32,
            version: number(bytes, 4, 4) as u32,
            block_bytes: number(bytes, 8, 4) as u32,
            blocks: number(bytes, 16, 8),
            seq: number(bytes, 24, 8),
        }
    }

    pub fn pack(&self, bytes: &mut [u8]) {
        bytes[..64].fill(0);
        bytes[..4].copy_from_slice(&self.magic.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
    }

    /// Whether a cache is to be made: the kernel looks at no more.
    pub fn is_blank(&self) -> bool {
        self.magic == 0 && self.version == 0
    }
}

/// A sector of the origin and a sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EntryDisk {
    pub sector: u64,
    pub seq: u64,
}

impl EntryDisk {
    pub fn unpack(bytes: &[u8]) -> Self {
        Self {
            sector: number(bytes, 0, 8),
            seq: number(bytes, 8, 8),
        }
    }

    pub fn pack(self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let digits = bytes.iter().skip(at).take(len).rev();
    digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Why a cache does not fit a device, with the kernel's errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unfit {
    pub reason: &'static str,
    pub errno: i32,
}

/// Where everything is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    /// Where the superblock is.
    pub start: Sector,
    /// A power of two from 512 to 4096.
    pub block_bytes: u32,
    pub blocks: u32,
    /// Superblock and entries, whole blocks.
    pub metadata: Sector,
}

impl Geometry {
    /// Of a cache made anew on `room_bytes` from `start` on: as many blocks as fit.
    pub fn fit(start: Sector, room_bytes: u64, block_bytes: u32) -> Result<Self, Unfit> {
        let block = u64::from(block_bytes);
        let mut blocks = room_bytes / (block + ENTRY_BYTES as u64);
        if blocks > BLOCKS_MAX {
            return Err(too_many());
        }
        while blocks > 0 && metadata_bytes(blocks, block) + blocks * block > room_bytes {
            blocks -= 1;
        }
        if blocks == 0 {
            return Err(Unfit {
                reason: "Invalid device size",
                errno: ENOSPC,
            });
        }
        Ok(Self::of(start, block_bytes, blocks as u32))
    }

    /// As a superblock says, checked in the kernel's order.
    pub fn found(
        superblock: &SuperblockDisk,
        start: Sector,
        room_bytes: u64,
        block_bytes: u32,
    ) -> Result<Self, Unfit> {
        let unfit = |reason, errno| Err(Unfit { reason, errno });
        if superblock.magic != MAGIC {
            return unfit("Invalid magic in the superblock", EINVAL);
        }
        if superblock.version != VERSION {
            return unfit("Invalid version in the superblock", EINVAL);
        }
        if superblock.block_bytes != block_bytes {
            return unfit("Block size does not match superblock", EINVAL);
        }
        let (block, blocks) = (u64::from(block_bytes), superblock.blocks);
        let total = blocks
            .checked_mul(ENTRY_BYTES as u64)
            .and_then(|bytes| {
                bytes
                    .checked_add(SUPERBLOCK_BYTES)?
                    .checked_next_multiple_of(block)
            })
            .and_then(|metadata| metadata.checked_add(blocks.checked_mul(block)?));
        let Some(total) = total else {
            return unfit("Overflow in size calculation", EINVAL);
        };
        if total > room_bytes {
            return unfit("Memory area is too small", EINVAL);
        }
        if blocks == 0 {
            return unfit("Cannot allocate memory", ENOMEM);
        }
        if blocks > BLOCKS_MAX {
            return Err(too_many());
        }
        Ok(Self::of(start, block_bytes, blocks as u32))
    }

    fn of(start: Sector, block_bytes: u32, blocks: u32) -> Self {
        let metadata = metadata_bytes(u64::from(blocks), u64::from(block_bytes));
        Self {
            start,
            block_bytes,
            blocks,
            metadata: Sector::from_bytes(metadata),
        }
    }

    pub fn block_sectors(&self) -> u64 {
        u64::from(self.block_bytes >> 9)
    }

    /// Where a block is on the cache device.
    pub fn block_at(&self, index: u32) -> Sector {
        self.start + self.metadata + Sector(u64::from(index) * self.block_sectors())
    }

    pub fn metadata_bytes(&self) -> usize {
        self.metadata.bytes() as usize
    }

    /// Pages of the metadata; the last one may be short.
    pub fn pages(&self) -> usize {
        self.metadata_bytes().div_ceil(PAGE_BYTES)
    }

    /// The page that an entry is in.
    pub fn page_of(&self, index: u32) -> usize {
        entry_at(index as usize) / PAGE_BYTES
    }

    /// The entries that begin in bytes `from..to` of the metadata, both multiples of 512.
    pub fn entries_in(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        let first = |byte: usize| byte.saturating_sub(entry_at(0)) / ENTRY_BYTES;
        first(from)..first(to).min(self.blocks as usize)
    }
}

/// The byte of the metadata where an entry begins.
pub(super) fn entry_at(index: usize) -> usize {
    SUPERBLOCK_BYTES as usize + index * ENTRY_BYTES
}

fn metadata_bytes(blocks: u64, block: u64) -> u64 {
    (SUPERBLOCK_BYTES + blocks * ENTRY_BYTES as u64).next_multiple_of(block)
}

fn too_many() -> Unfit {
    Unfit {
        reason: "Invalid device size",
        errno: EFBIG,
    }
}

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_blocks_as_fit() {
        // 64 + 16 n bytes, rounded up to a block, and n blocks.
        for (bytes, block, blocks, metadata) in [
            (8192, 4096, 1, 8),
            (1 << 20, 4096, 254, 16),
            (1 << 20, 512, 1985, 63),
            (12_288, 4096, 2, 8),
        ] {
            let found = Geometry::fit(Sector(0), bytes, block).expect("room");
            assert_eq!((found.blocks, found.metadata), (blocks, Sector(metadata)));
            let superblock = SuperblockDisk::new(block, u64::from(blocks));
            let again = Geometry::found(&superblock, Sector(0), bytes, block);
            assert_eq!(again, Ok(found));
        }
        let none = Geometry::fit(Sector(0), 4096, 4096).map_err(|unfit| unfit.errno);
        assert_eq!(none, Err(ENOSPC));
        let many = Geometry::fit(Sector(0), 1 << 45, 4096).map_err(|unfit| unfit.errno);
        assert_eq!(many, Err(EFBIG));
    }

    #[test]
    fn superblocks_that_lie_are_refused() {
        let good = SuperblockDisk::new(4096, 10);
        let check = |superblock: SuperblockDisk| {
            let found = Geometry::found(&superblock, Sector(0), 1 << 20, 4096);
            found.err().map_or("", |unfit| unfit.reason)
        };
        assert_eq!(check(good), "");
        let with = |change: fn(&mut SuperblockDisk)| {
            let mut superblock = good;
            change(&mut superblock);
            check(superblock)
        };
        assert_eq!(with(|s| s.magic = 1), "Invalid magic in the superblock");
        assert_eq!(with(|s| s.version = 2), "Invalid version in the superblock");
        let reason = with(|s| s.block_bytes = 512);
        assert_eq!(reason, "Block size does not match superblock");
        assert_eq!(with(|s| s.blocks = 255), "Memory area is too small");
        for blocks in [u64::MAX, u64::MAX / 16, u64::MAX / 4096] {
            let reason = check(SuperblockDisk { blocks, ..good });
            assert_eq!(reason, "Overflow in size calculation", "{blocks}");
        }
        assert_eq!(with(|s| s.blocks = 0), "Cannot allocate memory");
    }

    #[test]
    fn packing_and_unpacking_agree() {
        let mut bytes = [255; 64];
        let superblock = SuperblockDisk {
            seq: 0x0102_0304_0506_0708,
            ..SuperblockDisk::new(512, 77)
        };
        superblock.pack(&mut bytes);
        assert_eq!(SuperblockDisk::unpack(&bytes), superblock);
        assert_eq!(bytes[..8], [0x21, 0x93, 0x48, 0x23, 1, 0, 0, 0]);
        let entry = EntryDisk { sector: 8, seq: 3 };
        entry.pack(&mut bytes);
        assert_eq!(EntryDisk::unpack(&bytes), entry);
    }

    #[test]
    fn every_entry_is_in_one_page() {
        let geometry = Geometry::fit(Sector(0), 8 << 20, 512).expect("room");
        let mut next = 0;
        for page in 0..geometry.pages() {
            let to = ((page + 1) * PAGE_BYTES).min(geometry.metadata_bytes());
            let entries = geometry.entries_in(page * PAGE_BYTES, to);
            assert_eq!(entries.start, next);
            next = entries.end;
            for index in entries {
                assert_eq!(geometry.page_of(index as u32), page);
            }
        }
        assert_eq!(next, geometry.blocks as usize);
    }
}
