//! The metadata: a bit for each region, set when the destination has it. See `docs/internals/clone.md`.
//!
//! Calls wait for the device: for the worker and control threads only.

use std::sync::Arc;

use thinmap_persistent_data::{
    Block4k, BlockCache, BlockKind, ErrorKind, METADATA_BLOCKS_MAX, MayRead, MetadataDevice,
    MetadataError, Result, SpaceMapRoot, TransactionManager, bitset, seal,
};
use thinmap_units::Sector;

use crate::thin_pool::BlockMetadataDevice;

const MAGIC: u64 = 0x8af2_7f64;
const VERSION: u32 = 1;
/// Clean metadata blocks kept in memory: 1 MiB.
const CACHE_BLOCKS_MAX: usize = 256;

/// See the module.
pub(super) struct Metadata {
    tm: TransactionManager,
    region: u64,
    len: Sector,
    bitset: u64,
}

impl Metadata {
    /// Opens the metadata on a device, or makes some where the first block is all zeroes.
    pub fn open(device: Arc<BlockMetadataDevice>, region: u32, len: Sector) -> Result<Self> {
        if device.size().raw() == 0 {
            return Err(MetadataError::new(
                ErrorKind::Inval,
                "the metadata device is smaller than one block",
            ));
        }
        let region = u64::from(region);
        let cache = Arc::new(BlockCache::new(device.clone(), CACHE_BLOCKS_MAX));
        let failed = |e| MetadataError::io(e, "cannot read the superblock");
        let first = device.superblock().map_err(failed)?;
        if first.0.iter().all(|byte| *byte == 0) {
            let blocks = device.size().raw().min(METADATA_BLOCKS_MAX);
            let mut tm = TransactionManager::create(cache, blocks)?;
            let root = bitset::empty(&mut tm)?;
            let bitset = bitset::resize(&mut tm, root, (0, len.raw().div_ceil(region)))?;
            let mut metadata = Self {
                tm,
                region,
                len,
                bitset,
            };
            metadata.commit()?;
            return Ok(metadata);
        }
        let (space_map, found, bitset) = unpack(&first)?;
        if found != [region, len.raw()] {
            return Err(MetadataError::new(
                ErrorKind::Inval,
                "Region and/or target size don't match the ones in metadata",
            ));
        }
        Ok(Self {
            tm: TransactionManager::open(cache, &space_map)?,
            region,
            len,
            bitset,
        })
    }

    /// Word `index` of the bits.
    pub fn word(&self, index: u64) -> Result<u64> {
        let word = bitset::word(self.tm.reader(), self.bitset, index, MayRead::Yes)?;
        word.ok_or_else(|| MetadataError::corrupt(self.bitset, "there are fewer bits than regions"))
    }

    /// Sets words of the bits, and makes that durable. After a failure the metadata are not to be changed again.
    pub fn store(&mut self, words: &[(u64, u64)]) -> Result<()> {
        for (index, word) in words {
            self.bitset = bitset::set_word(&mut self.tm, self.bitset, *index, *word)?;
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<()> {
        let space_map = self.tm.prepare()?;
        let mut superblock = Block4k::boxed();
        let bytes = &mut superblock.0;
        bytes[32..40].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[40..44].copy_from_slice(&VERSION.to_le_bytes());
        space_map.pack(&mut bytes[44..172]);
        let words = [self.region, self.len.raw(), self.bitset];
        for (to, word) in bytes[172..196].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        seal(BlockKind::CloneSuperblock, 0, bytes);
        let commit = self.tm.freeze(superblock);
        commit.write()?;
        self.tm.finish(&commit);
        Ok(())
    }

    /// Metadata blocks in use, and all of them.
    pub fn used(&self) -> (u64, u64) {
        let total = self.tm.nr_blocks();
        (total - self.tm.nr_free(), total)
    }
}

/// The space map's root, region and length in sectors, the bits' root. Checks in the kernel's order.
fn unpack(block: &Block4k) -> Result<(SpaceMapRoot, [u64; 2], u64)> {
    let bytes = &block.0;
    let long = |at: usize| {
        let mut le = [0; 8];
        le.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(le)
    };
    if long(8) != 0 {
        let what = "this is no clone metadata: the superblock's address is wrong";
        return Err(MetadataError::misplaced(0, what));
    }
    if long(32) != MAGIC {
        let what = "this is no clone metadata: the superblock's magic number is wrong";
        return Err(MetadataError::corrupt(0, what));
    }
    let mut sealed = *bytes;
    seal(BlockKind::CloneSuperblock, 0, &mut sealed);
    if sealed[..4] != bytes[..4] {
        return Err(MetadataError::corrupt(
            0,
            "the superblock's checksum is wrong",
        ));
    }
    let version = long(40) as u32;
    if version != VERSION {
        let what = format!(
            "Clone metadata version {version} found, but only versions between {VERSION} and {VERSION} supported."
        );
        return Err(MetadataError::new(ErrorKind::Unsupported, what));
    }
    let space_map = SpaceMapRoot::unpack(&bytes[44..172]);
    Ok((space_map, [long(172), long(180)], long(188)))
}
