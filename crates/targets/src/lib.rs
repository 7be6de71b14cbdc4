//! The targets: one module each, knowing device mapper's core only by its traits.
//!
//! To add one: write a module after `linear.rs`, name it in [`ALL`], give it a page in `docs/targets`.
#![forbid(unsafe_code)]

use thinmap_dm::TargetType;

/// Every target there is, in the order in which `dmsetup targets` lists them.
pub static ALL: &[&dyn TargetType] = &[];
