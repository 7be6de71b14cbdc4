//! Reading command lines: clap, with what getopt allows and clap does not.

use std::borrow::Cow;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Invocation;
use super::output::{exit_code, print};
use crate::RootChoice;
use crate::dump::Overrides;

/// The version of thin-provisioning-tools whose behaviour is meant, for programs that ask (lvm2 does).
const VERSION_MEANT: &str = "0.9.0";

/// What became of a command line.
pub enum Parsed {
    /// Options to go on with.
    Run(Box<ArgMatches>),
    /// All is said; the exit code.
    Done(i32),
}

/// Parses the arguments of a tool. Adds `-V`/`--version`, `--json` is the tool's own. Long options may be
/// abbreviated; a value may follow a short option at once, where it is optional too (`-m7`).
///
/// Exit code 1, not clap's 2, tells of a wrong command line.
pub fn parse(call: &Invocation<'_>, command: Command) -> Parsed {
    let optional = optional_shorts(&command);
    let words = std::iter::once(Cow::Borrowed(call.program))
        .chain(call.args.iter().map(|word| attached(word, &optional)))
        .map(Cow::into_owned);
    // COMPAT: the last of several values counts; thin_metadata_size alone refuses a second one.
    let last_counts = command.get_name() != "metadata-size";
    // COMPAT: a version is printed whatever else is missing.
    if asks_for_version(&command, call.args) {
        let version = format!("{VERSION_MEANT} (thinmap {})", env!("CARGO_PKG_VERSION"));
        return Parsed::Done(exit_code(call, print(&version)));
    }
    let command = command
        .bin_name(call.program)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(last_counts)
        .arg(
            Arg::new("version")
                .short('V')
                .long("version")
                .help("Print the version and exit")
                .action(ArgAction::SetTrue),
        );
    match command.try_get_matches_from(words) {
        Ok(matches) => Parsed::Run(Box::new(matches)),
        Err(error) => {
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp);
            // A closed pipe must not become a panic.
            let _ = error.print();
            Parsed::Done(i32::from(!is_help))
        }
    }
}

/// Whether an option is `-V`, alone or behind others that take no value, or `--version` or a beginning of it.
fn asks_for_version(command: &Command, words: &[String]) -> bool {
    let is_flag = |letter: char| {
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_short() == Some(letter));
        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
    };
    let is_other = |word: &str| {
        let mut longs = command.get_arguments().filter_map(Arg::get_long);
        longs.any(|long| long.starts_with(word))
    };
    let asks = |word: &&String| match (word.strip_prefix("--"), word.strip_prefix('-')) {
        (Some(long), _) => !long.is_empty() && "version".starts_with(long) && !is_other(long),
        (None, Some(letters)) => letters.trim_start_matches(is_flag).starts_with('V'),
        (None, None) => false,
    };
    let mut options = words.iter().take_while(|word| *word != "--");
    options.any(|word| asks(&word))
}

/// The short options that may have a value or none.
fn optional_shorts(command: &Command) -> Vec<char> {
    command
        .get_arguments()
        .filter(|arg| arg.is_require_equals_set())
        .filter_map(Arg::get_short)
        .collect()
}

/// `-m7` as clap wants it: `-m=7`.
fn attached<'a>(word: &'a str, optional: &[char]) -> Cow<'a, str> {
    let mut letters = word.chars();
    let (dash, short) = (letters.next(), letters.next());
    let value = letters.as_str();
    match short {
        Some(short)
            if dash == Some('-')
                && optional.contains(&short)
                && !value.is_empty()
                && !value.starts_with('=') =>
        {
            Cow::Owned(format!("-{short}={value}"))
        }
        _ => Cow::Borrowed(word),
    }
}

/// `-m`/`--metadata-snap`, with a block or without.
pub(crate) fn metadata_snap_arg() -> Arg {
    Arg::new("metadata-snap")
        .short('m')
        .long("metadata-snap")
        .value_name("BLOCK")
        .help("Read the metadata snapshot of a pool that is in use [BLOCK: only if it is there]")
        .num_args(0..=1)
        .require_equals(true)
        .value_parser(clap::value_parser!(u64))
}

/// `--json`.
pub(crate) fn json_arg() -> Arg {
    Arg::new("json")
        .long("json")
        .help("As JSON")
        .action(ArgAction::SetTrue)
}

/// `-q`/`--quiet`.
pub(crate) fn quiet_arg() -> Arg {
    Arg::new("quiet")
        .short('q')
        .long("quiet")
        .help("Say nothing")
        .action(ArgAction::SetTrue)
}

/// The device or file to read.
pub(crate) fn input_arg(help: &'static str) -> Arg {
    Arg::new("input")
        .value_name("DEVICE")
        .help(help)
        .required(true)
}

/// Which superblock the options ask for.
pub fn metadata_snap_choice(matches: &ArgMatches) -> RootChoice {
    if !matches.contains_id("metadata-snap") {
        return RootChoice::Live;
    }
    RootChoice::MetadataSnap(matches.get_one::<u64>("metadata-snap").copied())
}

/// What of the superblock is to be replaced.
pub(crate) fn override_args() -> [Arg; 3] {
    let number = |name: &'static str, unit: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(unit).help(help)
    };
    [
        number(
            "transaction-id",
            "NUMBER",
            "Put this transaction id in place of the pool's",
        )
        .value_parser(clap::value_parser!(u64)),
        number(
            "data-block-size",
            "SECTORS",
            "Put this data block size in place of the pool's",
        )
        .value_parser(clap::value_parser!(u32)),
        number(
            "nr-data-blocks",
            "BLOCKS",
            "Put this size of the data device in place of the pool's",
        )
        .value_parser(clap::value_parser!(u64)),
    ]
}

/// The values of [`override_args`].
pub(crate) fn overrides(matches: &ArgMatches) -> Overrides {
    Overrides {
        transaction_id: matches.get_one("transaction-id").copied(),
        data_block_size: matches.get_one("data-block-size").copied(),
        nr_data_blocks: matches.get_one("nr-data-blocks").copied(),
    }
}
