//! `ls`: the volumes of a pool, with what is theirs alone.
//!
//! A data block is exclusive when one mapping of one volume is all that refers to it. That is found without
//! walking each volume whole: a leaf that two volumes reach holds nothing exclusive, so each distinct leaf is
//! read once or twice whatever the number of volumes, and each node above at most twice. Memory: two bits
//! for each metadata block and each data block near one in use, and 16 bytes for each leaf.

mod bits;
mod fields;
mod table;

use thinmap_persistent_data::{ErrorKind, METADATA_BLOCKS_MAX, MetadataError};

use crate::parallel::ordered;
use crate::source::{Source, Volume};
use crate::{Progress, Times, ToolError};
use bits::TwiceSet;

pub use fields::{FIELDS_DEFAULT, Field};
pub use table::{json, table};

/// Leaves in one piece of work.
const PIECE_LEAVES: usize = 128;
/// More data blocks than a mapping can name.
const DATA_BLOCKS_MAX: u64 = 1 << 40;

/// A volume and what is its alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeUse {
    /// The volume.
    pub volume: Volume,
    /// Data blocks that only one mapping of this volume refers to; 0 when they were not asked for.
    pub exclusive: u64,
}

/// The volumes of a pool, by id. Exclusive blocks are counted only for `with_exclusive`.
///
/// # Errors
/// `Metadata`: damage.
pub fn ls(source: &Source, with_exclusive: bool, quiet: bool) -> Result<Vec<VolumeUse>, ToolError> {
    let volumes = source.volumes()?;
    let mut uses: Vec<VolumeUse> = volumes
        .into_iter()
        .map(|volume| VolumeUse {
            volume,
            exclusive: 0,
        })
        .collect();
    if with_exclusive {
        count_exclusive(source, &mut uses, quiet)?;
    }
    Ok(uses)
}

fn count_exclusive(source: &Source, uses: &mut [VolumeUse], quiet: bool) -> Result<(), ToolError> {
    let mut reached = Reached {
        source,
        nodes: TwiceSet::new(METADATA_BLOCKS_MAX),
        leaves: Vec::new(),
    };
    for (owner, used) in uses.iter().enumerate() {
        let root = used.volume.root;
        let levels = source.nodes().levels_below(root)?;
        reached.tree(root, levels, owner)?;
    }
    let Reached { nodes, leaves, .. } = reached;
    let mut blocks: Vec<u64> = leaves.iter().map(|(block, _)| *block).collect();
    blocks.sort_unstable();
    let progress = Progress::new("counting", 2 * blocks.len() as u64, quiet);

    let data = TwiceSet::new(data_blocks(source)?);
    let work = |piece: &[u64]| mark(source, &nodes, &data, piece).map(|()| piece.len() as u64);
    ordered(blocks.chunks(PIECE_LEAVES).map(Ok), work, |done| {
        progress.add(done);
        Ok(())
    })?;
    drop(blocks);

    // Leaves that were reached twice stand in the list once, when first reached.
    let mut own: Vec<(u64, usize)> = leaves;
    own.retain(|(block, _)| !nodes.is_twice(*block));
    let work = |piece: &[(u64, usize)]| count(source, &data, piece);
    ordered(own.chunks(PIECE_LEAVES).map(Ok), work, |counted| {
        progress.add(counted.len() as u64);
        for (owner, exclusive) in counted {
            uses[owner].exclusive += exclusive;
        }
        Ok(())
    })
}

/// Data blocks that may be named by a mapping; a metadata snapshot does not know how many there are.
fn data_blocks(source: &Source) -> Result<u64, ToolError> {
    let blocks = source.live_superblock().data_space_map.nr_blocks;
    if blocks > DATA_BLOCKS_MAX {
        let what = format!("the data space map claims {blocks} blocks");
        return Err(MetadataError::new(ErrorKind::Corrupt, what).into());
    }
    Ok(blocks)
}

/// Which nodes are reached, and from which volume first.
struct Reached<'a> {
    source: &'a Source,
    nodes: TwiceSet,
    /// Every leaf reached, with the volume that reached it first.
    leaves: Vec<(u64, usize)>,
}

impl Reached<'_> {
    /// Marks what is below `block`, which has `levels` levels below it.
    fn tree(&mut self, block: u64, levels: usize, owner: usize) -> Result<(), ToolError> {
        if block >= METADATA_BLOCKS_MAX {
            let what = "a reference points past the end of the metadata device";
            return Err(MetadataError::corrupt(block, what).into());
        }
        let before = self.nodes.add(block);
        if levels == 0 {
            if before == 0 {
                self.leaves.push((block, owner));
            }
            return Ok(());
        }
        if before >= 2 {
            return Ok(());
        }
        let node = self.source.nodes().node(block)?;
        if node.is_leaf() {
            let what = "btree leaves are not all at one depth";
            return Err(MetadataError::corrupt(block, what).into());
        }
        (0..node.len()).try_for_each(|at| self.tree(node.value_u64(at), levels - 1, owner))
    }
}

/// Marks the data blocks that some leaves refer to: those of a leaf reached twice as referred to twice.
fn mark(
    source: &Source,
    nodes: &TwiceSet,
    data: &TwiceSet,
    leaves: &[u64],
) -> Result<(), ToolError> {
    source.nodes().read_ahead(leaves);
    for leaf in leaves {
        let twice = nodes.is_twice(*leaf);
        for run in source
            .nodes()
            .runs(std::slice::from_ref(leaf), Times::Ignored)?
        {
            if run.data + run.len > data.len() {
                let what = "a mapping points past the end of the data device";
                return Err(MetadataError::corrupt(*leaf, what).into());
            }
            data.add_range(run.data, run.len);
            if twice {
                data.add_range(run.data, run.len);
            }
        }
    }
    Ok(())
}

/// How many blocks are exclusive, for each volume among some leaves of one volume each.
fn count(
    source: &Source,
    data: &TwiceSet,
    leaves: &[(u64, usize)],
) -> Result<Vec<(usize, u64)>, ToolError> {
    let blocks: Vec<u64> = leaves.iter().map(|(block, _)| *block).collect();
    source.nodes().read_ahead(&blocks);
    let mut counted = Vec::with_capacity(leaves.len());
    for (leaf, owner) in leaves {
        let mut exclusive = 0;
        for run in source
            .nodes()
            .runs(std::slice::from_ref(leaf), Times::Ignored)?
        {
            let blocks = run.data..run.data + run.len;
            exclusive += blocks.filter(|block| !data.is_twice(*block)).count() as u64;
        }
        counted.push((*owner, exclusive));
    }
    Ok(counted)
}
