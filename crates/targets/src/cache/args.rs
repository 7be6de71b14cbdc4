//! The line: `<metadata device> <cache device> <origin> <block> <n> <feature>... <policy> <n> <key> <value>...`.
//!
//! Order of the checks is that of Linux `dm-cache-target.c`.

use thinmap_dm::{ConstructCx, DeviceUse, TableError};
use thinmap_units::Sector;

use super::NAME;
use super::policy::PolicyKind;
use crate::args::{open_device_in_any_table, parse_u32, parse_unsigned, scan_u32};

const BLOCK_SECTORS_MIN: u32 = 64;
const BLOCK_SECTORS_MAX: u32 = 1 << 21;
const FEATURES_MAX: u32 = 3;
const POLICY_WORDS_MAX: u32 = 1024;
const MIGRATION_THRESHOLD: u64 = 2048;

/// Where writes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IoMode {
    /// To the cache only; the block is dirty then.
    Writeback,
    /// To origin and cache.
    Writethrough,
    /// To the origin; reads too. A cached block that is written is cached no more.
    Passthrough,
}

impl IoMode {
    const fn word(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::Passthrough => "passthrough",
        }
    }
}

/// What the features say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Features {
    pub mode: IoMode,
    /// The format of new metadata, 1 or 2.
    pub metadata_version: u32,
    pub discard_passdown: bool,
}

impl Features {
    fn parse(words: &[String]) -> Result<Self, TableError> {
        let mut features = Self {
            mode: IoMode::Writeback,
            metadata_version: 1,
            discard_passdown: true,
        };
        let mut modes = 0;
        for word in words {
            let is = |name: &str| word.eq_ignore_ascii_case(name);
            let all = [IoMode::Writeback, IoMode::Writethrough, IoMode::Passthrough];
            if let Some(mode) = all.into_iter().find(|mode| is(mode.word())) {
                features.mode = mode;
                modes += 1;
            } else if is("metadata2") {
                features.metadata_version = 2;
            } else if is("no_discard_passdown") {
                features.discard_passdown = false;
            } else {
                let reason = format!("Unrecognised cache feature requested: '{word}'");
                return Err(invalid(reason));
            }
        }
        if modes > 1 {
            let reason = format!(
                "Duplicate cache io_mode features requested: '{}'",
                words.join(" ")
            );
            return Err(invalid(reason));
        }
        Ok(features)
    }

    /// As the status tells them.
    pub fn status(&self) -> String {
        let words = [
            (self.metadata_version == 2).then_some("metadata2"),
            Some(self.mode.word()),
            (!self.discard_passdown).then_some("no_discard_passdown"),
        ];
        let words: Vec<&str> = words.into_iter().flatten().collect();
        format!("{} {}", words.len(), words.join(" "))
    }
}

/// A line, understood.
pub(super) struct Line {
    pub metadata: DeviceUse,
    pub cache: DeviceUse,
    pub origin: DeviceUse,
    /// Sectors.
    pub block: u32,
    pub features: Features,
    pub policy: PolicyKind,
    /// Sectors.
    pub migration_threshold: u64,
    /// What stands behind the devices, for the table line.
    pub words: Vec<String>,
}

impl Line {
    pub fn parse(argv: &[String], len: Sector, cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        let mut words = argv.iter();
        let mut next = || words.next().ok_or_else(|| invalid("Insufficient args"));
        let open = |spec: &str, what: &str| {
            let what = format!("Error opening {what} device");
            open_device_in_any_table(cx, NAME, spec, false, &what)
        };
        let metadata = open(next()?, "metadata")?;
        let cache = open(next()?, "cache")?;
        let origin = open(next()?, "origin")?;
        if len > origin.dev.size() {
            return Err(invalid("Device size larger than cached device"));
        }
        let block = parse_block(next()?, cache.dev.size())?;
        let rest = &argv[4..];
        let (features, rest) = group(
            rest,
            FEATURES_MAX,
            "Invalid number of cache feature arguments",
        )?;
        let features = Features::parse(features)?;
        let Some((policy, rest)) = rest.split_first() else {
            return Err(invalid("Insufficient args"));
        };
        let (pairs, _) = group(rest, POLICY_WORDS_MAX, "Invalid number of policy arguments")?;
        for (one, other) in [(&metadata, &cache), (&metadata, &origin), (&cache, &origin)] {
            if one.id == other.id {
                return Err(invalid(format!(
                    "Error opening device: {other} is named twice"
                )));
            }
        }
        let policy = PolicyKind::parse(policy).ok_or_else(|| {
            invalid(format!(
                "Error creating cache's policy: unknown policy type '{policy}'"
            ))
        })?;
        let mut migration_threshold = MIGRATION_THRESHOLD;
        if !pairs.len().is_multiple_of(2) {
            let reason = "Error setting cache policy's config values: Odd number of policy arguments given but they should be <key> <value> pairs.";
            return Err(invalid(reason));
        }
        for pair in pairs.chunks_exact(2) {
            match parse_pair(policy, &pair[0], &pair[1]) {
                Ok(threshold) => migration_threshold = threshold.unwrap_or(migration_threshold),
                Err(reason) => {
                    let reason = format!("Error setting cache policy's config values: {reason}");
                    return Err(invalid(reason));
                }
            }
        }
        Ok(Self {
            metadata,
            cache,
            origin,
            block,
            features,
            policy,
            migration_threshold,
            words: argv[3..].to_vec(),
        })
    }
}

/// A key and its value, of the table or of a message: a new migration threshold, or one that the policy takes; else why not.
pub(super) fn parse_pair(
    policy: PolicyKind,
    key: &str,
    value: &str,
) -> Result<Option<u64>, String> {
    let bad = || format!("bad config value for {key}: {value}");
    if key.eq_ignore_ascii_case("migration_threshold") {
        return parse_unsigned(value).map(Some).ok_or_else(bad);
    }
    match policy.takes(key, value) {
        true => Ok(None),
        false => Err(bad()),
    }
}

fn parse_block(word: &str, cache: Sector) -> Result<u32, TableError> {
    let block = parse_u32(word)
        .filter(|block| (BLOCK_SECTORS_MIN..=BLOCK_SECTORS_MAX).contains(block))
        .filter(|block| block.is_multiple_of(BLOCK_SECTORS_MIN))
        .ok_or_else(|| invalid(format!("Invalid data block size: '{word}'")))?;
    if u64::from(block) > cache.raw() {
        let reason = format!("Data block size is larger than the cache device: {block}");
        return Err(invalid(reason));
    }
    Ok(block)
}

/// A count, and so many words; what is behind them. Nothing at all is no words.
fn group<'a>(
    words: &'a [String],
    max: u32,
    reason: &str,
) -> Result<(&'a [String], &'a [String]), TableError> {
    let Some((count, words)) = words.split_first() else {
        return Err(invalid(reason));
    };
    scan_u32(count)
        .filter(|count| *count <= max)
        .and_then(|count| words.split_at_checked(count as usize))
        .ok_or_else(|| invalid(format!("{reason}: '{count}'")))
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}
