//! Opening a pool's metadata, and the facts that can be asked of it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use thinmap_persistent_data::btree::{self, Plain};
use thinmap_persistent_data::{
    Block4k, BlockCache, DiskSpaceMap, ErrorKind, METADATA_BLOCKS_MAX, MayRead, MetadataDevice,
    MetadataError, Result, TransactionManager,
};
use thinmap_units::{DataBlock, MetaBlock, Sector, ThinId};

use crate::deletion::is_condemned;
use crate::device_details::DeviceDetails;
use crate::mapping::SubtreeOps;
use crate::superblock::Superblock;
use crate::transaction::Health;
use crate::volumes::Volume;

/// Blocks that reports of free space leave out, for commits to work when space runs low: a tenth,
/// but not more than this (16 MiB). (dm-thin-metadata.c)
const RESERVE_BLOCKS_MAX: u64 = 4096;

/// How to open a pool's metadata.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The pool's data block size. Must be what the metadata was formatted with.
    pub data_block_size: Sector,
    /// Format a device whose first block is all zeroes.
    pub format_if_zeroed: bool,
    /// Refuse all changes.
    pub read_only: bool,
    /// How many clean metadata blocks (4096 bytes each) to keep in memory.
    pub cache_blocks_max: usize,
}

/// A thin pool's metadata.
///
/// `&self` methods may run concurrently. `&mut self` methods change the open transaction; nothing
/// of it is on the device before a commit. A change that fails half-way (kinds `Io`, `Corrupt`,
/// `NoSpace(Metadata)`) makes all later ones fail with `Poisoned` until [`abort`](Self::abort).
pub struct PoolMetadata {
    pub(crate) device: Arc<dyn MetadataDevice>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) options: OpenOptions,
    pub(crate) tm: TransactionManager,
    pub(crate) data_sm: DiskSpaceMap,
    /// As the open transaction would write it, space map roots aside.
    pub(crate) superblock: Superblock,
    /// A field of the superblock changed that no block tells of.
    pub(crate) superblock_changed: bool,
    /// The open transaction took a metadata snapshot: it may refer to blocks of this transaction.
    pub(crate) snap_taken: bool,
    /// Volumes that were changed since the metadata was opened.
    pub(crate) volumes: HashMap<ThinId, Volume>,
    /// Volumes whose deletion goes on; `None` until somebody looks.
    pub(crate) condemned: Option<Vec<ThinId>>,
    pub(crate) health: Health,
}

impl PoolMetadata {
    /// Opens, or when asked to and the device is zeroed, formats and opens.
    ///
    /// Reads two blocks: the superblock and the metadata space map's index.
    ///
    /// # Errors
    /// `Unformatted`: zeroed, and formatting was not asked for. `Corrupt`: no thin metadata, or
    /// damaged. `Inval`: another data block size. `Unsupported`: unknown features or version.
    /// `Io`; `NoSpace(Metadata)`: too small to format.
    pub fn open(device: Arc<dyn MetadataDevice>, options: &OpenOptions) -> Result<Self> {
        let cache = Arc::new(BlockCache::new(
            Arc::clone(&device),
            options.cache_blocks_max,
        ));
        let bytes = read_superblock(&*device)?;
        if bytes.0.iter().all(|byte| *byte == 0) {
            if !options.format_if_zeroed || options.read_only {
                return Err(MetadataError::new(
                    ErrorKind::Unformatted,
                    "the metadata device is not formatted",
                ));
            }
            return Self::format(device, cache, options);
        }
        Self::load(device, cache, options, &bytes)
    }

    pub(crate) fn load(
        device: Arc<dyn MetadataDevice>,
        cache: Arc<BlockCache>,
        options: &OpenOptions,
        bytes: &Block4k,
    ) -> Result<Self> {
        let superblock = Superblock::unpack(0, &bytes.0)?;
        superblock.check_usable(options.data_block_size, options.read_only)?;
        let tm = TransactionManager::open(Arc::clone(&cache), &superblock.metadata_space_map)?;
        let data_sm = DiskSpaceMap::open(&superblock.data_space_map)?;
        Ok(Self {
            device,
            cache,
            options: options.clone(),
            tm,
            data_sm,
            superblock,
            superblock_changed: false,
            snap_taken: false,
            volumes: HashMap::new(),
            condemned: None,
            health: Health::default(),
        })
    }

    fn format(
        device: Arc<dyn MetadataDevice>,
        cache: Arc<BlockCache>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let blocks = device.size().raw().min(METADATA_BLOCKS_MAX);
        let mut tm = TransactionManager::create(Arc::clone(&cache), blocks)?;
        let data_sm = DiskSpaceMap::create(&mut tm)?;
        let mut superblock = Superblock::new(options.data_block_size, blocks);
        superblock.data_mapping_root = btree::empty::<SubtreeOps<'_>>(&mut tm)?;
        superblock.device_details_root = btree::empty::<Plain<{ DeviceDetails::SIZE }>>(&mut tm)?;
        let mut pool = Self {
            device,
            cache,
            options: options.clone(),
            tm,
            data_sm,
            superblock,
            superblock_changed: true,
            snap_taken: false,
            volumes: HashMap::new(),
            condemned: None,
            health: Health::default(),
        };
        pool.commit()?;
        Ok(pool)
    }

    /// The counter that user space keeps in the pool.
    pub fn transaction_id(&self) -> u64 {
        self.superblock.transaction_id
    }

    /// The metadata snapshot's superblock, if one is held.
    pub fn held_root(&self) -> Option<MetaBlock> {
        let root = self.superblock.held_root;
        (root != 0).then_some(MetaBlock(root))
    }

    /// Whether the metadata is marked as to be checked before it is written again.
    pub fn needs_check(&self) -> bool {
        self.superblock.needs_check()
    }

    /// The format's version, 1 or 2.
    pub fn version(&self) -> u32 {
        self.superblock.version
    }

    /// Snapshots taken in the pool's life.
    pub fn time(&self) -> u32 {
        self.superblock.time
    }

    /// Sectors in a data block.
    pub fn data_block_size(&self) -> Sector {
        Sector(u64::from(self.superblock.data_block_size))
    }

    /// Blocks of the data device that the space map knows of.
    pub fn data_blocks(&self) -> DataBlock {
        DataBlock(self.data_sm.nr_blocks())
    }

    /// Data blocks that can be allocated before the next commit; blocks freed in this transaction
    /// are not among them.
    pub fn free_data_blocks(&self) -> DataBlock {
        DataBlock(self.data_sm.nr_free())
    }

    /// Blocks of the metadata device that the space map knows of.
    pub fn metadata_blocks(&self) -> MetaBlock {
        MetaBlock(self.tm.nr_blocks())
    }

    /// Free metadata blocks as the kernel reports them: without
    /// [`metadata_reserve`](Self::metadata_reserve).
    pub fn free_metadata_blocks(&self) -> MetaBlock {
        MetaBlock(
            self.tm
                .nr_free()
                .saturating_sub(self.metadata_reserve().raw()),
        )
    }

    /// Metadata blocks kept back for commits.
    pub fn metadata_reserve(&self) -> MetaBlock {
        MetaBlock((self.tm.nr_blocks() / 10).min(RESERVE_BLOCKS_MAX))
    }

    /// The metadata device's size now, as far as the format can use it. More than
    /// [`metadata_blocks`](Self::metadata_blocks) after the device has grown.
    pub fn metadata_device_blocks(&self) -> MetaBlock {
        self.device.size().min(MetaBlock(METADATA_BLOCKS_MAX))
    }

    /// Clean metadata blocks in memory, and blocks of the open transaction.
    pub fn cached_blocks(&self) -> (usize, usize) {
        (self.cache.len(), self.tm.reader().dirty_blocks())
    }

    /// The ids of all volumes, ascending; without those that are being deleted.
    pub fn device_ids(&self) -> Result<Vec<ThinId>> {
        let mut ids = Vec::new();
        let mut visit = |key, value: &[u8]| {
            let id = ThinId::new(key).ok_or_else(|| {
                MetadataError::new(
                    ErrorKind::Corrupt,
                    format!("a device has id {key}, which needs more than 24 bits"),
                )
            })?;
            let mut bytes = [0; DeviceDetails::SIZE];
            bytes.copy_from_slice(value);
            if !is_condemned(id, &DeviceDetails::unpack(&bytes)) {
                ids.push(id);
            }
            Ok(ControlFlow::Continue(()))
        };
        btree::visit_entries(
            self.tm.reader(),
            self.superblock.device_details_root,
            DeviceDetails::SIZE,
            0,
            MayRead::Yes,
            &mut visit,
        )?;
        Ok(ids)
    }
}

pub(crate) fn read_superblock(device: &dyn MetadataDevice) -> Result<Box<Block4k>> {
    let mut bytes = Block4k::boxed();
    if device.size() == MetaBlock(0) {
        return Err(MetadataError::new(
            ErrorKind::Inval,
            "the metadata device is smaller than one block",
        ));
    }
    device
        .read(MetaBlock(0), &mut bytes)
        .map_err(|e| MetadataError::io(e, "cannot read the superblock"))?;
    Ok(bytes)
}
