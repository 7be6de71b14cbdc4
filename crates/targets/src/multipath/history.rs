//! `historical-service-time`: a moving average of how long a path's requests took, weighted by how long they took.
//!
//! All in fixed point with ten bits behind the point, and in the kernel's steps, so that the figures in a status line compare.

/// A path's past.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    seen: Seen,
    /// When the last request ended, in nanoseconds of the clock.
    last_end: u64,
}

/// What paths are compared by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// The average, in nanoseconds with ten bits behind the point.
    pub(super) time: u64,
    /// Requests on their way.
    pub(super) outstanding: u64,
    /// From then on, in nanoseconds of the clock, the average says little.
    pub(super) stale_after: u64,
}

/// How much of the average stays, by how long a request took, in steps of some 16 ms.
pub(super) struct Weights([u32; Weights::COUNT]);

impl Weights {
    /// One, in fixed point.
    pub(super) const ONE: u32 = 1 << SHIFT;
    /// 0.95, nearly.
    pub(super) const BASE_DEFAULT: u32 = 972;
    const COUNT: usize = 64;

    /// The powers of `base`, which is below one, and nothing at the end.
    pub(super) fn new(base: u32) -> Self {
        let mut weights = [0; Self::COUNT];
        for (index, weight) in weights.iter_mut().take(Self::COUNT - 1).enumerate() {
            *weight = power(base, index as u32 + 1);
        }
        Self(weights)
    }

    fn of(&self, nanoseconds: u64) -> u64 {
        let step = usize::try_from(nanoseconds >> STEP_SHIFT).unwrap_or(usize::MAX);
        let weight = self.0.get(step).or(self.0.last());
        weight.copied().map_or(0, u64::from)
    }
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            seen: Seen {
                time: u64::from(Weights::ONE),
                outstanding: 0,
                stale_after: 0,
            },
            last_end: 0,
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    pub(super) fn begin(&mut self) {
        self.seen.outstanding += 1;
    }

    /// A request that was begun at `begun` has ended; `active` paths of the group work.
    pub(super) fn end(&mut self, begun: u64, now: u64, weights: &Weights, active: u64) {
        // Requests of a path are taken to be served one after the other.
        let took = now.saturating_sub(begun.max(self.last_end));
        self.last_end = now;
        self.seen.outstanding = self.seen.outstanding.saturating_sub(1);
        let weight = weights.of(took);
        let new = took
            .saturating_mul(u64::from(Weights::ONE))
            .min(u64::MAX >> SHIFT);
        // Both products fit: times are cut to 54 bits and weights have ten.
        let sum = u128::from(self.seen.time) * u128::from(weight)
            + u128::from(new) * u128::from(u64::from(Weights::ONE) - weight)
            + (1 << (SHIFT - 1));
        self.seen.time = u64::try_from(sum >> SHIFT).unwrap_or(u64::MAX >> SHIFT);
        let fresh = active.saturating_mul(self.seen.time >> SHIFT);
        self.seen.stale_after = now.saturating_add(fresh);
    }
}

impl Seen {
    /// Whether a new request is better sent here than on `other`.
    pub(super) fn is_better(&self, other: &Self, threshold: u32, now: u64) -> bool {
        let (slow, fast) = (self.time.max(other.time), self.time.min(other.time));
        // Too similar to tell.
        if u128::from(slow) <= u128::from(fast) * u128::from(threshold) {
            return self.outstanding < other.outstanding;
        }
        let (idle, other_idle) = (self.outstanding == 0, other.outstanding == 0);
        let stale = self.stale_after < now;
        let other_stale = other.stale_after < now;
        if (idle && stale) || (other_idle && other_stale) || (idle && other_idle) {
            let first = if other_idle { self.stale_after } else { 0 };
            let second = if idle { other.stale_after } else { 0 };
            return first < second;
        }
        let estimate = |seen: &Self| u128::from(1 + seen.outstanding) * u128::from(seen.time);
        let (is_better, winner_stale) = if estimate(self) > estimate(other) {
            (false, other_stale)
        } else {
            (true, stale)
        };
        // A winner that was not heard of for long gets no more than the other one.
        if winner_stale {
            self.outstanding < other.outstanding
        } else {
            is_better
        }
    }
}

/// `base` to the power of `exponent`, rounded at each step.
fn power(base: u32, exponent: u32) -> u32 {
    let times = |a: u64, b: u64| (a * b + (1 << (SHIFT - 1))) >> SHIFT;
    let (mut result, mut square) = (u64::from(Weights::ONE), u64::from(base));
    for bit in 0..u32::BITS - exponent.leading_zeros() {
        if exponent >> bit & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
    }
    // Below one, like the base.
    result as u32
}

const SHIFT: u32 = 10;
const STEP_SHIFT: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_weight_is_the_base_and_the_last_is_nothing() {
        for base in [0, 1, 500, Weights::BASE_DEFAULT, 1023] {
            let weights = Weights::new(base);
            assert_eq!(weights.0[0], base);
            assert_eq!(weights.0[63], 0);
            assert!(weights.0.windows(2).all(|pair| pair[0] >= pair[1]));
        }
        assert_eq!(Weights::new(0).of(0), 0);
        assert_eq!(Weights::new(972).of(1 << 24), 923);
        assert_eq!(Weights::new(972).of(u64::MAX), 0);
    }

    #[test]
    fn the_average_follows_what_requests_take_one_after_the_other() {
        let weights = Weights::new(512);
        let mut history = History::new();
        history.begin();
        history.begin();
        history.end(1000, 3000, &weights, 2);
        // Half of what was (1 ns), half of 2000 ns.
        assert_eq!(history.seen().time, (1024 + 2000 * 1024) / 2);
        assert_eq!(history.seen().stale_after, 3000 + 2 * 1000);
        // Begun before the other one ended: counted from there.
        history.end(1000, 3500, &weights, 2);
        assert_eq!(history.seen().time, (1024 + 2000 * 1024) / 4 + 250 * 1024);
        assert_eq!(history.seen().outstanding, 0);
    }

    #[test]
    fn the_quicker_path_is_better_until_it_has_more_to_do() {
        let seen = |time, outstanding, stale_after| Seen {
            time,
            outstanding,
            stale_after,
        };
        let (quick, slow) = (seen(10_000, 2, 100), seen(40_000, 1, 100));
        assert!(quick.is_better(&slow, 0, 50));
        assert!(!slow.is_better(&quick, 0, 50));
        let busy = seen(10_000, 9, 100);
        assert!(slow.is_better(&busy, 0, 50));
        // Not that different: who has less to do.
        assert!(slow.is_better(&quick, 4, 50));
        // Not heard of for long: no more than the other.
        assert!(!quick.is_better(&slow, 0, 200));
        // Idle and stale: asked at once.
        assert!(seen(90_000, 0, 10).is_better(&slow, 0, 50));
        assert!(!slow.is_better(&seen(90_000, 0, 10), 0, 50));
    }
}
