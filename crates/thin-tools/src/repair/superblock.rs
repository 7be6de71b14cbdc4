//! The superblock to repair by: the live one, or one put together from what is left.

use std::collections::BTreeSet;

use thinmap_persistent_data::{ErrorKind, MetadataError, Result, SpaceMapRoot};
use thinmap_thin_metadata::Superblock;

use super::rescue::{self, Rescued};
use super::scan::{Content, Scan};
use super::{RepairOptions, choice};
use crate::roots::superblock_at;
use crate::walk::Walk;

/// Where the superblock came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Live,
    /// Its roots were found by a scan.
    Scanned,
}

/// A superblock to repair by.
pub(super) struct Found {
    pub(super) superblock: Superblock,
    pub(super) origin: Origin,
    /// When its roots were scanned: ids that any state of the pool names.
    pub(super) known: BTreeSet<u64>,
}

/// The copy of the superblock that a metadata snapshot holds.
pub(super) fn held(walk: &Walk<'_>, superblock: &Superblock) -> Option<Superblock> {
    let block = superblock.held_root;
    if block == 0 || block >= walk.blocks.len() {
        return None;
    }
    superblock_at(walk.image, block).ok()
}

/// The live superblock, or the best that can be made up for it.
pub(super) fn find(walk: &mut Walk<'_>, scan: &Scan, options: &RepairOptions) -> Result<Found> {
    if let Ok(superblock) = superblock_at(walk.image, 0)
        && (1..=2).contains(&superblock.version)
    {
        // What they mean for the trees only whoever has set them knows.
        if superblock.incompat_flags != 0 {
            let flags = superblock.incompat_flags;
            return Err(MetadataError::new(
                ErrorKind::Unsupported,
                format!(
                    "the superblock has unknown features ({flags:#x}): such metadata cannot be repaired"
                ),
            ));
        }
        let data_block_size = match Some(superblock.data_block_size).filter(is_possible) {
            Some(size) => size,
            None => {
                let copy = newest_copy(walk, scan);
                data_block_size(options, copy.as_ref()).ok_or_else(|| {
                    let what = format!(
                        "the superblock has data blocks of {} sectors, which no pool can have; give --data-block-size \
                         (sectors, as in the pool's table line)",
                        superblock.data_block_size
                    );
                    MetadataError::new(ErrorKind::Inval, what)
                })?
            }
        };
        let superblock = Superblock {
            data_block_size,
            ..superblock
        };
        return Ok(Found {
            superblock,
            origin: Origin::Live,
            known: BTreeSet::new(),
        });
    }
    let copy = newest_copy(walk, scan);
    let data_block_size = data_block_size(options, copy.as_ref()).ok_or_else(|| {
        let what = "the superblock is lost and with it the data block size; give --data-block-size \
                    (sectors, as in the pool's table line), and --transaction-id and --nr-data-blocks if known";
        MetadataError::new(ErrorKind::Inval, what)
    })?;
    let chosen = choice::best_roots(walk, scan, options.transaction_id)?;
    Ok(Found {
        superblock: Superblock {
            flags: 0,
            uuid: copy.map_or([0; 16], |c| c.uuid),
            version: 2,
            time: chosen.age.1,
            transaction_id: chosen.age.0,
            held_root: 0,
            data_space_map: SpaceMapRoot::default(),
            metadata_space_map: SpaceMapRoot::default(),
            data_mapping_root: chosen.top,
            device_details_root: chosen.details,
            data_block_size,
            metadata_nr_blocks: walk.image.blocks(),
            compat_flags: 0,
            compat_ro_flags: 0,
            incompat_flags: 0,
        },
        origin: Origin::Scanned,
        known: chosen.known,
    })
}

/// What stands in for a data block size that is lost, in sectors.
fn data_block_size(options: &RepairOptions, copy: Option<&Superblock>) -> Option<u32> {
    let copied = copy.map(|copy| copy.data_block_size).filter(is_possible);
    options.data_block_size.or(copied)
}

fn is_possible(data_block_size: &u32) -> bool {
    Superblock::is_data_block_size(*data_block_size)
}

fn newest_copy(walk: &Walk<'_>, scan: &Scan) -> Option<Superblock> {
    scan.all(Content::Superblock)
        .into_iter()
        .filter_map(|block| superblock_at(walk.image, block).ok())
        .max_by_key(|copy| (copy.transaction_id, copy.time))
}

/// Puts in what the user says.
pub(super) fn adjust(superblock: &mut Superblock, options: &RepairOptions) {
    if let Some(id) = options.transaction_id {
        superblock.transaction_id = id;
    }
    if let Some(size) = options.data_block_size {
        superblock.data_block_size = size;
    }
    if let Some(blocks) = options.nr_data_blocks {
        superblock.data_space_map.nr_blocks = blocks;
    }
}

/// The highest time that fits into a mapping, and so the highest of a pool.
pub(super) const TIME_MAX: u32 = (1 << 24) - 1;

/// Sets the times that tell which mappings are shared. `newest` is the highest one of any mapping in the output.
///
/// A mapping is shared when it is older than the volume was last made a snapshot of. So a pool whose time is
/// below a mapping's would take blocks of its next snapshots for unshared and overwrite them; and a volume of
/// which that time is lost must have one above all of its mappings.
///
/// `true` when the pool's time is the last one there is: no snapshot can be made of its volumes any more.
pub(super) fn settle_times(
    superblock: &mut Superblock,
    rescued: &mut Rescued,
    newest: Option<u32>,
) -> bool {
    let mut time = superblock.time.max(newest.unwrap_or(0));
    let volumes = &mut rescued.volumes;
    for volume in volumes.iter().filter(|volume| !volume.is_all_shared()) {
        let details = &volume.details;
        // A condemned volume is marked by a creation time one above the other, which is no pool's time.
        if details.creation_time <= details.snapshotted_time {
            time = time.max(details.snapshotted_time);
        }
    }
    for volume in volumes.iter_mut().filter(|volume| volume.is_all_shared()) {
        let above = newest.map_or(0, |newest| newest + 1);
        let details = &mut volume.details;
        details.snapshotted_time = details.snapshotted_time.max(superblock.time).max(above);
        if volume.details_found == rescue::Found::Invented {
            volume.details.creation_time = volume.details.snapshotted_time;
        }
        time = time.max(volume.details.snapshotted_time);
    }
    // Details hold 32 bits, so beyond the end a volume keeps its mappings shared for good: slow, never wrong.
    superblock.time = time.min(TIME_MAX);
    time >= TIME_MAX
}

/// Sees to it that all mapped data blocks are counted: one past the highest is `data_end`.
///
/// # Errors
/// `Inval` when the superblock or the user says that there are fewer.
pub(super) fn cover(
    superblock: &mut Superblock,
    data_end: u64,
    origin: Origin,
    options: &RepairOptions,
) -> Result<()> {
    let blocks = &mut superblock.data_space_map.nr_blocks;
    if data_end <= *blocks {
        return Ok(());
    }
    if origin == Origin::Scanned && options.nr_data_blocks.is_none() {
        // A pool grows to its data device when it is opened.
        *blocks = data_end;
        return Ok(());
    }
    Err(MetadataError::new(
        ErrorKind::Inval,
        format!(
            "data block {} is mapped, but the data device is said to have {blocks} blocks; give \
             --nr-data-blocks {data_end} or more if that is wrong",
            data_end - 1
        ),
    ))
}
