//! `create` (plain and concise) and `load`.

use std::io::Read;

use thinmap_control::{DeviceSelector, DmError, Request, Response, SuspendOptions, TableLine};
use thinmap_units::{DevNo, DmName, DmUuid};

use super::command_table::Call;
use super::switches::{Switch, atoi};
use super::table_text::{self, Source};
use super::task::{Subject, TaskEnd};
use super::{Dmsetup, Done, Failed, node};

/// `create`
pub fn create(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    if dmsetup.switches.has(Switch::Concise) {
        return create_concise(dmsetup, call.args);
    }
    let Some(name) = call.args.first() else {
        return dmsetup.fail("Please provide a name for the new device.");
    };
    let table = dmsetup.switches.value(Switch::Table).map(str::to_owned);
    let source = match (&table, call.args.get(1)) {
        (Some(text), _) => Source::Text(text),
        (None, Some(path)) => Source::File(path),
        (None, None) => Source::StandardInput,
    };
    create_one(dmsetup, name, &source)
}

/// `load` and `reload`
pub fn load(dmsetup: &mut Dmsetup<'_>, call: &Call<'_>) -> Done {
    if dmsetup.switches.has(Switch::NoTable) {
        return dmsetup.fail("--notable only available when creating new device.");
    }
    let by_option = dmsetup.switches.has(Switch::Uuid) || dmsetup.switches.has(Switch::Major);
    let (name, file) = match call.args {
        [] if !by_option => return dmsetup.fail("Please specify device."),
        [_, _, ..] if by_option => return dmsetup.fail("Too many command line arguments."),
        args if by_option => (None, args.first()),
        args => (args.first(), args.get(1)),
    };
    let subject = dmsetup.subject(name.map(String::as_str))?;
    let table = dmsetup.switches.value(Switch::Table).map(str::to_owned);
    let source = match (&table, file) {
        (Some(text), _) => Source::Text(text),
        (None, Some(path)) => Source::File(path),
        (None, None) => Source::StandardInput,
    };
    let lines = table_text::read(&source).or_else(|text| dmsetup.fail(&text))?;
    let read_only = dmsetup.switches.has(Switch::ReadOnly);
    let info = dmsetup.device_task("reload", &subject, |device| Request::TableLoad {
        device,
        is_whole: true,
        lines,
        read_only,
    })?;
    dmsetup.show_if_verbose(&info)
}

fn create_one(dmsetup: &mut Dmsetup<'_>, name: &str, source: &Source<'_>) -> Done {
    if name.contains('/') {
        return dmsetup.fail(&format!("Name \"{name}\" invalid. It contains \"/\"."));
    }
    let mangled = dmsetup.mangle_name(name)?;
    let uuid = match dmsetup.switches.value(Switch::Uuid).map(str::to_owned) {
        Some(uuid) => dmsetup.mangle_uuid(&uuid)?,
        None => String::new(),
    };
    let lines = if dmsetup.switches.has(Switch::NoTable) {
        Vec::new()
    } else {
        table_text::read(source).or_else(|text| dmsetup.fail(&text))?
    };
    let dev = dmsetup.dev_option()?;
    let subject = Subject {
        name: mangled,
        uuid,
        dev,
    };
    let info = create_device(dmsetup, &subject)?;
    if lines.is_empty() {
        apply_node_options(dmsetup, &subject.name);
        return dmsetup.show_if_verbose(&info);
    }
    match load_and_resume(dmsetup, &subject, info.dev, lines) {
        Ok(info) => {
            apply_node_options(dmsetup, &subject.name);
            dmsetup.show_if_verbose(&info)
        }
        Err(end) => {
            revert(dmsetup, &subject);
            Err(end.into())
        }
    }
}

fn create_device(
    dmsetup: &mut Dmsetup<'_>,
    subject: &Subject,
) -> Result<thinmap_control::DeviceInfo, Failed> {
    let name = match DmName::new(&subject.name) {
        Ok(name) => name,
        Err(_) => {
            let text = "device-mapper: ioctl: name not supplied when creating device";
            let error = DmError::new(rustix::io::Errno::INVAL, text);
            return Err(dmsetup.refused("create", subject, error).into());
        }
    };
    let request = Request::Create {
        name,
        uuid: DmUuid::new(&subject.uuid).ok(),
        minor: subject.dev.map(|dev| dev.minor),
    };
    match dmsetup.send("create", subject, &request)? {
        Response::Device(info) => Ok(info),
        _ => Err(dmsetup.unexpected("create", subject).into()),
    }
}

fn load_and_resume(
    dmsetup: &mut Dmsetup<'_>,
    subject: &Subject,
    dev: DevNo,
    lines: Vec<TableLine>,
) -> Result<thinmap_control::DeviceInfo, TaskEnd> {
    let read_only = dmsetup.switches.has(Switch::ReadOnly);
    // The table goes to the number that creation gave, as libdevmapper does; messages show both.
    let by_number = Subject {
        name: subject.name.clone(),
        uuid: String::new(),
        dev: Some(dev),
    };
    dmsetup.device_task("reload", &by_number, |device| Request::TableLoad {
        device,
        is_whole: true,
        lines,
        read_only,
    })?;
    // By the number that the device really has, whatever number was asked for; the message shows the latter.
    let asked = Subject {
        uuid: String::new(),
        ..subject.clone()
    };
    let request = Request::Resume {
        device: DeviceSelector::Dev(dev),
        options: SuspendOptions {
            lock_fs: true,
            no_flush: false,
        },
    };
    match dmsetup.send("resume", &asked, &request)? {
        Response::Device(info) => Ok(info),
        _ => Err(dmsetup.unexpected("resume", &asked)),
    }
}

/// Takes a device away whose table was refused.
fn revert(dmsetup: &mut Dmsetup<'_>, subject: &Subject) {
    let by_name = Subject {
        name: subject.name.clone(),
        ..Subject::default()
    };
    let removed = dmsetup.task("remove", &by_name, |device| Request::Remove {
        device,
        deferred: false,
    });
    if removed.is_err() {
        dmsetup.console.error("Failed to revert device creation.");
    }
}

/// Owner, mode and read-ahead of the new node. What fails is told and forgiven.
fn apply_node_options(dmsetup: &mut Dmsetup<'_>, name: &str) {
    let node = dmsetup.paths.dev_dir.join(name);
    let id = |switch| {
        dmsetup
            .switches
            .number(switch)
            .and_then(|id| u32::try_from(id).ok())
    };
    let (uid, gid) = (id(Switch::Uid), id(Switch::Gid));
    if node.exists()
        && let Err(text) = node::set_owner_and_mode(&node, uid, gid, dmsetup.switches.mode)
    {
        dmsetup.console.error(&text);
    }
    dmsetup.apply_read_ahead(name);
}

impl Dmsetup<'_> {
    /// `--readahead`
    pub(super) fn apply_read_ahead(&mut self, name: &str) {
        let Some(wish) = self.switches.read_ahead else {
            return;
        };
        if let Err(text) = node::set_read_ahead(&self.paths.dev_dir.join(name), wish) {
            self.console.error(&text);
        }
    }
}

/// One device of a concise specification.
#[derive(Default, Debug, PartialEq, Eq)]
struct ConciseEntry {
    fields: Vec<String>,
}

impl ConciseEntry {
    fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", String::as_str)
    }

    /// The line that says how far the parser came.
    fn parsed_so_far(&self) -> String {
        let shown = |index: usize| self.fields.get(index).map_or("(null)", String::as_str);
        format!(
            "Parsed {} fields: name: {} uuid: {} minor: {} flags: {} table: {}",
            self.fields.len(),
            shown(0),
            shown(1),
            shown(2),
            shown(3),
            shown(4)
        )
    }
}

fn create_concise(dmsetup: &mut Dmsetup<'_>, args: &[String]) -> Done {
    if args.len() > 1 {
        return dmsetup.fail("dmsetup create --concise takes at most one argument");
    }
    let refused = [
        Switch::Table,
        Switch::Minor,
        Switch::Uuid,
        Switch::NoTable,
        Switch::Inactive,
    ];
    if refused.iter().any(|switch| dmsetup.switches.has(*switch)) {
        return dmsetup
            .fail("--concise is incompatible with --[no]table, --minor, --uuid and --inactive.");
    }
    let text = match args.first() {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            if let Err(error) = std::io::stdin().lock().read_to_string(&mut text) {
                return dmsetup.fail(&format!("Read from stdin aborted: {error}"));
            }
            text
        }
    };
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (entry, tail) = match concise_entry(rest) {
            Ok(parsed) => parsed,
            Err((lines, entry)) => {
                dmsetup.console.error(lines);
                return dmsetup.fail(&entry.parsed_so_far());
            }
        };
        create_concise_entry(dmsetup, &entry)?;
        rest = tail;
    }
    Ok(())
}

/// Parses one entry off the start. A backslash takes the next character literally; a comma ends a field, or a table
/// line in the fifth; a semicolon or the end of the text ends the entry.
fn concise_entry(text: &str) -> Result<(ConciseEntry, &str), (&'static str, ConciseEntry)> {
    let mut entry = ConciseEntry {
        fields: vec![String::new()],
    };
    let mut chars = text.chars();
    let mut quoted_last = false;
    while let Some(c) = chars.next() {
        let in_table = entry.fields.len() == 5;
        quoted_last = false;
        let literal = match c {
            '\\' => match chars.next() {
                Some(next) => {
                    quoted_last = true;
                    next
                }
                None => {
                    let text = "Backslash must be followed by another character at end of string.";
                    return Err((text, entry));
                }
            },
            ',' if !in_table => {
                entry.fields.push(String::new());
                chars = chars.as_str().trim_start().chars();
                continue;
            }
            ',' => '\n',
            ';' => return finish_entry(entry, chars.as_str().trim_start()),
            other => other,
        };
        if let Some(field) = entry.fields.last_mut() {
            field.push(literal);
        }
    }
    // COMPAT: dmsetup wants the last entry to end with an ordinary character.
    if quoted_last {
        let text = "Incomplete entry: five comma-separated fields are required for each device";
        return Err((text, entry));
    }
    finish_entry(entry, "")
}

fn finish_entry(
    entry: ConciseEntry,
    rest: &str,
) -> Result<(ConciseEntry, &str), (&'static str, ConciseEntry)> {
    if entry.fields.len() == 5 {
        Ok((entry, rest))
    } else {
        let text = "Five comma-separated fields are required for each device";
        Err((text, entry))
    }
}

fn create_concise_entry(dmsetup: &mut Dmsetup<'_>, entry: &ConciseEntry) -> Done {
    if !entry.field(1).is_empty() {
        dmsetup.switches.set(Switch::Uuid, entry.field(1));
    }
    if !entry.field(2).is_empty() {
        let minor = atoi(entry.field(2)).to_string();
        dmsetup.switches.set(Switch::Minor, &minor);
    }
    match entry.field(3) {
        "ro" => dmsetup.switches.set(Switch::ReadOnly, ""),
        "rw" | "" => {}
        other => {
            return dmsetup.fail(&format!(
                "Invalid flags parameter '{other}' must be 'ro' or 'rw' or empty."
            ));
        }
    }
    create_one(dmsetup, entry.field(0), &Source::Text(entry.field(4)))?;
    for switch in [Switch::Uuid, Switch::Minor, Switch::ReadOnly] {
        dmsetup.switches.clear(switch);
    }
    Ok(())
}

#[cfg(test)]
mod concise_tests {
    use super::*;

    #[test]
    fn entries_and_quotes() {
        let text = r"a\,b,,3,ro,0 8 zero,8 8 error; c,,,,0 8 error";
        let (first, rest) = concise_entry(text).unwrap();
        assert_eq!(first.fields, ["a,b", "", "3", "ro", "0 8 zero\n8 8 error"]);
        let (second, rest) = concise_entry(rest).unwrap();
        assert_eq!(second.fields, ["c", "", "", "", "0 8 error"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn too_few_fields() {
        let (text, entry) = concise_entry("a,b;").unwrap_err();
        assert!(text.starts_with("Five comma-separated"));
        assert_eq!(
            entry.parsed_so_far(),
            "Parsed 2 fields: name: a uuid: b minor: (null) flags: (null) table: (null)"
        );
        assert!(concise_entry("a\\").unwrap_err().0.starts_with("Backslash"));
    }
}
