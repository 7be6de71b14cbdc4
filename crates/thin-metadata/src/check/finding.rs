//! What a check can find.

use std::fmt;

use thinmap_units::{DataBlock, MetaBlock};

/// Something wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A block cannot be read, or is not what refers to it says.
    Unreadable {
        /// Which.
        block: MetaBlock,
        /// The error's text.
        what: String,
    },
    /// A btree node breaks a rule.
    Node {
        /// Which.
        block: MetaBlock,
        /// Which rule.
        what: String,
    },
    /// The metadata space map's count differs from the references found. With `found == 0` the
    /// block is leaked.
    MetadataCount {
        /// Which.
        block: MetaBlock,
        /// What the space map says.
        recorded: u32,
        /// How many references there are.
        found: u32,
    },
    /// The same for a data block.
    DataCount {
        /// Which.
        block: DataBlock,
        /// What the space map says.
        recorded: u32,
        /// How many references there are.
        found: u32,
    },
    /// A space map's root claims a number of blocks in use that its counts do not bear out.
    /// (thin_restore 0.9 claims one metadata block too many.)
    Allocated {
        /// What the root says.
        claimed: u64,
        /// How many counts are above zero.
        found: u64,
    },
    /// A space map cannot be read.
    SpaceMap {
        /// What is wrong.
        what: String,
    },
    /// A volume's entry does not agree with its mappings, or with the top tree.
    Volume {
        /// The volume's id.
        id: u64,
        /// What is wrong.
        what: String,
    },
    /// There were more findings than are listed.
    More(u64),
}

impl Finding {
    /// Whether the only harm is lost space: a block counted higher than it is used.
    pub fn is_leak(&self) -> bool {
        match self {
            Self::MetadataCount {
                recorded, found, ..
            }
            | Self::DataCount {
                recorded, found, ..
            } => recorded > found,
            Self::Allocated { claimed, found } => claimed > found,
            _ => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { block, what } => write!(f, "metadata block {block}: {what}"),
            Self::Node { block, what } => write!(f, "btree node {block}: {what}"),
            Self::MetadataCount {
                block,
                recorded,
                found,
            } => write!(
                f,
                "metadata block {block} is referred to {found} times, its count is {recorded}"
            ),
            Self::DataCount {
                block,
                recorded,
                found,
            } => write!(
                f,
                "data block {block} is referred to {found} times, its count is {recorded}"
            ),
            Self::Allocated { claimed, found } => write!(
                f,
                "{found} blocks are in use, the space map's root claims {claimed}"
            ),
            Self::SpaceMap { what } => f.write_str(what),
            Self::Volume { id, what } => write!(f, "volume {id}: {what}"),
            Self::More(count) => write!(f, "and {count} more findings"),
        }
    }
}
