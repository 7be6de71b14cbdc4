//! The dmsetup-compatible command: Debian 12's dmsetup (libdevmapper 1.02.185) in words, order and exit codes.
//!
//! Facts about behaviour come from dmsetup itself. Each command is one function of a row in [`command_table`];
//! all of them speak to the daemon through [`Dmsetup::task`], which prints a failed ioctl the way libdevmapper does.
//! `docs/operating/commands.md` lists what differs.

mod block_names;
mod change;
mod command_table;
mod console;
mod create;
mod fields;
mod info;
mod listing;
mod mangle;
mod message;
mod names;
mod node;
mod remove;
mod report;
mod selection;
mod status;
mod switches;
mod table_text;
mod task;
mod tree;
mod udev;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

pub use console::Console;

use crate::run_paths::RunPaths;
use command_table::{Call, Command, Repeat};
use names::Mangling;
use report::Report;
use switches::{Switch, Switches};

/// The library version that dmsetup names; programs compare it with what they need.
pub const LIBRARY_VERSION: &str = "1.02.185 (2022-05-18)";

/// A command failed and has said why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// What a command's handler gives back.
pub type Done = Result<(), Failed>;

/// One run of dmsetup.
pub struct Dmsetup<'a> {
    pub console: Console<'a>,
    switches: Switches,
    paths: RunPaths,
    connection: task::Connection,
    mangling: Mangling,
    report: Option<Report>,
    tree: Option<tree::DeviceTree>,
    /// The command that `-S` puts aside while `info` looks for the devices to run it on.
    selected_command: Option<&'static Command>,
    tree_style: tree::Style,
    dev_name_kind: block_names::DevNameKind,
    /// A device was already printed in concise form, so the next one needs a separator.
    concise_begun: bool,
}

/// The form in which dmsetup hands a name to the daemon, when it has one.
pub fn mangled_name(name: &str) -> Option<String> {
    names::mangle(name, names::Kind::Name, names::Mangling::Auto).ok()
}

/// Runs dmsetup on the process's own streams. `program` is the name in messages about options.
pub fn main(program: &str, args: &[String], paths: RunPaths, autostart: bool) -> i32 {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut err = io::stderr().lock();
    let console = Console {
        out: &mut out,
        err: &mut err,
    };
    let code = run(program, args, paths, autostart, console);
    let _ = out.flush();
    code
}

/// Runs dmsetup and gives its exit code.
pub fn run(
    program: &str,
    args: &[String],
    paths: RunPaths,
    autostart: bool,
    console: Console<'_>,
) -> i32 {
    let mut dmsetup = Dmsetup {
        console,
        switches: Switches::default(),
        connection: task::Connection::new(paths.clone(), autostart),
        paths,
        mangling: Mangling::default(),
        report: None,
        tree: None,
        selected_command: None,
        tree_style: tree::Style::default(),
        dev_name_kind: block_names::DevNameKind::default(),
        concise_begun: false,
    };
    let line = match switches::parse(program, args) {
        Ok(line) => line,
        Err(text) => {
            dmsetup.console.error(&text);
            dmsetup.console.error("Couldn't process command line.");
            return 1;
        }
    };
    dmsetup.switches = line.switches;
    let result = dmsetup.run(&line.words);
    dmsetup.console.flush();
    // Asking for help or the version succeeds whatever else happens.
    let excused = [Switch::Help, Switch::Version];
    match result {
        Err(Failed) if !excused.iter().any(|switch| dmsetup.switches.has(*switch)) => 1,
        _ => 0,
    }
}

impl Dmsetup<'_> {
    fn run(&mut self, words: &[String]) -> Done {
        self.mangling = self.switches.mangling.unwrap_or_default();
        let (name, args) = match words.split_first() {
            Some((name, args)) => (Some(name.as_str()), args),
            None => (None, words),
        };
        if self.switches.has(Switch::Help) {
            return self.perform_named("help", args);
        }
        if self.switches.has(Switch::Version) {
            return self.perform_named("version", args);
        }
        let Some(name) = name else {
            self.print_usage();
            return Err(Failed);
        };
        let Some(command) = command_table::find(name) else {
            self.console.error("Unknown command.");
            self.print_usage();
            return Err(Failed);
        };
        if args.len() < command.args_min || command.args_max.is_some_and(|max| args.len() > max) {
            self.console.error("Incorrect number of arguments.");
            self.print_usage();
            return Err(Failed);
        }
        self.prepare(command)?;
        let command = self.put_selection_first(command);
        if self.switches.has(Switch::Columns) && command.name != "stats" {
            self.report = Some(self.make_report(command)?);
        }
        let reports_help = self.report.as_ref().is_some_and(Report::is_help);
        if reports_help {
            return Ok(());
        }
        self.perform(command, args)
    }

    fn perform_named(&mut self, name: &str, args: &[String]) -> Done {
        match command_table::find(name) {
            Some(command) => self.perform(command, args),
            None => Err(Failed),
        }
    }

    /// What options and command mean to each other, before anything is asked of the daemon.
    fn prepare(&mut self, command: &'static Command) -> Done {
        if command.name == "splitname" && !self.switches.has(Switch::Columns) {
            self.switches.set(Switch::Columns, "");
        }
        if command.name == "mangle" {
            self.mangling = Mangling::None;
        }
        let options = self.switches.value(Switch::Options).map(str::to_owned);
        let processed = if self.switches.has(Switch::Tree) {
            tree::Style::parse(options.as_deref().unwrap_or_default())
                .map(|style| self.tree_style = style)
        } else if self.switches.has(Switch::Columns) {
            Ok(())
        } else {
            block_names::DevNameKind::parse(options.as_deref().unwrap_or_default())
                .map(|kind| self.dev_name_kind = kind)
        };
        processed.map_err(|text| {
            self.console.error(&text);
            self.console.error("Couldn't process command line.");
            Failed
        })
    }

    /// With `-S`, a command that can be repeated is put aside and `info` goes over the devices instead.
    fn put_selection_first(&mut self, command: &'static Command) -> &'static Command {
        let selecting =
            self.switches.has(Switch::Select) && command.repeat == Repeat::PerArgumentOrSelection;
        if !selecting {
            return command;
        }
        self.selected_command = Some(command);
        self.switches.set(Switch::Columns, "");
        command_table::find("info").unwrap_or(command)
    }

    fn perform(&mut self, command: &'static Command, args: &[String]) -> Done {
        let by_option = self.switches.has(Switch::Uuid) || self.switches.has(Switch::Major);
        let repeats = command.repeat != Repeat::Once;
        let several_devices = repeats && args.len() != 1 && (!args.is_empty() || !by_option);

        let rounds = self.rounds();
        let mut round = 0;
        loop {
            let result = self.perform_over_args(command, args, several_devices);
            if self.concise_begun {
                self.console.print("\n");
            }
            if let Some(mut report) = self.report.take() {
                report.output(
                    &mut self.console,
                    rounds != 1 && self.switches.has(Switch::Count),
                );
                self.report = Some(report);
            }
            result?;
            round += 1;
            if rounds != 0 && round >= rounds {
                return Ok(());
            }
            self.console.print("\n");
            self.console.flush();
            std::thread::sleep(self.interval());
        }
    }

    /// How often to repeat; 0 for ever.
    fn rounds(&self) -> u64 {
        match self.switches.number(Switch::Count) {
            Some(count) => u64::try_from(count).unwrap_or(0),
            None if self.switches.has(Switch::Interval) => 0,
            None => 1,
        }
    }

    fn interval(&self) -> std::time::Duration {
        let seconds = self.switches.number(Switch::Interval).unwrap_or(1);
        std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
    }

    fn perform_over_args(
        &mut self,
        command: &'static Command,
        args: &[String],
        several_devices: bool,
    ) -> Done {
        let repeats = command.repeat != Repeat::Once;
        let mut rest = args;
        loop {
            // Each run sees the remaining arguments, as dmsetup's do; those that repeat look at the first.
            let call = Call {
                args: rest,
                several_devices,
            };
            if (command.run)(self, &call).is_err() {
                self.console.error("Command failed.");
                return Err(Failed);
            }
            match rest.split_first() {
                Some((_, tail)) if repeats && !tail.is_empty() => rest = tail,
                _ => return Ok(()),
            }
        }
    }

    fn print_usage(&mut self) {
        let text = command_table::usage();
        self.console.flush();
        let _ = self.console.err.write_all(text.as_bytes());
    }

    /// Says why a command fails.
    fn fail<T>(&mut self, text: &str) -> Result<T, Failed> {
        self.console.error(text);
        Err(Failed)
    }

    fn verbose(&self) -> bool {
        self.switches.has(Switch::Verbose)
    }
}
