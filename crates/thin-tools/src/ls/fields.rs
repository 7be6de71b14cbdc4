//! The columns that `ls` can show.

use super::VolumeUse;

/// Bytes in a sector.
const SECTOR_BYTES: u64 = 512;

/// A column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are thin_ls's and say it")]
pub enum Field {
    Dev,
    MappedBlocks,
    ExclusiveBlocks,
    SharedBlocks,
    MappedSectors,
    ExclusiveSectors,
    SharedSectors,
    MappedBytes,
    ExclusiveBytes,
    SharedBytes,
    Mapped,
    Exclusive,
    Shared,
    Transaction,
    CreateTime,
    SnapTime,
}

/// Every column by name, in thin_ls's order.
const FIELDS: &[(&str, Field)] = &[
    ("DEV", Field::Dev),
    ("MAPPED_BLOCKS", Field::MappedBlocks),
    ("EXCLUSIVE_BLOCKS", Field::ExclusiveBlocks),
    ("SHARED_BLOCKS", Field::SharedBlocks),
    ("MAPPED_SECTORS", Field::MappedSectors),
    ("EXCLUSIVE_SECTORS", Field::ExclusiveSectors),
    ("SHARED_SECTORS", Field::SharedSectors),
    ("MAPPED_BYTES", Field::MappedBytes),
    ("EXCLUSIVE_BYTES", Field::ExclusiveBytes),
    ("SHARED_BYTES", Field::SharedBytes),
    ("MAPPED", Field::Mapped),
    ("EXCLUSIVE", Field::Exclusive),
    ("SHARED", Field::Shared),
    ("TRANSACTION", Field::Transaction),
    ("CREATE_TIME", Field::CreateTime),
    ("SNAP_TIME", Field::SnapTime),
];

/// What is shown when nothing is asked for.
pub const FIELDS_DEFAULT: &[Field] = &[
    Field::Dev,
    Field::Mapped,
    Field::CreateTime,
    Field::SnapTime,
];

impl Field {
    /// The column named `name`.
    pub fn find(name: &str) -> Option<Self> {
        FIELDS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, field)| *field)
    }

    /// The names of all columns.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FIELDS.iter().map(|(name, _)| *name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        FIELDS
            .iter()
            .find(|(_, field)| *field == self)
            .map_or("", |(name, _)| *name)
    }

    /// Whether exclusive blocks must be counted for it.
    pub fn needs_exclusive(self) -> bool {
        self.name().starts_with("EXCLUSIVE") || self.name().starts_with("SHARED")
    }

    /// Its value as a number, in the unit of its name, bytes where the name has none; `block_sectors` are the
    /// sectors in a data block.
    pub fn number(self, used: &VolumeUse, block_sectors: u64) -> u64 {
        let details = &used.volume.details;
        // Wraps as thin_ls's numbers do when a count is damaged.
        let shared = details.mapped_blocks.wrapping_sub(used.exclusive);
        let sectors = |blocks: u64| blocks.wrapping_mul(block_sectors);
        let bytes = |blocks: u64| sectors(blocks).wrapping_mul(SECTOR_BYTES);
        match self {
            Self::Dev => used.volume.id,
            Self::MappedBlocks => details.mapped_blocks,
            Self::ExclusiveBlocks => used.exclusive,
            Self::SharedBlocks => shared,
            Self::MappedSectors => sectors(details.mapped_blocks),
            Self::ExclusiveSectors => sectors(used.exclusive),
            Self::SharedSectors => sectors(shared),
            Self::MappedBytes | Self::Mapped => bytes(details.mapped_blocks),
            Self::ExclusiveBytes | Self::Exclusive => bytes(used.exclusive),
            Self::SharedBytes | Self::Shared => bytes(shared),
            Self::Transaction => details.transaction_id,
            Self::CreateTime => u64::from(details.creation_time),
            Self::SnapTime => u64::from(details.snapshotted_time),
        }
    }

    /// Its value as thin_ls shows it.
    pub fn text(self, used: &VolumeUse, block_sectors: u64) -> String {
        let number = self.number(used, block_sectors);
        match self {
            Self::Mapped | Self::Exclusive | Self::Shared => human_bytes(number),
            _ => number.to_string(),
        }
    }
}

/// COMPAT: thin_ls divides, rounding down, while there is more than a mebi of something, then, rounding to
/// the nearest, once more if there are more than 8192.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut number, mut unit) = (bytes, 0);
    while number > 1024 * 1024 {
        number /= 1024;
        unit += 1;
    }
    if number > 8 * 1024 {
        number = (number + 512) / 1024;
        unit += 1;
    }
    format!("{number}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_as_thin_ls_does() {
        let cases = [
            (0, "0"),
            (8192, "8192"),
            (8193, "8KiB"),
            (786_432, "768KiB"),
            (1 << 20, "1024KiB"),
            ((1 << 20) + 1, "1024KiB"),
            (10 << 20, "10MiB"),
            (u64::MAX, "16EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text, "{bytes}");
        }
    }
}
