//! Commands that take devices away: `remove`, `remove_all`, `wipe_table`.

use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use thinmap_control::{Request, Response, StatusKind, StatusQuery, TableLine};
use thinmap_units::Sector;

use super::command_table::Call;
use super::switches::Switch;
use super::task::{Subject, TaskEnd};
use super::{Dmsetup, Done, Failed};

/// How often and how fast `--retry` tries a busy device.
const RETRIES: u32 = 25;
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// `remove`
pub fn remove(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let name = call.args.first().map(String::as_str);
    if dmsetup.switches.has(Switch::Force)
        && let Some(name) = name
    {
        // Whatever comes of it, the removal is tried.
        let _ = wipe(dmsetup, name);
    }
    let subject = dmsetup.subject(name)?;
    let deferred = dmsetup.switches.has(Switch::Deferred);
    let mut tries = 1;
    loop {
        let end = match dmsetup.task("remove", &subject, |device| Request::Remove {
            device,
            deferred,
        }) {
            Ok(_) => return Ok(()),
            Err(end) => end,
        };
        let busy = TaskEnd::Failed {
            errno: Errno::BUSY.raw_os_error(),
        };
        tries += 1;
        if end != busy || !dmsetup.switches.has(Switch::Retry) || tries > RETRIES {
            return Err(end.into());
        }
        thread::sleep(RETRY_DELAY);
    }
}

/// `wipe_table`
pub fn wipe_table(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    match call.args.first() {
        Some(name) if !name.is_empty() => wipe(dmsetup, name),
        _ => dmsetup.fail("No device specified."),
    }
}

/// Replaces a device's table by the error target.
fn wipe(dmsetup: &mut Dmsetup<'_>, name: &str) -> Done {
    let subject = dmsetup.subject(Some(name))?;
    let lines = vec![TableLine {
        start: Sector::ZERO,
        len: device_size(dmsetup, &subject),
        target: "error".into(),
        params: String::new(),
    }];
    let read_only = dmsetup.switches.has(Switch::ReadOnly);
    dmsetup.device_task("reload", &subject, |device| Request::TableLoad {
        device,
        is_whole: true,
        lines,
        read_only,
    })?;
    if dmsetup.switches.has(Switch::Force) {
        // A device that is taken by force must not be waited for.
        dmsetup.switches.set(Switch::NoLockFs, "");
        dmsetup.switches.set(Switch::NoFlush, "");
    }
    if dmsetup.resume_device(&subject).is_err() {
        let _ = dmsetup.task("clear", &subject, |device| Request::TableClear { device });
        return Err(Failed);
    }
    Ok(())
}

/// The length of the live table; 0 when it cannot be had, which has been said.
fn device_size(dmsetup: &mut Dmsetup<'_>, subject: &Subject) -> Sector {
    let query = StatusQuery {
        kind: StatusKind::Table,
        inactive: dmsetup.switches.has(Switch::Inactive),
        no_flush: false,
    };
    let response = dmsetup.task("table", subject, |device| Request::TableStatus {
        device,
        query,
    });
    let Ok(Response::Status(status)) = response else {
        return Sector::ZERO;
    };
    let lengths = status.lines.unwrap_or_default();
    lengths.iter().fold(Sector::ZERO, |sum, line| {
        sum.checked_add(line.len).unwrap_or(sum)
    })
}

/// `remove_all`
///
/// COMPAT: like dmsetup's, it succeeds when either the removal or the look at the nodes does.
pub fn remove_all(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    let first = remove_closed(dmsetup);
    if !dmsetup.switches.has(Switch::Force) {
        return first;
    }
    let devices = dmsetup.list_devices()?;
    if devices.is_empty() {
        return first;
    }
    for device in devices {
        let name = dmsetup.shown_name(&device.name)?;
        let _ = wipe(dmsetup, &name);
    }
    let _ = remove_closed(dmsetup);
    let left = dmsetup.list_devices()?.len();
    if left > 0 {
        dmsetup
            .console
            .error(&format!("Unable to remove {left} device(s)."));
    }
    Ok(())
}

fn remove_closed(dmsetup: &mut Dmsetup<'_>) -> Done {
    let request = Request::RemoveAll {
        deferred: dmsetup.switches.has(Switch::Deferred),
    };
    let removed = dmsetup.send("remove_all", &Subject::default(), &request);
    match (removed, dmsetup.list_devices()) {
        (Err(_), Err(_)) => Err(Failed),
        _ => Ok(()),
    }
}
