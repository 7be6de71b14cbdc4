//! A device's limits as the driver's parameters.

use thinmap_block::QueueLimits;
use thinmap_units::Sector;

use super::abi::{
    ATTR_FUA, ATTR_WRITE_CACHE, Basic, Discard, PARAMS_BASIC, PARAMS_DISCARD, Params,
};

impl Params {
    /// Parameters for `limits`, at size 0: every device gets its size after its start.
    ///
    /// The write cache is always there, so that flushes come through whatever a later table stands on; read-only is
    /// not among them, because the driver could not take it back.
    pub(super) fn of(limits: &QueueLimits) -> Self {
        let logical = limits.logical_block_size;
        let physical = limits.physical_block_size.max(logical);
        Self {
            len: size_of::<Self>() as u32,
            types: PARAMS_BASIC | PARAMS_DISCARD,
            basic: Basic {
                attrs: ATTR_WRITE_CACHE | ATTR_FUA,
                logical_block_shift: shift(logical),
                physical_block_shift: shift(physical),
                io_opt_shift: preferred_shift(limits.io_opt, physical),
                io_min_shift: preferred_shift(limits.io_min, physical).max(shift(physical)),
                max_sectors: IO_BYTES_MAX >> 9,
                ..Basic::default()
            },
            discard: Discard {
                granularity: limits.discard_granularity.max(logical),
                max_discard_sectors: whole(limits.max_discard, logical),
                max_write_zeroes_sectors: whole(limits.max_write_zeroes, logical),
                max_discard_segments: u16::from(limits.supports_discard()),
                ..Discard::default()
            },
            ..Self::default()
        }
    }
}

fn shift(bytes: u32) -> u8 {
    bytes.checked_ilog2().unwrap_or(9) as u8
}

/// The driver only takes powers of two: of 192 KiB it gets 64 KiB, whose multiples never straddle it.
fn preferred_shift(bytes: u32, physical: u32) -> u8 {
    let power = bytes.trailing_zeros() as u8;
    if bytes == 0 || power < shift(physical) {
        0
    } else {
        power
    }
}

/// As many whole blocks as a 32-bit count of sectors holds.
fn whole(limit: Sector, logical: u32) -> u32 {
    let block_sectors = (logical >> 9).max(1);
    let sectors = u32::try_from(limit.0).unwrap_or(u32::MAX);
    // Their bytes stay in 32 bits too, as the block layer counts them.
    let sectors = sectors.min(u32::MAX >> 9);
    sectors - sectors % block_sectors
}

/// Bytes of the largest read or write.
pub(super) const IO_BYTES_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use thinmap_block::SECTORS_UNLIMITED;

    use super::*;

    #[test]
    fn limits_of_a_thin_volume() {
        let params = Params::of(&QueueLimits {
            logical_block_size: 512,
            physical_block_size: 4096,
            io_min: 65_536,
            io_opt: 196_608,
            discard_granularity: 65_536,
            max_discard: Sector(1 << 20),
            max_write_zeroes: SECTORS_UNLIMITED,
            write_cache: false,
            read_only: true,
        });
        let basic = params.basic;
        assert_eq!(
            (basic.logical_block_shift, basic.physical_block_shift),
            (9, 12)
        );
        assert_eq!((basic.io_min_shift, basic.io_opt_shift), (16, 16));
        assert_eq!(basic.attrs, ATTR_WRITE_CACHE | ATTR_FUA);
        assert_eq!((basic.max_sectors, basic.dev_sectors), (2048, 0));
        let discard = params.discard;
        assert_eq!(
            (discard.granularity, discard.max_discard_sectors),
            (65_536, 1 << 20)
        );
        assert_eq!(
            (
                discard.max_discard_segments,
                discard.max_write_zeroes_sectors
            ),
            (1, u32::MAX >> 9)
        );
        assert_eq!(params.len, 80);
    }

    #[test]
    fn without_discards_the_granularity_is_still_one_block() {
        let params = Params::of(&QueueLimits {
            logical_block_size: 4096,
            max_discard: Sector::ZERO,
            max_write_zeroes: Sector(15),
            ..QueueLimits::STACKING
        });
        let discard = params.discard;
        assert_eq!(
            (discard.granularity, discard.max_discard_sectors),
            (4096, 0)
        );
        assert_eq!(
            (
                discard.max_discard_segments,
                discard.max_write_zeroes_sectors
            ),
            (0, 8)
        );
        let basic = params.basic;
        assert_eq!((basic.physical_block_shift, basic.io_min_shift), (12, 12));
        assert_eq!(basic.io_opt_shift, 0);
    }
}
