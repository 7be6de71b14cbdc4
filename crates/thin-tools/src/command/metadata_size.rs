//! `thinmap metadata-size`, `thin_metadata_size`.

use clap::{Arg, ArgMatches, Command};

use super::options::json_arg;
use super::output::{exit_code, print};
use super::{Invocation, Parsed, parse};
use crate::ToolError;
use crate::metadata_size::{Size, Unit, amount, estimate_bytes};

/// What a size without a unit is in.
const SECTORS: &str = "sectors";

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    let size = |name: &'static str, short, help: &'static str| {
        Arg::new(name)
            .short(short)
            .long(name)
            .value_name("SIZE[UNIT]")
            .help(help)
            .required(true)
            .value_parser(Size::parse)
    };
    Command::new("metadata-size")
        .about("Estimate how large a metadata device should be")
        .after_help("Units: b, s (512 bytes), k m g t p e z y (powers of 1024), the same in capitals (powers of 1000)")
        .arg(size("block-size", 'b', "Data block size; without unit in sectors"))
        .arg(size("pool-size", 's', "Size of the data device; without unit in sectors"))
        .arg(size("max-thins", 'm', "Most volumes and snapshots there will be"))
        .arg(
            Arg::new("unit")
                .short('u')
                .long("unit")
                .value_name("UNIT")
                .help("Unit of the answer")
                .default_value("s")
                .value_parser(|word: &str| {
                    Unit::find(word).ok_or_else(|| format!("there is no unit '{word}'"))
                }),
        )
        .arg(
            Arg::new("numeric-only")
                .short('n')
                .long("numeric-only")
                .value_name("short|long")
                .help("Only the number, or with the unit's letter or name behind it")
                .num_args(0..=1)
                .require_equals(true)
                .value_parser(|word: &str| {
                    // COMPAT: a beginning of the word is enough.
                    ["short", "long"]
                        .into_iter()
                        .find(|form| !word.is_empty() && form.starts_with(word))
                        .ok_or("short or long is expected")
                }),
        )
        .arg(json_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let size = |name| matches.get_one::<Size>(name).cloned();
    let (Some(block), Some(pool), Some(thins)) =
        (size("block-size"), size("pool-size"), size("max-thins"))
    else {
        return refuse("block size, pool size and number of volumes are needed");
    };
    let (Some(block_sectors), Some(pool_sectors), Some(max_thins)) =
        (block.sectors(), pool.sectors(), thins.count())
    else {
        return refuse("a size is larger than 16 EiB");
    };
    if block_sectors == 0 || pool_sectors == 0 || max_thins == 0 {
        return refuse("no size may be zero");
    }
    if !block_sectors.is_power_of_two() {
        return refuse("the block size must be a power of two");
    }
    if pool_sectors <= block_sectors {
        return refuse("the pool must be larger than a block");
    }
    let bytes = estimate_bytes(block_sectors, pool_sectors, max_thins);
    let unit = matches.get_one::<Unit>("unit").copied();
    let Some(unit) = unit else {
        return refuse("a unit is needed");
    };
    let number = amount(bytes, unit);
    if matches.get_flag("json") {
        return print(&serde_json::json!({ "bytes": bytes }));
    }
    if !matches.contains_id("numeric-only") {
        return print(&format_args!(
            "{} - {number} {} estimated metadata area size for \"--block-size={} --pool-size={} --max-thins={}\"",
            call.program,
            unit.name,
            block.text(SECTORS),
            pool.text(SECTORS),
            thins.text("")
        ));
    }
    match matches.get_one::<&str>("numeric-only").copied() {
        Some("short") => print(&format_args!("{number}{}", unit.letter)),
        Some(_) => print(&format_args!("{number}{}", unit.name)),
        None => print(&number),
    }
}

fn refuse(what: &str) -> Result<(), ToolError> {
    Err(ToolError::Refused(what.to_owned()))
}
