//! A thin-pool line's arguments: `<metadata dev> <data dev> <block size> <low water mark> [<n> <feature>...]`.
//!
//! Texts and order of the checks are those of Linux `dm-thin.c`, `pool_ctr`.

use thinmap_dm::TableError;
use thinmap_units::Sector;

use crate::args::parse_u64;

pub(crate) const NAME: &str = "thin-pool";

/// 64 KiB.
const BLOCK_SECTORS_MIN: u64 = 128;
/// 1 GiB.
const BLOCK_SECTORS_MAX: u64 = 2_097_152;
/// The kernel counts at most this many features, though it knows five.
const FEATURES_MAX: u64 = 4;

/// What a pool was asked to do, or does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Partly written new blocks are zeroed.
    pub zero_new_blocks: bool,
    /// Discards unmap.
    pub discard_enabled: bool,
    /// Discards go on to the data device.
    pub discard_passdown: bool,
    /// Metadata must not change.
    pub read_only: bool,
    /// Writes that find no space fail at once.
    pub error_if_no_space: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            zero_new_blocks: true,
            discard_enabled: true,
            discard_passdown: true,
            read_only: false,
            error_if_no_space: false,
        }
    }
}

impl Features {
    /// As in a table line, counted, each word followed by a space.
    pub fn table_words(&self) -> String {
        let words = [
            (!self.zero_new_blocks, "skip_block_zeroing"),
            (!self.discard_enabled, "ignore_discard"),
            (!self.discard_passdown, "no_discard_passdown"),
            (self.read_only, "read_only"),
            (self.error_if_no_space, "error_if_no_space"),
        ];
        let count = words.iter().filter(|(on, _)| *on).count();
        let mut out = format!("{count} ");
        for (_, word) in words.iter().filter(|(on, _)| *on) {
            out.push_str(word);
            out.push(' ');
        }
        out
    }
}

/// A line, parsed; no device was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolArgs {
    /// The metadata device as named.
    pub metadata: String,
    /// The data device as named.
    pub data: String,
    /// Size of a data block.
    pub block: Sector,
    /// An event is raised when no more than this many data blocks are free.
    pub low_water: u64,
    /// Features.
    pub features: Features,
}

/// Parses a line.
pub fn parse(argv: &[String]) -> Result<PoolArgs, TableError> {
    let wrong = |reason: &str| Err(TableError::invalid(NAME, reason));
    let [metadata, data, block, low_water, rest @ ..] = argv else {
        return wrong("Invalid argument count");
    };
    if metadata == data {
        return wrong("Error setting metadata or data device");
    }
    let features = parse_features(rest)?;
    let block = match parse_u64(block) {
        Some(sectors)
            if (BLOCK_SECTORS_MIN..=BLOCK_SECTORS_MAX).contains(&sectors)
                && sectors % BLOCK_SECTORS_MIN == 0 =>
        {
            Sector(sectors)
        }
        _ => return wrong("Invalid block size"),
    };
    let Some(low_water) = parse_u64(low_water) else {
        return wrong("Invalid low water mark");
    };
    Ok(PoolArgs {
        metadata: metadata.clone(),
        data: data.clone(),
        block,
        low_water,
        features,
    })
}

fn parse_features(argv: &[String]) -> Result<Features, TableError> {
    let mut features = Features::default();
    let Some((count, words)) = argv.split_first() else {
        return Ok(features);
    };
    let count = parse_u64(count).filter(|n| *n <= FEATURES_MAX);
    let count = count.and_then(|n| usize::try_from(n).ok());
    let Some(count) = count.filter(|n| *n <= words.len()) else {
        return Err(TableError::invalid(
            NAME,
            "Invalid number of pool feature arguments",
        ));
    };
    // What follows the counted words is not looked at, as in the kernel.
    for word in &words[..count] {
        match word.to_ascii_lowercase().as_str() {
            "skip_block_zeroing" => features.zero_new_blocks = false,
            "ignore_discard" => features.discard_enabled = false,
            "no_discard_passdown" => features.discard_passdown = false,
            "read_only" => features.read_only = true,
            "error_if_no_space" => features.error_if_no_space = true,
            _ => {
                return Err(TableError::invalid(
                    NAME,
                    format!("Unrecognised pool feature requested: {word}"),
                ));
            }
        }
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<PoolArgs, TableError> {
        let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&argv)
    }

    #[test]
    fn a_whole_line() {
        let args = parse_line("7:0 7:1 128 65536 1 skip_block_zeroing").expect("valid");
        assert_eq!((args.block, args.low_water), (Sector(128), 65536));
        assert!(!args.features.zero_new_blocks);
        assert_eq!(args.features.table_words(), "1 skip_block_zeroing ");
        assert_eq!(Features::default().table_words(), "0 ");
    }

    #[test]
    fn every_argument_wrong_in_turn() {
        for (line, reason) in [
            ("", "Invalid argument count"),
            ("a b 128", "Invalid argument count"),
            ("a a 128 0", "Error setting metadata or data device"),
            ("a b 127 0", "Invalid block size"),
            ("a b 192 0", "Invalid block size"),
            ("a b 0 0", "Invalid block size"),
            ("a b 2097280 0", "Invalid block size"),
            ("a b x 0", "Invalid block size"),
            ("a b 128 x", "Invalid low water mark"),
            ("a b 128 -1", "Invalid low water mark"),
            ("a b 128 0 5", "Invalid number of pool feature arguments"),
            ("a b 128 0 x", "Invalid number of pool feature arguments"),
            ("a b 128 0 1", "Invalid number of pool feature arguments"),
            (
                "a b 128 0 1 fast",
                "Unrecognised pool feature requested: fast",
            ),
        ] {
            let error = parse_line(line).expect_err(line);
            assert_eq!((error.reason.as_str(), error.errno), (reason, 22), "{line}");
        }
    }

    #[test]
    fn the_largest_block_and_odd_multiples_are_taken() {
        for block in ["128", "384", "2097152"] {
            assert!(parse_line(&format!("a b {block} 0 0")).is_ok(), "{block}");
        }
    }
}
