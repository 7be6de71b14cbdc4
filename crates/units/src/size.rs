//! Sizes as people type them: `10G`, `64K`, `2097152s`.

/// The text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a size: give bytes, or a number with s (sectors), K, M, G or T")]
pub struct ParseSizeError(String);

/// Parses a size in bytes: a number with an optional unit `s` (512-byte sectors), or `K`, `M`, `G`,
/// `T`, `P` (powers of 1024, either case).
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let wrong = || ParseSizeError(text.to_owned());
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift = match unit {
        "" => 0,
        "s" => 9,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("8s"), Ok(4096));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        for wrong in [
            "",
            "G",
            "-1",
            "1.5G",
            "10GB",
            "99999999999999999999",
            "99999999999P",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
