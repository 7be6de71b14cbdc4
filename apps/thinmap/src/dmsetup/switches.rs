//! dmsetup's options: one table, parsed by the rules of GNU `getopt_long` with permutation.
//!
//! Nothing is interpreted beyond numbers and modes; what options mean to a command is the command's matter.

use super::names::Mangling;

/// An option's identity. Both spellings of an option have one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Switch {
    AddNodeOnCreate,
    AddNodeOnResume,
    Checks,
    Columns,
    Concise,
    Count,
    Deferred,
    Exec,
    Force,
    Gid,
    Help,
    Inactive,
    Interval,
    Major,
    MangleName,
    Minor,
    Mode,
    NamePrefixes,
    NoFlush,
    NoHeadings,
    NoLockFs,
    NoOpenCount,
    NoTable,
    NoUdevRules,
    NoUdevSync,
    Options,
    ReadAhead,
    ReadOnly,
    Retry,
    Rows,
    Select,
    Separator,
    SetUuid,
    ShowKeys,
    Sort,
    Table,
    Target,
    Tree,
    UdevCookie,
    Uid,
    Unbuffered,
    Unquoted,
    Uuid,
    Verbose,
    VerifyUdev,
    Version,
    Yes,
    /// An option of dmstats, which is accepted and does nothing.
    Stats,
}

use Switch::*;

struct LongOption {
    long: &'static str,
    takes_value: bool,
    switch: Switch,
}

const fn flag(long: &'static str, switch: Switch) -> LongOption {
    LongOption {
        long,
        takes_value: false,
        switch,
    }
}

const fn value(long: &'static str, switch: Switch) -> LongOption {
    LongOption {
        long,
        takes_value: true,
        switch,
    }
}

/// In the order that an "ambiguous" message lists them.
const LONG_OPTIONS: &[LongOption] = &[
    flag("readonly", ReadOnly),
    value("alias", Stats),
    flag("alldevices", Stats),
    flag("allprograms", Stats),
    flag("allregions", Stats),
    flag("area", Stats),
    value("areas", Stats),
    value("areasize", Stats),
    value("bounds", Stats),
    flag("checks", Checks),
    flag("clear", Stats),
    flag("columns", Columns),
    flag("concise", Concise),
    value("count", Count),
    flag("deferred", Deferred),
    value("select", Select),
    value("exec", Exec),
    flag("filemap", Stats),
    value("follow", Stats),
    flag("force", Force),
    flag("foreground", Stats),
    value("gid", Gid),
    flag("group", Stats),
    value("groupid", Stats),
    flag("help", Help),
    flag("histogram", Stats),
    flag("inactive", Inactive),
    value("interval", Interval),
    value("length", Stats),
    value("manglename", MangleName),
    value("major", Major),
    value("minor", Minor),
    value("mode", Mode),
    flag("nameprefixes", NamePrefixes),
    flag("nogroup", Stats),
    flag("noflush", NoFlush),
    flag("noheadings", NoHeadings),
    flag("nolockfs", NoLockFs),
    flag("noopencount", NoOpenCount),
    flag("nosuffix", Stats),
    flag("notable", NoTable),
    flag("notimesuffix", Stats),
    value("udevcookie", UdevCookie),
    flag("nomonitor", Stats),
    flag("noudevrules", NoUdevRules),
    flag("noudevsync", NoUdevSync),
    value("options", Options),
    flag("precise", Stats),
    value("programid", Stats),
    flag("raw", Stats),
    value("readahead", ReadAhead),
    flag("region", Stats),
    value("regions", Stats),
    value("regionid", Stats),
    flag("relative", Stats),
    flag("retry", Retry),
    flag("rows", Rows),
    flag("segments", Stats),
    value("separator", Separator),
    flag("setuuid", SetUuid),
    flag("showkeys", ShowKeys),
    value("sort", Sort),
    value("start", Stats),
    value("table", Table),
    value("target", Target),
    flag("tree", Tree),
    value("uid", Uid),
    value("units", Stats),
    value("uuid", Uuid),
    flag("unbuffered", Unbuffered),
    flag("unquoted", Unquoted),
    value("userdata", Stats),
    // COMPAT: dmsetup's long spelling takes a value by mistake; so does this.
    value("verbose", Verbose),
    flag("verifyudev", VerifyUdev),
    flag("version", Version),
    flag("yes", Yes),
    flag("addnodeonresume", AddNodeOnResume),
    flag("addnodeoncreate", AddNodeOnCreate),
];

/// Letter, whether it takes a value, and what it is.
const SHORT_OPTIONS: &[(char, bool, Switch)] = &[
    ('c', false, Columns),
    ('C', false, Columns),
    ('f', false, Force),
    ('G', true, Gid),
    ('h', false, Help),
    ('j', true, Major),
    ('m', true, Minor),
    ('M', true, Mode),
    ('n', false, NoTable),
    ('o', true, Options),
    ('O', true, Sort),
    ('r', false, ReadOnly),
    ('S', true, Select),
    ('u', true, Uuid),
    ('U', true, Uid),
    ('v', false, Verbose),
    ('y', false, Yes),
];

/// What to do about the read-ahead of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadAheadWish {
    Auto,
    None,
    /// Sectors; with `minimum`, only if the present value is smaller.
    Sectors {
        sectors: u32,
        minimum: bool,
    },
}

/// The options of one command line.
#[derive(Clone, Default, Debug)]
pub struct Switches {
    given: Vec<(Switch, String)>,
    pub mangling: Option<Mangling>,
    pub mode: Option<u32>,
    pub read_ahead: Option<ReadAheadWish>,
}

/// A command line in parts.
#[derive(Debug)]
pub struct CommandLine {
    pub switches: Switches,
    /// The command and its arguments.
    pub words: Vec<String>,
}

impl Switches {
    /// Whether the option was given.
    pub fn has(&self, switch: Switch) -> bool {
        self.given.iter().any(|(given, _)| *given == switch)
    }

    /// How often the option was given.
    pub fn count(&self, switch: Switch) -> usize {
        self.given
            .iter()
            .filter(|(given, _)| *given == switch)
            .count()
    }

    /// The last value given.
    pub fn value(&self, switch: Switch) -> Option<&str> {
        let found = self.given.iter().rev().find(|(given, _)| *given == switch);
        found.map(|(_, value)| value.as_str())
    }

    /// The last value as `atoi` reads it.
    pub fn number(&self, switch: Switch) -> Option<i32> {
        self.value(switch).map(atoi)
    }

    /// Adds an option as if it had been typed.
    pub fn set(&mut self, switch: Switch, value: &str) {
        self.given.push((switch, value.to_owned()));
    }

    /// Takes an option back.
    pub fn clear(&mut self, switch: Switch) {
        self.given.retain(|(given, _)| *given != switch);
    }
}

/// C's `atoi`: leading white space, a sign, digits; 0 for anything else.
pub fn atoi(text: &str) -> i32 {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number = digits
        .chars()
        .map_while(|c| c.to_digit(10))
        .fold(0_i64, |number, digit| {
            number.saturating_mul(10).saturating_add(i64::from(digit))
        });
    let number = if negative { -number } else { number };
    number.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// Parses the words behind the program's name. An error is the line to print.
pub fn parse(program: &str, args: &[String]) -> Result<CommandLine, String> {
    let mut switches = Switches::default();
    let mut words = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            words.extend(rest.by_ref().cloned());
        } else if let Some(long) = arg.strip_prefix("--") {
            parse_long(program, long, &mut rest, &mut switches)?;
        } else if arg.len() > 1 && arg.starts_with('-') {
            parse_short(program, arg, &mut rest, &mut switches)?;
        } else {
            words.push(arg.clone());
        }
    }
    check(&switches)?;
    Ok(CommandLine { switches, words })
}

fn parse_long<'a>(
    program: &str,
    text: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    switches: &mut Switches,
) -> Result<(), String> {
    let (name, inline) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let option = find_long(program, name)?;
    let long = option.long;
    let value = match (option.takes_value, inline) {
        (false, Some(_)) => {
            return Err(format!(
                "{program}: option '--{long}' doesn't allow an argument"
            ));
        }
        (false, None) => String::new(),
        (true, Some(value)) => value.to_owned(),
        (true, None) => rest
            .next()
            .cloned()
            .ok_or_else(|| format!("{program}: option '--{long}' requires an argument"))?,
    };
    take(switches, option.switch, &value)
}

/// An exact name or a prefix of exactly one option.
fn find_long(program: &str, name: &str) -> Result<&'static LongOption, String> {
    if let Some(exact) = LONG_OPTIONS.iter().find(|option| option.long == name) {
        return Ok(exact);
    }
    let matching: Vec<_> = LONG_OPTIONS
        .iter()
        .filter(|option| option.long.starts_with(name))
        .collect();
    match matching[..] {
        [] => Err(format!("{program}: unrecognized option '--{name}'")),
        [only] => Ok(only),
        _ => {
            let list: String = matching
                .iter()
                .map(|option| format!(" '--{}'", option.long))
                .collect();
            Err(format!(
                "{program}: option '--{name}' is ambiguous; possibilities:{list}"
            ))
        }
    }
}

fn parse_short<'a>(
    program: &str,
    arg: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    switches: &mut Switches,
) -> Result<(), String> {
    let mut letters = arg.chars();
    letters.next();
    while let Some(letter) = letters.next() {
        let Some((_, takes_value, switch)) =
            SHORT_OPTIONS.iter().find(|(known, ..)| *known == letter)
        else {
            return Err(format!("{program}: invalid option -- '{letter}'"));
        };
        if !takes_value {
            take(switches, *switch, "")?;
            continue;
        }
        let attached = letters.as_str();
        let value = if attached.is_empty() {
            rest.next()
                .cloned()
                .ok_or_else(|| format!("{program}: option requires an argument -- '{letter}'"))?
        } else {
            attached.to_owned()
        };
        return take(switches, *switch, &value);
    }
    Ok(())
}

/// Notes one option; those whose value can be wrong are read at once, in the order given, as dmsetup does.
fn take(switches: &mut Switches, switch: Switch, value: &str) -> Result<(), String> {
    match switch {
        Mode => switches.mode = Some(file_mode(value)?),
        MangleName => {
            let mode = Mangling::from_option(value).ok_or("Unknown name mangling mode.")?;
            switches.mangling = Some(mode);
        }
        ReadAhead => switches.read_ahead = Some(read_ahead(value)?),
        Count if atoi(value) < 0 => return Err("Count must be zero or greater.".into()),
        Interval if atoi(value) <= 0 => {
            return Err("Interval must be a positive integer.".into());
        }
        _ => {}
    }
    switches.set(switch, value);
    Ok(())
}

fn file_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode != 0 => Ok(mode),
        _ => Err(format!("Invalid argument for --mode: {text}. ")),
    }
}

fn read_ahead(text: &str) -> Result<ReadAheadWish, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(ReadAheadWish::Auto);
    }
    if text.eq_ignore_ascii_case("none") {
        return Ok(ReadAheadWish::None);
    }
    match atoi(text) {
        -1 => Ok(ReadAheadWish::Auto),
        0 => Ok(ReadAheadWish::None),
        number => {
            let sectors = u32::try_from(number)
                .map_err(|_| format!("Negative read ahead value ({number}) is not understood."))?;
            let minimum = text.trim_start().starts_with('+');
            Ok(ReadAheadWish::Sectors { sectors, minimum })
        }
    }
}

fn check(switches: &Switches) -> Result<(), String> {
    let wrong = if switches.has(Major) != switches.has(Minor) {
        "Please specify both major number and minor number."
    } else if switches.has(Table) && switches.has(NoTable) {
        "--table and --notable are incompatible."
    } else if switches.has(AddNodeOnResume) && switches.has(AddNodeOnCreate) {
        "--addnodeonresume and --addnodeoncreate are incompatible."
    } else {
        return Ok(());
    };
    Err(wrong.into())
}
