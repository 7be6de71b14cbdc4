//! Arguments: `<log type> <n> <log argument>{n} <legs> (<device> <first sector>){legs} [<n> <feature>{n}]`, checked in the
//! kernel's order.

use thinmap_dm::TableError;
use thinmap_units::Sector;

use super::NAME;
use crate::args::parse_u64;

/// Whether legs are in sync where the log does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sync {
    /// As a log says that is there already; not, without one.
    Default,
    /// Not in sync, whatever a log says.
    Force,
    /// In sync, whatever a log says.
    Nosync,
}

/// Where the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogPlace<'a> {
    /// In memory.
    Core,
    /// On this device.
    Disk(&'a str),
}

/// The log's own arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogArgs<'a> {
    pub place: LogPlace<'a>,
    pub region: Sector,
    pub sync: Sync,
}

/// What is to happen when something fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Features {
    pub handle_errors: bool,
    pub keep_log: bool,
}

impl Features {
    /// As a table shows them, with a space before.
    pub fn table_words(self) -> &'static str {
        match (self.handle_errors, self.keep_log) {
            (false, _) => "",
            (true, false) => " 1 handle_errors",
            (true, true) => " 2 handle_errors keep_log",
        }
    }

    /// Whether a write that could not be made everywhere waits for somebody to load another table.
    pub fn hold_failed(self) -> bool {
        self.handle_errors && !self.keep_log
    }
}

/// The log's arguments, and those behind them.
pub(super) fn parse_log(
    argv: &[String],
    len: Sector,
) -> Result<(LogArgs<'_>, &[String]), TableError> {
    let [kind, count, rest @ ..] = argv else {
        return Err(wrong("Insufficient mirror log arguments"));
    };
    let count = parse_u64(count)
        .and_then(|count| u32::try_from(count).ok())
        .ok_or_else(|| wrong("Invalid mirror log argument count"))?;
    let (log, rest) = rest
        .split_at_checked(count as usize)
        .ok_or_else(|| wrong("Insufficient mirror log arguments"))?;
    let (place, log) = match (kind.as_str(), log) {
        ("core", log) => (LogPlace::Core, log),
        ("disk", [device, log @ ..]) => (LogPlace::Disk(device), log),
        ("disk", []) => {
            return Err(log_wrong(
                "wrong number of arguments to disk dirty region log",
            ));
        }
        ("userspace", _) => {
            return Err(log_wrong("logs of a cluster (userspace) are not supported"));
        }
        (other, _) => return Err(log_wrong(&format!("there is no log of type {other}"))),
    };
    let (region, sync) = match log {
        [region] => (region, Sync::Default),
        [region, word] => match word.as_str() {
            "sync" => (region, Sync::Force),
            "nosync" => (region, Sync::Nosync),
            other => return Err(log_wrong(&format!("unrecognised sync argument: {other}"))),
        },
        _ => return Err(log_wrong("wrong number of arguments to dirty region log")),
    };
    let size = parse_u64(region)
        .and_then(|size| u32::try_from(size).ok())
        .map(|size| Sector(u64::from(size)))
        .filter(|size| size.raw() >= 2 && *size <= len && size.raw().is_power_of_two())
        .ok_or_else(|| log_wrong(&format!("invalid region size {region}")))?;
    let args = LogArgs {
        place,
        region: size,
        sync,
    };
    Ok((args, rest))
}

/// The legs' arguments, two each, and those behind them.
pub(super) fn parse_legs(argv: &[String]) -> Result<(&[String], &[String]), TableError> {
    let count = argv.first().and_then(|count| parse_u64(count));
    let (Some(count @ 2..=LEGS_MAX), Some(rest)) = (count, argv.get(1..)) else {
        return Err(wrong("Invalid number of mirrors"));
    };
    rest.split_at_checked(2 * count as usize)
        .ok_or_else(|| wrong("Too few mirror arguments"))
}

/// Words behind the legs.
pub(super) fn parse_features(argv: &[String]) -> Result<Features, TableError> {
    let [count, words @ ..] = argv else {
        return Ok(Features::default());
    };
    let count = parse_u64(count)
        .and_then(|count| u32::try_from(count).ok())
        .ok_or_else(|| wrong("Invalid number of features"))?;
    let (words, rest) = words
        .split_at_checked(count as usize)
        .ok_or_else(|| wrong("Not enough arguments to support feature count"))?;
    let mut features = Features::default();
    for word in words {
        match word.as_str() {
            "handle_errors" => features.handle_errors = true,
            "keep_log" => features.keep_log = true,
            _ => return Err(wrong("Unrecognised feature requested")),
        }
    }
    if features.keep_log && !features.handle_errors {
        return Err(wrong("keep_log feature requires the handle_errors feature"));
    }
    if !rest.is_empty() {
        return Err(wrong("Too many mirror arguments"));
    }
    Ok(features)
}

/// EINVAL.
pub(super) fn wrong(reason: &str) -> TableError {
    TableError::invalid(NAME, reason)
}

/// COMPAT: whatever is wrong with a log is EINVAL.
pub(super) fn log_wrong(reason: &str) -> TableError {
    wrong(&format!("Error creating mirror dirty log: {reason}"))
}

/// As many as the kernel copies to at once, and the one that it copies from.
pub(super) const LEGS_MAX: u64 = 9;
