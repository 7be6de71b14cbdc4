//! `thinmap`: one program for the daemon, the dmsetup-compatible command and thinmap's own verbs. Called through a link
//! named `dmsetup` it is dmsetup, through one named like a tool of thin-provisioning-tools that tool.
#![forbid(unsafe_code)]

mod daemon_command;
mod daemon_start;
mod device_users;
mod dmsetup;
mod install_shim;
mod live_pool;
mod log;
mod native;
mod run;
mod run_paths;
mod run_static;
mod thin_tools;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use daemon_command::DaemonOptions;
use run_paths::RunPaths;

/// Device mapper in user space.
#[derive(Parser)]
#[command(name = "thinmap", version, about, after_help = thin_tools::list())]
struct Cli {
    #[command(flatten)]
    directories: Directories,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Directories {
    /// Sockets, locks and logs [default: THINMAP_RUN_DIR, else /run/thinmap for root]
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Device nodes [default: THINMAP_DEV_DIR, else /dev/mapper for root]
    #[arg(long, value_name = "DIR", global = true)]
    dev_dir: Option<PathBuf>,
    /// Start no daemon when none is running (also THINMAP_NO_AUTOSTART=1)
    #[arg(long, global = true)]
    no_autostart: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Daemon {
        /// Configuration file [default: /etc/thinmap.toml if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Start it in the background and return when it serves
        #[arg(long)]
        detach: bool,
        /// Without a keeper: a daemon that dies takes its devices with it (also THINMAP_NO_KEEPER=1)
        #[arg(long)]
        no_keeper: bool,
        /// Started by the keeper; standard input is a socket to it
        #[arg(long, hide = true)]
        kept: bool,
    },
    /// Have this very binary take over from the running daemon: devices stay, who uses them sees a pause
    Upgrade,
    /// Stop the daemon and take down all it made
    Stop {
        /// Stop although devices are open
        #[arg(long)]
        force: bool,
    },
    /// Tell which daemon is running
    Ping,
    /// List where devices can be reached: node, block device, file, NBD
    LsExports {
        /// Only this device
        name: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a program written for the kernel's device mapper on thinmap's (dmsetup, lvm, dockerd, ...)
    Run {
        /// By seccomp user notification: for programs that are statically linked or make system calls themselves
        #[arg(long = "static")]
        is_static: bool,
        /// The program and its arguments, best behind `--`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            required = true,
            value_name = "PROGRAM"
        )]
        program: Vec<std::ffi::OsString>,
    },
    /// Put the shim into every program of this system (/etc/ld.so.preload), a container or an image
    InstallShim {
        /// Another system's tree, mounted at DIR
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Although the kernel has its own device mapper, which programs then no longer reach
        #[arg(long)]
        force: bool,
    },
    /// Take the shim out of every program again
    UninstallShim {
        /// Another system's tree, mounted at DIR
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// Run the program that `install-shim` tries a library with
    #[command(hide = true)]
    TryPreload {
        /// The tree of the system that it is tried in
        root: PathBuf,
        #[arg(long)]
        library: Option<PathBuf>,
        /// List what is loaded
        #[arg(long)]
        list: bool,
    },
    /// Perform the system calls of a program under `run --static`; standard input is a socket to it
    #[command(hide = true)]
    Supervise {
        /// Go on in a process of one's own
        #[arg(long)]
        detach: bool,
    },
    /// Ask backings whether they answer; standard input and output are the daemon's
    #[command(hide = true, name = thinmap_daemon::ASK_BACKINGS)]
    AskBackings,
    /// The dmsetup-compatible command; see `thinmap dmsetup help`
    #[command(disable_help_flag = true)]
    Dmsetup {
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<String>,
    },
    /// One of the tools on a pool's metadata
    #[command(external_subcommand)]
    Tool(Vec<String>),
}

fn main() {
    std::process::exit(run());
}

fn run() -> i32 {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let program = program.to_string_lossy().into_owned();
    let args = match words.map(std::ffi::OsString::into_string).collect() {
        Ok(args) => args,
        Err(word) => {
            // Guessing would name another device or file.
            eprintln!("thinmap: the argument {word:?} is not UTF-8");
            return 1;
        }
    };
    run_with(&program, args)
}

fn run_with(program: &str, args: Vec<String>) -> i32 {
    let called_as = Path::new(program).file_name();
    let result = if called_as.is_some_and(|name| name == "dmsetup") {
        dmsetup_with_environment(program, &args)
    } else if let Some(tool) = thin_tools::called_as(program) {
        thin_tools::run_as(tool, &args)
    } else if let Some(args) = dmsetup_args(&args) {
        dmsetup_with_environment("dmsetup", args)
    } else {
        perform(Cli::parse())
    };
    result.unwrap_or_else(|error| {
        eprintln!("thinmap: {}", error_text(&error));
        1
    })
}

/// An error with its causes, as far as it does not tell them itself.
fn error_text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text.trim_end().to_owned()
}

/// A directory named in the environment; set to nothing is not set.
fn directory_in_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
}

/// `thinmap dmsetup ARGS`: dmsetup's own parser sees all of ARGS, help and version included.
fn dmsetup_args(args: &[String]) -> Option<&[String]> {
    match args.split_first() {
        Some((verb, rest)) if verb == "dmsetup" => Some(rest),
        _ => None,
    }
}

/// Options come before the environment.
fn paths(run_dir: Option<PathBuf>, dev_dir: Option<PathBuf>) -> anyhow::Result<RunPaths> {
    RunPaths::new(
        run_dir.or_else(|| directory_in_environment("THINMAP_RUN_DIR")),
        dev_dir.or_else(|| directory_in_environment("THINMAP_DEV_DIR")),
    )
}

fn dmsetup_with_environment(program: &str, args: &[String]) -> anyhow::Result<i32> {
    let paths = paths(None, None)?;
    Ok(dmsetup::main(
        program,
        args,
        paths,
        daemon_start::autostart_allowed(),
    ))
}

fn perform(cli: Cli) -> anyhow::Result<i32> {
    let Directories {
        run_dir,
        dev_dir,
        no_autostart,
    } = cli.directories;
    let paths = paths(run_dir, dev_dir)?;
    let autostart = !no_autostart && daemon_start::autostart_allowed();
    match cli.verb {
        Verb::Daemon {
            config,
            detach,
            no_keeper,
            kept,
        } => {
            return daemon_command::run(&DaemonOptions {
                paths,
                config_file: config,
                detach,
                no_keeper,
                kept,
            });
        }
        Verb::Upgrade => native::upgrade(&paths)?,
        Verb::Stop { force } => native::stop(&paths, force)?,
        Verb::Ping => native::ping(&paths)?,
        Verb::LsExports { name, json } => native::list_exports(&paths, name, json, autostart)?,
        Verb::Run { program, is_static } => {
            let program = run::Program::find(&program)?;
            if is_static {
                run_static::run(&paths, &program, autostart)?;
            } else {
                run::run(&paths, &program, autostart)?;
            }
        }
        Verb::InstallShim { root, force } => {
            install_shim::install(&install_shim::Options { root, force })?;
        }
        Verb::UninstallShim { root } => install_shim::uninstall(root.as_deref())?,
        Verb::TryPreload {
            root,
            library,
            list,
        } => install_shim::test_program(&root, library.as_deref(), list)?,
        Verb::AskBackings => thinmap_daemon::answer_for_backings()?,
        Verb::Supervise { detach } => run_static::supervise(&paths, detach)?,
        Verb::Dmsetup { args } => return Ok(dmsetup::main("dmsetup", &args, paths, autostart)),
        Verb::Tool(words) => return thin_tools::run(&paths, &words),
    }
    Ok(0)
}
