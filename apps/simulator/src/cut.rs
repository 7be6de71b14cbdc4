//! Looks at what a power cut has left: opens the metadata, checks it, and compares every sector of every volume with the
//! oracle.

use std::sync::Arc;

use thinmap_sim::{Image, ImageMetadata};
use thinmap_thin_metadata::{Lookup, MayRead, OpenOptions, PoolMetadata, check};
use thinmap_units::{Sector, ThinId, VirtBlock};

use crate::oracle::{CELLS, Oracle, Presence, Volume};

/// Compares; the volumes found, or what is wrong.
pub fn look(oracle: &Oracle, metadata: &Image, data: &Image) -> Result<Vec<u32>, String> {
    if (0..8).all(|sector| matches!(metadata.get(sector), thinmap_sim::Content::Word(0))) {
        return match oracle.formatted {
            true => Err("the superblock is gone".to_owned()),
            false => Ok(Vec::new()),
        };
    }
    let device = Arc::new(ImageMetadata::new(metadata.clone()));
    let findings = check(device.clone()).map_err(|e| format!("cannot be checked: {e}"))?;
    if !findings.is_empty() {
        let all: Vec<String> = findings.iter().map(|f| format!("{f:?}")).collect();
        return Err(format!("metadata is wrong: {}", all.join("; ")));
    }
    let options = OpenOptions {
        data_block_size: Sector(oracle.layout.block),
        format_if_zeroed: false,
        read_only: false,
        cache_blocks_max: 256,
    };
    let pool =
        PoolMetadata::open(device, &options).map_err(|e| format!("cannot be opened: {e}"))?;
    if pool.needs_check() && !oracle.may_need_check {
        return Err("the metadata is marked as needing a check, and nothing has failed".to_owned());
    }
    let ids = pool.device_ids().map_err(|e| format!("volumes: {e}"))?;
    let found: Vec<u32> = ids.iter().map(|id| id.raw()).collect();
    for (id, volume) in &oracle.volumes {
        if volume.presence == Presence::Yes && !found.contains(id) {
            return Err(format!("volume {id} is gone"));
        }
    }
    for id in ids {
        let Some(volume) = oracle.volumes.get(&id.raw()) else {
            return Err(format!("volume {id} should not be there"));
        };
        compare(oracle, &pool, id, volume, data).map_err(|e| format!("volume {id}: {e}"))?;
    }
    Ok(found)
}

fn compare(
    oracle: &Oracle,
    pool: &PoolMetadata,
    id: ThinId,
    volume: &Volume,
    data: &Image,
) -> Result<(), String> {
    let mut at = 0;
    while at < volume.blocks {
        let run = pool
            .lookup_run(id, VirtBlock(at), volume.blocks - at, MayRead::Yes)
            .map_err(|e| format!("block {at}: {e}"))?;
        for i in 0..run.blocks {
            let block = at + i;
            match run.first {
                Lookup::Unmapped if !oracle.may_be_hole(volume, block) => {
                    return Err(format!("block {block} is not mapped but was written"));
                }
                Lookup::Unmapped => {}
                Lookup::Mapped { data: first, .. } => {
                    compare_block(oracle, volume, block, first.raw() + i, data)?;
                }
            }
        }
        at += run.blocks;
    }
    Ok(())
}

fn compare_block(
    oracle: &Oracle,
    volume: &Volume,
    block: u64,
    at: u64,
    data: &Image,
) -> Result<(), String> {
    let layout = oracle.layout;
    for cell in block * CELLS..(block + 1) * CELLS {
        for sector in layout.edge(cell)..layout.edge(cell + 1) {
            let place = at * layout.block + (sector - block * layout.block);
            if place >= data.sectors() {
                return Err(format!("block {block} lies beyond the data device"));
            }
            let content = data.get(place);
            if !oracle.may_hold(volume, cell, sector, content) {
                return Err(format!(
                    "sector {sector} (block {block}, data block {at}) holds {content:x?}; allowed: {}",
                    oracle.describe(volume, cell)
                ));
            }
        }
    }
    Ok(())
}
