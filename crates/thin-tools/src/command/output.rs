//! What a tool prints. A reader that goes away, or a device that is full, is no panic.
//!
//! A text that is what the tool was called for must get out: else the tool fails, and names standard output.
//! What is told beside the work cannot make work that is done a failure.

use std::fmt::Display;
use std::io::{self, Write};

use super::Invocation;
use crate::ToolError;

/// Tells something on standard error. Who cannot be told is not told.
pub(crate) fn tell(what: &dyn Display) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

/// Runs `write` on standard output, for what the tool was called for.
pub(super) fn to_stdout(
    write: impl FnOnce(&mut dyn Write) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let outcome = write(&mut out);
    let outcome = outcome.and_then(|()| Ok(out.flush()?));
    // What is left would be tried once more on the way out.
    let _ = out.into_parts();
    outcome
}

/// Prints a line that the tool was called for.
pub(super) fn print(line: &dyn Display) -> Result<(), ToolError> {
    to_stdout(|out| Ok(writeln!(out, "{line}")?))
}

/// Prints lines beside the work, which is done.
pub(super) fn print_beside(call: &Invocation<'_>, lines: &dyn Display) {
    match print(lines) {
        Err(error) if !error.is_broken_pipe() => {
            tell(&format_args!("{}: {error}", call.program));
        }
        _ => {}
    }
}

/// The exit code of a tool that came to an end; tells of the failure.
pub(super) fn exit_code(call: &Invocation<'_>, outcome: Result<(), ToolError>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) if error.is_broken_pipe() => 0,
        Err(error) => call.fail(&error),
    }
}
