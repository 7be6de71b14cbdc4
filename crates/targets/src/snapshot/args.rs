//! The line of a `snapshot` or `snapshot-merge`: `<origin> <COW device> <P|PO|N> <chunk> [<n> <feature>...]`.
//!
//! Order of the checks is that of Linux `dm-snap.c`, `snapshot_ctr`.

use thinmap_block::BlockDevice;
use thinmap_dm::TableError;

use crate::args::{parse_u32, parse_u64};

/// Features that a line may name.
const FEATURES_MAX: u64 = 2;
/// Chunks are below 2 GiB.
const CHUNK_SECTORS_MAX: u32 = i32::MAX as u32 >> 9;

/// How exceptions are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// On disk; with `overflow` a snapshot that is full keeps what it has.
    Persistent { overflow: bool },
    /// In memory.
    Transient,
}

impl Kind {
    /// As in a table line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Persistent { overflow: true } => "PO",
            Self::Persistent { overflow: false } => "P",
            Self::Transient => "N",
        }
    }
}

/// Feature arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Features {
    pub discard_zeroes_cow: bool,
    pub discard_passdown_origin: bool,
}

impl Features {
    /// As in a table line, with a blank before.
    pub fn table_words(self) -> String {
        match (self.discard_zeroes_cow, self.discard_passdown_origin) {
            (true, true) => " 2 discard_zeroes_cow discard_passdown_origin",
            (true, false) => " 1 discard_zeroes_cow",
            (false, _) => "",
        }
        .to_owned()
    }
}

/// A line whose devices are not open yet.
pub(super) struct Args<'a> {
    pub origin: &'a str,
    pub cow: &'a str,
    kind: &'a str,
    chunk: &'a str,
    pub features: Features,
}

/// Takes a line apart.
pub(super) fn parse<'a>(name: &str, argv: &'a [String]) -> Result<Args<'a>, TableError> {
    let [origin, cow, kind, chunk, rest @ ..] = argv else {
        return Err(TableError::invalid(name, "requires 4 or more arguments"));
    };
    Ok(Args {
        origin,
        cow,
        kind,
        chunk,
        features: parse_features(name, rest)?,
    })
}

fn parse_features(name: &str, argv: &[String]) -> Result<Features, TableError> {
    let mut features = Features::default();
    let Some((count, words)) = argv.split_first() else {
        return Ok(features);
    };
    let wanted = parse_u64(count).filter(|n| *n <= FEATURES_MAX);
    let wanted = wanted.and_then(|n| usize::try_from(n).ok());
    let Some(wanted) = wanted.filter(|n| *n <= words.len()) else {
        let reason = format!("Invalid number of feature arguments: '{count}'");
        return Err(TableError::invalid(name, reason));
    };
    for word in &words[..wanted] {
        match word.to_ascii_lowercase().as_str() {
            "discard_zeroes_cow" => features.discard_zeroes_cow = true,
            "discard_passdown_origin" => features.discard_passdown_origin = true,
            _ => {
                let reason = format!("Unrecognised feature requested: '{word}'");
                return Err(TableError::invalid(name, reason));
            }
        }
    }
    if features.discard_passdown_origin && !features.discard_zeroes_cow {
        let reason = "discard_passdown_origin feature depends on discard_zeroes_cow";
        return Err(TableError::invalid(name, reason));
    }
    Ok(features)
}

impl Args<'_> {
    /// Kind and chunk size (sectors; 0 where the line leaves it open), checked against the devices.
    pub fn store(
        &self,
        name: &str,
        origin: &dyn BlockDevice,
        cow: &dyn BlockDevice,
    ) -> Result<(Kind, u32), TableError> {
        let wrong = |why: String| {
            TableError::invalid(name, format!("Couldn't create exception store: {why}"))
        };
        let mut letters = self.kind.chars().map(|c| c.to_ascii_uppercase());
        let (store, option) = (letters.next(), letters.next());
        if !matches!(store, Some('P' | 'N')) {
            let why = format!("Persistent flag is not P or N: '{}'", self.kind);
            return Err(wrong(why));
        }
        let chunk = parse_u32(self.chunk)
            .ok_or_else(|| wrong(format!("Invalid chunk size: '{}'", self.chunk)))?;
        if chunk != 0 {
            check_chunk(chunk, origin, cow).map_err(wrong)?;
        }
        // COMPAT: only the second letter counts, and for N none.
        let kind = match (store, option) {
            (Some('P'), None) => Kind::Persistent { overflow: false },
            (Some('P'), Some('O')) => Kind::Persistent { overflow: true },
            (Some('P'), Some(_)) => {
                let why = format!("Unsupported persistent store option: '{}'", self.kind);
                return Err(wrong(why));
            }
            _ => Kind::Transient,
        };
        Ok((kind, chunk))
    }
}

/// Whether a chunk size, in sectors, suits the devices; what is wrong with it.
pub(super) fn check_chunk(
    chunk: u32,
    origin: &dyn BlockDevice,
    cow: &dyn BlockDevice,
) -> Result<(), String> {
    if !chunk.is_power_of_two() {
        return Err(format!("Chunk size is not a power of 2: {chunk}"));
    }
    let fits = |dev: &dyn BlockDevice| chunk.is_multiple_of(dev.limits().logical_block_size >> 9);
    if !fits(cow) || !fits(origin) {
        let why = format!("Chunk size is not a multiple of device blocksize: {chunk}");
        return Err(why);
    }
    if chunk > CHUNK_SECTORS_MAX {
        return Err(format!("Chunk size is too high: {chunk}"));
    }
    Ok(())
}
