//! The target types that tables may name.

use crate::target::{TargetInfo, TargetType};

/// A list of target types, looked up by name. Cheap to copy: every mapped device has one.
#[derive(Clone, Copy)]
pub struct Registry {
    types: &'static [&'static dyn TargetType],
}

impl Registry {
    /// A registry of `types`; of two with one name the first counts.
    pub const fn new(types: &'static [&'static dyn TargetType]) -> Self {
        Self { types }
    }

    /// The target type that tables call `name`.
    pub fn find(&self, name: &str) -> Option<&'static dyn TargetType> {
        self.types
            .iter()
            .copied()
            .find(|kind| kind.info().name == name)
    }

    /// Name and version of each, in the list's order.
    pub fn list(&self) -> impl Iterator<Item = TargetInfo> + '_ {
        self.types.iter().map(|kind| kind.info())
    }
}
