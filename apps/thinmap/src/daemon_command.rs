//! `thinmap daemon`: the process around the daemon library.

use std::ffi::OsString;
use std::path::PathBuf;

use rustix::process::Resource;
use thinmap_daemon::keeper::link::KeeperLink;
use thinmap_daemon::keeper::process::KeeperConfig;
use thinmap_daemon::{ConfigFile, ContinuitySection};

use crate::daemon_start;
use crate::log;
use crate::run_paths::RunPaths;

/// What `thinmap daemon` was told.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    pub paths: RunPaths,
    /// Configuration file; /etc/thinmap.toml is read if it is there and none is named.
    pub config_file: Option<PathBuf>,
    /// Leave the caller's session and return when the daemon serves.
    pub detach: bool,
    /// Nothing holds what must outlive the daemon.
    pub no_keeper: bool,
    /// This process was started by a keeper.
    pub kept: bool,
}

const DEFAULT_CONFIG_FILE: &str = "/etc/thinmap.toml";

/// Runs the daemon until it is stopped.
pub fn run(options: &DaemonOptions) -> anyhow::Result<i32> {
    if options.detach {
        return detach(options);
    }
    take_all_descriptors();
    if options.kept {
        // Before the link's thread, which would keep all that this one has.
        thinmap_daemon::give_up_privileges();
    }
    // Before any descriptor is opened: it must not be taken for the keeper's.
    let link = options.kept.then(KeeperLink::from_stdin).transpose()?;
    if !options.kept {
        // Fails when this process already leads a group, which is as good.
        let _ = rustix::process::setsid();
    }
    let _log = log::start();
    options.paths.make_run_dir()?;
    let is_successor = link.as_ref().is_some_and(|link| link.is_successor());
    let (file, source) = read_config(options, is_successor)?;
    let config = thinmap_daemon::Config {
        run_dir: options.paths.run_dir.clone(),
        dev_dir: options.paths.dev_dir.clone(),
        file,
        source,
    };
    if link.is_none() && wants_keeper(options, &config.file.continuity) {
        return run_keeper(options, config.file.continuity);
    }
    thinmap_daemon::run(&config, link)?;
    Ok(0)
}

/// What the configuration file says, with its path, or, when it has become unusable, what it said to the last daemon: devices that are in
/// use must not go for a slip of the pen.
fn read_config(
    options: &DaemonOptions,
    is_successor: bool,
) -> anyhow::Result<(ConfigFile, Option<PathBuf>)> {
    let default = PathBuf::from(DEFAULT_CONFIG_FILE);
    let path = match &options.config_file {
        Some(path) => path,
        None if default.exists() => &default,
        None => return Ok(Default::default()),
    };
    let copy = thinmap_daemon::last_config(&options.paths.run_dir);
    match ConfigFile::read(path) {
        Ok(file) => Ok((file, Some(path.clone()))),
        Err(error) if is_successor && copy.exists() => {
            tracing::error!(
                %error,
                "the configuration of the daemon before stays in force"
            );
            Ok((ConfigFile::read(&copy)?, None))
        }
        Err(error) => Err(error.into()),
    }
}

/// Devices, clients and what a keeper holds take descriptors; the limit that is in force is one for programs that use select(2).
fn take_all_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    // Programs that it starts may close all that there could be, one by one.
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS, |max| max.min(DESCRIPTORS));
    limit.current = limit.current.map(|now| now.max(wanted));
    // Where that is not allowed it stays as it was, and who meets it is told.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}

fn wants_keeper(options: &DaemonOptions, section: &ContinuitySection) -> bool {
    let set = |value: std::ffi::OsString| !value.is_empty() && value != "0";
    if options.no_keeper || !section.keeper || std::env::var_os(NO_KEEPER).is_some_and(set) {
        return false;
    }
    let able = kernel_release() >= RESEND_SINCE;
    if !able {
        tracing::warn!(
            "no keeper: this kernel cannot hand out FUSE requests again (Linux 6.9 can); a daemon that dies takes its devices with it"
        );
    }
    able
}

fn kernel_release() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    (number(), number())
}

/// Becomes the keeper of a daemon with the same options.
fn run_keeper(options: &DaemonOptions, limits: ContinuitySection) -> anyhow::Result<i32> {
    let mut arguments: Vec<OsString> = vec![
        "--run-dir".into(),
        options.paths.run_dir.clone().into(),
        "--dev-dir".into(),
        options.paths.dev_dir.clone().into(),
        "daemon".into(),
        "--kept".into(),
    ];
    if let Some(file) = &options.config_file {
        arguments.push("--config".into());
        arguments.push(std::path::absolute(file)?.into());
    }
    let config = KeeperConfig {
        run_dir: options.paths.run_dir.clone(),
        binary: std::env::current_exe()?,
        arguments,
        limits,
    };
    Ok(thinmap_daemon::keeper::process::run(config)?)
}

const DESCRIPTORS: u64 = 1 << 20;
/// Set to anything but nothing and 0, daemons run without a keeper.
const NO_KEEPER: &str = "THINMAP_NO_KEEPER";
/// The first kernel with FUSE_NOTIFY_RESEND.
const RESEND_SINCE: (u32, u32) = (6, 9);

/// Starts the same daemon as a child that leads its own session and logs to the log file, and leaves it to init when
/// it serves.
fn detach(options: &DaemonOptions) -> anyhow::Result<i32> {
    options.paths.make_run_dir()?;
    daemon_start::start_logging(
        &options.paths,
        options.config_file.as_deref(),
        options.no_keeper,
    )?;
    Ok(0)
}
