//! What the metadata targets share: a good image to begin from, and everything that can be asked of a bad one.

use std::sync::{Arc, OnceLock};

use thinmap_persistent_data::{BlockKind, seal};
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{
    Deletion, Lookup, MayRead, OpenOptions, PoolMetadata, Result, Run, check,
};
use thinmap_units::{DataBlock, Sector, ThinId, VirtBlock};

/// Sectors of a data block.
pub const BLOCK_SECTORS: u64 = 128;
/// Data blocks of the good image's pool.
pub const DATA_BLOCKS: u64 = 3000;
const METADATA_BLOCKS: u64 = 400;
const OPERATIONS_MAX: usize = 48;

use crate::Input;

pub fn options(format_if_zeroed: bool) -> OpenOptions {
    OpenOptions {
        data_block_size: Sector(BLOCK_SECTORS),
        format_if_zeroed,
        read_only: false,
        cache_blocks_max: 256,
    }
}

pub fn id(n: u64) -> ThinId {
    ThinId::new(n).expect("below 24 bits")
}

/// Volumes, snapshots, a metadata snapshot, and a deletion that is half done.
pub fn good_image() -> &'static Arc<SimMetadataDisk> {
    static IMAGE: OnceLock<Arc<SimMetadataDisk>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let disk = SimMetadataDisk::new(METADATA_BLOCKS);
        build(&disk).expect("a good image");
        disk
    })
}

fn build(disk: &Arc<SimMetadataDisk>) -> Result<()> {
    let mut pool = PoolMetadata::open(disk.clone(), &options(true))?;
    pool.resize_data(DataBlock(DATA_BLOCKS))?;
    pool.create_thin(id(1))?;
    fill(&mut pool, 1, 0, 600)?;
    pool.commit()?;
    for snap in 2..5 {
        pool.create_snap(id(snap), id(1))?;
        fill(&mut pool, snap, 100 * snap, 20)?;
    }
    pool.commit()?;
    pool.create_thin(id(5))?;
    fill(&mut pool, 5, 0, 800)?;
    assert_eq!(pool.begin_deletion(id(5), 1)?, Deletion::Begun);
    pool.continue_deletion(2)?;
    pool.reserve_metadata_snap()?;
    pool.commit()?;
    fill(&mut pool, 1, 50, 40)?;
    pool.commit()
}

fn fill(pool: &mut PoolMetadata, volume: u64, from: u64, count: u64) -> Result<()> {
    (from..from + count).try_for_each(|v| {
        let data = pool.alloc_data_block()?;
        pool.insert(id(volume), VirtBlock(v), data)
    })
}

/// What kind of block these bytes are, by their checksum.
pub fn kind_of(block: u64, bytes: &[u8; 4096]) -> Option<BlockKind> {
    KINDS.into_iter().find(|kind| {
        let mut sealed = *bytes;
        seal(*kind, block, &mut sealed);
        sealed == *bytes
    })
}

pub const KINDS: [BlockKind; 4] = [
    BlockKind::Superblock,
    BlockKind::Node,
    BlockKind::Bitmap,
    BlockKind::Index,
];

/// Checks the image, opens it, does what `input` says with it, and checks again.
pub fn use_image(disk: &Arc<SimMetadataDisk>, input: &mut Input<'_>) {
    let _ = check(disk.clone());
    let Ok(mut pool) = PoolMetadata::open(disk.clone(), &options(input.flag())) else {
        return;
    };
    read_everything(&mut pool);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        if operate(&mut pool, input).is_err() && pool.abort().is_err() {
            return;
        }
    }
    read_everything(&mut pool);
    let _ = pool.commit();
    let _ = check(disk.clone());
}

fn read_everything(pool: &mut PoolMetadata) {
    let _ = pool.deletions();
    pool.read_for_deletion(20);
    let ids = pool.device_ids().unwrap_or_default();
    for volume in ids.into_iter().take(8) {
        let _ = pool.details(volume);
        let _ = pool.mapped_blocks(volume);
        let end = pool.highest_mapped(volume).ok().flatten();
        let mut at = 0;
        for _ in 0..40 {
            let Ok(run) = pool.lookup_run(volume, VirtBlock(at), 10_000, MayRead::Yes) else {
                break;
            };
            bounded(pool, run);
            at = at.saturating_add(run.blocks);
            if end.is_none_or(|end| at > end.raw()) {
                break;
            }
        }
    }
}

/// INVARIANT: the engine never sends anybody to a block that the pool does not have.
fn bounded(pool: &PoolMetadata, run: Run) {
    if let Lookup::Mapped { data, .. } = run.first {
        let end = data.raw() + run.blocks;
        assert!(
            end <= pool.data_blocks().raw(),
            "data blocks {data} to {end} of {}",
            pool.data_blocks()
        );
    }
}

fn operate(pool: &mut PoolMetadata, input: &mut Input<'_>) -> Result<()> {
    let operation = input.below(16);
    let volume = id(u64::from(input.u8() % 12));
    let v = VirtBlock(u64::from(input.u16()));
    match operation {
        0 => pool.create_thin(volume),
        1 => pool.create_snap(id(u64::from(input.u8() % 20)), volume),
        2 => pool.delete_thin(volume),
        3 => {
            let end = VirtBlock(v.raw() + u64::from(input.u16()));
            pool.remove_range(volume, v, end).map(drop)
        }
        4 => pool.release_metadata_snap(),
        5 => pool.reserve_metadata_snap(),
        6 => pool.resize_data(DataBlock(DATA_BLOCKS + v.raw())),
        7 => pool.commit(),
        8 => pool.abort(),
        9 => pool.begin_deletion(volume, 1).map(drop),
        10 => pool.continue_deletion(2).map(drop),
        11 => pool.begin_release(1).map(drop),
        12 => {
            let found = pool.lookup(volume, v, MayRead::Yes)?;
            bounded(
                pool,
                Run {
                    first: found,
                    blocks: 1,
                },
            );
            Ok(())
        }
        13 => {
            let run = pool.lookup_run(volume, v, 10_000, MayRead::Yes)?;
            bounded(pool, run);
            Ok(())
        }
        14 => pool.set_needs_check(),
        _ => (0..u64::from(input.u8() % 64)).try_for_each(|n| {
            let data = pool.alloc_data_block()?;
            assert!(data < pool.data_blocks(), "allocated {data}");
            pool.insert(volume, VirtBlock(v.raw() + n), data)
        }),
    }
}
