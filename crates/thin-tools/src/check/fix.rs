//! What can be put right in place: leaks, wrong totals, and the demand for a check.
//!
//! A leak is lowered to the references found in one transaction of the engine, so a power cut leaves the
//! image before or after it.

use std::sync::Arc;

use thinmap_persistent_data::{
    BlockCache, DiskSpaceMap, ErrorKind, MetadataDevice, MetadataError, Result, TransactionManager,
};

use super::{Leak, Outcome};

const CACHE_BLOCKS: usize = 16_384;

/// Gives leaked blocks back. The check must have been one of everything, without a fatal finding.
///
/// # Errors
/// `Io` for the device's; `Inval` when the check does not allow it; others when the space maps changed since.
pub fn fix_leaks(device: Arc<dyn MetadataDevice>, outcome: &Outcome) -> Result<u64> {
    let superblock = match &outcome.superblock {
        Some(superblock) if outcome.report.fatal == 0 => superblock,
        _ => {
            let what = "the metadata is damaged; only thinmap repair can help";
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
    };
    if outcome.leaks.is_empty() {
        return Ok(0);
    }
    let cache = Arc::new(BlockCache::new(device, CACHE_BLOCKS));
    let mut tm = TransactionManager::open(cache, &superblock.metadata_space_map)?;
    let mut data = DiskSpaceMap::open(&superblock.data_space_map)?;
    let (mut metadata_total, mut data_total) = (0, 0);
    for leak in &outcome.leaks {
        match leak {
            Leak::Metadata(block, excess) => {
                (0..*excess).try_for_each(|_| tm.dec(*block))?;
            }
            Leak::Data(block, excess) => {
                (0..*excess).try_for_each(|_| data.dec(&mut tm, *block))?;
            }
            Leak::MetadataTotal(excess) => metadata_total = *excess,
            Leak::DataTotal(excess) => data_total = *excess,
        }
    }
    let mut fixed = superblock.clone();
    fixed.data_space_map = data.prepare(&mut tm)?;
    fixed.metadata_space_map = tm.prepare()?;
    fixed.data_space_map.nr_allocated -= data_total.min(fixed.data_space_map.nr_allocated);
    let total = &mut fixed.metadata_space_map.nr_allocated;
    *total -= metadata_total.min(*total);
    let commit = tm.freeze(fixed.pack());
    commit.write()?;
    Ok(outcome.leaks.len() as u64)
}

/// Takes the superblock's demand for a check back. The check must have been clean.
///
/// # Errors
/// `Io` for the device's; `Corrupt` when the superblock changed for the worse since.
pub fn clear_needs_check(device: &dyn MetadataDevice) -> Result<()> {
    let mut superblock = crate::roots::superblock_at(device, 0)?;
    if !superblock.needs_check() {
        return Ok(());
    }
    superblock.clear_needs_check();
    let block = superblock.pack();
    device
        .write(&[(thinmap_units::MetaBlock(0), &block)])
        .and_then(|()| device.flush())
        .map_err(|e| MetadataError::io(e, "cannot write the superblock"))
}
