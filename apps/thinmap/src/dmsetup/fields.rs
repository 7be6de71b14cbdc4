//! The columns of `info -c` and `splitname`: names, headings, widths and values.

use std::collections::HashMap;

use thinmap_control::{DeviceInfo, Request, Response};
use thinmap_units::DevNo;

use super::console::Console;
use super::info::shown_table;
use super::names::{self, Kind, Mangling};
use super::report::Report;
use super::switches::Switch;
use super::task::Subject;
use super::{Dmsetup, Failed};

/// What a field needs to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Section {
    Name,
    Info,
    Deps,
    Tree,
    SplitName,
    Special,
}

/// One column.
#[derive(Debug)]
pub struct Field {
    pub id: &'static str,
    pub heading: &'static str,
    pub width: usize,
    pub numeric: bool,
    pub section: Section,
    description: &'static str,
}

const fn field(
    section: Section,
    numeric: bool,
    heading: &'static str,
    width: usize,
    id: &'static str,
    description: &'static str,
) -> Field {
    Field {
        id,
        heading,
        width,
        numeric,
        section,
        description,
    }
}

use Section::{Deps, Info, Name, Special, SplitName, Tree};

/// In the order of the field list that dmsetup prints.
pub static FIELDS: &[Field] = &[
    field(Name, false, "Name", 16, "name", "Name of mapped device."),
    field(
        Name,
        false,
        "MangledName",
        16,
        "mangled_name",
        "Mangled name of mapped device.",
    ),
    field(
        Name,
        false,
        "UnmangledName",
        16,
        "unmangled_name",
        "Unmangled name of mapped device.",
    ),
    field(
        Name,
        false,
        "UUID",
        32,
        "uuid",
        "Unique (optional) identifier for mapped device.",
    ),
    field(
        Name,
        false,
        "MangledUUID",
        32,
        "mangled_uuid",
        "Mangled unique (optional) identifier for mapped device.",
    ),
    field(
        Name,
        false,
        "UnmangledUUID",
        32,
        "unmangled_uuid",
        "Unmangled unique (optional) identifier for mapped device.",
    ),
    field(Name, true, "RAhead", 6, "read_ahead", "Read ahead value."),
    field(
        Info,
        false,
        "BlkDevName",
        16,
        "blkdevname",
        "Name of block device.",
    ),
    field(
        Info,
        false,
        "Stat",
        4,
        "attr",
        "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite.",
    ),
    field(
        Info,
        false,
        "Tables",
        6,
        "tables_loaded",
        "Which of the live and inactive table slots are filled.",
    ),
    field(
        Info,
        false,
        "Suspended",
        9,
        "suspended",
        "Whether the device is suspended.",
    ),
    field(
        Info,
        false,
        "Read-only",
        9,
        "readonly",
        "Whether the device is read-only or writeable.",
    ),
    field(
        Info,
        false,
        "DevNo",
        5,
        "devno",
        "Device major and minor numbers",
    ),
    field(Info, true, "Maj", 3, "major", "Block device major number."),
    field(Info, true, "Min", 3, "minor", "Block device minor number."),
    field(
        Info,
        true,
        "Open",
        4,
        "open",
        "Number of references to open device, if requested.",
    ),
    field(
        Info,
        true,
        "Targ",
        4,
        "segments",
        "Number of segments in live table, if present.",
    ),
    field(
        Info,
        true,
        "Event",
        6,
        "events",
        "Number of most recent event.",
    ),
    field(
        Deps,
        true,
        "#Devs",
        5,
        "device_count",
        "Number of devices used by this one.",
    ),
    field(
        Tree,
        false,
        "DevNamesUsed",
        16,
        "devs_used",
        "List of names of mapped devices used by this one.",
    ),
    field(
        Deps,
        false,
        "DevNosUsed",
        16,
        "devnos_used",
        "List of device numbers of devices used by this one.",
    ),
    field(
        Deps,
        false,
        "BlkDevNamesUsed",
        16,
        "blkdevs_used",
        "List of names of block devices used by this one.",
    ),
    field(
        Tree,
        true,
        "#Refs",
        5,
        "device_ref_count",
        "Number of mapped devices referencing this one.",
    ),
    field(
        Tree,
        false,
        "RefNames",
        8,
        "names_using_dev",
        "List of names of mapped devices using this one.",
    ),
    field(
        Tree,
        false,
        "RefDevNos",
        9,
        "devnos_using_dev",
        "List of device numbers of mapped devices using this one.",
    ),
    field(
        SplitName,
        false,
        "Subsys",
        6,
        "subsystem",
        "Userspace subsystem responsible for this device.",
    ),
    field(
        SplitName,
        false,
        "VG",
        4,
        "vg_name",
        "LVM Volume Group name.",
    ),
    field(
        SplitName,
        false,
        "LV",
        4,
        "lv_name",
        "LVM Logical Volume name.",
    ),
    field(
        SplitName,
        false,
        "LVLayer",
        7,
        "lv_layer",
        "LVM device layer.",
    ),
    field(
        Special,
        true,
        "Selected",
        8,
        "selected",
        "Set if item passes selection criteria.",
    ),
    field(Special, true, "Help", 4, "help", "Show help."),
    field(Special, true, "Help", 4, "?", "Show help."),
];

/// Sections as the field list shows them: the prefix that names may carry, the heading, and who belongs there.
const SECTIONS: &[(&str, &str, &[Section])] = &[
    ("name_", "Mapped Device Name", &[Name]),
    ("info_", "Mapped Device Information", &[Info]),
    (
        "deps_",
        "Mapped Device Relationship Information",
        &[Deps, Tree],
    ),
    ("splitname_", "Mapped Device Name Components", &[SplitName]),
    ("", "Special", &[Special]),
];

/// The width of dmsetup's longest field name, which is one of the statistics that are not listed here.
const ID_WIDTH: usize = 21;

/// The fields that a word of `-o` means: one, or all of a section. Underscores and case do not matter.
pub fn find(word: &str) -> Vec<&'static Field> {
    let canonical = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let wanted = canonical(word);
    if let Some(field) = FIELDS.iter().find(|field| canonical(field.id) == wanted) {
        return vec![field];
    }
    let in_section = |sections: &[Section]| {
        FIELDS
            .iter()
            .filter(|field| sections.contains(&field.section))
            .collect()
    };
    if wanted == "all" {
        return in_section(&[Name, Info, Deps, Tree]);
    }
    // COMPAT: relationship fields have two prefixes, deps_ and tree_.
    let prefixes: [(&str, &[Section]); 5] = [
        ("name", &[Name]),
        ("info", &[Info]),
        ("deps", &[Deps]),
        ("tree", &[Tree]),
        ("splitname", &[SplitName]),
    ];
    prefixes
        .iter()
        .find(|(prefix, _)| format!("{prefix}all") == wanted)
        .map(|(_, sections)| in_section(sections))
        .unwrap_or_default()
}

/// The field list, as `help -c` shows it, or with types as for `-S help`.
pub fn print_fields(console: &mut Console<'_>, for_selection: bool) {
    for (index, (prefix, heading, sections)) in SECTIONS.iter().enumerate() {
        if index > 0 {
            console.error(" ");
        }
        console.error(&format!("{heading} Fields"));
        console.error(&"-".repeat(heading.len() + 7));
        if !for_selection && !prefix.is_empty() {
            let id = format!("{prefix}all");
            console.error(&format!("  {id:<ID_WIDTH$} - All fields in this section."));
        }
        for field in FIELDS
            .iter()
            .filter(|field| sections.contains(&field.section))
        {
            let kind = match (for_selection, field.numeric) {
                (false, _) => "",
                (true, _) if matches!(field.id, "help" | "?") => " [unselectable number]",
                (true, true) => " [number]",
                (true, false) => " [string]",
            };
            let line = format!("  {:<ID_WIDTH$} - {}{kind}", field.id, field.description);
            console.error(&line);
        }
    }
    console.error(" ");
}

/// One device's values by field id.
#[derive(Clone, Default, Debug)]
pub struct Row(HashMap<&'static str, String>);

impl Row {
    /// A value; empty for what the row does not have.
    pub fn value(&self, field: &Field) -> &str {
        self.0.get(field.id).map_or("", String::as_str)
    }

    pub fn set(&mut self, id: &'static str, value: impl ToString) {
        self.0.insert(id, value.to_string());
    }

    /// The parts of an LVM name; everything is empty for another subsystem.
    pub fn of_split_name(subsystem: &str, name: &str) -> Self {
        let mut row = Self::default();
        row.set("subsystem", subsystem);
        if subsystem == "LVM" {
            let (vg, rest) = lvm_part(name);
            let (lv, rest) = lvm_part(rest);
            let (layer, _) = lvm_part(rest);
            row.set("vg_name", vg);
            row.set("lv_name", lv);
            row.set("lv_layer", layer);
        }
        row
    }

    /// The values of a device that `report` asks for.
    pub fn of_device(
        dmsetup: &mut Dmsetup<'_>,
        info: &DeviceInfo,
        report: &Report,
    ) -> Result<Self, Failed> {
        let name = dmsetup.shown_name(&info.name)?;
        let uuid = dmsetup.shown_uuid(info.uuid.as_ref())?;
        let mut row = Self::default();
        if report.needs(SplitName) {
            let subsystem = uuid.split_once('-').map_or("", |(prefix, _)| prefix);
            row = Self::of_split_name(subsystem, &name);
        }
        row.set_info(dmsetup, info);
        let mode = match dmsetup.mangling {
            Mangling::None => Mangling::Auto,
            mode => mode,
        };
        row.set("mangled_name", mangled(&name, Kind::Name, mode));
        row.set("mangled_uuid", mangled(&uuid, Kind::Uuid, mode));
        row.set(
            "unmangled_name",
            unmangled(&name, Kind::Name, dmsetup.mangling),
        );
        row.set(
            "unmangled_uuid",
            unmangled(&uuid, Kind::Uuid, dmsetup.mangling),
        );
        let shown_name = name.clone();
        row.set("name", name);
        row.set("uuid", uuid);
        if report.needs_field("blkdevname") {
            let block_name = dmsetup.block_name(info.dev).unwrap_or_default();
            row.set("blkdevname", block_name);
        }
        if report.needs_field("read_ahead") {
            let sectors = dmsetup.read_ahead(info, &shown_name).unwrap_or(0);
            row.set("read_ahead", sectors);
        }
        if report.needs(Deps) {
            row.set_deps(dmsetup, info.dev)?;
        }
        if report.needs(Tree) {
            row.set_tree(dmsetup, info.dev);
        }
        Ok(row)
    }

    fn set_info(&mut self, dmsetup: &Dmsetup<'_>, info: &DeviceInfo) {
        let table = shown_table(info, dmsetup.switches.has(Switch::Inactive));
        let (live, inactive) = (info.live.is_some(), info.inactive.is_some());
        let letter = |set: bool, yes: char, no: char| if set { yes } else { no };
        let attr: String = [
            letter(live, 'L', '-'),
            letter(inactive, 'I', '-'),
            letter(info.suspended, 's', '-'),
            letter(table.read_only, 'r', 'w'),
        ]
        .into_iter()
        .collect();
        self.set("attr", attr);
        let tables = match (live, inactive) {
            (true, true) => "Both",
            (true, false) => "Live",
            (false, true) => "Inactive",
            (false, false) => "None",
        };
        self.set("tables_loaded", tables);
        self.set(
            "suspended",
            if info.suspended {
                "Suspended"
            } else {
                "Active"
            },
        );
        self.set(
            "readonly",
            if table.read_only {
                "Read-only"
            } else {
                "Writeable"
            },
        );
        self.set("devno", info.dev);
        self.set("major", info.dev.major);
        self.set("minor", info.dev.minor);
        self.set("open", info.open_count);
        self.set("segments", table.target_count);
        self.set("events", info.event_nr);
    }

    fn set_deps(&mut self, dmsetup: &mut Dmsetup<'_>, dev: DevNo) -> Result<(), Failed> {
        let subject = Subject {
            dev: Some(dev),
            ..Subject::default()
        };
        let response = dmsetup.task("deps", &subject, |device| Request::TableDeps {
            device,
            inactive: false,
        })?;
        let Response::Deps(deps) = response else {
            return Err(dmsetup.unexpected("deps", &subject).into());
        };
        let devices = deps.devices.unwrap_or_default();
        self.set("device_count", devices.len());
        self.set("devnos_used", joined(devices.iter().map(DevNo::to_string)));
        let names: Vec<String> = devices
            .into_iter()
            .map(|dev| dmsetup.block_name(dev).unwrap_or_else(|| dev.to_string()))
            .collect();
        self.set("blkdevs_used", joined(names.into_iter()));
        Ok(())
    }

    fn set_tree(&mut self, dmsetup: &Dmsetup<'_>, dev: DevNo) {
        let Some(tree) = &dmsetup.tree else { return };
        let Some(node) = tree.node(dev) else { return };
        let names = |devices: &[DevNo]| {
            let names = devices.iter().filter_map(|dev| tree.node(*dev));
            joined(
                names
                    .map(|node| node.name.clone())
                    .filter(|name| !name.is_empty()),
            )
        };
        self.set("devs_used", names(&node.uses));
        self.set("names_using_dev", names(&node.used_by));
        self.set("device_ref_count", node.used_by.len());
        self.set(
            "devnos_using_dev",
            joined(node.used_by.iter().map(DevNo::to_string)),
        );
    }
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(",")
}

fn mangled(text: &str, kind: Kind, mode: Mangling) -> String {
    names::mangle(text, kind, mode).unwrap_or_else(|_| text.to_owned())
}

/// What is shown is unmangled already unless mangling is off.
fn unmangled(text: &str, kind: Kind, mode: Mangling) -> String {
    match mode {
        Mangling::None => names::unmangle(text, kind, mode).unwrap_or_else(|_| text.to_owned()),
        _ => text.to_owned(),
    }
}

/// One part of a name in which a doubled hyphen stands for one and a single hyphen ends the part.
fn lvm_part(text: &str) -> (String, &str) {
    let mut part = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let tail = rest.get(c.len_utf8()..).unwrap_or_default();
        if c == '-' && !tail.is_empty() {
            match tail.strip_prefix('-') {
                Some(after) => {
                    part.push('-');
                    rest = after;
                    continue;
                }
                None => return (part, tail),
            }
        }
        part.push(c);
        rest = tail;
    }
    (part, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvm_names_come_apart() {
        let row = Row::of_split_name("LVM", "vg--0-lv--1-lay");
        let value = |id: &str| row.value(find(id)[0]).to_owned();
        assert_eq!(
            (value("vg_name"), value("lv_name"), value("lv_layer")),
            ("vg-0".into(), "lv-1".into(), "lay".into())
        );
    }

    #[test]
    fn fields_are_found_by_any_spelling() {
        assert_eq!(find("VGName")[0].id, "vg_name");
        assert_eq!(find("_ATTR")[0].id, "attr");
        assert!(find("info_attr").is_empty());
        assert_eq!(find("splitname_all").len(), 4);
        assert!(find("nonsense").is_empty());
    }
}
