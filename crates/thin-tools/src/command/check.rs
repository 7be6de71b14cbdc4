//! `thinmap check`, `thin_check`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use thinmap_persistent_data::ErrorKind;

use super::host::{Input, LivePool};
use super::options::{input_arg, json_arg, metadata_snap_arg, quiet_arg};
use super::output::{print, print_beside, tell};
use super::{Invocation, Parsed, metadata_snap_choice, parse};
use crate::check::{Depth, Report, check, clear_needs_check, fix_leaks};
use crate::{Access, RootChoice, Roots, ToolError};

/// Findings that the text lists.
const LISTED_MAX: usize = 100;

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::SetTrue)
}

fn command() -> Command {
    Command::new("check")
        .about("Check a pool's metadata")
        .arg(input_arg(
            "The metadata device or file, or a running pool: its metadata snapshot",
        ))
        .arg(quiet_arg())
        .arg(metadata_snap_arg().visible_alias("metadata-snapshot"))
        .arg(json_arg())
        .arg(flag(
            "auto-repair",
            "Give leaked blocks back, and clear the needs-check flag when all is well",
        ))
        .arg(flag(
            "clear-needs-check-flag",
            "Clear the superblock's needs-check flag when all is well",
        ))
        .arg(flag(
            "ignore-non-fatal-errors",
            "Succeed although blocks are leaked",
        ))
        .arg(flag(
            "skip-mappings",
            "Leave out the trees of the volumes' mappings and the counts of the space maps",
        ))
        .arg(flag("super-block-only", "Check the superblock only"))
}

struct Options {
    choice: RootChoice,
    depth: Depth,
    auto_repair: bool,
    clear_needs_check: bool,
    ignore_non_fatal: bool,
    quiet: bool,
    json: bool,
}

impl Options {
    /// `pool` is the running pool that is to be checked, if it is one.
    fn of(matches: &ArgMatches, pool: Option<&dyn LivePool>) -> Result<Self, &'static str> {
        let depth = match (
            matches.get_flag("super-block-only"),
            matches.get_flag("skip-mappings"),
        ) {
            (true, _) => Depth::Superblock,
            (false, true) => Depth::SkipMappings,
            (false, false) => Depth::All,
        };
        let options = Self {
            choice: pool.map_or_else(
                || metadata_snap_choice(matches),
                |pool| RootChoice::MetadataSnap(Some(pool.held_root())),
            ),
            depth,
            auto_repair: matches.get_flag("auto-repair"),
            clear_needs_check: matches.get_flag("clear-needs-check-flag"),
            ignore_non_fatal: matches.get_flag("ignore-non-fatal-errors"),
            quiet: matches.get_flag("quiet"),
            json: matches.get_flag("json"),
        };
        if !options.changes() {
            return Ok(options);
        }
        if options.choice != RootChoice::Live {
            return Err(
                "--auto-repair and --clear-needs-check-flag change the pool, not its metadata snapshot",
            );
        }
        if options.depth != Depth::All {
            return Err("--auto-repair and --clear-needs-check-flag need a check of everything");
        }
        if options.ignore_non_fatal {
            return Err(
                "--auto-repair and --clear-needs-check-flag do not go with --ignore-non-fatal-errors",
            );
        }
        Ok(options)
    }

    fn changes(&self) -> bool {
        self.auto_repair || self.clear_needs_check
    }

    fn access(&self) -> Access {
        match self.changes() {
            true => Access::Write,
            false => Access::of(self.choice),
        }
    }
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    leaks_fixed: u64,
    needs_check_cleared: bool,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the command; gives its exit code.
pub(super) fn run(call: &Invocation<'_>) -> i32 {
    let matches = match parse(call, command()) {
        Parsed::Run(matches) => matches,
        Parsed::Done(code) => return code,
    };
    let word = matches
        .get_one::<String>("input")
        .map_or("", String::as_str);
    let input = match Input::find(call.host, word) {
        Ok(input) => input,
        Err(why) => return call.fail(&why),
    };
    let pool = match &input {
        Input::Path(_) => None,
        Input::Pool(pool) => Some(&**pool),
    };
    let options = match Options::of(&matches, pool) {
        Ok(options) => options,
        Err(why) => return call.fail(&why),
    };
    let path = pool.map_or(Path::new(word), |pool| pool.metadata());
    match perform(call, path, &options) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(_) if options.quiet => 1,
        Err(error) => call.fail(&error),
    }
}

fn perform(call: &Invocation<'_>, path: &Path, options: &Options) -> Result<bool, ToolError> {
    let image = Arc::new(call.image(path, options.access())?);
    let named = |error| ToolError::Metadata(error).on(path);
    // A metadata snapshot that is not there, or elsewhere, is no damage.
    match Roots::read(&*image, options.choice) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Inval) => {
            return Err(named(error));
        }
        _ => {}
    }
    let quiet = options.quiet || options.json;
    let mut outcome = check(&image, options.choice, options.depth, quiet);
    let mut leaks_fixed = 0;
    if options.auto_repair && outcome.report.fatal == 0 {
        leaks_fixed = fix_leaks(image.clone(), &outcome).map_err(named)?;
        if leaks_fixed > 0 {
            outcome = check(&image, options.choice, options.depth, quiet);
        }
    }
    let report = &outcome.report;
    let ok = report.fatal == 0 && (report.leaks == 0 || options.ignore_non_fatal);
    // COMPAT: 0.9's --auto-repair too takes the demand for a check back when nothing is wrong any more.
    let clears = ok && options.changes() && report.needs_check;
    if clears {
        clear_needs_check(&*image).map_err(named)?;
    }
    let answer = Answer {
        ok,
        leaks_fixed,
        needs_check_cleared: clears,
        report,
    };
    if options.json {
        let text = serde_json::to_string_pretty(&answer).map_err(io::Error::from)?;
        match print(&text) {
            Err(error) if !error.is_broken_pipe() => return Err(error),
            _ => {}
        }
    } else if !options.quiet {
        tell_findings(report);
        print_beside(call, &outcome_text(path, &answer, options));
    }
    Ok(ok)
}

fn tell_findings(report: &Report) {
    for finding in report.findings.iter().take(LISTED_MAX) {
        tell(finding);
    }
    let more = report.findings.len().saturating_sub(LISTED_MAX) as u64 + report.not_listed;
    if more > 0 {
        tell(&format_args!("and {more} more (--json lists up to 10000)"));
    }
}

/// What is printed when all is done.
fn outcome_text(path: &Path, answer: &Answer<'_>, options: &Options) -> String {
    let (report, path) = (answer.report, path.display());
    let mut lines = Vec::new();
    if answer.leaks_fixed > 0 {
        lines.push(format!("{} counts put right", answer.leaks_fixed));
    }
    if answer.needs_check_cleared {
        lines.push("needs-check flag cleared".to_owned());
    }
    if let Some(id) = report.transaction_id {
        lines.push(format!("transaction id {id}"));
    }
    if options.depth == Depth::All {
        let (volumes, mappings) = (report.volumes, report.mappings);
        let (used, blocks) = (report.metadata_blocks_used, report.metadata_blocks);
        lines.push(format!(
            "{volumes} volumes, {mappings} mappings, {used} of {blocks} metadata blocks in use"
        ));
    }
    lines.push(match (answer.ok, report.fatal, report.leaks) {
        (true, 0, 0) => format!("{path}: no damage"),
        (true, ..) => format!("{path}: {} leaks, ignored", report.leaks),
        (false, 0, leaks) => format!(
            "{path}: {leaks} blocks are leaked; thinmap check --auto-repair gives them back"
        ),
        (false, fatal, _) => format!("{path}: {fatal} errors; {}", advice(report, &path)),
    });
    lines.join("\n")
}

/// How to go on after fatal findings.
fn advice(report: &Report, path: &std::path::Display<'_>) -> String {
    let repair = format!("thinmap repair -i {path} -o OTHER");
    if report.is_foreign {
        return format!(
            "there is no superblock of thin metadata: is this the right device? If it held a pool's metadata, {repair} \
             writes what survives to another device"
        );
    }
    match report.unreadable {
        0 => format!("{repair} writes what survives to another device"),
        blocks => format!(
            "{blocks} blocks cannot be read, which may be the device's fault and not the metadata's: look into the kernel's \
             log and check again, or copy the device (ddrescue); {repair} writes what can be read to another device"
        ),
    }
}
