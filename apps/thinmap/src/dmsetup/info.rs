//! `info` and `splitname`: a device's state at length or as a report's row.

use thinmap_control::{DeviceInfo, Request, TableInfo};

use super::command_table::Call;
use super::fields::Row;
use super::switches::Switch;
use super::task::{TaskEnd, errno_text};
use super::{Dmsetup, Done, node};

/// Target count and mode of the table that is asked about; the live one unless `inactive`.
pub fn shown_table(info: &DeviceInfo, inactive: bool) -> TableInfo {
    let table = if inactive { info.inactive } else { info.live };
    table.unwrap_or(TableInfo {
        target_count: 0,
        read_only: false,
    })
}

/// `info`
pub fn info(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    match call.args.first() {
        None if !by_option => {
            dmsetup.for_all_devices(false, |dmsetup, name| show_one(dmsetup, Some(name)))
        }
        arg => show_one(dmsetup, arg.map(String::as_str)),
    }
}

fn show_one(dmsetup: &mut Dmsetup<'_>, arg: Option<&str>) -> Done {
    let subject = dmsetup.subject(arg)?;
    let inactive = dmsetup.switches.has(Switch::Inactive);
    let asked = dmsetup.device_task("info", &subject, |device| Request::Status {
        device,
        inactive,
    });
    match asked {
        Ok(info) => dmsetup.show_info(&info),
        Err(TaskEnd::Missing) => dmsetup.fail("Device does not exist."),
        Err(end) => Err(end.into()),
    }
}

impl Dmsetup<'_> {
    /// What `-v` adds to most commands.
    pub(super) fn show_if_verbose(&mut self, info: &DeviceInfo) -> Done {
        if self.verbose() {
            self.show_info(info)?;
        }
        Ok(())
    }

    /// A device's state, at length or into the report.
    pub(super) fn show_info(&mut self, info: &DeviceInfo) -> Done {
        if self.switches.has(Switch::Columns) {
            self.report_device(info)
        } else {
            self.show_info_long(info)
        }
    }

    fn show_info_long(&mut self, info: &DeviceInfo) -> Done {
        let name = self.shown_name(&info.name)?;
        let uuid = self.shown_uuid(info.uuid.as_ref())?;
        let table = shown_table(info, self.switches.has(Switch::Inactive));
        let read_ahead = self.read_ahead(info, &name);
        let tables = match (info.live.is_some(), info.inactive.is_some()) {
            (false, false) => "None",
            (true, false) => "LIVE",
            (false, true) => "INACTIVE",
            (true, true) => "LIVE & INACTIVE",
        };
        let mut text = format!("Name:              {name}\n");
        text += &format!(
            "State:             {}{}{}\n",
            if info.suspended {
                "SUSPENDED"
            } else {
                "ACTIVE"
            },
            if table.read_only { " (READ-ONLY)" } else { "" },
            if info.deferred_remove {
                " (DEFERRED REMOVE)"
            } else {
                ""
            },
        );
        if let Some(sectors) = read_ahead {
            text += &format!("Read Ahead:        {sectors}\n");
        }
        text += &format!("Tables present:    {tables}\n");
        text += &format!("Open count:        {}\n", info.open_count);
        text += &format!("Event number:      {}\n", info.event_nr);
        text += &format!(
            "Major, minor:      {}, {}\n",
            info.dev.major, info.dev.minor
        );
        text += &format!("Number of targets: {}\n", table.target_count);
        if !uuid.is_empty() {
            text += &format!("UUID: {uuid}\n");
        }
        self.console.line(&text);
        Ok(())
    }

    /// The read-ahead in sectors. The kernel makes the block device when a table is first loaded; before that there is
    /// none, which libdevmapper complains about and forgives.
    pub(super) fn read_ahead(&mut self, info: &DeviceInfo, shown_name: &str) -> Option<u32> {
        match node::read_ahead_sectors(&self.paths.dev_dir.join(info.name.as_str())) {
            Ok(sectors) => Some(sectors),
            Err(_) if info.live.is_some() || info.inactive.is_some() => {
                Some(node::READ_AHEAD_DEFAULT)
            }
            Err(error) => {
                let node = self.paths.dev_dir.join(shown_name);
                let reason = errno_text(error.raw_os_error().unwrap_or_default());
                self.console
                    .error(&format!("{}: open failed: {reason}", node.display()));
                None
            }
        }
    }

    /// Adds a device to the report, or runs the command on it that `-S` put aside.
    fn report_device(&mut self, info: &DeviceInfo) -> Done {
        let Some(mut report) = self.report.take() else {
            return Ok(());
        };
        let row = Row::of_device(self, info, &report);
        let selected = row.map(|row| report.add(row, self.selected_command.is_none()));
        self.report = Some(report);
        let (true, Some(command)) = (selected?, self.selected_command) else {
            return Ok(());
        };
        let name = self.shown_name(&info.name)?;
        let call = Call {
            args: &[name],
            several_devices: true,
        };
        (command.run)(self, &call)
    }

    /// Does something for every device, by the name that people read; goes on after a failure, and fails then.
    pub(super) fn for_all_devices(
        &mut self,
        silent: bool,
        mut each: impl FnMut(&mut Self, &str) -> Done,
    ) -> Done {
        let devices = self.list_devices()?;
        if devices.is_empty() && !silent {
            self.console.line("No devices found");
        }
        let mut result = Ok(());
        for device in devices {
            let name = self.shown_name(&device.name)?;
            result = each(self, &name).and(result);
        }
        result
    }
}

/// `splitname`
pub fn split_name(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    let Some(name) = call.args.first() else {
        return dmsetup.fail("Incorrect number of arguments.");
    };
    let subsystem = call.args.get(1).map_or("LVM", String::as_str);
    let Some(mut report) = dmsetup.report.take() else {
        return Ok(());
    };
    report.add(Row::of_split_name(subsystem, name), true);
    dmsetup.report = Some(report);
    Ok(())
}
