//! Block 0: where everything starts, and the only block that is overwritten in place.
//!
//! | byte | field | byte | field |
//! | --- | --- | --- | --- |
//! | 0 | checksum `u32` | 192 | metadata space map root, 128 bytes |
//! | 4 | flags `u32` (bit 0 needs check) | 320 | mapping tree root `u64` |
//! | 8 | own block number `u64` | 328 | device details root `u64` |
//! | 16 | uuid, 16 bytes | 336 | data block size in sectors `u32` |
//! | 32 | magic `u64` | 340 | metadata block size in sectors `u32` |
//! | 40 | version `u32` | 344 | metadata blocks at format time `u64` |
//! | 44 | time `u32` | 352 | compat flags `u32` |
//! | 48 | transaction id `u64` | 356 | compat read-only flags `u32` |
//! | 56 | held root `u64` | 360 | incompat flags `u32` |
//! | 64 | data space map root, 128 bytes | 364 | zeroes |
//!
//! (dm-thin-metadata.c, `struct thin_disk_superblock`)

use thinmap_persistent_data::{
    Block4k, BlockBytes, BlockKind, ErrorKind, MetadataError, Result, SpaceMapRoot, seal,
};
use thinmap_units::Sector;

/// The number that marks thin metadata.
pub const SUPERBLOCK_MAGIC: u64 = 27_022_010;
/// The version that a format writes.
const VERSION: u32 = 2;
/// Sectors in a metadata block.
const METADATA_BLOCK_SECTORS: u32 = 8;
const FLAG_NEEDS_CHECK: u32 = 1;

/// The superblock's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bit 0: a failure may have left the metadata inconsistent.
    pub flags: u32,
    /// Unused by the kernel; kept.
    pub uuid: [u8; 16],
    /// 1 or 2.
    pub version: u32,
    /// Counts snapshots taken; stamps mappings, so that sharing can be told by age.
    pub time: u32,
    /// User space's own counter.
    pub transaction_id: u64,
    /// Block of the metadata snapshot's superblock; 0 is none.
    pub held_root: u64,
    /// Reference counts of data blocks.
    pub data_space_map: SpaceMapRoot,
    /// Reference counts of metadata blocks.
    pub metadata_space_map: SpaceMapRoot,
    /// Root of the tree from device id to the root of its mapping tree.
    pub data_mapping_root: u64,
    /// Root of the tree from device id to [`DeviceDetails`](crate::DeviceDetails).
    pub device_details_root: u64,
    /// Data block size in sectors.
    pub data_block_size: u32,
    /// Metadata device size when formatted, in blocks. Not kept up on growth (as the kernel).
    pub metadata_nr_blocks: u64,
    /// Features any reader and writer may ignore.
    pub compat_flags: u32,
    /// Features only a reader may ignore.
    pub compat_ro_flags: u32,
    /// Features nobody may ignore.
    pub incompat_flags: u32,
}

fn u32_at(bytes: &BlockBytes, at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn u64_at(bytes: &BlockBytes, at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

impl Superblock {
    /// Whether a pool can have data blocks of so many sectors: multiples of 64 KiB, up to 1 GiB.
    pub fn is_data_block_size(sectors: u32) -> bool {
        (128..=2_097_152).contains(&sectors) && sectors.is_multiple_of(128)
    }

    /// A fresh pool's superblock; the roots are still to be set.
    pub(crate) fn new(data_block_size: Sector, metadata_nr_blocks: u64) -> Self {
        Self {
            flags: 0,
            uuid: [0; 16],
            version: VERSION,
            time: 0,
            transaction_id: 0,
            held_root: 0,
            data_space_map: SpaceMapRoot::default(),
            metadata_space_map: SpaceMapRoot::default(),
            data_mapping_root: 0,
            device_details_root: 0,
            data_block_size: data_block_size.raw() as u32,
            metadata_nr_blocks,
            compat_flags: 0,
            compat_ro_flags: 0,
            incompat_flags: 0,
        }
    }

    /// Reads the fields of the superblock, or of a copy of it, in `block`.
    ///
    /// Verifies address, magic and checksum, in the kernel's order.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; errno `ENOTBLK` for the address, `EILSEQ` for the others.
    pub fn unpack(block: u64, bytes: &BlockBytes) -> Result<Self> {
        if u64_at(bytes, 8) != block {
            let what = "this is no thin metadata: the superblock's address is wrong";
            return Err(MetadataError::misplaced(block, what));
        }
        if u64_at(bytes, 32) != SUPERBLOCK_MAGIC {
            let what = "this is no thin metadata: the superblock's magic number is wrong";
            return Err(MetadataError::corrupt(block, what));
        }
        let mut sealed: BlockBytes = *bytes;
        seal(BlockKind::Superblock, block, &mut sealed);
        if sealed[..4] != bytes[..4] {
            let what = "the superblock's checksum is wrong";
            return Err(MetadataError::corrupt(block, what));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            flags: u32_at(bytes, 4),
            uuid,
            version: u32_at(bytes, 40),
            time: u32_at(bytes, 44),
            transaction_id: u64_at(bytes, 48),
            held_root: u64_at(bytes, 56),
            data_space_map: SpaceMapRoot::unpack(&bytes[64..192]),
            metadata_space_map: SpaceMapRoot::unpack(&bytes[192..320]),
            data_mapping_root: u64_at(bytes, 320),
            device_details_root: u64_at(bytes, 328),
            data_block_size: u32_at(bytes, 336),
            metadata_nr_blocks: u64_at(bytes, 344),
            compat_flags: u32_at(bytes, 352),
            compat_ro_flags: u32_at(bytes, 356),
            incompat_flags: u32_at(bytes, 360),
        })
    }

    /// The superblock as it goes to block 0, address and checksum included.
    pub fn pack(&self) -> Box<Block4k> {
        let mut block = Block4k::boxed();
        let bytes = &mut block.0;
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(4, &self.flags.to_le_bytes());
        put(16, &self.uuid);
        put(32, &SUPERBLOCK_MAGIC.to_le_bytes());
        put(40, &self.version.to_le_bytes());
        put(44, &self.time.to_le_bytes());
        put(48, &self.transaction_id.to_le_bytes());
        put(56, &self.held_root.to_le_bytes());
        put(320, &self.data_mapping_root.to_le_bytes());
        put(328, &self.device_details_root.to_le_bytes());
        put(336, &self.data_block_size.to_le_bytes());
        put(340, &METADATA_BLOCK_SECTORS.to_le_bytes());
        put(344, &self.metadata_nr_blocks.to_le_bytes());
        put(352, &self.compat_flags.to_le_bytes());
        put(356, &self.compat_ro_flags.to_le_bytes());
        put(360, &self.incompat_flags.to_le_bytes());
        self.data_space_map.pack(&mut bytes[64..192]);
        self.metadata_space_map.pack(&mut bytes[192..320]);
        seal(BlockKind::Superblock, 0, bytes);
        block
    }

    /// Whether the metadata has to be checked before it is written again.
    pub const fn needs_check(&self) -> bool {
        self.flags & FLAG_NEEDS_CHECK != 0
    }

    /// Takes the demand for a check back.
    pub const fn clear_needs_check(&mut self) {
        self.flags &= !FLAG_NEEDS_CHECK;
    }

    pub(crate) const fn set_needs_check(&mut self) {
        self.flags |= FLAG_NEEDS_CHECK;
    }

    /// The checks that the kernel makes when a pool is opened, and two of our own: a version or a
    /// metadata block size that never existed.
    pub(crate) fn check_usable(&self, data_block_size: Sector, read_only: bool) -> Result<()> {
        let refuse = |kind, what: String| Err(MetadataError::new(kind, what));
        if u64::from(self.data_block_size) != data_block_size.raw() {
            return refuse(
                ErrorKind::Inval,
                format!(
                    "changing the data block size (from {} to {data_block_size}) is not supported",
                    self.data_block_size
                ),
            );
        }
        if self.incompat_flags != 0 {
            return refuse(
                ErrorKind::Unsupported,
                format!(
                    "metadata has unsupported features ({:x})",
                    self.incompat_flags
                ),
            );
        }
        if self.compat_ro_flags != 0 && !read_only {
            return refuse(
                ErrorKind::Unsupported,
                format!(
                    "metadata has features ({:x}) that allow reading only",
                    self.compat_ro_flags
                ),
            );
        }
        if !(1..=VERSION).contains(&self.version) {
            return refuse(
                ErrorKind::Unsupported,
                format!("metadata version {} is not known", self.version),
            );
        }
        Ok(())
    }
}
