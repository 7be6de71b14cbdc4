//! Reports: chosen columns, sorted and selected rows, aligned or separated output.

use super::command_table::Command;
use super::console::Console;
use super::fields::{self, Field, Row, Section};
use super::selection::Selection;
use super::switches::Switch;
use super::{Dmsetup, Failed};

const DEFAULT_FIELDS: &str = "name,major,minor,attr,open,segments,events,uuid";
const SPLIT_NAME_FIELDS: &str = "vg_name,lv_name,lv_layer";
/// What `--nameprefixes` puts before a field's name.
const NAME_PREFIX: &str = "DM_";

/// A report under way.
pub struct Report {
    columns: Vec<&'static Field>,
    keys: Vec<SortKey>,
    selection: Option<Selection>,
    rows: Vec<Row>,
    layout: Layout,
    help: bool,
}

struct SortKey {
    field: &'static Field,
    descending: bool,
}

struct Layout {
    separator: String,
    aligned: bool,
    headings: bool,
    name_prefixes: bool,
    quoted: bool,
    as_rows: bool,
}

impl Dmsetup<'_> {
    /// The report that the options ask for.
    pub(super) fn make_report(&mut self, command: &Command) -> Result<Report, Failed> {
        let default = match command.name {
            "splitname" => SPLIT_NAME_FIELDS,
            _ => DEFAULT_FIELDS,
        };
        let options = match self.switches.value(Switch::Options) {
            Some(more) if more.starts_with('+') => {
                format!("{default},{}", more.trim_start_matches('+'))
            }
            Some(options) => options.to_owned(),
            None => default.to_owned(),
        };
        let mut layout = self.layout();
        if options.contains("help") {
            layout.headings = false;
        }
        let sort = self.switches.value(Switch::Sort).map(str::to_owned);
        if sort.is_some() && matches!(command.name, "status" | "table") {
            return self.fail("--sort is not yet supported with status and table.");
        }
        let columns = self.parse_columns(&options)?;
        let keys = self.parse_keys(sort.as_deref().unwrap_or_default())?;
        let mut help = columns.iter().any(|field| matches!(field.id, "help" | "?"));
        if help {
            fields::print_fields(&mut self.console, false);
        }
        let selection = match self.switches.value(Switch::Select).map(str::to_owned) {
            Some(text) if text == "help" => {
                help = true;
                Selection::print_help(&mut self.console);
                None
            }
            Some(text) => Selection::parse(&text, &mut self.console).map_err(|()| Failed)?,
            None => None,
        };
        let report = Report {
            columns,
            keys,
            selection,
            rows: Vec::new(),
            layout,
            help,
        };
        if report.needs(Section::Tree) && !help {
            self.build_tree()?;
        }
        Ok(report)
    }

    fn layout(&self) -> Layout {
        let has = |switch| self.switches.has(switch);
        let no_headings = has(Switch::NoHeadings);
        let separator = self.switches.value(Switch::Separator);
        let plain =
            no_headings || separator.is_some() || has(Switch::NamePrefixes) || has(Switch::Rows);
        Layout {
            separator: separator
                .unwrap_or(if no_headings { ":" } else { " " })
                .to_owned(),
            aligned: !plain,
            headings: !no_headings,
            name_prefixes: has(Switch::NamePrefixes),
            quoted: !has(Switch::Unquoted),
            as_rows: has(Switch::Rows),
        }
    }

    fn parse_columns(&mut self, options: &str) -> Result<Vec<&'static Field>, Failed> {
        let mut columns = Vec::new();
        for word in words(options) {
            let found = fields::find(word);
            if found.is_empty() {
                fields::print_fields(&mut self.console, false);
                return self.fail(&format!("Unrecognised field: {word}"));
            }
            columns.extend(found);
        }
        Ok(columns)
    }

    fn parse_keys(&mut self, keys: &str) -> Result<Vec<SortKey>, Failed> {
        let mut parsed: Vec<SortKey> = Vec::new();
        for word in words(keys) {
            let descending = word.starts_with('-');
            let name = word.strip_prefix(['+', '-']).unwrap_or(word);
            if name.is_empty() && !word.is_empty() {
                self.console.error("dm_report: Missing sort field name");
            }
            let [field] = fields::find(name)[..] else {
                fields::print_fields(&mut self.console, false);
                return self.fail(&format!("dm_report: Unrecognised field: {word}"));
            };
            if parsed.iter().any(|key| key.field.id == field.id) {
                let text = format!("dm_report: Ignoring duplicate sort field: {}.", field.id);
                self.console.error(&text);
                continue;
            }
            parsed.push(SortKey { field, descending });
        }
        Ok(parsed)
    }
}

/// Words between commas. Several commas count as one, but a trailing one leaves an empty word, which no field is.
fn words(list: &str) -> Vec<&str> {
    let mut words: Vec<&str> = list.split(',').filter(|word| !word.is_empty()).collect();
    if list.ends_with(',') {
        words.push("");
    }
    words
}

impl Report {
    /// Only the list of fields was asked for, which has been printed.
    pub fn is_help(&self) -> bool {
        self.help
    }

    /// Whether a field of the section is shown, sorted by or selected by.
    pub fn needs(&self, section: Section) -> bool {
        self.used_fields().any(|field| field.section == section)
    }

    /// Whether this field is shown, sorted by or selected by.
    pub fn needs_field(&self, id: &str) -> bool {
        self.used_fields().any(|field| field.id == id)
    }

    fn used_fields(&self) -> impl Iterator<Item = &'static Field> {
        let selected = self.selection.iter().flat_map(Selection::fields);
        let keys = self.keys.iter().map(|key| key.field);
        self.columns.iter().copied().chain(keys).chain(selected)
    }

    /// Takes a row if it is selected (or shows whether it is) and is to be shown; tells whether it is selected.
    pub fn add(&mut self, mut row: Row, show: bool) -> bool {
        let selected = self
            .selection
            .as_ref()
            .is_none_or(|selection| selection.matches(&row));
        row.set("selected", u8::from(selected));
        let told = self.columns.iter().any(|field| field.id == "selected");
        if show && (selected || told) {
            self.rows.push(row);
        }
        selected
    }

    /// Prints the rows collected and forgets them. Nothing at all is printed without rows.
    pub fn output(&mut self, console: &mut Console<'_>, _repeated: bool) {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() || self.help {
            return;
        }
        rows.sort_by(|a, b| self.compare(a, b));
        if self.layout.as_rows {
            self.output_as_rows(console, &rows);
        } else {
            self.output_as_columns(console, &rows);
        }
    }

    fn compare(&self, a: &Row, b: &Row) -> std::cmp::Ordering {
        let by_key = |key: &SortKey| {
            let (a, b) = (a.value(key.field), b.value(key.field));
            let order = if key.field.numeric {
                let number = |text: &str| text.parse::<u64>().unwrap_or(0);
                number(a).cmp(&number(b))
            } else {
                a.cmp(b)
            };
            if key.descending {
                order.reverse()
            } else {
                order
            }
        };
        self.keys
            .iter()
            .map(by_key)
            .fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    }

    fn output_as_columns(&self, console: &mut Console<'_>, rows: &[Row]) {
        // A column is as wide as its widest value, and at least as wide as dmsetup made it.
        let width = |field: &Field| {
            let widest = rows.iter().map(|row| row.value(field).len()).max();
            field.width.max(widest.unwrap_or(0))
        };
        let widths: Vec<usize> = self.columns.iter().map(|field| width(field)).collect();
        let separator = &self.layout.separator;
        if self.layout.headings {
            let headings =
                self.columns
                    .iter()
                    .zip(&widths)
                    .map(|(field, width)| match self.layout.aligned {
                        true => format!("{:<width$.width$}", field.heading),
                        false => field.heading.to_owned(),
                    });
            console.line(&headings.collect::<Vec<_>>().join(separator));
        }
        for row in rows {
            let cells = self
                .columns
                .iter()
                .zip(&widths)
                .map(|(field, width)| self.cell(field, row, *width));
            console.line(&cells.collect::<Vec<_>>().join(separator));
        }
    }

    fn output_as_rows(&self, console: &mut Console<'_>, rows: &[Row]) {
        for field in &self.columns {
            let mut line = String::new();
            if self.layout.headings {
                line = format!("{}{}", field.heading, self.layout.separator);
            }
            let cells: Vec<String> = rows.iter().map(|row| self.cell(field, row, 0)).collect();
            console.line(&(line + &cells.join(&self.layout.separator)));
        }
    }

    fn cell(&self, field: &Field, row: &Row, width: usize) -> String {
        let value = row.value(field);
        let value = match (self.layout.aligned, field.numeric) {
            (false, _) => value.to_owned(),
            (true, true) => format!("{value:>width$}"),
            (true, false) => format!("{value:<width$}"),
        };
        if !self.layout.name_prefixes {
            return value;
        }
        let id = field.id.to_ascii_uppercase();
        match self.layout.quoted {
            true => format!("{NAME_PREFIX}{id}='{value}'"),
            false => format!("{NAME_PREFIX}{id}={value}"),
        }
    }
}
