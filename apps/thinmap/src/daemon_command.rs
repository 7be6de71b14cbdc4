//! `thinmap daemon`: the process around the daemon library.

use std::path::PathBuf;

use crate::daemon_start;
use crate::run_paths::RunPaths;

/// What `thinmap daemon` was told.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    pub paths: RunPaths,
    /// Configuration file; /etc/thinmap.toml is read if it is there and none is named.
    pub config_file: Option<PathBuf>,
    /// Leave the caller's session and return when the daemon serves.
    pub detach: bool,
}

const DEFAULT_CONFIG_FILE: &str = "/etc/thinmap.toml";

/// Runs the daemon until it is stopped.
pub fn run(options: &DaemonOptions) -> anyhow::Result<()> {
    if options.detach {
        return detach(options);
    }
    // Fails when this process already leads a group, which is as good.
    let _ = rustix::process::setsid();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("THINMAP_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // Told on standard error, which would panic where that is what cannot be written (a pipe whose reader is gone).
        .log_internal_errors(false)
        .init();
    options.paths.make_run_dir()?;
    let default = PathBuf::from(DEFAULT_CONFIG_FILE);
    let file = match &options.config_file {
        Some(path) => thinmap_daemon::ConfigFile::read(path)?,
        None if default.exists() => thinmap_daemon::ConfigFile::read(&default)?,
        None => thinmap_daemon::ConfigFile::default(),
    };
    let config = thinmap_daemon::Config {
        run_dir: options.paths.run_dir.clone(),
        dev_dir: options.paths.dev_dir.clone(),
        file,
    };
    thinmap_daemon::run(&config)?;
    Ok(())
}

/// Starts the same daemon as a child that leads its own session and logs to the log file, and leaves it to init when
/// it serves.
fn detach(options: &DaemonOptions) -> anyhow::Result<()> {
    options.paths.make_run_dir()?;
    daemon_start::start_logging(&options.paths, options.config_file.as_deref())?;
    Ok(())
}
