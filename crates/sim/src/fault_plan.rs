//! Which requests of a simulated disk fail.

use thinmap_block::Op;

/// Requests are counted from 0, when the plan is made, in the order in which they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPlan {
    /// All is well.
    None,
    /// The request of this number fails, once.
    Once(u64),
    /// That request and all later ones fail.
    From(u64),
    /// From that number on everything but reads fails.
    ChangesFrom(u64),
    /// The first flush from that number on fails.
    FlushOnce(u64),
    /// The first read from that number on fails.
    ReadOnce(u64),
}

/// A plan at work.
pub(crate) struct Faults {
    plan: FaultPlan,
    requests: u64,
    struck: bool,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self {
            plan,
            requests: 0,
            struck: false,
        }
    }

    /// Whether a fault has struck yet.
    pub(crate) fn struck(&self) -> bool {
        self.struck
    }

    /// Counts a request; whether it fails.
    pub(crate) fn fails(&mut self, op: Op) -> bool {
        let number = self.requests;
        self.requests += 1;
        let fails = match self.plan {
            FaultPlan::None => false,
            FaultPlan::Once(at) => number == at,
            FaultPlan::From(at) => number >= at,
            FaultPlan::ChangesFrom(at) => number >= at && op != Op::Read,
            FaultPlan::FlushOnce(at) => number >= at && op == Op::Flush && !self.struck,
            FaultPlan::ReadOnce(at) => number >= at && op == Op::Read && !self.struck,
        };
        self.struck |= fails;
        fails
    }
}
