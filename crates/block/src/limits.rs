//! What a device can take, as plain data, and how limits combine when devices stack.

use thinmap_units::Sector;

/// "No limit" for a count of sectors.
pub const SECTORS_UNLIMITED: Sector = Sector(u64::MAX >> 9);

/// A device's limits, after the kernel's `queue_limits`. Sizes in bytes unless they are [`Sector`]s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    /// Smallest addressable unit; every request is a multiple of it, at a multiple of it.
    pub logical_block_size: u32,
    /// Smallest unit written without a read-modify-write.
    pub physical_block_size: u32,
    /// Preferred smallest I/O.
    pub io_min: u32,
    /// Preferred I/O, 0 when there is none.
    pub io_opt: u32,
    /// Unit in which discards free space; 0 when discard is not supported.
    pub discard_granularity: u32,
    /// Largest discard; zero when discard is not supported.
    pub max_discard: Sector,
    /// Largest write-zeroes that is cheaper than writing; zero when there is none (it is still served).
    pub max_write_zeroes: Sector,
    /// Whether completed writes may still be lost at a power cut until a flush.
    pub write_cache: bool,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl QueueLimits {
    /// The limits of nothing: the neutral element of [`QueueLimits::stack`] for devices that pass everything on.
    pub const STACKING: Self = Self {
        logical_block_size: 512,
        physical_block_size: 512,
        io_min: 512,
        io_opt: 0,
        discard_granularity: 0,
        max_discard: SECTORS_UNLIMITED,
        max_write_zeroes: SECTORS_UNLIMITED,
        write_cache: false,
        read_only: false,
    };

    /// Narrows `self` so that what it allows, `below` allows too (a device made of several).
    pub fn stack(&mut self, below: &Self) {
        self.logical_block_size = self.logical_block_size.max(below.logical_block_size);
        self.physical_block_size = self.physical_block_size.max(below.physical_block_size);
        self.io_min = self.io_min.max(below.io_min);
        self.io_opt = lcm_not_zero(self.io_opt, below.io_opt);
        self.discard_granularity = self.discard_granularity.max(below.discard_granularity);
        self.max_discard = self.max_discard.min(below.max_discard);
        self.max_write_zeroes = self.max_write_zeroes.min(below.max_write_zeroes);
        self.write_cache |= below.write_cache;
        self.read_only |= below.read_only;
    }

    /// Whether the device takes discards.
    pub fn supports_discard(&self) -> bool {
        self.max_discard > Sector::ZERO
    }
}

fn lcm_not_zero(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    match (a, b) {
        (0, other) | (other, 0) => other,
        _ => (a / x).checked_mul(b).unwrap_or(a.max(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacking_takes_the_stricter_of_each() {
        let mut top = QueueLimits::STACKING;
        let below = QueueLimits {
            logical_block_size: 4096,
            io_opt: 65536,
            max_discard: Sector::ZERO,
            write_cache: true,
            ..QueueLimits::STACKING
        };
        top.stack(&below);
        top.stack(&QueueLimits {
            io_opt: 196_608,
            ..QueueLimits::STACKING
        });
        assert_eq!(top.logical_block_size, 4096);
        assert_eq!(top.io_opt, 196_608);
        assert!(!top.supports_discard());
        assert!(top.write_cache);
    }
}
