//! `thinmap ls`, `thin_ls`.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::input::open;
use super::options::{input_arg, json_arg, metadata_snap_arg, quiet_arg};
use super::output::{exit_code, to_stdout};
use super::{Invocation, Parsed, parse};
use crate::ToolError;
use crate::ls::{FIELDS_DEFAULT, Field, json, ls, table};

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    let names: Vec<&str> = Field::names().collect();
    Command::new("ls")
        .about("List a pool's volumes and what they use, exclusively and shared")
        .arg(input_arg("The metadata device or file, or a running pool"))
        .arg(
            Arg::new("format")
                .short('o')
                .long("format")
                .value_name("FIELDS")
                .help("Columns, with commas between them")
                .long_help(format!(
                    "Columns, with commas between them: {}",
                    names.join(", ")
                ))
                .value_delimiter(',')
                .value_parser(|word: &str| {
                    Field::find(word).ok_or_else(|| format!("there is no field '{word}'"))
                }),
        )
        .arg(
            Arg::new("no-headers")
                .long("no-headers")
                .help("No line of headings")
                .action(ArgAction::SetTrue),
        )
        .arg(metadata_snap_arg())
        .arg(json_arg())
        .arg(quiet_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let fields: Vec<Field> = match matches.get_many::<Field>("format") {
        Some(fields) => fields.copied().collect(),
        None => FIELDS_DEFAULT.to_vec(),
    };
    let opened = open(call, matches)?;
    let source = &opened.source;
    let with_exclusive = fields.iter().any(|field| field.needs_exclusive());
    let uses = ls(source, with_exclusive, matches.get_flag("quiet"))
        .map_err(|error| error.on(&opened.path))?;
    let block_sectors = u64::from(source.superblock().data_block_size);
    to_stdout(|out| {
        if matches.get_flag("json") {
            let list = json(&uses, &fields, block_sectors);
            serde_json::to_writer_pretty(&mut *out, &list).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            let headers = !matches.get_flag("no-headers");
            out.write_all(table(&uses, &fields, headers, block_sectors).as_bytes())?;
        }
        Ok(())
    })
}
