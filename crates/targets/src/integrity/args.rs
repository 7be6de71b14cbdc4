//! The table line's words.

use std::time::Duration;

use thinmap_dm::{DeviceUse, TableError};

use super::NAME;
use super::hash::HashSpec;
use super::layout::TAG_BYTES_MAX;
use super::shared::Mode;
use crate::args::{parse_u32, parse_u64, scan_u32};

/// Words that come before the optional ones.
const DIRECT: usize = 4;
const OPTIONS_MAX: u32 = 18;
const INTERLEAVE_SECTORS: u32 = 32768;
const BUFFER_SECTORS: u32 = 128;
const WATERMARK: u32 = 50;
const COMMIT_TIME: u32 = 10_000;
const BITMAP_FLUSH_INTERVAL: u32 = 10_000;
/// Of a block.
const BLOCK_BYTES_MAX: u32 = 4096;
/// The largest size of a buffer: 2^22 sectors.
const LOG2_BUFFER_MAX: u32 = 22;

/// What the words say.
pub(super) struct Args {
    pub device: DeviceUse,
    /// Sector where the superblock is.
    pub start: u64,
    /// Bytes; `None` is that of the internal hash.
    pub tag_size: Option<u32>,
    pub mode: Mode,
    /// For a device that is to be formatted; `None` is a share of the device.
    pub journal_sectors: Option<u32>,
    pub interleave_sectors: u32,
    pub log2_buffer: u8,
    /// Percent.
    pub journal_watermark: u32,
    /// Milliseconds.
    pub commit_time: u32,
    pub meta_device: Option<DeviceUse>,
    pub log2_block: u8,
    pub log2_sectors_per_bit: Option<u32>,
    /// Milliseconds.
    pub bitmap_flush_interval: u32,
    pub internal_hash: Option<HashSpec>,
    pub journal_crypt: Option<HashSpec>,
    pub journal_mac: Option<HashSpec>,
    pub recalculate: bool,
    pub reset_recalculate: bool,
    pub allow_discards: bool,
    pub fix_padding: bool,
    pub fix_hmac: bool,
    pub legacy_recalculate: bool,
}

fn wrong(reason: String) -> TableError {
    TableError::invalid(NAME, reason)
}

impl Args {
    /// Reads the words; `open` opens a device.
    pub fn parse(
        argv: &[String],
        open: &dyn Fn(&str) -> Result<DeviceUse, TableError>,
    ) -> Result<Self, TableError> {
        if argv.len() <= DIRECT {
            return Err(wrong("Invalid argument count".to_owned()));
        }
        let device = open(&argv[0])?;
        let start = parse_u64(&argv[1])
            .ok_or_else(|| wrong(format!("Invalid starting offset: '{}'", argv[1])))?;
        let tag_size = match argv[2].as_str() {
            "-" => None,
            word => match scan_u32(word).filter(|size| *size != 0) {
                Some(size) => Some(size),
                None => return Err(wrong(format!("Invalid tag size: '{word}'"))),
            },
        };
        let mode = match argv[3].as_str() {
            "D" => Mode::Direct,
            "J" => Mode::Journal,
            "B" => Mode::Bitmap,
            "R" => Mode::Recovery,
            word => {
                let reason = format!("Invalid mode (expecting J, B, D, R): '{word}'");
                return Err(wrong(reason));
            }
        };
        let (count, words) = (&argv[DIRECT], &argv[DIRECT + 1..]);
        let words = parse_u32(count)
            .filter(|count| *count <= OPTIONS_MAX)
            .and_then(|count| words.get(..count as usize))
            .ok_or_else(|| wrong(format!("Invalid number of feature args: '{count}'")))?;
        let mut args = Self {
            device,
            start,
            tag_size,
            mode,
            journal_sectors: None,
            interleave_sectors: INTERLEAVE_SECTORS,
            log2_buffer: log2_buffer(BUFFER_SECTORS),
            journal_watermark: WATERMARK,
            commit_time: COMMIT_TIME,
            meta_device: None,
            log2_block: 0,
            log2_sectors_per_bit: None,
            bitmap_flush_interval: BITMAP_FLUSH_INTERVAL,
            internal_hash: None,
            journal_crypt: None,
            journal_mac: None,
            recalculate: false,
            reset_recalculate: false,
            allow_discards: false,
            fix_padding: false,
            fix_hmac: false,
            legacy_recalculate: false,
        };
        for word in words {
            args.option(word, open)?;
        }
        Ok(args)
    }

    fn option(
        &mut self,
        word: &str,
        open: &dyn Fn(&str) -> Result<DeviceUse, TableError>,
    ) -> Result<(), TableError> {
        let invalid = || wrong(format!("Invalid argument: '{word}'"));
        let Some((key, value)) = word.split_once(':') else {
            match word {
                "recalculate" => self.recalculate = true,
                "reset_recalculate" => {
                    self.recalculate = true;
                    self.reset_recalculate = true;
                }
                "allow_discards" => self.allow_discards = true,
                "fix_padding" => self.fix_padding = true,
                "fix_hmac" => self.fix_hmac = true,
                "legacy_recalculate" => self.legacy_recalculate = true,
                _ => return Err(invalid()),
            }
            return Ok(());
        };
        let number = || scan_u32(value).ok_or_else(invalid);
        let spec = || {
            // What follows the name is a key, and not to be told.
            HashSpec::parse(value).ok_or_else(|| wrong(format!("Invalid {key} argument: its key")))
        };
        match key {
            "journal_sectors" => self.journal_sectors = Some(number()?.max(1)),
            "interleave_sectors" => self.interleave_sectors = number()?,
            "buffer_sectors" => self.log2_buffer = log2_buffer(number()?),
            "journal_watermark" => {
                let percent = number()?;
                self.journal_watermark = Some(percent).filter(|p| *p <= 100).ok_or_else(invalid)?;
            }
            "commit_time" => self.commit_time = number()?,
            "meta_device" => self.meta_device = Some(open(value)?),
            "block_size" => {
                let bytes = number()?;
                if !bytes.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&bytes) {
                    return Err(wrong(format!("Invalid block_size argument: '{value}'")));
                }
                self.log2_block = (bytes.trailing_zeros() - 9) as u8;
            }
            "sectors_per_bit" => {
                let sectors = parse_u64(value).ok_or_else(invalid)?;
                self.log2_sectors_per_bit = Some(sectors.max(1).ilog2());
            }
            "bitmap_flush_interval" => self.bitmap_flush_interval = number()?,
            "internal_hash" => self.internal_hash = Some(spec()?),
            "journal_mac" => self.journal_mac = Some(spec()?),
            "journal_crypt" => self.journal_crypt = Some(spec()?),
            _ => return Err(invalid()),
        }
        Ok(())
    }

    /// Bytes of a tag, once it is known how long the hash is.
    pub fn tag_size(&self, hash_bytes: Option<usize>) -> Result<u32, TableError> {
        let size = match (self.tag_size, hash_bytes) {
            (Some(size), _) => size,
            (None, Some(bytes)) => bytes as u32,
            (None, None) => return Err(wrong("Unknown tag size".to_owned())),
        };
        if size > TAG_BYTES_MAX {
            let reason = format!("Too big tag size: {size}, at most {TAG_BYTES_MAX}");
            return Err(wrong(reason));
        }
        Ok(size)
    }

    pub fn commit_time(&self) -> Duration {
        Duration::from_millis(self.commit_time.into())
    }

    pub fn bitmap_flush_interval(&self) -> Duration {
        Duration::from_millis(self.bitmap_flush_interval.into())
    }
}

fn log2_buffer(sectors: u32) -> u8 {
    sectors.max(1).ilog2().min(LOG2_BUFFER_MAX) as u8
}
