//! Pools made on our engine: large regular ones for measuring, small random ones for comparing.
#![allow(dead_code, reason = "each user takes its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_thin_metadata::{
    Block4k, Lookup, MayRead, MetadataDevice, OpenOptions, PoolMetadata, Result,
};
use thinmap_thin_tools::{Access, Image};
use thinmap_units::{DataBlock, MetaBlock, Sector, ThinId, VirtBlock};

/// Sectors in a data block of every generated pool.
pub const BLOCK_SECTORS: u64 = 128;
/// Changes between two commits.
const COMMIT_EVERY: u64 = 200_000;

pub fn options() -> OpenOptions {
    OpenOptions {
        data_block_size: Sector(BLOCK_SECTORS),
        format_if_zeroed: true,
        read_only: false,
        cache_blocks_max: 65_536,
    }
}

pub fn id(n: u64) -> ThinId {
    ThinId::new(n).expect("a volume's id")
}

/// An image whose flushes do nothing: what is generated need not survive a power cut.
struct Unflushed(Image);

impl MetadataDevice for Unflushed {
    fn size(&self) -> MetaBlock {
        self.0.size()
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> std::io::Result<()> {
        self.0.read(block, buf)
    }

    fn read_many(&self, blocks: &[MetaBlock]) -> Vec<Option<Box<Block4k>>> {
        self.0.read_many(blocks)
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> std::io::Result<()> {
        self.0.write(batch)
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An empty pool in a new file of `metadata_blocks` blocks, sparse.
pub fn new_pool(path: &Path, metadata_blocks: u64, data_blocks: u64) -> Result<PoolMetadata> {
    let file = std::fs::File::create(path).expect("create the image");
    file.set_len(metadata_blocks * 4096).expect("its size");
    drop(file);
    let mut pool = open(path)?;
    pool.resize_data(DataBlock(data_blocks))?;
    pool.commit()?;
    Ok(pool)
}

/// Opens the pool in `path`.
pub fn open(path: &Path) -> Result<PoolMetadata> {
    let image = Image::open(path, Access::Write).expect("open the image");
    PoolMetadata::open(Arc::new(Unflushed(image)), &options())
}

pub fn map(pool: &mut PoolMetadata, volume: u64, block: u64) -> Result<DataBlock> {
    let data = pool.alloc_data_block()?;
    pool.insert(id(volume), VirtBlock(block), data)?;
    Ok(data)
}

/// `volumes` volumes with `mappings` mappings in all. Odd volumes are written in order, even ones in
/// strides, so that their leaves are about half full, as after random writes.
pub fn many_mappings(path: &Path, mappings: u64, volumes: u64) -> Result<()> {
    let metadata = mappings / 60 + mappings / 8000 + 10_000;
    let mut pool = new_pool(path, metadata.min(4_161_600), mappings + mappings / 10)?;
    let each = mappings / volumes;
    let mut changes = 0;
    for volume in 0..volumes {
        pool.create_thin(id(volume))?;
        for n in 0..each {
            let block = match volume % 2 {
                1 => n,
                _ => n % 1000 * each.div_ceil(1000) + n / 1000,
            };
            map(&mut pool, volume, block)?;
            changes += 1;
            if changes % COMMIT_EVERY == 0 {
                pool.commit()?;
            }
        }
    }
    pool.commit()
}

/// One volume of `mappings` mappings and `snapshots` snapshots of it or of each other, each with a few
/// blocks written since.
pub fn many_snapshots(path: &Path, mappings: u64, snapshots: u64) -> Result<()> {
    const WRITES: u64 = 5;
    let metadata = mappings / 60 + snapshots * (WRITES + 6) + 10_000;
    let data = mappings + snapshots * WRITES + 1000;
    let mut pool = new_pool(path, metadata, data)?;
    let mut rng = SmallRng::seed_from_u64(mappings ^ snapshots);
    pool.create_thin(id(0))?;
    for block in 0..mappings {
        map(&mut pool, 0, block)?;
        if block % COMMIT_EVERY == 0 {
            pool.commit()?;
        }
    }
    for snapshot in 1..=snapshots {
        let origin = match snapshot % 4 {
            0 => rng.random_range(0..snapshot),
            _ => 0,
        };
        pool.create_snap(id(snapshot), id(origin))?;
        for _ in 0..WRITES {
            map(&mut pool, snapshot, rng.random_range(0..mappings))?;
        }
        if snapshot % 500 == 0 {
            pool.commit()?;
        }
    }
    pool.commit()
}

/// A small pool of volumes and snapshots with holes, deletions and, for odd seeds, a metadata snapshot.
pub fn random(path: &Path, seed: u64) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut pool = new_pool(path, 2048, 60_000)?;
    let mut volumes = vec![0];
    pool.create_thin(id(0))?;
    for step in 0..rng.random_range(20..60) {
        let volume = volumes[rng.random_range(0..volumes.len())];
        match rng.random_range(0..10) {
            0 => {
                volumes.push(step + 1);
                pool.create_thin(id(step + 1))?;
            }
            1 | 2 => {
                volumes.push(step + 1);
                pool.create_snap(id(step + 1), id(volume))?;
            }
            3 if volumes.len() > 3 => {
                volumes.retain(|v| *v != volume);
                pool.delete_thin(id(volume))?;
            }
            4 => {
                let first = rng.random_range(0..4000);
                pool.remove_range(id(volume), VirtBlock(first), VirtBlock(first + 300))?;
            }
            5 => {
                for _ in 0..200 {
                    map(&mut pool, volume, rng.random_range(0..5000))?;
                }
            }
            6 => pool.set_transaction_id(pool.transaction_id(), step)?,
            _ => {
                let first = rng.random_range(0..4000);
                for block in first..first + rng.random_range(1..600) {
                    map(&mut pool, volume, block)?;
                }
            }
        }
        if rng.random_range(0..3) == 0 {
            pool.commit()?;
        }
    }
    if seed % 2 == 1 {
        pool.commit()?;
        pool.reserve_metadata_snap()?;
        pool.commit()?;
        for _ in 0..50 {
            map(&mut pool, volumes[0], rng.random_range(0..5000))?;
        }
    }
    pool.commit()
}

/// Every mapping of every volume.
pub fn mappings_of(pool: &PoolMetadata) -> Result<BTreeMap<u64, BTreeMap<u64, u64>>> {
    let mut volumes = BTreeMap::new();
    for volume in pool.device_ids()? {
        let mut found = BTreeMap::new();
        let end = pool.highest_mapped(volume)?.map_or(0, |v| v.raw() + 1);
        let mut at = 0;
        while at < end {
            let run = pool.lookup_run(volume, VirtBlock(at), end - at, MayRead::Yes)?;
            if let Lookup::Mapped { data, .. } = run.first {
                found.extend((0..run.blocks).map(|n| (at + n, data.raw() + n)));
            }
            at += run.blocks;
        }
        volumes.insert(u64::from(volume.raw()), found);
    }
    Ok(volumes)
}
