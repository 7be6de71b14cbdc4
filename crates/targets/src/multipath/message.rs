//! Messages: paths out of use and into it, groups avoided and used, what happens without a path.

use std::sync::Arc;

use thinmap_dm::{DeviceId, Environment, MessageError, OpenDevice};
use thinmap_units::DevNo;

use super::routing::{Group, Routing};
use crate::args::parse_u64;

/// What is needed to find a device that a message names.
pub(super) struct Finder {
    pub(super) env: Arc<Environment>,
    pub(super) dev_no: DevNo,
    pub(super) read_only: bool,
}

/// Obeys a message to a device that is not suspended.
pub(super) fn obey(
    routing: &Routing,
    finder: &Finder,
    argv: &[String],
) -> Result<(), MessageError> {
    let lower = argv.first().map(|word| word.to_ascii_lowercase());
    let word = lower.as_deref().unwrap_or_default();
    let [_, argument] = argv else {
        return match (word, argv.len()) {
            ("queue_if_no_path", 1) => {
                routing.set_queue_if_no_path(true);
                Ok(())
            }
            ("fail_if_no_path", 1) => {
                routing.set_queue_if_no_path(false);
                Ok(())
            }
            (_, count) => Err(refused(format!(
                "Invalid multipath message arguments. Expected 2 arguments, got {count}."
            ))),
        };
    };
    match word {
        "disable_group" | "enable_group" => {
            let (_, group) = numbered(routing, argument, "bypass_pg")?;
            routing.bypass(group, word == "disable_group");
        }
        "switch_group" => {
            let (index, _) = numbered(routing, argument, "switch_pg_num")?;
            routing.switch_to(index);
        }
        "fail_path" | "reinstate_path" => {
            let id = finder.find(routing, argument)?;
            let mut paths = routing.groups.iter().flat_map(|group| &group.paths);
            let mut found = false;
            paths
                .by_ref()
                .filter(|path| path.device.id == id)
                .for_each(|path| {
                    found = true;
                    match word {
                        "fail_path" => routing.fail_path(path),
                        _ => routing.reinstate_path(path),
                    }
                });
            if !found {
                return Err(refused(format!("{argument}: no path of this device")));
            }
        }
        _ => {
            let first = argv.first().map_or("", String::as_str);
            let reason = format!("Unrecognised multipath message received: {first}");
            return Err(refused(reason));
        }
    }
    Ok(())
}

/// A group by its number, from 1.
fn numbered<'a>(
    routing: &'a Routing,
    number: &str,
    by: &str,
) -> Result<(usize, &'a Group), MessageError> {
    parse_u64(number)
        .and_then(|number| usize::try_from(number).ok())
        .and_then(|number| number.checked_sub(1))
        .and_then(|index| Some((index, routing.groups.get(index)?)))
        .ok_or_else(|| refused(format!("invalid PG number supplied to {by}: '{number}'")))
}

impl Finder {
    fn find(&self, routing: &Routing, spec: &str) -> Result<DeviceId, MessageError> {
        let mut paths = routing.groups.iter().flat_map(|group| &group.paths);
        // As the status names it: also a device that cannot be opened any more.
        if let Some(path) = paths.find(|path| path.device.name.to_string() == spec) {
            return Ok(path.device.id);
        }
        let request = OpenDevice {
            spec,
            read_only: self.read_only,
            by: self.dev_no,
        };
        let device = self.env.opener.open(request).map_err(|error| {
            let reason = format!("message: error getting device {spec}: {}", error.reason);
            MessageError::new(reason, error.errno)
        })?;
        Ok(device.id)
    }
}

fn refused(reason: String) -> MessageError {
    MessageError::new(reason, EINVAL)
}

const EINVAL: i32 = 22;
