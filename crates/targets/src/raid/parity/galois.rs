//! Exclusive or and GF(2^8) on slices: what P and Q are made of.
//!
//! The field is md's: polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), generator 2. Loops run over blocks of [`LANE`] bytes in a
//! form that the compiler turns into vector instructions; [`pulp`] compiles them for several sets of these and picks at run
//! time. See `docs/decisions/0150-*`.

use pulp::{Arch, NullaryFnOnce};

/// Bytes worked on at once. Slices are whole sectors, so nothing is left over.
const LANE: usize = 64;

type Lane = [u8; LANE];

/// One data block with its power of two in Q.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// The exponent, below 255.
    pub(crate) power: usize,
    /// The data.
    pub(crate) data: &'a [u8],
}

/// `into ^= from`.
pub(crate) fn xor(into: &mut [u8], from: &[u8]) {
    Arch::new().dispatch(Xor { into, from });
}

/// `p` becomes the exclusive or of all blocks.
pub(crate) fn parity_p(terms: &[Term<'_>], p: &mut [u8]) {
    let Some((first, rest)) = terms.split_first() else {
        return p.fill(0);
    };
    p.copy_from_slice(first.data);
    for term in rest {
        xor(p, term.data);
    }
}

/// `p` and `q` become both parities of all blocks. The terms' powers must be distinct and fall from each to the next.
pub(crate) fn parity_pq(terms: &[Term<'_>], p: &mut [u8], q: &mut [u8]) {
    debug_assert!(terms.is_sorted_by(|a, b| a.power > b.power));
    Arch::new().dispatch(Both { terms, p, q });
}

/// `into ^= factor * from`.
pub(crate) fn add_multiple(into: &mut [u8], factor: u8, from: &[u8]) {
    Arch::new().dispatch(AddMultiple { into, factor, from });
}

/// `block = factor * block`.
pub(crate) fn multiply_block(block: &mut [u8], factor: u8) {
    Arch::new().dispatch(Multiply { block, factor });
}

/// Two to this power.
pub(crate) fn power(exponent: usize) -> u8 {
    (0..exponent % ORDER).fold(1, |value, _| double(value))
}

/// Two to minus this power.
pub(crate) fn inverse_power(exponent: usize) -> u8 {
    power(ORDER - exponent % ORDER)
}

/// The product.
pub(crate) fn multiply(a: u8, b: u8) -> u8 {
    let mut sum = 0;
    let mut shifted = a;
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            sum ^= shifted;
        }
        shifted = double(shifted);
    }
    sum
}

/// One over it, or 0 for 0.
pub(crate) fn inverse(a: u8) -> u8 {
    // a^254.
    let mut result = 1;
    for _ in 0..ORDER - 1 {
        result = multiply(result, a);
    }
    result
}

/// How many elements besides 0 there are.
const ORDER: usize = 255;
/// What x^8 is.
const REDUCED: u8 = 0x1d;

#[inline(always)]
fn double(value: u8) -> u8 {
    let carry = 0_u8.wrapping_sub(value >> 7);
    (value << 1) ^ (carry & REDUCED)
}

#[inline(always)]
fn double_lane(lane: &mut Lane) {
    for byte in lane {
        *byte = double(*byte);
    }
}

#[inline(always)]
fn xor_lane(into: &mut Lane, from: &Lane) {
    for (into, from) in into.iter_mut().zip(from) {
        *into ^= from;
    }
}

/// The product of a lane and a factor whose bits are spread over masks.
#[inline(always)]
fn multiple_of(lane: &Lane, masks: &[u8; 8]) -> Lane {
    let mut sum = [0; LANE];
    let mut shifted = *lane;
    for mask in masks {
        for (sum, byte) in sum.iter_mut().zip(&shifted) {
            *sum ^= byte & mask;
        }
        double_lane(&mut shifted);
    }
    sum
}

/// For each bit of a factor all ones or zero.
#[inline(always)]
fn masks_of(factor: u8) -> [u8; 8] {
    std::array::from_fn(|bit| 0_u8.wrapping_sub(factor >> bit & 1))
}

struct Xor<'a> {
    into: &'a mut [u8],
    from: &'a [u8],
}

impl NullaryFnOnce for Xor<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (into, from) = (self.into.as_chunks_mut().0, self.from.as_chunks().0);
        for (into, from) in into.iter_mut().zip(from) {
            xor_lane(into, from);
        }
    }
}

struct Both<'a> {
    terms: &'a [Term<'a>],
    p: &'a mut [u8],
    q: &'a mut [u8],
}

impl NullaryFnOnce for Both<'_> {
    type Output = ();

    /// Horner's scheme, from the highest power down.
    #[inline(always)]
    fn call(self) {
        let lanes = self.p.as_chunks_mut::<LANE>().0;
        let pairs = lanes.iter_mut().zip(self.q.as_chunks_mut::<LANE>().0);
        for (index, (p, q)) in pairs.enumerate() {
            let (mut sum_p, mut sum_q) = ([0; LANE], [0; LANE]);
            let mut power = self.terms.first().map_or(0, |term| term.power);
            for term in self.terms {
                // More than once where a member in between has no data.
                while power > term.power {
                    double_lane(&mut sum_q);
                    power -= 1;
                }
                if let Some(data) = term.data.as_chunks::<LANE>().0.get(index) {
                    xor_lane(&mut sum_p, data);
                    xor_lane(&mut sum_q, data);
                }
            }
            for _ in 0..power {
                double_lane(&mut sum_q);
            }
            *p = sum_p;
            *q = sum_q;
        }
    }
}

struct AddMultiple<'a> {
    into: &'a mut [u8],
    factor: u8,
    from: &'a [u8],
}

impl NullaryFnOnce for AddMultiple<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let masks = masks_of(self.factor);
        let (into, from) = (self.into.as_chunks_mut().0, self.from.as_chunks().0);
        for (into, from) in into.iter_mut().zip(from) {
            xor_lane(into, &multiple_of(from, &masks));
        }
    }
}

struct Multiply<'a> {
    block: &'a mut [u8],
    factor: u8,
}

impl NullaryFnOnce for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let masks = masks_of(self.factor);
        for lane in self.block.as_chunks_mut().0 {
            *lane = multiple_of(lane, &masks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_a_field() {
        let mut seen = [false; 256];
        for exponent in 0..ORDER {
            let value = power(exponent);
            assert!(!std::mem::replace(&mut seen[usize::from(value)], true));
            assert_eq!(multiply(value, inverse_power(exponent)), 1);
            assert_eq!(multiply(value, inverse(value)), 1);
        }
        assert!(!seen[0]);
        assert_eq!(power(8), REDUCED);
        for a in 0..=255 {
            for b in 0..=255_u8 {
                assert_eq!(multiply(a, b), multiply(b, a));
                let split = multiply(a, b & 0x55) ^ multiply(a, b & 0xaa);
                assert_eq!(multiply(a, b), split);
            }
        }
    }

    #[test]
    fn slices_agree_with_single_bytes() {
        let from: Vec<u8> = (0..512).map(|i| (i * 7 % 256) as u8).collect();
        for factor in 0..=255 {
            let mut into: Vec<u8> = (0..512).map(|i| (i * 3 % 256) as u8).collect();
            let mut product = from.clone();
            let both = into.iter().zip(&from);
            let expected: Vec<u8> = both.map(|(a, b)| a ^ multiply(factor, *b)).collect();
            add_multiple(&mut into, factor, &from);
            assert_eq!(into, expected);
            multiply_block(&mut product, factor);
            let single = from.iter().zip(&product);
            assert!(single.into_iter().all(|(a, b)| multiply(factor, *a) == *b));
        }
    }

    #[test]
    fn parities_are_the_sums_that_they_are_defined_as() {
        let blocks: Vec<Vec<u8>> = (0..5_usize)
            .map(|nr| (0..1024).map(|i| (i * 31 + nr * 77) as u8).collect())
            .collect();
        let powers = [9, 6, 5, 2, 1];
        let pairs = powers.iter().zip(&blocks);
        let terms: Vec<Term<'_>> = pairs
            .map(|(power, data)| Term {
                power: *power,
                data,
            })
            .collect();
        let (mut p, mut q, mut p_alone) = (vec![1; 1024], vec![2; 1024], vec![3; 1024]);
        parity_pq(&terms, &mut p, &mut q);
        parity_p(&terms, &mut p_alone);
        assert_eq!(p, p_alone);
        for i in 0..1024 {
            let sum = |f: &dyn Fn(&Term<'_>) -> u8| terms.iter().fold(0, |sum, term| sum ^ f(term));
            assert_eq!(p[i], sum(&|term| term.data[i]));
            assert_eq!(q[i], sum(&|term| multiply(power(term.power), term.data[i])));
        }
    }
}
