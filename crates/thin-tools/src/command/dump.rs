//! `thinmap dump`, `thin_dump`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::input::{open, open_repaired, to_file};
use super::options::{input_arg, json_arg, metadata_snap_arg, override_args, overrides, quiet_arg};
use super::output::{exit_code, to_stdout};
use super::{Invocation, Parsed, parse};
use crate::dump::{DumpOptions, Human, Json, Xml, dump};
use crate::same::is_same;
use crate::{Source, ToolError};

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    Command::new("dump")
        .about(
            "Print a pool's metadata as text: XML that restore takes, a form for people, or JSON",
        )
        .arg(input_arg("The metadata device or file, or a running pool"))
        .arg(
            Arg::new("format")
                .short('f')
                .long("format")
                .value_name("TYPE")
                .help("xml, human_readable or json")
                .value_parser(["xml", "human_readable", "json"])
                .default_value("xml"),
        )
        .arg(
            Arg::new("repair")
                .short('r')
                .long("repair")
                .help("Repair the metadata on its way to the text")
                .action(ArgAction::SetTrue)
                .conflicts_with("metadata-snap"),
        )
        .arg(metadata_snap_arg())
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("FILE")
                .help("Write to FILE, not to standard output")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("dev-id")
                .long("dev-id")
                .value_name("ID")
                .help("Only this volume; may be given more than once")
                .action(ArgAction::Append)
                .value_parser(value_parser!(u64)),
        )
        .arg(
            Arg::new("skip-mappings")
                .long("skip-mappings")
                .help("Volumes without their mappings")
                .action(ArgAction::SetTrue),
        )
        .args(override_args())
        .arg(json_arg())
        .arg(quiet_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let quiet = matches.get_flag("quiet");
    let opened = match matches.get_flag("repair") {
        true => open_repaired(call, matches, quiet)?,
        false => open(call, matches)?,
    };
    let mut overrides = overrides(matches);
    // Else the text could not be restored as it is.
    overrides.nr_data_blocks = (overrides.nr_data_blocks).or(opened.pool_data_blocks());
    let options = DumpOptions {
        dev_ids: matches
            .get_many::<u64>("dev-id")
            .map(|ids| ids.copied().collect())
            .unwrap_or_default(),
        skip_mappings: matches.get_flag("skip-mappings"),
        quiet,
        overrides,
    };
    let format = match matches.get_flag("json") {
        true => "json",
        false => matches
            .get_one::<String>("format")
            .map_or("xml", String::as_str),
    };
    let write = |out: &mut dyn Write| write(&opened.source, format, &options, out);
    let written = match matches.get_one::<PathBuf>("output") {
        Some(path) if is_same(path, &opened.path) => {
            return Err(ToolError::Refused(format!(
                "{}: is what is read from, {}: the text would replace the metadata",
                path.display(),
                opened.path.display()
            )));
        }
        Some(path) => to_file(call, path, write),
        None => to_stdout(write),
    };
    written.map_err(|error| error.on(&opened.path))
}

fn write(
    source: &Source,
    format: &str,
    options: &DumpOptions,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    match format {
        "human_readable" => dump(source, options, &Human, out),
        "json" => dump(source, options, &Json, out),
        _ => dump(source, options, &Xml, out),
    }
}
