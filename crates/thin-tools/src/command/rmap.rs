//! `thinmap rmap`, `thin_rmap`.

use std::ops::Range;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::input::open;
use super::options::{input_arg, json_arg, metadata_snap_arg, quiet_arg};
use super::output::{exit_code, to_stdout};
use super::{Invocation, Parsed, parse};
use crate::{ToolError, rmap};

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    Command::new("rmap")
        .about("Print which volumes' blocks are on given blocks of the data device")
        .arg(input_arg("The metadata device or file, or a running pool"))
        .arg(
            Arg::new("region")
                .long("region")
                .value_name("BEGIN..END")
                .help("Blocks of the data device, END not included; may be given more than once")
                .action(ArgAction::Append)
                .required(true)
                .value_parser(rmap::parse_region),
        )
        .arg(metadata_snap_arg())
        .arg(json_arg())
        .arg(quiet_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let regions: Vec<Range<u64>> = matches
        .get_many::<Range<u64>>("region")
        .map(|regions| regions.cloned().collect())
        .unwrap_or_default();
    let opened = open(call, matches)?;
    let found = rmap::rmap(&opened.source, &regions, matches.get_flag("quiet"))
        .map_err(|error| error.on(&opened.path))?;
    to_stdout(|out| match matches.get_flag("json") {
        true => {
            serde_json::to_writer_pretty(&mut *out, &rmap::json(&found))
                .map_err(std::io::Error::from)?;
            Ok(writeln!(out)?)
        }
        false => rmap::print(&found, out),
    })
}
