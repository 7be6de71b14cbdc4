//! The bitmap of mode B: a bit for a stretch of the line that may be written before its tags are durable.
//!
//! INVARIANT: a stretch whose `may_write` bit is set has its bit set on disk.

use std::ops::Range;

/// Bytes of the bitmap that are written at once.
pub(super) const BITMAP_BLOCK: usize = 4096;

/// See the module. Bit n is bit n % 8 of byte n / 8.
pub(super) struct Bits {
    /// Of a stretch's sectors.
    log2_sectors: u32,
    /// As on disk, or about to be.
    pub disk: Vec<u8>,
    pub may_write: Vec<u8>,
    /// Tags of these stretches are not to be trusted.
    pub recalc: Vec<u8>,
}

impl Bits {
    /// All clear, `blocks` blocks of the bitmap.
    pub fn new(log2_sectors: u32, blocks: usize) -> Self {
        let clear = vec![0; blocks * BITMAP_BLOCK];
        Self {
            log2_sectors,
            disk: clear.clone(),
            may_write: clear.clone(),
            recalc: clear,
        }
    }

    /// The bits that any of these sectors is in.
    pub fn touched(&self, sectors: &Range<u64>) -> Range<usize> {
        if sectors.is_empty() {
            return 0..0;
        }
        let bit = |sector: u64| (sector >> self.log2_sectors) as usize;
        bit(sectors.start)..bit(sectors.end - 1) + 1
    }

    /// The sector at the beginning of the stretch that one is in.
    pub fn round_down(&self, sector: u64) -> u64 {
        sector >> self.log2_sectors << self.log2_sectors
    }
}

/// Whether all bits are as `value` says.
pub(super) fn all(bits: &[u8], which: Range<usize>, value: bool) -> bool {
    let (mut at, end) = (which.start, which.end);
    let whole = if value { u8::MAX } else { 0 };
    while at < end {
        if at.is_multiple_of(8) && at + 8 <= end {
            if bits[at / 8] != whole {
                return false;
            }
            at += 8;
        } else {
            if (bits[at / 8] >> (at % 8) & 1 == 1) != value {
                return false;
            }
            at += 1;
        }
    }
    true
}

/// Makes all bits what `value` says.
pub(super) fn put(bits: &mut [u8], which: Range<usize>, value: bool) {
    let (mut at, end) = (which.start, which.end);
    while at < end {
        let mask = if at.is_multiple_of(8) && at + 8 <= end {
            at += 8;
            u8::MAX
        } else {
            at += 1;
            1 << ((at - 1) % 8)
        };
        let byte = &mut bits[(at - 1) / 8];
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bits_are_like_single_ones() {
        for (start, end) in [(0, 0), (0, 1), (3, 9), (0, 24), (7, 8), (8, 16), (5, 31)] {
            let mut bits = [0; 4];
            put(&mut bits, start..end, true);
            for bit in 0..32 {
                let inside = (start..end).contains(&bit);
                assert_eq!(
                    bits[bit / 8] >> (bit % 8) & 1 == 1,
                    inside,
                    "{start}..{end}"
                );
            }
            assert!(all(&bits, start..end, true));
            assert!(end == 32 || all(&bits, end..32, false));
            put(&mut bits, start..end, false);
            assert_eq!(bits, [0; 4]);
        }
    }

    #[test]
    fn stretches_round_down() {
        let bits = Bits::new(4, 1);
        assert_eq!(bits.touched(&(15..17)), 0..2);
        assert_eq!(bits.touched(&(16..32)), 1..2);
        assert_eq!(bits.touched(&(8..8)), 0..0);
        assert_eq!(bits.round_down(33), 32);
    }
}
