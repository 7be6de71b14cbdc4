//! `metadata-size`: how large a metadata device should be, by thin-provisioning-tools 0.9's estimate.

/// A unit of size: its letter, its name and its bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Unit {
    /// `s`, `k`, `K`, ...
    pub letter: char,
    /// `sectors`, `kibibytes`, ...
    pub name: &'static str,
    /// Bytes in one.
    pub bytes: f64,
}

/// Every unit, in thin_metadata_size's order: small letters are powers of 1024, capital ones of 1000.
pub const UNITS: &[Unit] = &[
    unit('b', "bytes", 1.0),
    unit('s', "sectors", 512.0),
    unit('k', "kibibytes", 1024.0),
    unit('K', "kilobytes", 1e3),
    unit('m', "mebibytes", 1_048_576.0),
    unit('M', "megabytes", 1e6),
    unit('g', "gibibytes", 1_073_741_824.0),
    unit('G', "gigabytes", 1e9),
    unit('t', "tebibytes", 1_099_511_627_776.0),
    unit('T', "terabytes", 1e12),
    unit('p', "pebibytes", 1_125_899_906_842_624.0),
    unit('P', "petabytes", 1e15),
    unit('e', "ebibytes", 1_152_921_504_606_846_976.0),
    unit('E', "exabytes", 1e18),
    unit('z', "zebibytes", 1_180_591_620_717_411_303_424.0),
    unit('Z', "zetabytes", 1e21),
    unit('y', "yobibytes", 1_208_925_819_614_629_174_706_176.0),
    unit('Y', "yottabytes", 1e24),
];

const fn unit(letter: char, name: &'static str, bytes: f64) -> Unit {
    Unit {
        letter,
        name,
        bytes,
    }
}

impl Unit {
    /// The unit with this letter, or whose name begins so.
    pub fn find(word: &str) -> Option<Self> {
        let mut letters = word.chars();
        let found = match (letters.next(), letters.next()) {
            (Some(letter), None) => UNITS.iter().find(|unit| unit.letter == letter),
            (Some(_), Some(_)) => UNITS.iter().find(|unit| unit.name.starts_with(word)),
            (None, _) => None,
        };
        found.copied()
    }
}

/// A size as it was given: `64k`.
#[derive(Clone, PartialEq, Debug)]
pub struct Size {
    /// The number before the unit.
    pub number: u64,
    /// The unit, if one was given.
    pub unit: Option<Unit>,
}

impl Size {
    /// Reads a size.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number = number
            .parse()
            .map_err(|_| format!("'{text}' is no size: a number and a unit are expected"))?;
        let unit = match unit {
            "" => None,
            word => Some(Unit::find(word).ok_or_else(|| format!("'{text}' has an unknown unit"))?),
        };
        Ok(Self { number, unit })
    }

    /// In sectors, which is what a number without unit means; `None` when they are too many.
    pub fn sectors(&self) -> Option<u64> {
        let bytes = self.unit.map_or(512.0, |unit| unit.bytes);
        if bytes >= u64::MAX as f64 {
            return None;
        }
        self.number
            .checked_mul(bytes as u64)
            .map(|bytes| bytes / 512)
    }

    /// The number itself, times its unit's bytes.
    pub fn count(&self) -> Option<u64> {
        let factor = self.unit.map_or(1.0, |unit| unit.bytes);
        if factor >= u64::MAX as f64 {
            return None;
        }
        self.number.checked_mul(factor as u64)
    }

    /// As thin_metadata_size repeats it.
    pub fn text(&self, unit_if_none: &str) -> String {
        format!(
            "{}{}",
            self.number,
            self.unit.map_or(unit_if_none, |unit| unit.name)
        )
    }
}

/// Bytes of metadata for a pool of `pool_sectors` in blocks of `block_sectors` and as many as `max_thins` volumes:
/// leaves half full, one more block for each volume and one for the superblock.
pub fn estimate_bytes(block_sectors: u64, pool_sectors: u64, max_thins: u64) -> u64 {
    /// What thin-provisioning-tools 0.9 takes a node to hold.
    const MAPPINGS_PER_NODE: u64 = (4096 - 64) / 16;
    let blocks = pool_sectors.saturating_mul(2) / block_sectors;
    (blocks / MAPPINGS_PER_NODE)
        .saturating_add(max_thins)
        .saturating_add(1)
        .saturating_mul(4096)
}

/// A number of units as thin_metadata_size prints it.
pub fn amount(bytes: u64, unit: Unit) -> String {
    let amount = bytes as f64 / unit.bytes;
    let fraction = amount - amount.floor();
    if fraction == 0.0 {
        return format!("{amount:.0}");
    }
    if fraction >= 1e-2 {
        return format!("{amount:.2}");
    }
    // C's %.2e writes a sign and two digits of exponent.
    let text = format!("{amount:.2e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}
