//! What a repair brought back and what it could not.

use std::fmt;

use serde::Serialize;
use thinmap_thin_metadata::Superblock;

use super::rescue::{Found, Rescued, Volume};
use super::superblock::Origin;
use crate::check::Finding;

/// Volumes listed one by one in the text; all are in the JSON.
const LISTED_MAX: usize = 1000;

/// Blocks of a volume that are lost; in units of the pool's data blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct LostRange {
    /// The first.
    pub first: u64,
    /// One past the last; `None`: all that follow.
    pub end: Option<u64>,
}

/// A volume that is in the output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RescuedVolume {
    /// Its id.
    pub id: u64,
    /// Mappings in the output.
    pub mappings: u64,
    /// Mappings that it had, going by its details.
    pub mappings_before: Option<u64>,
    /// Where mappings are lost. Not every block of a range was mapped.
    pub lost: Vec<LostRange>,
    /// Its mapping tree was found by a scan, because nothing led to it: it may be as of an older transaction
    /// where the number of mappings differs.
    pub root_scanned: bool,
    /// Leaves that a scan found and that fill the gaps of its tree exactly.
    pub leaves_adopted: u64,
    /// Its details were lost: transaction id and times are made up, or taken from an older block.
    pub details_lost: bool,
}

impl RescuedVolume {
    /// Whether all of it is there, and nothing in doubt.
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty()
            && !self.details_lost
            && self
                .mappings_before
                .is_none_or(|before| before == self.mappings)
    }
}

/// The outcome of a repair.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RepairReport {
    /// The superblock was lost; its roots were found by a scan.
    pub superblock_rebuilt: bool,
    /// The state that was taken may not be the last one: volumes made after it may be missing and not be listed, and others
    /// may be as they were.
    pub may_be_older: bool,
    /// The pool's transaction id in the output.
    pub transaction_id: u64,
    /// Sectors in a data block.
    pub data_block_size: u32,
    /// Volumes in the output, by id.
    pub volumes: Vec<RescuedVolume>,
    /// Volumes that could not be brought back: id, and how many mappings they had where that is known.
    pub lost_volumes: Vec<(u64, Option<u64>)>,
    /// Neither the tree of volumes nor that of details is whole: there may have been volumes that nothing
    /// names any more.
    pub ids_in_doubt: bool,
    /// Volumes that other states of the pool, where a scan found such, name than the one that was taken: deleted ones, or
    /// missing ones.
    pub possibly_missing: Vec<u64>,
    /// The pool's time is the last one that fits into a mapping: no more snapshots can be made.
    pub time_at_end: bool,
    /// The damage that was met on the way; space maps are not read where nothing else is damaged.
    pub damage: Vec<Finding>,
}

pub(super) fn of(rescued: &Rescued, superblock: &Superblock, origin: Origin) -> RepairReport {
    let lost = |(id, details): &(u64, Option<thinmap_thin_metadata::DeviceDetails>)| {
        (*id, details.as_ref().map(|d| d.mapped_blocks))
    };
    RepairReport {
        superblock_rebuilt: origin == Origin::Scanned,
        may_be_older: origin == Origin::Scanned,
        transaction_id: superblock.transaction_id,
        data_block_size: superblock.data_block_size,
        volumes: rescued.volumes.iter().map(volume).collect(),
        lost_volumes: rescued.lost.iter().map(lost).collect(),
        ids_in_doubt: rescued.ids_in_doubt,
        possibly_missing: Vec::new(),
        time_at_end: false,
        damage: Vec::new(),
    }
}

fn volume(volume: &Volume) -> RescuedVolume {
    RescuedVolume {
        id: volume.id,
        mappings: volume.mapped,
        mappings_before: volume.expected,
        lost: volume
            .lost
            .iter()
            .map(|(first, end)| LostRange { first, end })
            .collect(),
        root_scanned: volume.root_found == Found::Scanned,
        leaves_adopted: volume.adopted,
        details_lost: volume.details_found != Found::Live,
    }
}

impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            Some(end) if end == self.first + 1 => write!(f, "block {}", self.first),
            Some(end) => write!(f, "blocks {} to {}", self.first, end - 1),
            None => write!(f, "blocks from {} on", self.first),
        }
    }
}

impl fmt::Display for RescuedVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}: {} mappings", self.id, self.mappings)?;
        if let Some(before) = self.mappings_before.filter(|b| *b != self.mappings) {
            write!(f, " of {before}")?;
        }
        for lost in &self.lost {
            write!(f, "; lost in {lost}")?;
        }
        if self.root_scanned {
            write!(f, "; its tree was found by a scan")?;
            if self.mappings_before != Some(self.mappings) {
                write!(f, " and may be of an older transaction")?;
            }
        }
        if self.leaves_adopted > 0 {
            let leaves = self.leaves_adopted;
            write!(f, "; {leaves} leaves of it were found by a scan")?;
        }
        if self.details_lost {
            write!(f, "; its transaction id and times are guessed")?;
        }
        Ok(())
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for damage in self.damage.iter().take(LISTED_MAX) {
            writeln!(f, "damage: {damage}")?;
        }
        if self.superblock_rebuilt {
            let id = self.transaction_id;
            writeln!(
                f,
                "the superblock is lost; of the trees that a scan found, those that fit together best were taken (transaction \
                 id {id}): this may be an older state of the pool, and volumes that were made after it may be missing without \
                 being listed; compare the content before you trust it"
            )?;
        }
        let is_plain =
            |v: &&RescuedVolume| v.is_whole() && !v.root_scanned && v.leaves_adopted == 0;
        let whole = self.volumes.iter().filter(is_plain).count();
        let others = self.volumes.iter().filter(|v| !is_plain(v));
        for volume in others.clone().take(LISTED_MAX) {
            writeln!(f, "{volume}")?;
        }
        if others.clone().count() > LISTED_MAX {
            writeln!(
                f,
                "and {} more such volumes (--json lists them)",
                others.count() - LISTED_MAX
            )?;
        }
        for (id, mappings) in self.lost_volumes.iter().take(LISTED_MAX) {
            match mappings {
                Some(mappings) => writeln!(f, "volume {id}: lost, with {mappings} mappings")?,
                None => writeln!(f, "volume {id}: lost")?,
            }
        }
        if self.ids_in_doubt {
            writeln!(
                f,
                "there may have been other volumes, which nothing names any more"
            )?;
        }
        if !self.possibly_missing.is_empty() {
            let missing = &self.possibly_missing;
            let ids: Vec<String> = missing
                .iter()
                .take(LISTED_MAX)
                .map(u64::to_string)
                .collect();
            let more = match missing.len().saturating_sub(LISTED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            writeln!(
                f,
                "other states of the pool had these volumes too, which were deleted or are missing: {}{more}",
                ids.join(", ")
            )?;
        }
        if self.time_at_end {
            writeln!(
                f,
                "the pool's time is at its end (16777215): no more snapshots can be made; copy the volumes to a new pool"
            )?;
        }
        write!(
            f,
            "{whole} of {} volumes are whole",
            self.volumes.len() + self.lost_volumes.len()
        )?;
        match self.superblock_rebuilt {
            true => write!(
                f,
                " as of the state that was taken, which may be an older one"
            ),
            false => Ok(()),
        }
    }
}
