//! Commands that change a device's state: `suspend`, `resume`, `clear`, `wait`, `rename`.

use thinmap_control::{DmError, Request, Response, StatusKind, StatusQuery, SuspendOptions};
use thinmap_units::{DmName, DmUuid, NAME_BYTES_MAX};

use super::command_table::Call;
use super::names::{self, Kind, Mangling};
use super::switches::{Switch, atoi};
use super::task::Subject;
use super::{Dmsetup, Done};

impl Dmsetup<'_> {
    pub(super) fn suspend_options(&self) -> SuspendOptions {
        SuspendOptions {
            lock_fs: !self.switches.has(Switch::NoLockFs),
            no_flush: self.switches.has(Switch::NoFlush),
        }
    }

    /// Resumes a device; used by `resume` and by what replaces tables.
    pub(super) fn resume_device(
        &mut self,
        subject: &Subject,
    ) -> Result<thinmap_control::DeviceInfo, super::task::TaskEnd> {
        let options = self.suspend_options();
        let info = self.device_task("resume", subject, |device| Request::Resume {
            device,
            options,
        })?;
        self.apply_read_ahead(info.name.as_str());
        Ok(info)
    }
}

/// `suspend`
pub fn suspend(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let subject = dmsetup.subject(call.args.first().map(String::as_str))?;
    let options = dmsetup.suspend_options();
    let info = dmsetup.device_task("suspend", &subject, |device| Request::Suspend {
        device,
        options,
    })?;
    dmsetup.show_if_verbose(&info)
}

/// `resume`
pub fn resume(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let subject = dmsetup.subject(call.args.first().map(String::as_str))?;
    let info = dmsetup.resume_device(&subject)?;
    dmsetup.show_if_verbose(&info)
}

/// `clear`
pub fn clear(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let subject = dmsetup.subject(call.args.first().map(String::as_str))?;
    let info = dmsetup.device_task("clear", &subject, |device| Request::TableClear { device })?;
    dmsetup.show_if_verbose(&info)
}

/// `wait`
pub fn wait(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    let (name, rest) = match call.args.split_first() {
        _ if by_option => (None, call.args),
        Some((name, rest)) => (Some(name.as_str()), rest),
        None => return dmsetup.fail("No device specified."),
    };
    let event_nr = rest.last().map_or(0, |text| atoi(text) as u32);
    let subject = dmsetup.subject(name)?;
    let query = StatusQuery {
        kind: StatusKind::Info,
        inactive: dmsetup.switches.has(Switch::Inactive),
        no_flush: dmsetup.switches.has(Switch::NoFlush),
    };
    let response = dmsetup.task("waitevent", &subject, |device| Request::Wait {
        device,
        event_nr,
        query,
    })?;
    match response {
        Response::Status(status) => dmsetup.show_if_verbose(&status.info),
        _ => Err(dmsetup.unexpected("waitevent", &subject).into()),
    }
}

/// `rename`, also with `--setuuid`
pub fn rename(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let (name, new) = match call.args {
        [name, new] => (Some(name.as_str()), new),
        [new] => (None, new),
        _ => return dmsetup.fail("Incorrect number of arguments."),
    };
    rename_to(dmsetup, name, new)
}

/// Renames a device, or sets its uuid when `--setuuid` was given.
pub fn rename_to(dmsetup: &mut Dmsetup<'_>, name: Option<&str>, new: &str) -> Done {
    let subject = dmsetup.subject(name)?;
    // The kernel looks renames up by name alone.
    let device = DmName::new(&subject.name).map_err(|_| DmError::no_device());
    let request = if dmsetup.switches.has(Switch::SetUuid) {
        let uuid = dmsetup.mangle_uuid(new)?;
        let invalid = |_| invalid_new_name();
        device.and_then(|device| {
            let uuid = DmUuid::new(&uuid).map_err(invalid)?;
            Ok(Request::SetUuid { device, uuid })
        })
    } else {
        let new_name = new_name(new, dmsetup.mangling).or_else(|text| dmsetup.fail(&text))?;
        device.and_then(|device| {
            let new_name = DmName::new(&new_name).map_err(|_| invalid_new_name())?;
            Ok(Request::Rename { device, new_name })
        })
    };
    match request {
        Ok(request) => {
            dmsetup.send("rename", &subject, &request)?;
            Ok(())
        }
        Err(error) => Err(dmsetup.refused("rename", &subject, error).into()),
    }
}

fn invalid_new_name() -> DmError {
    let text = "device-mapper: ioctl: Invalid new mapped device name or uuid string supplied.";
    DmError::new(rustix::io::Errno::INVAL, text)
}

/// The new name in mangled form; an error is the lines to print.
fn new_name(new: &str, mangling: Mangling) -> Result<String, String> {
    if new.contains('/') {
        return Err(format!("Name \"{new}\" invalid. It contains \"/\"."));
    }
    if new.len() > NAME_BYTES_MAX {
        return Err(format!("Name \"{new}\" too long"));
    }
    if new.is_empty() {
        return Err("Non empty new name is required.".into());
    }
    names::check_mangled_once(new, Kind::NewName, mangling)?;
    if mangling == Mangling::None {
        return Ok(new.to_owned());
    }
    names::mangle(new, Kind::NewName, mangling)
        .map_err(|text| format!("{text}\nFailed to mangle new device name \"{new}\""))
}
