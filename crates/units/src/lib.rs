//! The units and identifiers every other crate speaks in.
//!
//! Raw `u64` addresses never cross a function border: a sector is not a block and a data block
//! is not a metadata block. This crate knows nothing but arithmetic and names.
#![forbid(unsafe_code)]

mod blk_status;
mod dev_no;
mod name;
mod size;
mod table_line;

pub use blk_status::BlkStatus;
pub use dev_no::{DevNo, ParseDevNoError};
pub use name::{DmName, DmUuid, NAME_BYTES_MAX, NameError, UUID_BYTES_MAX};
pub use size::{ParseSizeError, parse_size};
pub use table_line::{TableLine, split_args};

/// Bytes in a sector. Device mapper's sector is always 512 bytes, whatever the hardware says.
pub const SECTOR_SIZE: u64 = 512;
/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::ops::Add for $name {
            type Output = Self;
            fn add(self, rhs: Self) -> Self {
                Self(self.0 + rhs.0)
            }
        }

        impl std::ops::Sub for $name {
            type Output = Self;
            fn sub(self, rhs: Self) -> Self {
                Self(self.0 - rhs.0)
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, rhs: Self) {
                self.0 += rhs.0;
            }
        }

        impl std::ops::SubAssign for $name {
            fn sub_assign(&mut self, rhs: Self) {
                self.0 -= rhs.0;
            }
        }

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0);

            /// The value as a plain number, for formats and arithmetic inside one function.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Addition that tells of overflow.
            pub fn checked_add(self, rhs: Self) -> Option<Self> {
                self.0.checked_add(rhs.0).map(Self)
            }
        }
    };
}

unit!(
    /// A sector address or a count of sectors (512 bytes each), as the kernel's `sector_t`.
    Sector
);
unit!(
    /// A block of a thin pool's metadata device (4096 bytes each).
    MetaBlock
);
unit!(
    /// A block of a thin pool's data device (the pool's data block size each).
    DataBlock
);
unit!(
    /// A block of a thin volume's own address space (the pool's data block size each).
    VirtBlock
);

impl Sector {
    /// This many sectors in bytes.
    ///
    /// Callers hold sector counts that came from a device or a checked table, so the product fits.
    pub const fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }

    /// The whole sectors in `bytes`, rounded down.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes >> SECTOR_SHIFT)
    }
}

/// A thin volume's identifier inside its pool (`dev_id`): 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ThinId(u32);

impl ThinId {
    /// The largest identifier the format can hold.
    pub const MAX: u32 = (1 << 24) - 1;

    /// `None` when `id` needs more than 24 bits.
    pub fn new(id: u64) -> Option<Self> {
        u32::try_from(id)
            .ok()
            .filter(|id| *id <= Self::MAX)
            .map(Self)
    }

    /// The identifier as a number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for ThinId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thin_id_is_24_bits() {
        assert_eq!(ThinId::new(0xff_ffff).map(ThinId::raw), Some(0xff_ffff));
        assert_eq!(ThinId::new(0x100_0000), None);
    }

    #[test]
    fn sectors_are_512_bytes() {
        assert_eq!(Sector(3).bytes(), 1536);
        assert_eq!(Sector::from_bytes(1535), Sector(2));
    }
}
