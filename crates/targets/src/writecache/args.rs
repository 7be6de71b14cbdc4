//! What a table line says behind its devices.

use thinmap_dm::TableError;

use super::NAME;
use crate::args::{parse_u64, scan_u32};

/// Words behind the count, at most.
const WORDS_MAX: u32 = 18;

/// The optional arguments, as they were given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tuning {
    pub start_sector: Option<u64>,
    pub high_watermark: Option<u32>,
    pub low_watermark: Option<u32>,
    pub writeback_jobs: Option<u32>,
    pub autocommit_blocks: Option<u32>,
    /// Milliseconds, as all times here.
    pub autocommit_time: Option<u32>,
    pub max_age: Option<u32>,
    pub cleaner: bool,
    pub metadata_only: bool,
    pub pause_writeback: Option<u32>,
}

/// The size of a block: a power of two from 512 to 4096 that is no smaller than the devices' own.
pub(super) fn parse_block_bytes(word: &str, logical: [u32; 2]) -> Result<u32, TableError> {
    let bytes = scan_u32(word)
        .filter(|bytes| (512..=4096).contains(bytes) && bytes.is_power_of_two())
        .ok_or_else(|| invalid(format!("Invalid block size: '{word}'")))?;
    if logical.iter().any(|logical| bytes < *logical) {
        let reason = "Block size is smaller than device logical block size";
        return Err(invalid(format!("{reason}: '{word}'")));
    }
    Ok(bytes)
}

impl Tuning {
    /// `sectors`: of the cache device.
    pub fn parse(words: &[String], sectors: u64) -> Result<Self, TableError> {
        let count = words.first().map_or("", String::as_str);
        let group = scan_u32(count)
            .filter(|count| *count <= WORDS_MAX)
            .and_then(|count| words[1..].get(..count as usize))
            .ok_or_else(|| invalid(format!("Invalid number of feature args: '{count}'")))?;
        let mut tuning = Self::default();
        let mut rest = group.iter();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().map_or("", String::as_str);
            let mut number = |max: u32| {
                let value = value();
                let number = scan_u32(value).filter(|number| *number <= max);
                number.map(Some).ok_or_else(|| wrong(word, value))
            };
            match word.to_ascii_lowercase().as_str() {
                "start_sector" => {
                    let value = value();
                    let start = parse_u64(value).filter(|start| *start < sectors);
                    tuning.start_sector = Some(start.ok_or_else(|| wrong(word, value))?);
                }
                "high_watermark" => tuning.high_watermark = number(100)?,
                "low_watermark" => tuning.low_watermark = number(100)?,
                "writeback_jobs" => tuning.writeback_jobs = number(u32::MAX)?,
                "autocommit_blocks" => tuning.autocommit_blocks = number(u32::MAX)?,
                "autocommit_time" => tuning.autocommit_time = number(3_600_000)?,
                "max_age" => tuning.max_age = number(86_400_000)?,
                "pause_writeback" => tuning.pause_writeback = number(60_000)?,
                "cleaner" => tuning.cleaner = true,
                "metadata_only" => tuning.metadata_only = true,
                // `fua` and `nofua` are for persistent memory only.
                _ => return Err(wrong(word, "")),
            }
        }
        if tuning.high() < tuning.low() {
            let reason = "High watermark must be greater than or equal to low watermark";
            return Err(invalid(format!(
                "{reason}: {} and {}",
                tuning.high(),
                tuning.low()
            )));
        }
        Ok(tuning)
    }

    fn high(&self) -> u32 {
        self.high_watermark.unwrap_or(50)
    }

    fn low(&self) -> u32 {
        self.low_watermark.unwrap_or(45)
    }

    /// Free blocks at which writing back begins, and at which it ends, of so many.
    pub fn marks(&self, blocks: u64) -> [u64; 2] {
        [self.high(), self.low()].map(|used| (blocks * u64::from(100 - used) + 50) / 100)
    }
}

/// Behind the block size, in the kernel's order.
impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let small = |value: Option<u32>| value.map(u64::from);
        let pairs = [
            ("start_sector", self.start_sector),
            ("high_watermark", small(self.high_watermark)),
            ("low_watermark", small(self.low_watermark)),
            ("writeback_jobs", small(self.writeback_jobs)),
            ("autocommit_blocks", small(self.autocommit_blocks)),
            ("autocommit_time", small(self.autocommit_time)),
            ("max_age", small(self.max_age)),
        ];
        let pause = self.pause_writeback;
        let flags = [
            ("cleaner", self.cleaner),
            ("metadata_only", self.metadata_only),
        ];
        let values = pairs.iter().filter(|(_, value)| value.is_some()).count()
            + usize::from(pause.is_some());
        let words = 2 * values + flags.iter().filter(|(_, set)| *set).count();
        write!(f, "{words}")?;
        for (name, value) in pairs {
            if let Some(value) = value {
                write!(f, " {name} {value}")?;
            }
        }
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            write!(f, " {name}")?;
        }
        match pause {
            Some(value) => write!(f, " pause_writeback {value}"),
            None => Ok(()),
        }
    }
}

fn wrong(word: &str, value: &str) -> TableError {
    let what = format!("{word} {value}");
    invalid(format!("Invalid optional argument: '{}'", what.trim_end()))
}

fn invalid(reason: String) -> TableError {
    TableError::invalid(NAME, reason)
}
