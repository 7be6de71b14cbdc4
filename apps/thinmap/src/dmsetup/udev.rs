//! The udev cookie commands. Nodes are made by the daemon before a command returns, so there is nothing to wait for:
//! cookies are handed out and taken back as words without a semaphore behind them.

use super::command_table::Call;
use super::switches::Switch;
use super::{Dmsetup, Done, Failed};

/// Upper half of every cookie that udev and libdevmapper share.
const COOKIE_MAGIC: u32 = 0x0d4d;
const FLAGS_SHIFT: u32 = 16;
const FLAG_NAMES: [&str; 7] = [
    "DISABLE_DM_RULES",
    "DISABLE_SUBSYSTEM_RULES",
    "DISABLE_DISK_RULES",
    "DISABLE_OTHER_RULES",
    "LOW_PRIORITY",
    "DISABLE_LIBRARY_FALLBACK",
    "PRIMARY_SOURCE",
];

/// `udevcreatecookie`
pub fn create_cookie(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    // Any base but 0 will do; the process number makes it differ from a neighbour's.
    let base = (std::process::id() & 0xffff).max(1);
    let cookie = COOKIE_MAGIC << FLAGS_SHIFT | base;
    dmsetup.console.line(&format!("0x{cookie:08X}"));
    Ok(())
}

/// `udevreleasecookie`
pub fn release_cookie(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let given = call.args.first().cloned();
    let option = dmsetup
        .switches
        .value(Switch::UdevCookie)
        .map(str::to_owned);
    let environment = std::env::var("DM_UDEV_COOKIE").ok();
    match given.or(option).or(environment) {
        Some(cookie) => cookie_value(dmsetup, &cookie).map(drop),
        None => dmsetup.fail("No udev transaction cookie given."),
    }
}

/// `udevflags`
pub fn flags(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let cookie = cookie_arg(dmsetup, call)?;
    let flags = cookie >> FLAGS_SHIFT;
    for bit in (0..FLAGS_SHIFT).filter(|bit| flags & (1 << bit) != 0) {
        let half = FLAGS_SHIFT / 2;
        let name = match FLAG_NAMES.get(bit as usize) {
            Some(name) => format!("DM_UDEV_{name}_FLAG"),
            None if bit < half => format!("DM_UDEV_FLAG{bit}"),
            None => format!("DM_SUBSYSTEM_UDEV_FLAG{}", bit - half),
        };
        dmsetup.console.line(&format!("{name}='1'"));
    }
    Ok(())
}

/// `udevcomplete`
pub fn complete(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let cookie = cookie_arg(dmsetup, call)?;
    let text = format!("DM_COOKIE_COMPLETED=0x{:<10}", format!("{cookie:x}"));
    dmsetup.console.line(&text);
    Ok(())
}

/// `udevcomplete_all`
pub fn complete_all(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let age = call.args.first().map(|age| age.trim_start());
    if age.is_some_and(|age| !age.starts_with(|c: char| c.is_ascii_digit())) {
        return dmsetup.fail("Failed to read age_in_minutes parameter.");
    }
    let magic = COOKIE_MAGIC;
    dmsetup.console.line(&format!(
        "0 semaphores with keys prefixed by {magic} (0x{magic:x}) destroyed. 0 skipped."
    ));
    Ok(())
}

/// `udevcookies`
pub fn cookies(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    let heading = "Cookie       Semid      Value      Last semop time           Last change time";
    dmsetup.console.line(heading);
    Ok(())
}

fn cookie_arg(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Result<u32, Failed> {
    let text = call.args.first().cloned().unwrap_or_default();
    cookie_value(dmsetup, &text)
}

/// A number in C's notations (decimal, 0x, 0) that is not 0.
fn cookie_value(dmsetup: &mut Dmsetup<'_>, text: &str) -> Result<u32, Failed> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let value = match (hex, text.strip_prefix('0')) {
        (Some(hex), _) => u32::from_str_radix(hex, 16),
        (None, Some(octal)) if !octal.is_empty() => u32::from_str_radix(octal, 8),
        _ => text.parse(),
    };
    match value {
        Ok(value) if value != 0 => Ok(value),
        _ => dmsetup.fail("Incorrect cookie value."),
    }
}
