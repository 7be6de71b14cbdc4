//! Every dmsetup command: name, usage, argument counts and handler. Parser and help both read this table and
//! nothing else knows the commands.

use super::{Dmsetup, Done, change, create, info, listing, mangle, message, remove, status, udev};

/// Whether a command is repeated over its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// All arguments belong to one run.
    Once,
    /// One run per argument.
    PerArgument,
    /// One run per argument, or over the devices that `-S` selects.
    PerArgumentOrSelection,
}

/// How a handler is called: its arguments, and whether its output covers several devices.
pub struct Call<'a> {
    pub args: &'a [String],
    pub several_devices: bool,
}

/// One row.
pub struct Command {
    pub name: &'static str,
    /// What follows the name in the help text; for some, over several lines.
    pub usage: &'static str,
    pub args_min: usize,
    /// `None` for as many as you like.
    pub args_max: Option<usize>,
    pub repeat: Repeat,
    pub run: fn(&mut Dmsetup<'_>, &Call<'_>) -> Done,
}

const fn row(
    name: &'static str,
    usage: &'static str,
    args: (usize, Option<usize>),
    repeat: Repeat,
    run: fn(&mut Dmsetup<'_>, &Call<'_>) -> Done,
) -> Command {
    Command {
        name,
        usage,
        args_min: args.0,
        args_max: args.1,
        repeat,
        run,
    }
}

use Repeat::{Once, PerArgument, PerArgumentOrSelection};

/// In the order of the help text.
pub static COMMANDS: &[Command] = &[
    row("help", "[-c|-C|--columns]", (0, Some(0)), Once, help),
    row(
        "create",
        "<dev_name>\n\
         \t    [-j|--major <major> -m|--minor <minor>]\n\
         \t    [-U|--uid <uid>] [-G|--gid <gid>] [-M|--mode <octal_mode>]\n\
         \t    [-u|--uuid <uuid>] [--addnodeonresume|--addnodeoncreate]\n\
         \t    [--readahead {[+]<sectors>|auto|none}]\n\
         \t    [-n|--notable|--table {<table>|<table_file>}]\n\
         \tcreate --concise [<concise_device_spec_list>]",
        (0, Some(2)),
        Once,
        create::create,
    ),
    row(
        "remove",
        "[--deferred] [-f|--force] [--retry] <device>...",
        (0, None),
        PerArgumentOrSelection,
        remove::remove,
    ),
    row(
        "remove_all",
        "[-f|--force]",
        (0, Some(0)),
        Once,
        remove::remove_all,
    ),
    row(
        "suspend",
        "[--noflush] [--nolockfs] <device>...",
        (0, None),
        PerArgumentOrSelection,
        change::suspend,
    ),
    row(
        "resume",
        "[--noflush] [--nolockfs] <device>...\n\
         \t       [--addnodeonresume|--addnodeoncreate]\n\
         \t       [--readahead {[+]<sectors>|auto|none}]",
        (0, None),
        PerArgumentOrSelection,
        change::resume,
    ),
    row(
        "load",
        "<device> [<table>|<table_file>]",
        (0, Some(2)),
        Once,
        create::load,
    ),
    row(
        "clear",
        "<device>",
        (0, None),
        PerArgumentOrSelection,
        change::clear,
    ),
    row(
        "reload",
        "<device> [<table>|<table_file>]",
        (0, Some(2)),
        Once,
        create::load,
    ),
    row(
        "wipe_table",
        "[-f|--force] [--noflush] [--nolockfs] <device>...",
        (0, None),
        PerArgumentOrSelection,
        remove::wipe_table,
    ),
    row(
        "rename",
        "<device> [--setuuid] <new_name_or_uuid>",
        (1, Some(2)),
        Once,
        change::rename,
    ),
    row(
        "measure",
        "[<device>...]",
        (0, None),
        PerArgumentOrSelection,
        status::measure,
    ),
    row(
        "message",
        "<device> <sector> <message>",
        (2, None),
        Once,
        message::message,
    ),
    row(
        "ls",
        "[--target <target_type>] [--exec <command>] [-o <options>] [--tree]",
        (0, Some(0)),
        Once,
        listing::ls,
    ),
    row("info", "[<device>...]", (0, None), PerArgument, info::info),
    row(
        "deps",
        "[-o <options>] [<device>...]",
        (0, None),
        PerArgumentOrSelection,
        listing::deps,
    ),
    row(
        "stats",
        "<command> [<options>] [<device>...]",
        (1, None),
        PerArgument,
        listing::stats,
    ),
    row(
        "status",
        "[<device>...] [--noflush] [--target <target_type>]",
        (0, None),
        PerArgumentOrSelection,
        status::status,
    ),
    row(
        "table",
        "[<device>...] [--concise] [--target <target_type>] [--showkeys]",
        (0, None),
        PerArgumentOrSelection,
        status::table,
    ),
    row(
        "wait",
        "<device> [<event_nr>] [--noflush]",
        (0, Some(2)),
        Once,
        change::wait,
    ),
    row(
        "mknodes",
        "[<device>...]",
        (0, None),
        PerArgument,
        listing::mknodes,
    ),
    row(
        "mangle",
        "[<device>...]",
        (0, None),
        PerArgument,
        mangle::mangle,
    ),
    row(
        "udevcreatecookie",
        "",
        (0, Some(0)),
        Once,
        udev::create_cookie,
    ),
    row(
        "udevreleasecookie",
        "[<cookie>]",
        (0, Some(1)),
        Once,
        udev::release_cookie,
    ),
    row("udevflags", "<cookie>", (1, Some(1)), Once, udev::flags),
    row(
        "udevcomplete",
        "<cookie>",
        (1, Some(1)),
        Once,
        udev::complete,
    ),
    row(
        "udevcomplete_all",
        "[<age_in_minutes>]",
        (0, Some(1)),
        Once,
        udev::complete_all,
    ),
    row("udevcookies", "", (0, Some(0)), Once, udev::cookies),
    row(
        "target-version",
        "[<target>...]",
        (1, None),
        PerArgument,
        listing::target_version,
    ),
    row("targets", "", (0, Some(0)), Once, listing::targets),
    row("version", "", (0, Some(0)), Once, listing::version),
    row(
        "setgeometry",
        "<device> <cyl> <head> <sect> <start>",
        (5, Some(5)),
        Once,
        message::set_geometry,
    ),
    row(
        "splitname",
        "<device> [<subsystem>]",
        (1, Some(2)),
        Once,
        info::split_name,
    ),
];

/// The command of this name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The help text.
pub fn usage() -> String {
    let mut text = String::from(USAGE_HEAD);
    for command in COMMANDS {
        text.push_str(&format!("\t{} {}\n", command.name, command.usage));
    }
    text.push_str(USAGE_TAIL);
    text
}

fn help(dmsetup: &mut Dmsetup<'_>, _call: &Call<'_>) -> Done {
    dmsetup.print_usage();
    if dmsetup.switches.has(super::switches::Switch::Columns) {
        super::fields::print_fields(&mut dmsetup.console, false);
    }
    Ok(())
}

const USAGE_HEAD: &str = "Usage:

dmsetup
        [--version] [-h|--help [-c|-C|--columns]]
        [-v|--verbose [-v|--verbose ...]] [-f|--force]
        [--checks] [--manglename {none|hex|auto}]
        [-r|--readonly] [--noopencount] [--noflush] [--nolockfs] [--inactive]
        [--udevcookie <cookie>] [--noudevrules] [--noudevsync] [--verifyudev]
        [-y|--yes] [--readahead {[+]<sectors>|auto|none}] [--retry]
        [-c|-C|--columns] [-o <fields>] [-O|--sort <sort_fields>]
        [-S|--select <selection>] [--nameprefixes] [--noheadings]
        [--separator <separator>]

";

const USAGE_TAIL: &str = "
<device> may be device name or (if only one) -u <uuid> or -j <major> -m <minor>
<mangling_mode> is one of 'none', 'auto' and 'hex'.
<fields> are comma-separated.  Use 'help -c' for list.
<concise_device_specification> has single-device entries separated by semi-colons:
    <name>,<uuid>,<minor>,<flags>,<table>
        where <flags> is 'ro' or 'rw' (the default) and any of <uuid>, <minor>
        and <flags> may be empty. Separate extra table lines with commas.
    E.g.: dev1,,,,0 100 linear 253:1 0,100 100 error;dev2,,,ro,0 1 error
Table_file contents may be supplied on stdin.
Options are: devno, devname, blkdevname.
Tree specific options are: ascii, utf, vt100; compact, inverted, notrunc;
                           blkdevname, [no]device, active, open, rw and uuid.

";
