//! The targets: one module each, knowing device mapper's core only by its traits.
//!
//! To add one: write a module after `linear.rs`, name it in [`ALL`], give it a page in `docs/targets`.
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as thinmap_targets;

mod args;
mod cache;
mod clone;
mod crypt;
mod delay;
mod dust;
mod era;
mod error;
mod flakey;
mod flush;
mod integrity;
mod kept;
mod linear;
mod log_writes;
mod mirror;
mod multipath;
mod raid;
mod snapshot;
mod striped;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
mod switch;
mod thin;
mod thin_pool;
#[cfg(test)]
#[path = "../tests/thin_support/mod.rs"]
mod thin_support;
mod told;
mod unstriped;
mod verity;
mod workers;
mod writecache;
mod zero;

use thinmap_dm::TargetType;

pub use cache::CacheType;
pub use clone::CloneType;
pub use crypt::CryptType;
pub use delay::DelayType;
pub use dust::DustType;
pub use era::EraType;
pub use error::ErrorType;
pub use flakey::FlakeyType;
pub use integrity::IntegrityType;
pub use linear::LinearType;
pub use log_writes::LogWritesType;
pub use mirror::MirrorType;
pub use multipath::{MultipathType, NoPathTimeout};
pub use raid::RaidType;
pub use snapshot::{
    SnapshotMergeType, SnapshotOriginType, SnapshotType, changes_origin, keeps_old_data_of,
};
pub use striped::StripedType;
pub use switch::SwitchType;
pub use thin::ThinType;
pub use thin_pool::{PoolTuning, Sizes, ThinPoolType};
pub use unstriped::UnstripedType;
pub use verity::VerityType;
pub use writecache::WritecacheType;
pub use zero::ZeroType;

/// Every target there is, in the order in which `dmsetup targets` lists them.
///
/// COMPAT: the kernel lists what was registered last first: modules before the built-in targets.
pub static ALL: &[&dyn TargetType] = &[
    &IntegrityType,
    &CacheType,
    &WritecacheType,
    &VerityType,
    &CloneType,
    &EraType,
    &SwitchType,
    &UnstripedType,
    &LogWritesType,
    &DustType,
    &FlakeyType,
    &DelayType,
    &MultipathType,
    &CryptType,
    &RaidType,
    &MirrorType,
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
