//! The targets: one module each, knowing device mapper's core only by its traits.
//!
//! To add one: write a module after `linear.rs`, name it in [`ALL`], give it a page in `docs/targets`.
#![forbid(unsafe_code)]

mod args;
mod crypt;
mod error;
mod linear;
mod raid;
mod snapshot;
mod striped;
mod thin;
mod thin_pool;
mod zero;

use thinmap_dm::TargetType;

pub use crypt::CryptType;
pub use error::ErrorType;
pub use linear::LinearType;
pub use raid::RaidType;
pub use snapshot::{SnapshotMergeType, SnapshotOriginType, SnapshotType};
pub use striped::StripedType;
pub use thin::ThinType;
pub use thin_pool::{PoolTuning, Sizes, ThinPoolType};
pub use zero::ZeroType;

/// Every target there is, in the order in which `dmsetup targets` lists them.
///
/// COMPAT: the kernel lists what was registered last first: modules before the built-in targets.
pub static ALL: &[&dyn TargetType] = &[
    &CryptType,
    &RaidType,
    &SnapshotMergeType,
    &SnapshotOriginType,
    &SnapshotType,
    &ThinPoolType,
    &ThinType,
    &ZeroType,
    &StripedType,
    &LinearType,
    &ErrorType,
];
