//! `thinmap delta`, `thin_delta`.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::input::open;
use super::options::{input_arg, json_arg, metadata_snap_arg};
use super::output::{exit_code, to_stdout};
use super::{Invocation, Parsed, parse};
use crate::ToolError;
use crate::delta::{JsonDelta, Side, SimpleXml, VerboseXml, delta};

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    let side = |name: &'static str, alias: &'static str, root: &'static str| {
        [
            Arg::new(name)
                .long(name)
                .visible_alias(alias)
                .value_name("ID")
                .help("A volume by its id")
                .value_parser(value_parser!(u64))
                .conflicts_with(root)
                .required_unless_present(root),
            Arg::new(root)
                .long(root)
                .value_name("BLOCK")
                .help("Or a mapping tree by its root's block")
                .value_parser(value_parser!(u64)),
        ]
    };
    Command::new("delta")
        .about("Print how the mappings of two volumes differ")
        .arg(input_arg("The metadata device or file, or a running pool"))
        .args(side("thin1", "snap1", "root1"))
        .args(side("thin2", "snap2", "root2"))
        .arg(metadata_snap_arg())
        .arg(
            Arg::new("verbose")
                .long("verbose")
                .help("With data blocks")
                .action(ArgAction::SetTrue),
        )
        .arg(json_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let side = |thin, root| match matches.get_one::<u64>(thin) {
        Some(id) => Side::Thin(*id),
        None => Side::Root(matches.get_one::<u64>(root).copied().unwrap_or_default()),
    };
    let (left, right) = (side("thin1", "root1"), side("thin2", "root2"));
    let opened = open(call, matches)?;
    let source = &opened.source;
    to_stdout(|out| {
        if matches.get_flag("json") {
            delta(source, left, right, &mut JsonDelta::default(), out)
        } else if matches.get_flag("verbose") {
            delta(source, left, right, &mut VerboseXml::default(), out)
        } else {
            delta(source, left, right, &mut SimpleXml::default(), out)
        }
    })
    .map_err(|error| error.on(&opened.path))
}
