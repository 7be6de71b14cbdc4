//! The superblock on disk. See `docs/internals/era.md`.

use thinmap_persistent_data::{
    Block4k, BlockBytes, BlockKind, ErrorKind, MetadataError, Result, SpaceMapRoot, seal,
};

const MAGIC: u64 = 2_126_579_579;
const VERSION: u32 = 1;
const METADATA_BLOCK_SECTORS: u32 = 8;
/// Bytes of a writeset in a tree.
pub(super) const WRITESET_BYTES: usize = 12;

/// The blocks written in one era: a bitset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct WritesetDisk {
    pub bits: u32,
    /// 0: there is none.
    pub root: u64,
}

impl WritesetDisk {
    pub fn unpack(bytes: &[u8; WRITESET_BYTES]) -> Self {
        Self {
            bits: word(bytes, 0),
            root: long(bytes, 4),
        }
    }

    pub fn pack(self) -> [u8; WRITESET_BYTES] {
        let mut bytes = [0; WRITESET_BYTES];
        bytes[..4].copy_from_slice(&self.bits.to_le_bytes());
        bytes[4..].copy_from_slice(&self.root.to_le_bytes());
        bytes
    }
}

/// What a commit makes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct SuperblockDisk {
    pub metadata_space_map: SpaceMapRoot,
    /// Sectors in a block of the origin.
    pub block_sectors: u32,
    /// Blocks of the origin.
    pub blocks: u32,
    pub era: u32,
    pub writeset: WritesetDisk,
    /// Root of the tree of ended eras that are not in the array yet.
    pub writeset_tree: u64,
    /// Root of the array with the era of each block.
    pub era_array: u64,
    /// The block of the metadata snapshot; 0: there is none.
    pub metadata_snap: u64,
}

impl SuperblockDisk {
    /// Reads and verifies block `block`, in the kernel's order.
    pub fn unpack(block: u64, bytes: &BlockBytes) -> Result<Self> {
        if long(bytes, 8) != block {
            let what = "this is no era metadata: the superblock's address is wrong";
            return Err(MetadataError::misplaced(block, what));
        }
        if long(bytes, 32) != MAGIC {
            let what = "this is no era metadata: the superblock's magic number is wrong";
            return Err(MetadataError::corrupt(block, what));
        }
        let mut sealed = *bytes;
        seal(BlockKind::EraSuperblock, block, &mut sealed);
        if sealed[..4] != bytes[..4] {
            let what = "the superblock's checksum is wrong";
            return Err(MetadataError::corrupt(block, what));
        }
        let version = word(bytes, 40);
        if version != VERSION {
            let what = format!(
                "Era metadata version {version} found, but only versions between {VERSION} and {VERSION} supported."
            );
            return Err(MetadataError::new(ErrorKind::Unsupported, what));
        }
        Ok(Self {
            metadata_space_map: SpaceMapRoot::unpack(&bytes[44..172]),
            block_sectors: word(bytes, 172),
            blocks: word(bytes, 180),
            era: word(bytes, 184),
            writeset: WritesetDisk {
                bits: word(bytes, 188),
                root: long(bytes, 192),
            },
            writeset_tree: long(bytes, 200),
            era_array: long(bytes, 208),
            metadata_snap: long(bytes, 216),
        })
    }

    /// The superblock, not sealed.
    pub fn pack(&self) -> Box<Block4k> {
        let mut block = Block4k::boxed();
        let bytes = &mut block.0;
        bytes[32..40].copy_from_slice(&MAGIC.to_le_bytes());
        put(bytes, 40, VERSION);
        self.metadata_space_map.pack(&mut bytes[44..172]);
        put(bytes, 172, self.block_sectors);
        put(bytes, 176, METADATA_BLOCK_SECTORS);
        put(bytes, 180, self.blocks);
        put(bytes, 184, self.era);
        bytes[188..200].copy_from_slice(&self.writeset.pack());
        let roots = [self.writeset_tree, self.era_array, self.metadata_snap];
        for (to, root) in bytes[200..224].chunks_exact_mut(8).zip(roots) {
            to.copy_from_slice(&root.to_le_bytes());
        }
        block
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

fn put(bytes: &mut BlockBytes, at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_comes_back_as_it_was_packed() {
        let superblock = SuperblockDisk {
            metadata_space_map: SpaceMapRoot {
                nr_blocks: 1,
                nr_allocated: 2,
                bitmap_root: 3,
                ref_count_root: 4,
            },
            block_sectors: 128,
            blocks: 1000,
            era: 7,
            writeset: WritesetDisk { bits: 999, root: 5 },
            writeset_tree: 6,
            era_array: 7,
            metadata_snap: 8,
        };
        let mut block = superblock.pack();
        assert!(SuperblockDisk::unpack(0, &block.0).is_err(), "not sealed");
        seal(BlockKind::EraSuperblock, 0, &mut block.0);
        assert_eq!(
            SuperblockDisk::unpack(0, &block.0).expect("sealed"),
            superblock
        );
        let misplaced = SuperblockDisk::unpack(1, &block.0).expect_err("another block");
        assert_eq!(misplaced.errno(), 15);
        block.0[4000] ^= 1;
        let damaged = SuperblockDisk::unpack(0, &block.0).expect_err("damaged");
        assert_eq!(damaged.errno(), 84);
    }
}
