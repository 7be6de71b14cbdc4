//! The line: `<metadata device> <destination> <source> <region> [<n> <feature>...] [<n> <key> <value>...]`.
//!
//! Order of the checks is that of Linux `dm-clone-target.c`.

use thinmap_dm::TableError;

use super::NAME;
use crate::args::{parse_u32, scan_u32};

const REGION_SECTORS_MIN: u32 = 8;
const REGION_SECTORS_MAX: u32 = 1 << 21;
const FEATURES_MAX: u32 = 2;
const CORE_WORDS_MAX: u32 = 4;

/// What may follow the devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tuning {
    pub hydration: bool,
    pub discard_passdown: bool,
    /// Regions that are copied in the background at once.
    pub threshold: u32,
    /// Regions in one copy.
    pub batch: u32,
}

/// Sectors in a region: a power of two that each of `block_bytes` divides.
pub(super) fn parse_region(word: &str, block_bytes: [u32; 2]) -> Result<u32, TableError> {
    let region = scan_u32(word)
        .filter(|region| (REGION_SECTORS_MIN..=REGION_SECTORS_MAX).contains(region))
        .ok_or_else(|| invalid(format!("Invalid region size: '{word}'")))?;
    if !region.is_power_of_two() {
        return Err(invalid("Region size is not a power of 2"));
    }
    if block_bytes
        .iter()
        .any(|block| !region.is_multiple_of(block >> 9))
    {
        let reason = "Region size is not a multiple of device logical block size";
        return Err(invalid(reason));
    }
    Ok(region)
}

impl Tuning {
    pub fn parse(words: &[String]) -> Result<Self, TableError> {
        let mut tuning = Self {
            hydration: true,
            discard_passdown: true,
            threshold: 1,
            batch: 1,
        };
        let (features, rest) = group(words, FEATURES_MAX, "Invalid number of feature arguments")?;
        for word in features {
            if word.eq_ignore_ascii_case("no_hydration") {
                tuning.hydration = false;
            } else if word.eq_ignore_ascii_case("no_discard_passdown") {
                tuning.discard_passdown = false;
            } else {
                return Err(invalid(format!("Invalid feature argument: '{word}'")));
            }
        }
        let (core, _) = group(rest, CORE_WORDS_MAX, "Invalid number of core arguments")?;
        if !core.len().is_multiple_of(2) {
            return Err(invalid("Number of core arguments must be even"));
        }
        for pair in core.chunks_exact(2) {
            let (key, value) = (&pair[0], &pair[1]);
            let number = |name: &str| {
                parse_u32(value).ok_or_else(|| {
                    invalid(format!("Invalid value for argument `{name}': '{value}'"))
                })
            };
            if key.eq_ignore_ascii_case(THRESHOLD) {
                tuning.threshold = number(THRESHOLD)?;
            } else if key.eq_ignore_ascii_case(BATCH) {
                tuning.batch = number(BATCH)?;
            } else {
                return Err(invalid(format!("Invalid core argument: '{key}'")));
            }
        }
        Ok(tuning)
    }

    /// As the status tells it.
    pub fn status(&self) -> String {
        let features = [
            (!self.hydration, "no_hydration "),
            (!self.discard_passdown, "no_discard_passdown "),
        ];
        let count = features.iter().filter(|(set, _)| *set).count();
        let words: String = features
            .iter()
            .filter_map(|(set, word)| set.then_some(*word))
            .collect();
        format!(
            "{count} {words}4 {THRESHOLD} {} {BATCH} {}",
            self.threshold, self.batch
        )
    }
}

/// A count, and so many words; what is behind them.
fn group<'a>(
    words: &'a [String],
    max: u32,
    reason: &str,
) -> Result<(&'a [String], &'a [String]), TableError> {
    let Some((count, words)) = words.split_first() else {
        return Ok((&[], &[]));
    };
    scan_u32(count)
        .filter(|count| *count <= max)
        .and_then(|count| words.split_at_checked(count as usize))
        .ok_or_else(|| invalid(format!("{reason}: '{count}'")))
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

pub(super) const THRESHOLD: &str = "hydration_threshold";
pub(super) const BATCH: &str = "hydration_batch_size";
