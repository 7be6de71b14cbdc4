//! The optional arguments.

use thinmap_dm::{ConstructCx, DeviceUse, TableError};

use super::NAME;
use super::corruption::Mode;
use super::fec::FecArguments;
use crate::args::{open_device, parse_u64, scan_u32};

/// What was asked for behind the ten arguments.
#[derive(Default)]
pub(super) struct Features {
    pub(super) mode: Mode,
    pub(super) ignore_zero_blocks: bool,
    pub(super) check_at_most_once: bool,
    /// Accepted; small requests are always verified by the thread that brings them.
    pub(super) try_verify_in_tasklet: bool,
    fec_device: Option<DeviceUse>,
    fec_blocks: u64,
    fec_start: u64,
    fec_roots: u8,
}

/// Reads `<count> <word>...`: the words. Others behind them are not looked at, as in the kernel.
pub(super) fn counted(words: &[String]) -> Result<&[String], TableError> {
    let Some((count, words)) = words.split_first() else {
        return Ok(&[]);
    };
    scan_u32(count)
        .filter(|count| *count <= FEATURES_MAX)
        .and_then(|count| words.get(..count as usize))
        .ok_or_else(|| invalid(format!("Invalid number of feature args: '{count}'")))
}

impl Features {
    pub(super) fn parse(words: &[String], cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        let mut features = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let name = word.to_ascii_lowercase();
            if FEC_WORDS.contains(&name.as_str()) {
                let value = words.next().ok_or_else(|| {
                    invalid(format!("FEC feature arguments require a value: '{word}'"))
                })?;
                features.add_fec(&name, value, cx)?;
            } else {
                features.add(word)?;
            }
        }
        Ok(features)
    }

    fn add_fec(&mut self, name: &str, value: &str, cx: &ConstructCx<'_>) -> Result<(), TableError> {
        let blocks = || {
            // They must be told in sectors.
            parse_u64(value)
                .filter(|blocks| *blocks <= (u64::MAX >> 9) / 8)
                .ok_or_else(|| invalid(format!("Invalid {name}: '{value}'")))
        };
        match name {
            "use_fec_from_device" => {
                let device = open_device(cx, NAME, value, true, "FEC device lookup failed")?;
                self.fec_device = Some(device);
            }
            "fec_blocks" => self.fec_blocks = blocks()?,
            "fec_start" => self.fec_start = blocks()?,
            _ => {
                self.fec_roots = scan_u32(value)
                    .and_then(|roots| u8::try_from(roots).ok())
                    .filter(|roots| (2..=24).contains(roots))
                    .ok_or_else(|| {
                        invalid(format!("Invalid fec_roots: '{value}' is not 2 to 24"))
                    })?;
            }
        }
        Ok(())
    }

    /// What error correction there is to be. Without a device, none.
    pub(super) fn fec(&self) -> Result<Option<FecArguments>, TableError> {
        let Some(device) = self.fec_device.clone() else {
            return Ok(None);
        };
        if self.fec_roots == 0 {
            return Err(invalid("Missing fec_roots"));
        }
        if self.fec_blocks == 0 {
            return Err(invalid("Missing fec_blocks"));
        }
        Ok(Some(FecArguments {
            device,
            blocks: self.fec_blocks,
            start: self.fec_start,
            roots: self.fec_roots,
        }))
    }

    fn add(&mut self, word: &str) -> Result<(), TableError> {
        if let Some(mode) = Mode::of_word(word) {
            if self.mode != Mode::Eio {
                let reason = format!("Conflicting error handling parameters: '{word}'");
                return Err(invalid(reason));
            }
            self.mode = mode;
            return Ok(());
        }
        let flags = [
            ("ignore_zero_blocks", &mut self.ignore_zero_blocks),
            ("check_at_most_once", &mut self.check_at_most_once),
            ("try_verify_in_tasklet", &mut self.try_verify_in_tasklet),
        ];
        for (name, flag) in flags {
            if word.eq_ignore_ascii_case(name) {
                *flag = true;
                return Ok(());
            }
        }
        // What a kernel says that was built without them.
        let absent = match word.eq_ignore_ascii_case("root_hash_sig_key_desc") {
            true => {
                ": signatures are checked against the kernel's trusted keys, which no program has"
            }
            false => "",
        };
        Err(invalid(format!(
            "Unrecognized verity feature request: '{word}'{absent}"
        )))
    }

    /// The features as a table line has them, with a blank before; nothing when there are none.
    pub(super) fn words(&self) -> String {
        let fec = self.fec_device.as_ref().map(|device| {
            format!(
                "use_fec_from_device {device} fec_blocks {} fec_start {} fec_roots {}",
                self.fec_blocks, self.fec_start, self.fec_roots
            )
        });
        let words: Vec<&str> = [
            self.mode.word(),
            self.ignore_zero_blocks.then_some("ignore_zero_blocks"),
            self.check_at_most_once.then_some("check_at_most_once"),
            self.try_verify_in_tasklet
                .then_some("try_verify_in_tasklet"),
        ]
        .into_iter()
        .flatten()
        .chain(fec.iter().flat_map(|fec| fec.split(' ')))
        .collect();
        if words.is_empty() {
            return String::new();
        }
        format!(" {} {}", words.len(), words.join(" "))
    }
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const FEC_WORDS: [&str; 4] = [
    "use_fec_from_device",
    "fec_blocks",
    "fec_start",
    "fec_roots",
];
/// Words, with the values of those of error correction.
const FEATURES_MAX: u32 = 12;
