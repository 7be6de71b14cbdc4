//! What targets' arguments and lines have in common: numbers as the kernel reads them, devices, and how measurements begin.

use thinmap_dm::{ConstructCx, DeviceUse, OpenDevice, TableError};

/// A number as `sscanf("%llu%c")` takes it: digits and nothing after. Unlike there, one that does not fit is refused.
pub(crate) fn parse_u64(word: &str) -> Option<u64> {
    if word.is_empty() || !word.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    word.parse().ok()
}

/// A number as `kstrtouint(.., 10, ..)` takes it: an optional plus, digits, at most one newline after.
pub(crate) fn parse_u32(word: &str) -> Option<u32> {
    parse_unsigned(word).and_then(|number| u32::try_from(number).ok())
}

/// A number as `kstrtoul(.., 10, ..)` takes it, in the same way.
pub(crate) fn parse_unsigned(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let digits = digits.strip_suffix('\n').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A number as `sscanf("%u%c")` takes it. Unlike there, one that does not fit is refused, not cut.
pub(crate) fn scan_u32(word: &str) -> Option<u32> {
    parse_u64(word).and_then(|number| u32::try_from(number).ok())
}

/// A device that the table names; `what` is what the kernel says when it cannot be had, and the reason follows.
pub(crate) fn open_device(
    cx: &ConstructCx<'_>,
    target: &str,
    spec: &str,
    read_only: bool,
    what: &str,
) -> Result<DeviceUse, TableError> {
    cx.open(target, spec, read_only)
        .map_err(|error| TableError {
            reason: format!("{what}: {}", error.reason),
            ..error
        })
}

/// The same for targets that open a device in their own way even in a read-only table.
pub(crate) fn open_device_in_any_table(
    cx: &ConstructCx<'_>,
    target: &str,
    spec: &str,
    read_only: bool,
    what: &str,
) -> Result<DeviceUse, TableError> {
    let request = OpenDevice {
        spec,
        read_only,
        by: cx.dev_no,
    };
    cx.env
        .opener
        .open(request)
        .map_err(|error| TableError::new(target, format!("{what}: {}", error.reason), error.errno))
}

/// How every measurement line begins that is not empty.
pub(crate) fn measured(target: &str, [major, minor, patch]: [u32; 3]) -> String {
    format!("target_name={target},target_version={major}.{minor}.{patch}")
}
