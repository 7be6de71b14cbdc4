//! Which blocks are cached: names and settings of the policies, and what they are asked and answer.
//!
//! All names are one policy ([`Smq`]), as in Linux 6.1: `cleaner` never lets a block in or out, `mq` takes settings that do nothing.

mod queue;
mod smq;
#[cfg(test)]
mod tests;

pub(super) use smq::Smq;

use super::disk::{POLICY_NAME_BYTES, PolicyDisk};
use crate::args::parse_unsigned;

/// A policy, by the name that a table gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PolicyKind {
    Smq,
    Mq,
    Cleaner,
}

const MQ_KEYS: [&str; 5] = [
    "random_threshold",
    "sequential_threshold",
    "discard_promote_adjustment",
    "read_promote_adjustment",
    "write_promote_adjustment",
];

impl PolicyKind {
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "smq" | "default" => Some(Self::Smq),
            "mq" => Some(Self::Mq),
            "cleaner" => Some(Self::Cleaner),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Smq => "smq",
            Self::Mq => "mq",
            Self::Cleaner => "cleaner",
        }
    }

    /// As the metadata name it.
    pub fn disk(self) -> PolicyDisk {
        let mut name = [0; POLICY_NAME_BYTES];
        name[..self.name().len()].copy_from_slice(self.name().as_bytes());
        PolicyDisk {
            name,
            hint_size: 4,
            version: [2, 0, 0],
        }
    }

    /// Whether it takes this setting.
    pub fn takes(self, key: &str, value: &str) -> bool {
        let known = MQ_KEYS.iter().any(|name| key.eq_ignore_ascii_case(name));
        self == Self::Mq && known && parse_unsigned(value).is_some()
    }

    /// Its name and settings, as the status tells them.
    pub fn status(self) -> String {
        let settings: String = match self {
            Self::Mq => MQ_KEYS.iter().map(|key| format!(" {key} 0")).collect(),
            Self::Smq | Self::Cleaner => String::new(),
        };
        let count = settings.split_whitespace().count();
        format!("{} {count}{settings}", self.name())
    }

    /// Whether blocks may come and go.
    pub fn migrates(self) -> bool {
        self != Self::Cleaner
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Task {
    /// Copy the block of the origin to that of the cache, which is free and kept for it.
    Promote,
    /// Take the block out of the cache.
    Demote,
    /// Write it to the origin; it stays.
    Writeback,
}

/// Something to be done; ends with [`Smq::done`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Work {
    pub task: Task,
    pub oblock: u64,
    pub cblock: u32,
}

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// In this block of the cache.
    Hit(u32),
    /// On the origin.
    Miss,
    /// On the origin; it comes into the cache with the request, which is left to the caller to do.
    MissPromote(Work),
}

/// How a request uses a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Access {
    pub write: bool,
    /// Bringing the block into the cache would cost no more than the request does.
    pub cheap: bool,
    /// Blocks may come and go at all now.
    pub may_migrate: bool,
}
