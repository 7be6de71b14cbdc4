//! `thinmap repair`, `thin_repair`.

use std::io;
use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use thinmap_thin_metadata::Superblock;

use super::options::{json_arg, override_args, overrides, quiet_arg};
use super::output::{exit_code, print, print_beside};
use super::{Invocation, Parsed, parse};
use crate::repair::{RepairOptions, repair};
use crate::same::is_same;
use crate::{Access, ToolError};

fn device(name: &'static str, short: char, help: &'static str) -> Arg {
    Arg::new(name)
        .short(short)
        .long(name)
        .value_name("DEVICE")
        .help(help)
        .required(true)
}

fn command() -> Command {
    Command::new("repair")
        .about("Write what survives of a pool's metadata to another device or file")
        .arg(device("input", 'i', "The damaged metadata"))
        .arg(device(
            "output",
            'o',
            "Where to write; exists and is large enough",
        ))
        .args(override_args())
        .arg(quiet_arg())
        .arg(json_arg())
        .arg(nothing())
}

/// COMPAT: lvm2 gives an empty word where its configuration has no options for `thin_repair`.
fn nothing() -> Arg {
    let is_empty = |word: &str| match word {
        "" => Ok(()),
        _ => Err("repair takes its devices by -i and -o"),
    };
    Arg::new("nothing")
        .num_args(0..)
        .hide(true)
        .value_parser(is_empty)
}

/// Runs the command; gives its exit code.
pub(super) fn run(call: &Invocation<'_>) -> i32 {
    let matches = match parse(call, command()) {
        Parsed::Run(matches) => matches,
        Parsed::Done(code) => return code,
    };
    exit_code(call, perform(call, &matches))
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let path = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let (from, to) = (path("input"), path("output"));
    if is_same(Path::new(from), Path::new(to)) {
        return Err(ToolError::Refused(format!(
            "{to}: is the input too, {from}; repair writes elsewhere, never in place"
        )));
    }
    let given = overrides(matches);
    let is_impossible = |size: u32| !Superblock::is_data_block_size(size);
    if given.data_block_size.is_some_and(is_impossible) {
        return Err(ToolError::Refused(
            "--data-block-size: a multiple of 128 sectors, up to 2097152".to_owned(),
        ));
    }
    let (quiet, json) = (matches.get_flag("quiet"), matches.get_flag("json"));
    let input = call.image(Path::new(from), Access::Read)?;
    let output = call.image(Path::new(to), Access::Write)?;
    let options = RepairOptions {
        transaction_id: given.transaction_id,
        data_block_size: given.data_block_size,
        nr_data_blocks: given.nr_data_blocks,
        quiet: quiet || json,
    };
    let report = repair(&input, &output, &options)?;
    if json {
        print(&serde_json::to_string_pretty(&report).map_err(io::Error::from)?)?;
    } else if !quiet {
        print_beside(call, &report);
    }
    Ok(())
}
