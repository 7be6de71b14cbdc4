//! What one run is like: each seed switches some things off and weights the rest wildly, so that rare combinations come up.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use thinmap_sim::{DiskManners, FaultPlan};
use thinmap_targets::Sizes;

use crate::oracle::Layout;

/// Requests of clients.
pub const REQUESTS: usize = 5;
/// Commands.
pub const COMMANDS: usize = 14;
/// The place of [`crate::commands::Command`]'s `GrowData` among them.
const GROW_DATA: usize = 8;

/// Which disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk {
    /// Metadata.
    Metadata,
    /// Data, or of a mirror the first leg.
    Data,
    /// The second leg of a mirror.
    Leg,
}

/// The pool's data lie on a mirror, of which a leg fails or none. The log keeps what that leg misses (keep_log), so clients see nothing of it.
#[derive(Clone, Copy, Debug)]
pub struct MirrorPlan {
    /// Sectors of a region.
    pub region: u64,
    /// The log is on a device.
    pub disk_log: bool,
    /// The second leg is the same when a life begins.
    pub in_sync: bool,
    /// What fails, of `Data` and `Leg`.
    pub fault: Option<(Disk, FaultPlan)>,
}

/// See the module. All that follows is drawn from the same generator, so a seed is a run.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Sizes.
    pub layout: Layout,
    /// Sectors of the metadata device.
    pub metadata: u64,
    /// Blocks of the data device.
    pub data_blocks: u64,
    /// Blocks of a new volume, at most.
    pub volume_blocks: u64,
    /// Of the pool's table.
    pub features: Vec<&'static str>,
    /// Volumes at once, at most.
    pub volumes: usize,
    /// Requests in all, a life.
    pub requests: u32,
    /// Requests in flight, at most.
    pub depth: usize,
    /// Commands, a life.
    pub commands: u32,
    /// One step of so many is a command.
    pub command_one_in: u32,
    /// Write, read, flush, discard, write zeroes.
    pub request_weights: [u32; REQUESTS],
    /// In the order of [`crate::commands::Command`].
    pub command_weights: [u32; COMMANDS],
    /// Clients pause this long, at most, after one request of ten.
    pub pause: Duration,
    /// One write of so many has FUA.
    pub fua_one_in: u32,
    /// Requests are rather long than short.
    pub long_requests: bool,
    /// A cut is looked at in one step of so many.
    pub cut_one_in: u32,
    /// Cuts looked at, at most.
    pub cuts: u32,
    /// Not some cuts, but after each step every subset of so many unflushed writes at most.
    pub every_subset_of: Option<usize>,
    /// How disks behave.
    pub manners: DiskManners,
    /// What fails.
    pub fault: Option<(Disk, FaultPlan)>,
    /// What the data lie on.
    pub mirror: Option<MirrorPlan>,
    /// Bits of the metadata rot between two lives.
    pub rot: bool,
    /// Lives: all but the last end in a power cut.
    pub lives: u32,
    /// Sizes that the pool goes by.
    pub sizes: Sizes,
}

impl Swarm {
    /// Draws one.
    pub fn draw(rng: &mut SmallRng) -> Self {
        let small_metadata = rng.random_range(0..5) == 0;
        let pick = |rng: &mut SmallRng, of: &[u64]| of[rng.random_range(0..of.len())];
        let block = pick(rng, &[128, 128, 256, 384]);
        let mut features = Vec::new();
        for (feature, one_in) in [
            ("skip_block_zeroing", 6),
            ("no_discard_passdown", 4),
            ("ignore_discard", 10),
            ("error_if_no_space", 2),
        ] {
            if rng.random_range(0..one_in) == 0 {
                features.push(feature);
            }
        }
        let volume_blocks = rng.random_range(2..12);
        let fault = draw_fault(rng);
        let rot = fault.is_none() && rng.random_range(0..8) == 0;
        Self {
            layout: Layout {
                block,
                grain: 1,
                origin: rng.random_range(1..volume_blocks * block),
                skip_zeroing: features.contains(&"skip_block_zeroing"),
            },
            metadata: if small_metadata {
                rng.random_range(14..34) * 8
            } else {
                640
            },
            data_blocks: rng.random_range(3..40),
            volume_blocks,
            features,
            volumes: rng.random_range(1..7),
            requests: rng.random_range(10..140),
            depth: rng.random_range(1..12),
            commands: rng.random_range(3..24),
            command_one_in: rng.random_range(4..60),
            request_weights: std::array::from_fn(|_| weight(rng)),
            command_weights: std::array::from_fn(|_| weight(rng)),
            pause: Duration::from_millis(pick(rng, &[0, 1, 300, 2000])),
            fua_one_in: rng.random_range(2..30),
            long_requests: rng.random_range(0..4) == 0,
            cut_one_in: pick(rng, &[1, 3, 10]) as u32,
            cuts: rng.random_range(8..60),
            every_subset_of: None,
            manners: DiskManners {
                usual: Duration::from_micros(pick(rng, &[0, 50, 1000])),
                slow_one_in: pick(rng, &[0, 5, 50]) as u32,
                slow: Duration::from_millis(pick(rng, &[20, 1500, 70_000])),
                at_once_one_in: pick(rng, &[0, 0, 1, 4]) as u32,
                discards: rng.random_range(0..4) != 0,
            },
            fault,
            mirror: None,
            rot,
            lives: rng.random_range(1..4) + u32::from(rot),
            sizes: Sizes {
                delete_at_once_nodes: pick(rng, &[0, 1, 256]),
                delete_step_nodes: pick(rng, &[1, 2, 16]),
                copy_buffer_sectors: pick(rng, &[64, 256, 1024]),
            },
        }
    }

    /// A short life without faults, of which every cut is looked at.
    pub fn short(rng: &mut SmallRng) -> Self {
        let swarm = Self::draw(rng);
        Self {
            fault: None,
            rot: false,
            requests: rng.random_range(8..30),
            request_weights: [
                swarm.request_weights[0].max(10),
                swarm.request_weights[1],
                swarm.request_weights[2].clamp(1, 5),
                swarm.request_weights[3],
                swarm.request_weights[4],
            ],
            depth: swarm.depth.min(3),
            commands: rng.random_range(3..9),
            lives: 1,
            every_subset_of: Some(10),
            command_weights: std::array::from_fn(|i| match i {
                // To make a volume and open it, and then the rest.
                0 | 3 => 12,
                _ => swarm.command_weights[i].clamp(1, 5),
            }),
            ..swarm
        }
    }

    /// A run whose data lie on a mirror.
    pub fn mirrored(rng: &mut SmallRng) -> Self {
        let swarm = Self::draw(rng);
        let in_sync = rng.random_range(0..3) > 0;
        // A leg that is right alone may not fail.
        let which = if in_sync && rng.random() {
            Disk::Data
        } else {
            Disk::Leg
        };
        let fault = draw_fault(rng).map(|(_, plan)| (which, plan));
        let mut command_weights = swarm.command_weights;
        command_weights[GROW_DATA] = 0;
        Self {
            mirror: Some(MirrorPlan {
                region: [2, 16, 64, 256][rng.random_range(0..4)],
                disk_log: rng.random_range(0..4) > 0,
                in_sync,
                fault,
            }),
            fault: None,
            rot: false,
            lives: rng.random_range(1..4),
            command_weights,
            manners: DiskManners {
                // What a discard leaves may differ between legs.
                discards: swarm.manners.discards && rng.random(),
                ..swarm.manners
            },
            ..swarm
        }
    }

    /// Whether a request may fail, or not be done, without a lack of space.
    pub fn has_faults(&self) -> bool {
        self.fault.is_some() || self.rot
    }

    /// Whether an acknowledged discard has been done.
    pub fn discards_are_done(&self) -> bool {
        !self.has_faults() && self.metadata >= 640
    }
}

fn draw_fault(rng: &mut SmallRng) -> Option<(Disk, FaultPlan)> {
    if rng.random_range(0..3) == 0 {
        return None;
    }
    let disk = match rng.random_range(0..3) {
        0 => Disk::Data,
        _ => Disk::Metadata,
    };
    let soon = [4, 30, 150][rng.random_range(0..3)];
    let at = rng.random_range(0..soon);
    let plan = match rng.random_range(0..8) {
        0 => FaultPlan::From(at),
        1 => FaultPlan::ChangesFrom(at),
        2 | 3 => FaultPlan::FlushOnce(at),
        4 => FaultPlan::ReadOnce(at),
        _ => FaultPlan::Once(at),
    };
    Some((disk, plan))
}

/// Off, usual, or much.
fn weight(rng: &mut SmallRng) -> u32 {
    match rng.random_range(0..8) {
        0 => 0,
        1..6 => rng.random_range(1..10),
        _ => rng.random_range(10..60),
    }
}

/// One of the weighted; `None` when all are off.
pub fn choose(weights: &[u32], rng: &mut SmallRng) -> Option<usize> {
    let total: u32 = weights.iter().sum();
    if total == 0 {
        return None;
    }
    let mut at = rng.random_range(0..total);
    weights
        .iter()
        .position(|weight| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
}
