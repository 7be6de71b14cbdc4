//! The superblock. See `docs/internals/cache.md`.

use thinmap_persistent_data::{
    Block4k, BlockKind, ErrorKind, MetadataError, Result, SpaceMapRoot, seal,
};

const MAGIC: u64 = 0o6142003;
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
const METADATA_BLOCK_SECTORS: u32 = 8;
const CLEAN_SHUTDOWN: u32 = 1;
const NEEDS_CHECK: u32 = 2;
pub(super) const POLICY_NAME_BYTES: usize = 16;

/// The superblock's content. Sizes in sectors.
#[derive(Clone, Copy, Default)]
pub(super) struct SuperblockDisk {
    pub clean_shutdown: bool,
    pub needs_check: bool,
    pub uuid: [u8; 16],
    /// The format, 1 or 2.
    pub version: u32,
    pub policy: PolicyDisk,
    pub metadata_space_map: SpaceMapRoot,
    pub mappings: u64,
    /// 0 when there are none.
    pub hints: u64,
    pub discards: u64,
    pub discard_block: u64,
    pub discard_blocks: u64,
    pub block: u32,
    pub cache_blocks: u32,
    /// Read hits and misses, write hits and misses.
    pub counts: [u32; 4],
    /// Format 2 only.
    pub dirty: u64,
}

/// Which policy the hints are of.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct PolicyDisk {
    pub name: [u8; POLICY_NAME_BYTES],
    /// Bytes.
    pub hint_size: u32,
    pub version: [u32; 3],
}

impl SuperblockDisk {
    /// Sealed.
    pub fn pack(&self) -> Box<Block4k> {
        let mut block = Block4k::boxed();
        let bytes = &mut block.0;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = flag(self.clean_shutdown, CLEAN_SHUTDOWN) | flag(self.needs_check, NEEDS_CHECK);
        let [read_hits, read_misses, write_hits, write_misses] = self.counts;
        bytes[16..32].copy_from_slice(&self.uuid);
        bytes[44..60].copy_from_slice(&self.policy.name);
        self.metadata_space_map.pack(&mut bytes[64..192]);
        for (at, value) in [
            (32, MAGIC),
            (192, self.mappings),
            (200, self.hints),
            (208, self.discards),
            (216, self.discard_block),
            (224, self.discard_blocks),
            (284, self.dirty),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [
            (4, flags),
            (40, self.version),
            (60, self.policy.hint_size),
            (232, self.block),
            (236, METADATA_BLOCK_SECTORS),
            (240, self.cache_blocks),
            (256, read_hits),
            (260, read_misses),
            (264, write_hits),
            (268, write_misses),
            (272, self.policy.version[0]),
            (276, self.policy.version[1]),
            (280, self.policy.version[2]),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        seal(BlockKind::CacheSuperblock, 0, bytes);
        block
    }

    /// Checks in the kernel's order.
    pub fn unpack(block: &Block4k) -> Result<Self> {
        let bytes = &block.0;
        let long = |at: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(le)
        };
        let int = |at: usize| long(at) as u32;
        if long(8) != 0 {
            let what = "this is no cache metadata: the superblock's address is wrong";
            return Err(MetadataError::misplaced(0, what));
        }
        if long(32) != MAGIC {
            let what = "this is no cache metadata: the superblock's magic number is wrong";
            return Err(MetadataError::corrupt(0, what));
        }
        let mut sealed = *bytes;
        seal(BlockKind::CacheSuperblock, 0, &mut sealed);
        if sealed[..4] != bytes[..4] {
            let what = "the superblock's checksum is wrong";
            return Err(MetadataError::corrupt(0, what));
        }
        let version = int(40);
        if !VERSIONS.contains(&version) {
            let what = format!(
                "Cache metadata version {version} found, but only versions between {} and {} supported.",
                VERSIONS.start(),
                VERSIONS.end()
            );
            return Err(MetadataError::new(ErrorKind::Unsupported, what));
        }
        for (at, access) in [(252, "access metadata"), (248, "access metadata RDWR")] {
            let features = int(at);
            if features != 0 {
                let what = format!(
                    "could not {access} due to unsupported optional features ({features:x})."
                );
                return Err(MetadataError::new(ErrorKind::Unsupported, what));
            }
        }
        let (mut uuid, mut name) = ([0; 16], [0; POLICY_NAME_BYTES]);
        uuid.copy_from_slice(&bytes[16..32]);
        name.copy_from_slice(&bytes[44..60]);
        Ok(Self {
            clean_shutdown: int(4) & CLEAN_SHUTDOWN != 0,
            needs_check: int(4) & NEEDS_CHECK != 0,
            uuid,
            version,
            policy: PolicyDisk {
                name,
                hint_size: int(60),
                version: [int(272), int(276), int(280)],
            },
            metadata_space_map: SpaceMapRoot::unpack(&bytes[64..192]),
            mappings: long(192),
            hints: long(200),
            discards: long(208),
            discard_block: long(216),
            discard_blocks: long(224),
            block: int(232),
            cache_blocks: int(240),
            counts: [int(256), int(260), int(264), int(268)],
            dirty: if version >= 2 { long(284) } else { 0 },
        })
    }
}

/// A mapping: valid, dirty (format 1), and the block of the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MappingDisk {
    pub oblock: u64,
    pub dirty: bool,
}

const VALID: u64 = 1;
const DIRTY: u64 = 2;
const FLAG_BITS: u32 = 16;

impl MappingDisk {
    /// `None` is an unused block of the cache.
    pub fn pack(mapping: Option<Self>) -> [u8; 8] {
        let word = mapping.map_or(0, |mapping| {
            let dirty = if mapping.dirty { DIRTY } else { 0 };
            mapping.oblock << FLAG_BITS | VALID | dirty
        });
        word.to_le_bytes()
    }

    pub fn unpack(bytes: [u8; 8]) -> Option<Self> {
        let word = u64::from_le_bytes(bytes);
        (word & VALID != 0).then_some(Self {
            oblock: word >> FLAG_BITS,
            dirty: word & DIRTY != 0,
        })
    }
}
