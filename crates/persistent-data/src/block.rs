//! The bytes of a metadata block: its kinds, their checksums, and little-endian access.
//!
//! Every block carries in its first four bytes a CRC-32C of all that follows, and at byte 8 (an
//! array's at byte 16) its own address. The checksum is the kernel's `crc32c(~0, ..)`, which lacks the final inversion of
//! the common definition, XORed with a constant for each kind, so that a block of one kind never
//! passes for another (dm-thin-metadata.c, dm-btree-spine.c, dm-space-map-common.c,
//! dm-array.c, dm-era-target.c, dm-clone-metadata.c, dm-cache-metadata.c).

use crate::array;
use crate::btree::node;
use crate::error::{MetadataError, Result};

/// Bytes in a metadata block.
pub const META_BLOCK_SIZE: usize = 4096;

/// A block's content, without promise of alignment.
pub type BlockBytes = [u8; META_BLOCK_SIZE];

/// What a block is; decides its checksum constant and what is verified when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// The superblock, or the copy of it that a metadata snapshot holds.
    Superblock,
    /// A btree node.
    Node,
    /// A space map's bitmap.
    Bitmap,
    /// The metadata space map's index.
    Index,
    /// A block of an array (`array`).
    Array,
    /// The superblock of era's metadata, or its copy in a metadata snapshot.
    EraSuperblock,
    /// The superblock of clone's metadata.
    CloneSuperblock,
    /// The superblock of a cache's metadata.
    CacheSuperblock,
}

impl BlockKind {
    const fn checksum_xor(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Bitmap => 240_779,
            Self::Index => 160_478,
            Self::Array => 595_846_735,
            Self::EraSuperblock => 146_538_381,
            Self::CloneSuperblock => 257_649_492,
            Self::CacheSuperblock => 9_031_977,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Superblock
            | Self::EraSuperblock
            | Self::CloneSuperblock
            | Self::CacheSuperblock => "superblock",
            Self::Node => "btree node",
            Self::Bitmap => "bitmap",
            Self::Index => "index",
            Self::Array => "array block",
        }
    }

    /// Where the block's own address is.
    const fn address_at(self) -> usize {
        match self {
            Self::Array => 16,
            _ => 8,
        }
    }
}

/// The checksum that `bytes` must carry as a block of `kind`.
fn checksum(kind: BlockKind, bytes: &BlockBytes) -> u32 {
    !crc32c::crc32c(&bytes[4..]) ^ kind.checksum_xor()
}

/// Writes address and checksum, the last thing before a block goes to the device.
pub fn seal(kind: BlockKind, block: u64, bytes: &mut BlockBytes) {
    put_u64(bytes, kind.address_at(), block);
    let sum = checksum(kind, bytes);
    put_u32(bytes, 0, sum);
}

/// What a block of a thin pool is by its checksum, if it holds one that fits its content and its own address.
pub fn kind_of(block: u64, bytes: &BlockBytes) -> Option<BlockKind> {
    if u64_at(bytes, 8) != block {
        return None;
    }
    let plain = !crc32c::crc32c(&bytes[4..]);
    let kinds = [
        BlockKind::Node,
        BlockKind::Bitmap,
        BlockKind::Index,
        BlockKind::Superblock,
    ];
    let found = u32_at(bytes, 0);
    kinds
        .into_iter()
        .find(|kind| plain ^ kind.checksum_xor() == found)
}

/// Verifies a block just read: address, checksum, and for nodes all that makes later access safe.
///
/// # Errors
/// `Corrupt`; errno `ENOTBLK` for another block's content.
pub fn verify(kind: BlockKind, block: u64, bytes: &BlockBytes) -> Result<()> {
    let found = u64_at(bytes, kind.address_at());
    if found != block {
        return Err(MetadataError::misplaced(
            block,
            format!("{} claims to be block {found}", kind.name()),
        ));
    }
    let (found, wanted) = (u32_at(bytes, 0), checksum(kind, bytes));
    if found != wanted {
        return Err(MetadataError::corrupt(
            block,
            format!(
                "{} has checksum {found:#x}, its content gives {wanted:#x}",
                kind.name()
            ),
        ));
    }
    match kind {
        BlockKind::Node => node::verify(block, bytes),
        BlockKind::Array => array::verify(block, bytes),
        _ => Ok(()),
    }
}

/// The little-endian `u64` at byte `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

/// The little-endian `u32` at byte `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

/// Stores `value` little-endian at byte `at`.
pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Stores `value` little-endian at byte `at`.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
