//! `status`, `table`, `measure`, and `ls` with `--target` or `--exec`.

use std::process::Command as Process;

use thinmap_control::{DeviceStatus, Request, Response, StatusKind, StatusQuery, TableLine};

use super::command_table::Call;
use super::info::shown_table;
use super::switches::Switch;
use super::task::TaskEnd;
use super::{Dmsetup, Done};

/// `status`
pub fn status(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    over_devices(dmsetup, call, View::Status)
}

/// `table`
pub fn table(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    over_devices(dmsetup, call, View::Table)
}

/// `measure`
pub fn measure(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    over_devices(dmsetup, call, View::Measure)
}

/// `ls --target` and `ls --exec`
pub fn list_by_target(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    over_devices(dmsetup, call, View::List)
}

/// What is shown of each device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Status,
    Table,
    Measure,
    List,
}

impl View {
    /// libdevmapper's name of the task.
    fn verb(self) -> &'static str {
        match self {
            Self::Table => "table",
            _ => "status",
        }
    }

    fn kind(self) -> StatusKind {
        match self {
            Self::Table => StatusKind::Table,
            Self::Measure => StatusKind::Measurement,
            Self::Status | Self::List => StatusKind::Info,
        }
    }
}

fn over_devices(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>, view: View) -> Done {
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    match call.args.first() {
        None if !by_option => {
            dmsetup.for_all_devices(false, |dmsetup, name| show(dmsetup, Some(name), view, true))
        }
        arg => show(dmsetup, arg.map(String::as_str), view, call.several_devices),
    }
}

fn show(dmsetup: &mut Dmsetup<'_>, arg: Option<&str>, view: View, several: bool) -> Done {
    let subject = dmsetup.subject(arg)?;
    let query = StatusQuery {
        kind: view.kind(),
        inactive: dmsetup.switches.has(Switch::Inactive),
        no_flush: dmsetup.switches.has(Switch::NoFlush),
    };
    let asked = dmsetup.task(view.verb(), &subject, |device| Request::TableStatus {
        device,
        query,
    });
    let status = match asked {
        Ok(Response::Status(status)) => status,
        Ok(_) => return Err(dmsetup.unexpected(view.verb(), &subject).into()),
        Err(TaskEnd::Missing) => return dmsetup.fail("Device does not exist."),
        Err(end) => return Err(end.into()),
    };
    let name = match arg {
        Some(name) => name.to_owned(),
        None => dmsetup.shown_name(&status.info.name)?,
    };
    let matched = show_targets(dmsetup, &name, &status, view, several)?;

    let verbosity = dmsetup.switches.count(Switch::Verbose);
    let concise = view == View::Table && dmsetup.switches.has(Switch::Concise);
    if several && verbosity > 0 && matched && view != View::List && (!concise || verbosity > 1) {
        dmsetup.console.print("\n");
    }
    if matched && let Some(command) = command_to_exec(dmsetup) {
        exec(dmsetup, &command, status.info.name.as_str())?;
    }
    Ok(())
}

fn command_to_exec(dmsetup: &Dmsetup<'_>) -> Option<String> {
    dmsetup.switches.value(Switch::Exec).map(str::to_owned)
}

/// Prints the targets that `--target` lets through; tells whether there were any. A device without a table has one
/// line with nothing on it.
fn show_targets(
    dmsetup: &mut Dmsetup<'_>,
    name: &str,
    status: &DeviceStatus,
    view: View,
    several: bool,
) -> Result<bool, super::Failed> {
    let wanted = dmsetup.switches.value(Switch::Target).map(str::to_owned);
    let quiet = command_to_exec(dmsetup).is_some() && !dmsetup.verbose();
    let concise = view == View::Table && dmsetup.switches.has(Switch::Concise);
    let lines = status.lines.as_deref().unwrap_or_default();
    let lines: Vec<Option<&TableLine>> = match lines {
        [] => vec![None],
        lines => lines.iter().map(Some).collect(),
    };
    let mut matched = false;
    for line in lines {
        if wanted.is_some() && wanted.as_deref() != line.map(|line| line.target.as_str()) {
            continue;
        }
        if !quiet && view == View::List {
            let dev = status.info.dev;
            let text = format!("{name}\t({}, {})", dev.major, dev.minor);
            dmsetup.console.line(&text);
        } else if !quiet && concise {
            show_concise(dmsetup, name, status, line, matched)?;
        } else if !quiet {
            if !matched && dmsetup.verbose() {
                dmsetup.show_info(&status.info)?;
            }
            let prefix = match several && !dmsetup.verbose() {
                true => format!("{name}: "),
                false => String::new(),
            };
            let text = line
                .map(|line| target_text(dmsetup, line, view))
                .unwrap_or_default();
            dmsetup.console.line(&format!("{prefix}{text}"));
        }
        matched = true;
        if view == View::List {
            break;
        }
    }
    Ok(matched)
}

fn target_text(dmsetup: &Dmsetup<'_>, line: &TableLine, view: View) -> String {
    let params = shown_params(dmsetup, line, view);
    format!("{} {} {} {params}", line.start, line.len, line.target)
}

fn show_concise(
    dmsetup: &mut Dmsetup<'_>,
    name: &str,
    status: &DeviceStatus,
    line: Option<&TableLine>,
    device_begun: bool,
) -> Done {
    if !device_begun {
        if dmsetup.concise_begun {
            dmsetup.console.print(";");
        }
        dmsetup.concise_begun = true;
        let inactive = dmsetup.switches.has(Switch::Inactive);
        let access = match shown_table(&status.info, inactive).read_only {
            true => "ro",
            false => "rw",
        };
        let uuid = dmsetup.shown_uuid(status.info.uuid.as_ref())?;
        let minor = status.info.dev.minor;
        let text = format!("{},{},{minor},{access}", quoted(name), quoted(&uuid));
        dmsetup.console.print(&text);
    }
    if let Some(line) = line {
        let params = quoted(&shown_params(dmsetup, line, View::Table));
        let text = format!(",{} {} {} {params}", line.start, line.len, line.target);
        dmsetup.console.print(&text);
    }
    Ok(())
}

/// Backslashes before what means something in the concise form.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        if matches!(c, ',' | ';' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// A target's text; keys in table lines are zeroed unless `--showkeys` was given.
fn shown_params(dmsetup: &Dmsetup<'_>, line: &TableLine, view: View) -> String {
    if view != View::Table || dmsetup.switches.has(Switch::ShowKeys) {
        return line.params.clone();
    }
    match line.target.as_str() {
        "crypt" => hide_crypt_key(&line.params),
        "integrity" => ["internal_hash:", "journal_crypt:", "journal_mac:"]
            .iter()
            .fold(line.params.clone(), |params, option| {
                hide_option_key(&params, option)
            }),
        _ => line.params.clone(),
    }
}

/// The second word, unless it is a reference into the kernel's key ring.
fn hide_crypt_key(params: &str) -> String {
    let Some((cipher, rest)) = params.split_once(' ') else {
        return params.to_owned();
    };
    if rest.starts_with(':') {
        return params.to_owned();
    }
    let (key, tail) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
    format!("{cipher} {}{tail}", "0".repeat(key.len()))
}

/// The key in `option:algorithm:key`.
fn hide_option_key(params: &str, option: &str) -> String {
    let hidden = || {
        let value_start = params.find(option)? + option.len();
        let value = params.get(value_start..)?;
        let end = value.find([' ', ':'])?;
        let key_start = value_start + end + 1;
        if value.as_bytes().get(end) != Some(&b':') {
            return None;
        }
        let key = params.get(key_start..)?;
        let key_len = key.find(' ').unwrap_or(key.len());
        let (head, tail) = (params.get(..key_start)?, key.get(key_len..)?);
        Some(format!("{head}{}{tail}", "0".repeat(key_len)))
    };
    hidden().unwrap_or_else(|| params.to_owned())
}

/// Runs `--exec`'s command on a device's node. As with dmsetup, how it ends does not matter.
fn exec(dmsetup: &mut Dmsetup<'_>, command: &str, name: &str) -> Done {
    let mut words = command.split_whitespace();
    let Some(program) = words.next() else {
        return Err(super::Failed);
    };
    dmsetup.console.flush();
    let node = dmsetup.paths.dev_dir.join(name);
    let _ = Process::new(program).args(words).arg(node).status();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hidden() {
        assert_eq!(
            hide_crypt_key("aes-xts abc123 0 /dev/sda 0"),
            "aes-xts 000000 0 /dev/sda 0"
        );
        assert_eq!(hide_crypt_key("aes :32:logon:x 0"), "aes :32:logon:x 0");
        assert_eq!(
            hide_option_key(
                "/dev/sda 0 - J 1 internal_hash:hmac:beef end",
                "internal_hash:"
            ),
            "/dev/sda 0 - J 1 internal_hash:hmac:0000 end"
        );
        assert_eq!(
            hide_option_key("internal_hash:crc32c x:y", "internal_hash:"),
            "internal_hash:crc32c x:y"
        );
    }

    #[test]
    fn concise_quotes() {
        assert_eq!(quoted(r"a,b;c\d"), r"a\,b\;c\\d");
    }
}
