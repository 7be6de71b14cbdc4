//! What happens while the device is down.

use thinmap_block::{Io, Op};
use thinmap_dm::TableError;

use super::NAME;
use crate::args::scan_u32;

/// What becomes of writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writes {
    /// They fail, and reads too; but with a [`Corruption`] they go on.
    Fail,
    /// They end well, and are not done.
    Drop,
    /// They fail.
    Error,
}

/// The optional arguments.
#[derive(Debug)]
pub(super) struct Features {
    pub writes: Writes,
    pub corruption: Option<Corruption>,
}

/// One byte of a request that becomes another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Corruption {
    /// Which byte of the request, from 1.
    nth: u32,
    writes: bool,
    value: u8,
    /// Bits of the kernel's `bi_opf` that a request must have.
    flags: u32,
}

impl Features {
    /// Reads `<count> <feature>...`. Words beyond the count are not looked at.
    pub fn parse(words: &[String]) -> Result<Self, TableError> {
        let mut features = Self {
            writes: Writes::Fail,
            corruption: None,
        };
        let Some((count, words)) = words.split_first() else {
            return Ok(features);
        };
        let mut left = scan_u32(count)
            .filter(|count| *count <= FEATURES_MAX && *count as usize <= words.len())
            .ok_or_else(|| invalid(format!("Invalid number of feature args: '{count}'")))?;
        let mut words = words.iter();
        while left > 0 {
            let Some(word) = words.next() else {
                return Err(invalid("Insufficient feature arguments"));
            };
            left -= 1;
            if word.eq_ignore_ascii_case("drop_writes") {
                features.set_writes(Writes::Drop)?;
            } else if word.eq_ignore_ascii_case("error_writes") {
                features.set_writes(Writes::Error)?;
            } else if word.eq_ignore_ascii_case("corrupt_bio_byte") {
                if left == 0 {
                    let reason = "Feature corrupt_bio_byte requires parameters";
                    return Err(invalid(reason));
                }
                features.corruption = Some(Corruption::parse(&mut words)?);
                // COMPAT: a count too small is no end: it goes on until the words are used up, and fails there.
                left = left.wrapping_sub(CORRUPTION_WORDS - 1);
            } else {
                let reason = format!("Unrecognised flakey feature requested: '{word}'");
                return Err(invalid(reason));
            }
        }
        features.check()?;
        Ok(features)
    }

    fn set_writes(&mut self, writes: Writes) -> Result<(), TableError> {
        let name = |writes| match writes {
            Writes::Error => "error_writes",
            Writes::Drop | Writes::Fail => "drop_writes",
        };
        match self.writes {
            Writes::Fail => self.writes = writes,
            same if same == writes => {
                return Err(invalid(format!("Feature {} duplicated", name(writes))));
            }
            other => {
                let reason = format!(
                    "Feature {} conflicts with feature {}",
                    name(writes),
                    name(other)
                );
                return Err(invalid(reason));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TableError> {
        let name = match self.writes {
            Writes::Fail => return Ok(()),
            Writes::Drop => "drop_writes",
            Writes::Error => "error_writes",
        };
        if self.corruption.as_ref().is_some_and(|c| c.writes) {
            let reason =
                format!("{name} is incompatible with corrupt_bio_byte with the WRITE flag set");
            return Err(invalid(reason));
        }
        Ok(())
    }
}

impl Corruption {
    fn parse(words: &mut std::slice::Iter<'_, String>) -> Result<Self, TableError> {
        let nth = number(words, 1..=u32::MAX, "Invalid corrupt bio byte")?;
        let direction = words.next().map_or("", String::as_str);
        let writes = match direction {
            "w" | "W" => true,
            "r" | "R" => false,
            _ => {
                let reason = format!("Invalid corrupt bio direction (r or w): '{direction}'");
                return Err(invalid(reason));
            }
        };
        let value = number(
            words,
            0..=255,
            "Invalid corrupt value to write into bio byte (0-255)",
        )?;
        let flags = number(words, 0..=u32::MAX, "Invalid corrupt bio flags mask")?;
        Ok(Self {
            nth,
            writes,
            value: u8::try_from(value).unwrap_or(u8::MAX),
            flags,
        })
    }

    /// As in a table line, with a blank at the end.
    pub fn words(&self) -> String {
        let direction = if self.writes { 'w' } else { 'r' };
        format!(
            "corrupt_bio_byte {} {direction} {} {} ",
            self.nth, self.value, self.flags
        )
    }

    /// Whether a request of this kind is changed.
    pub fn is_meant(&self, io: &Io) -> bool {
        self.writes == (io.op != Op::Read) && operation_flags(io) & self.flags == self.flags
    }

    /// Changes the byte; gives what it was, if the request is so long.
    pub fn spoil(&self, io: &mut Io) -> Option<u8> {
        self.put(io, self.value)
    }

    /// Sets the byte.
    pub fn put(&self, io: &mut Io, value: u8) -> Option<u8> {
        let at = usize::try_from(self.nth - 1).ok()?;
        let byte = io.buf.as_mut_slice().get_mut(at)?;
        Some(std::mem::replace(byte, value))
    }
}

/// The next word, a number in a range; `text` is what is wrong when it is not.
fn number(
    words: &mut std::slice::Iter<'_, String>,
    range: std::ops::RangeInclusive<u32>,
    text: &str,
) -> Result<u32, TableError> {
    let word = words.next().map_or("", String::as_str);
    scan_u32(word)
        .filter(|number| range.contains(number))
        .ok_or_else(|| invalid(format!("{text}: '{word}'")))
}

/// What of the kernel's `bi_opf` is known of a request: operation, FUA, flush.
fn operation_flags(io: &Io) -> u32 {
    let operation = match io.op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 1 | PREFLUSH,
        Op::Discard => 3,
        Op::WriteZeroes => 9,
    };
    let fua = if io.flags.fua { FUA } else { 0 };
    operation | fua
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

const FEATURES_MAX: u32 = 6;
/// What `corrupt_bio_byte` counts for, with its four parameters.
pub(super) const CORRUPTION_WORDS: u32 = 5;
/// `REQ_FUA` and `REQ_PREFLUSH` of Linux 6.1.
const FUA: u32 = 1 << 17;
const PREFLUSH: u32 = 1 << 18;
