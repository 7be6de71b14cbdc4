//! The optional arguments.

use thinmap_dm::TableError;
use thinmap_units::Sector;

use super::NAME;
use super::engine::SectorSize;
use crate::args::parse_u32;

/// What was asked for behind the five arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) allow_discards: bool,
    /// Requests are encrypted by the thread that brings them.
    pub(super) same_cpu_crypt: bool,
    /// Accepted; requests always go on from the thread that has encrypted them.
    pub(super) submit_from_crypt_cpus: bool,
    /// Reads are decrypted by the thread that brings their data.
    pub(super) no_read_workqueue: bool,
    /// Writes are encrypted by the thread that brings them.
    pub(super) no_write_workqueue: bool,
    pub(super) sectors: SectorSize,
}

impl Features {
    /// Reads `<count> <feature>...`. Words beyond the count are not looked at, as in the kernel.
    pub(super) fn parse(words: &[String], len: Sector) -> Result<Self, TableError> {
        let mut features = Self {
            allow_discards: false,
            same_cpu_crypt: false,
            submit_from_crypt_cpus: false,
            no_read_workqueue: false,
            no_write_workqueue: false,
            sectors: SectorSize {
                bytes: 512,
                counted_large: false,
            },
        };
        let Some((count, words)) = words.split_first() else {
            return Ok(features);
        };
        let words = parse_u32(count)
            .filter(|count| *count <= FEATURES_MAX)
            .and_then(|count| words.get(..count as usize))
            .ok_or_else(|| invalid(format!("Invalid number of feature args: '{count}'")))?;
        for word in words {
            features.add(word, len)?;
        }
        Ok(features)
    }

    fn add(&mut self, word: &str, len: Sector) -> Result<(), TableError> {
        let flags = [
            ("allow_discards", &mut self.allow_discards),
            ("same_cpu_crypt", &mut self.same_cpu_crypt),
            ("submit_from_crypt_cpus", &mut self.submit_from_crypt_cpus),
            ("no_read_workqueue", &mut self.no_read_workqueue),
            ("no_write_workqueue", &mut self.no_write_workqueue),
            ("iv_large_sectors", &mut self.sectors.counted_large),
        ];
        for (name, flag) in flags {
            if word.eq_ignore_ascii_case(name) {
                *flag = true;
                return Ok(());
            }
        }
        if let Some(integrity) = word.strip_prefix("integrity:") {
            return Err(integrity_refused(integrity));
        }
        match word.strip_prefix("sector_size:") {
            Some(size) => self.set_sector_size(size, len),
            None => Err(invalid(format!("Invalid feature arguments: '{word}'"))),
        }
    }

    fn set_sector_size(&mut self, size: &str, len: Sector) -> Result<(), TableError> {
        // What is no number at all is no such feature.
        let Some(number) = crate::args::parse_u64(size) else {
            let reason = format!("Invalid feature arguments: 'sector_size:{size}'");
            return Err(invalid(reason));
        };
        self.sectors.bytes = u16::try_from(number)
            .ok()
            .filter(|bytes| (512..=4096).contains(bytes) && bytes.is_power_of_two())
            .ok_or_else(|| {
                let reason = format!(
                    "Invalid feature value for sector_size: {size} is not 512, 1024, 2048 or 4096"
                );
                invalid(reason)
            })?;
        if !len.raw().is_multiple_of(self.sectors.sectors()) {
            let reason = "Device size is not multiple of sector_size feature";
            return Err(invalid(reason));
        }
        Ok(())
    }

    /// The features as a table line has them, with a blank before; nothing when there are none.
    pub(super) fn words(&self) -> String {
        let size = format!("sector_size:{}", self.sectors.bytes);
        let words: Vec<&str> = [
            (self.allow_discards, "allow_discards"),
            (self.same_cpu_crypt, "same_cpu_crypt"),
            (self.submit_from_crypt_cpus, "submit_from_crypt_cpus"),
            (self.no_read_workqueue, "no_read_workqueue"),
            (self.no_write_workqueue, "no_write_workqueue"),
            (self.sectors.bytes != 512, size.as_str()),
            (self.sectors.counted_large, "iv_large_sectors"),
        ]
        .into_iter()
        .filter_map(|(is_set, word)| is_set.then_some(word))
        .collect();
        if words.is_empty() {
            return String::new();
        }
        format!(" {} {}", words.len(), words.join(" "))
    }
}

/// `TAG_BYTES:aead` and `TAG_BYTES:none`. The kernel needs a device below that keeps tags (dm-integrity's), and refuses
/// all others; there are none here.
fn integrity_refused(arguments: &str) -> TableError {
    let (size, profile) = arguments.split_once(':').unwrap_or((arguments, ""));
    match parse_u32(size) {
        Some(1..=TAG_BYTES_MAX) => {}
        _ => return invalid("Invalid integrity arguments"),
    }
    if !profile.eq_ignore_ascii_case("aead") && !profile.eq_ignore_ascii_case("none") {
        return invalid(format!("Unknown integrity profile '{profile}'"));
    }
    invalid("Integrity profile not supported.")
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const FEATURES_MAX: u32 = 8;
const TAG_BYTES_MAX: u32 = 480;
