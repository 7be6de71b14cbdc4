//! The optional arguments.

use thinmap_dm::TableError;

use super::NAME;
use super::corruption::Mode;
use crate::args::scan_u32;

/// What was asked for behind the ten arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) mode: Mode,
    pub(super) ignore_zero_blocks: bool,
    pub(super) check_at_most_once: bool,
    /// Accepted; small requests are always verified by the thread that brings them.
    pub(super) try_verify_in_tasklet: bool,
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
    pub(super) fn parse(words: &[String]) -> Result<Self, TableError> {
        let mut features = Self {
            mode: Mode::Eio,
            ignore_zero_blocks: false,
            check_at_most_once: false,
            try_verify_in_tasklet: false,
        };
        for word in words {
            features.add(word)?;
        }
        Ok(features)
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
        // What a kernel says that was built without these.
        let absent = match word.to_ascii_lowercase().as_str() {
            "use_fec_from_device" | "fec_roots" | "fec_blocks" | "fec_start" => {
                ": there is no forward error correction here"
            }
            "root_hash_sig_key_desc" => {
                ": signatures are checked against the kernel's trusted keys, which no program has"
            }
            _ => "",
        };
        Err(invalid(format!(
            "Unrecognized verity feature request: '{word}'{absent}"
        )))
    }

    /// The features as a table line has them, with a blank before; nothing when there are none.
    pub(super) fn words(&self) -> String {
        let words: Vec<&str> = [
            self.mode.word(),
            self.ignore_zero_blocks.then_some("ignore_zero_blocks"),
            self.check_at_most_once.then_some("check_at_most_once"),
            self.try_verify_in_tasklet
                .then_some("try_verify_in_tasklet"),
        ]
        .into_iter()
        .flatten()
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

/// Words.
const FEATURES_MAX: u32 = 4;
