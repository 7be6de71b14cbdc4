//! `message` and `setgeometry`.

use rustix::io::Errno;
use thinmap_control::{DmError, Geometry, Request, Response};
use thinmap_units::Sector;

use super::command_table::Call;
use super::switches::Switch;
use super::task::Subject;
use super::{Dmsetup, Done, Failed};

/// `message`
pub fn message(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let (subject, rest) = device_and_rest(dmsetup, call.args)?;
    let Some((sector, words)) = rest.split_first() else {
        return dmsetup.fail("Invalid sector.");
    };
    let Some(sector) = sector_number(sector) else {
        return dmsetup.fail("Invalid sector.");
    };
    if words.is_empty() {
        dmsetup.console.error("No message supplied.");
    }
    let message = words.join(" ");
    let response = dmsetup.task("message", &subject, |device| Request::Message {
        device,
        sector,
        message,
    })?;
    if let Response::Message {
        text: Some(text), ..
    } = response
    {
        dmsetup.console.print(&text);
        if !text.is_empty() && !text.ends_with('\n') {
            dmsetup.console.print("\n");
        }
    }
    Ok(())
}

/// The device is the first argument unless an option names it.
fn device_and_rest<'a>(
    dmsetup: &mut Dmsetup<'_>,
    args: &'a [String],
) -> Result<(Subject, &'a [String]), Failed> {
    if dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major) {
        return Ok((dmsetup.subject(None)?, args));
    }
    match args.split_first() {
        Some((name, rest)) => Ok((dmsetup.subject(Some(name))?, rest)),
        None => dmsetup.fail("No device specified."),
    }
}

/// C's `strtoull`, which lets a minus sign wrap around.
fn sector_number(text: &str) -> Option<Sector> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(Sector(if negative {
        number.wrapping_neg()
    } else {
        number
    }))
}

/// `setgeometry`
pub fn set_geometry(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let (subject, rest) = device_and_rest(dmsetup, call.args)?;
    let geometry = match geometry(rest) {
        Ok(geometry) => geometry,
        Err(error) => return Err(dmsetup.refused("setgeometry", &subject, error).into()),
    };
    dmsetup.task("setgeometry", &subject, |device| Request::SetGeometry {
        device,
        geometry,
    })?;
    Ok(())
}

fn geometry(words: &[String]) -> Result<Geometry, DmError> {
    let wrong = |text: &str| DmError::new(Errno::INVAL, format!("device-mapper: ioctl: {text}"));
    let numbers: Vec<u64> = words.iter().take(4).flat_map(|word| word.parse()).collect();
    let [cylinders, heads, sectors, start] = numbers[..] else {
        return Err(wrong("Unable to interpret geometry settings."));
    };
    let beyond = |_| wrong("Geometry exceeds range limits.");
    Ok(Geometry {
        cylinders: cylinders.try_into().map_err(beyond)?,
        heads: heads.try_into().map_err(beyond)?,
        sectors_per_track: sectors.try_into().map_err(beyond)?,
        start: Sector(start),
    })
}
