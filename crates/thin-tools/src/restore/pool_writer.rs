//! A whole pool's metadata written at one go, from volumes and runs of mappings that come in order.
//!
//! Memory: 60 bytes for each volume, and the data blocks' reference counts (a quarter of a byte for each
//! block near one in use).

use std::collections::HashSet;

use thinmap_persistent_data::bulk::{BulkCounts, BulkTree, BulkWriter, write_metadata_space_map};
use thinmap_persistent_data::{Block4k, ErrorKind, MetadataDevice, MetadataError, SpaceMapRoot};
use thinmap_thin_metadata::{DeviceDetails, Superblock};
use thinmap_units::MetaBlock;

use crate::dump::PoolFacts;
use crate::{Run, ToolError};

/// Bits of a mapping that hold the time.
const TIME_BITS: u32 = 24;
/// The highest id of a volume.
const ID_MAX: u64 = (1 << 24) - 1;
/// Data blocks that a mapping can name.
const DATA_BLOCKS_MAX: u64 = 1 << 40;

/// A volume without its mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeFacts {
    /// Its id.
    pub id: u64,
    /// The pool's transaction id when it was made.
    pub transaction: u64,
    /// The pool's time then.
    pub creation_time: u32,
    /// The pool's time when it was last made a snapshot of.
    pub snap_time: u32,
}

/// What a pool came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Written {
    /// Volumes.
    pub volumes: u64,
    /// Mappings, of all volumes together.
    pub mappings: u64,
    /// Data blocks in use.
    pub data_blocks: u64,
    /// Metadata blocks in use, of 4096 bytes.
    pub metadata_blocks: u64,
}

/// A pool being written.
pub struct PoolWriter<'a> {
    device: &'a dyn MetadataDevice,
    out: BulkWriter<'a>,
    facts: PoolFacts,
    data: BulkCounts,
    volumes: Vec<(u64, u64, DeviceDetails)>,
    ids: HashSet<u64>,
    open: Option<OpenVolume>,
    mappings: u64,
}

struct OpenVolume {
    facts: VolumeFacts,
    tree: BulkTree<8>,
    mapped: u64,
    /// The volume's block behind the last one mapped.
    end: u64,
}

impl<'a> PoolWriter<'a> {
    /// Begins on `device`: the superblock there is gone from here on.
    ///
    /// # Errors
    /// `Refused`: facts that no pool can have. `Metadata`.
    pub fn begin(device: &'a dyn MetadataDevice, facts: &PoolFacts) -> Result<Self, ToolError> {
        if facts.nr_data_blocks > DATA_BLOCKS_MAX {
            return refuse(format!(
                "{} data blocks are more than the format can name",
                facts.nr_data_blocks
            ));
        }
        let block_size = facts.data_block_size;
        if !Superblock::is_data_block_size(block_size) {
            return refuse(format!(
                "a data block of {block_size} sectors: 128 to 2097152 in steps of 128 are possible"
            ));
        }
        if !(1..=2).contains(&facts.version) {
            return refuse(format!("metadata version {} is not known", facts.version));
        }
        if facts.time >= 1 << TIME_BITS {
            return refuse(format!(
                "time {} needs more than {TIME_BITS} bits",
                facts.time
            ));
        }
        write_superblock(device, &Block4k::boxed())?;
        Ok(Self {
            device,
            out: BulkWriter::new(device),
            facts: *facts,
            data: BulkCounts::new(facts.nr_data_blocks),
            volumes: Vec::new(),
            ids: HashSet::new(),
            open: None,
            mappings: 0,
        })
    }

    /// Begins a volume. Volumes may come in any order.
    ///
    /// # Errors
    /// `Refused`: no such id is possible, or it is there already.
    pub fn begin_device(&mut self, facts: &VolumeFacts) -> Result<(), ToolError> {
        if self.open.is_some() {
            return refuse(format!("volume {} begins inside of another", facts.id));
        }
        if facts.id > ID_MAX {
            return refuse(format!("id {} needs more than 24 bits", facts.id));
        }
        if !self.ids.insert(facts.id) {
            return refuse(format!("volume {} is there twice", facts.id));
        }
        self.open = Some(OpenVolume {
            facts: *facts,
            tree: BulkTree::default(),
            mapped: 0,
            end: 0,
        });
        Ok(())
    }

    /// Adds mappings to the volume begun last. They must come by block of the volume.
    ///
    /// # Errors
    /// `Refused`: out of order, or past the end of the data device. `Metadata`: no room, or a write failed.
    pub fn run(&mut self, run: &Run) -> Result<(), ToolError> {
        let Some(open) = &mut self.open else {
            return refuse("a mapping outside of a volume".to_owned());
        };
        let id = open.facts.id;
        let (Some(end), Some(data_end)) =
            (run.thin.checked_add(run.len), run.data.checked_add(run.len))
        else {
            return refuse(format!(
                "volume {id}: a mapping of impossible length {}",
                run.len
            ));
        };
        if run.thin < open.end {
            return refuse(format!(
                "volume {id}: the mapping of block {} comes after that of block {}: they must ascend",
                run.thin,
                open.end - 1
            ));
        }
        if data_end > self.facts.nr_data_blocks {
            return refuse(format!(
                "volume {id}: block {} maps to data blocks {}..{data_end}, the pool has {}",
                run.thin, run.data, self.facts.nr_data_blocks
            ));
        }
        if run.time >= 1 << TIME_BITS {
            return refuse(format!(
                "volume {id}: time {} needs more than 24 bits",
                run.time
            ));
        }
        for at in 0..run.len {
            let value = (run.data + at) << TIME_BITS | u64::from(run.time);
            open.tree
                .push(&mut self.out, run.thin + at, value.to_le_bytes())?;
            self.data.inc(run.data + at)?;
        }
        open.mapped += run.len;
        open.end = end;
        self.mappings += run.len;
        Ok(())
    }

    /// Ends the volume.
    ///
    /// # Errors
    /// `Metadata`.
    pub fn end_device(&mut self) -> Result<(), ToolError> {
        let Some(open) = self.open.take() else {
            return refuse("the end of a volume that did not begin".to_owned());
        };
        let root = open.tree.finish(&mut self.out)?;
        let details = DeviceDetails {
            mapped_blocks: open.mapped,
            transaction_id: open.facts.transaction,
            creation_time: open.facts.creation_time,
            snapshotted_time: open.facts.snap_time,
        };
        self.volumes.push((open.facts.id, root, details));
        Ok(())
    }

    /// Writes the rest, last the superblock.
    ///
    /// # Errors
    /// `Refused`: a volume does not end. `Metadata`.
    pub fn finish(mut self) -> Result<Written, ToolError> {
        if let Some(open) = &self.open {
            return refuse(format!("volume {} does not end", open.facts.id));
        }
        self.volumes.sort_by_key(|(id, _, _)| *id);
        let out = &mut self.out;
        let mut roots = BulkTree::<8>::default();
        for (id, root, _) in &self.volumes {
            roots.push(out, *id, root.to_le_bytes())?;
        }
        let data_mapping_root = roots.finish(out)?;
        let mut details = BulkTree::<{ DeviceDetails::SIZE }>::default();
        for (id, _, of) in &self.volumes {
            details.push(out, *id, of.pack())?;
        }
        let device_details_root = details.finish(out)?;
        let data_space_map = self.data.write(out)?;
        let metadata_space_map = write_metadata_space_map(out)?;
        self.device
            .flush()
            .map_err(|e| MetadataError::io(e, "cannot flush the metadata"))?;
        let superblock = superblock(
            &self.facts,
            (data_mapping_root, device_details_root),
            data_space_map,
            metadata_space_map,
        );
        write_superblock(self.device, &superblock.pack())?;
        Ok(Written {
            volumes: self.volumes.len() as u64,
            mappings: self.mappings,
            data_blocks: data_space_map.nr_allocated,
            metadata_blocks: metadata_space_map.nr_allocated,
        })
    }
}

fn superblock(
    facts: &PoolFacts,
    (data_mapping_root, device_details_root): (u64, u64),
    data_space_map: SpaceMapRoot,
    metadata_space_map: SpaceMapRoot,
) -> Superblock {
    Superblock {
        flags: facts.flags,
        uuid: [0; 16],
        version: facts.version,
        time: facts.time,
        transaction_id: facts.transaction,
        held_root: 0,
        data_space_map,
        metadata_space_map,
        data_mapping_root,
        device_details_root,
        data_block_size: facts.data_block_size,
        metadata_nr_blocks: metadata_space_map.nr_blocks,
        compat_flags: 0,
        compat_ro_flags: 0,
        incompat_flags: 0,
    }
}

fn write_superblock(device: &dyn MetadataDevice, bytes: &Block4k) -> Result<(), ToolError> {
    device
        .write(&[(MetaBlock(0), bytes)])
        .and_then(|()| device.flush())
        .map_err(|e| MetadataError::io(e, "cannot write the superblock").into())
}

fn refuse<T>(what: String) -> Result<T, ToolError> {
    Err(MetadataError::new(ErrorKind::Inval, what).into())
}
