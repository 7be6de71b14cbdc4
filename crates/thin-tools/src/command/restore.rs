//! `thinmap restore`, `thin_restore`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};

use super::options::{json_arg, override_args, overrides, quiet_arg};
use super::output::{exit_code, print};
use super::{Invocation, Parsed, parse};
use crate::same::is_same;
use crate::{Access, ToolError, restore};

/// Bytes read from the XML at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Runs it.
pub fn run(call: &Invocation<'_>) -> i32 {
    match parse(call, command()) {
        Parsed::Done(code) => code,
        Parsed::Run(matches) => exit_code(call, perform(call, &matches)),
    }
}

fn command() -> Command {
    Command::new("restore")
        .about(
            "Write the metadata that XML describes to a device or file, which loses what it held",
        )
        .arg(
            Arg::new("input")
                .short('i')
                .long("input")
                .value_name("FILE")
                .help("The XML, - for standard input")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("DEVICE")
                .help("The metadata device, or a file that is there and large enough")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .args(override_args())
        .arg(json_arg())
        .arg(quiet_arg())
}

fn perform(call: &Invocation<'_>, matches: &ArgMatches) -> Result<(), ToolError> {
    let path = |name| {
        matches
            .get_one::<PathBuf>(name)
            .map_or(Path::new(""), PathBuf::as_path)
    };
    let (input, output) = (path("input"), path("output"));
    let overrides = overrides(matches);
    let quiet = matches.get_flag("quiet");
    let is_stdin = input == Path::new("-");
    let (storage, name) = match is_stdin {
        true => (Path::new("/dev/stdin"), Path::new("standard input")),
        false => (input, input),
    };
    if is_same(storage, output) {
        return Err(ToolError::Refused(format!(
            "{}: is what is read from, {}: the metadata would replace the text",
            output.display(),
            name.display()
        )));
    }
    let restored = if is_stdin {
        let image = call.image(output, Access::Write)?;
        let mut stdin = BufReader::with_capacity(BUFFER_BYTES, std::io::stdin().lock());
        restore::restore(&mut stdin, None, &image, &overrides, quiet)
    } else {
        let failed = |source| ToolError::File {
            path: input.to_owned(),
            action: "cannot be opened",
            source,
        };
        let file = File::open(input).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let image = call.image(output, Access::Write)?;
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        restore::restore(&mut file, Some(bytes), &image, &overrides, quiet)
    };
    let written = restored.map_err(|error| in_file(name, error).on(output))?;
    if matches.get_flag("json") {
        print(&serde_json::json!(written))?;
    }
    Ok(())
}

fn in_file(input: &Path, error: ToolError) -> ToolError {
    match error {
        ToolError::Refused(what) => ToolError::Refused(format!("{}: {what}", input.display())),
        other => other,
    }
}
