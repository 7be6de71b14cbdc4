//! Which superblock a tool looks at: the live one, or the copy that a metadata snapshot holds.

use thinmap_persistent_data::{Block4k, ErrorKind, MetadataDevice, MetadataError, Result};
use thinmap_thin_metadata::Superblock;
use thinmap_units::MetaBlock;

/// `--metadata-snap`, or its absence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RootChoice {
    /// The superblock.
    Live,
    /// The held root; the block must be the one the superblock names, when it is given.
    MetadataSnap(Option<u64>),
}

/// A superblock and where it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roots {
    /// The block it was read from: 0, or the held root.
    pub block: u64,
    /// Its fields. In a metadata snapshot's the space maps' roots are zero.
    pub superblock: Superblock,
    /// The live superblock, which alone knows the size of the spaces.
    pub live: Superblock,
}

impl Roots {
    /// Reads the chosen superblock.
    ///
    /// # Errors
    /// `Io`, `Corrupt` for a superblock that cannot be used; `NotFound` when there is no metadata snapshot;
    /// `Inval` when it is in another block than the one asked for.
    pub fn read(device: &dyn MetadataDevice, choice: RootChoice) -> Result<Self> {
        let live = superblock_at(device, 0)?;
        let block = match choice {
            RootChoice::Live => 0,
            RootChoice::MetadataSnap(wanted) => held_root(&live, wanted)?,
        };
        let superblock = match block {
            0 => live.clone(),
            _ => superblock_at(device, block)?,
        };
        Ok(Self {
            block,
            superblock,
            live,
        })
    }
}

fn held_root(live: &Superblock, wanted: Option<u64>) -> Result<u64> {
    if live.held_root == 0 {
        let what = "the pool holds no metadata snapshot (message reserve_metadata_snap takes one)";
        return Err(MetadataError::new(ErrorKind::NotFound, what));
    }
    match wanted {
        Some(block) if block != live.held_root => Err(MetadataError::new(
            ErrorKind::Inval,
            format!(
                "the metadata snapshot is in block {}, not in block {block}",
                live.held_root
            ),
        )),
        _ => Ok(live.held_root),
    }
}

/// The superblock, or the copy of one, in `block`.
pub(crate) fn superblock_at(device: &dyn MetadataDevice, block: u64) -> Result<Superblock> {
    let mut bytes = Block4k::boxed();
    device.read(MetaBlock(block), &mut bytes).map_err(|e| {
        let what = format!("cannot read the superblock in metadata block {block}");
        MetadataError::io(e, what)
    })?;
    Superblock::unpack(block, &bytes.0)
}
