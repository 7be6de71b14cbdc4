//! Numbers in target arguments, as the kernel reads them.

/// A number as `sscanf("%llu%c")` takes it: digits and nothing after. Unlike there, one that does not fit is refused.
pub(crate) fn parse_u64(word: &str) -> Option<u64> {
    if word.is_empty() || !word.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    word.parse().ok()
}

/// A number as `kstrtouint(.., 10, ..)` takes it: an optional plus, digits, at most one newline after.
pub(crate) fn parse_u32(word: &str) -> Option<u32> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let digits = digits.strip_suffix('\n').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}
