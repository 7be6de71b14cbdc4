//! `thinmap trim`, `thin_trim`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::options::{json_arg, quiet_arg};
use super::output::{exit_code, print, tell};
use super::{Invocation, Parsed, parse};
use crate::same::is_same;
use crate::{Access, RootChoice, ToolError, trim};

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    let device = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("DEVICE")
            .help(help)
            .required(true)
            .value_parser(value_parser!(PathBuf))
    };
    Command::new("trim")
        .about("Discard the blocks that no volume of a pool uses; the pool must not be running")
        .arg(device("metadata-dev", "The pool's metadata device or file"))
        .arg(device("data-dev", "The pool's data device or file"))
        .arg(
            Arg::new("pool-inactive")
                .long("pool-inactive")
                .help("Taken for compatibility: that is found out")
                .action(ArgAction::SetTrue)
                .hide(true),
        )
        .arg(json_arg())
        .arg(quiet_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let path = |name| {
        matches
            .get_one::<PathBuf>(name)
            .cloned()
            .unwrap_or_default()
    };
    let quiet = matches.get_flag("quiet");
    let json = matches.get_flag("json");
    let (metadata, data) = (path("metadata-dev"), path("data-dev"));
    if is_same(&metadata, &data) {
        return Err(ToolError::Refused(format!(
            "{}: is the metadata device too, {}",
            data.display(),
            metadata.display()
        )));
    }
    let source = call.source(&metadata, RootChoice::Live)?;
    call.refuse_used(&data, Access::Write)?;
    if source.superblock().needs_check() {
        return Err(ToolError::Refused(format!(
            "{}: the metadata is marked as to be checked: run check first",
            metadata.display()
        )));
    }
    let discard = |file: &std::fs::File, from, len| call.host.discard(file, from, len);
    let mut each = |begin, end| {
        if !quiet && !json {
            tell(&format_args!(
                "emitting discard for blocks ({begin}, {end}]"
            ));
        }
    };
    let done = trim::trim(&source, &data, &discard, quiet, &mut each)
        .map_err(|error| error.on(&metadata))?;
    if json {
        print(&serde_json::json!(done))?;
    }
    Ok(())
}
