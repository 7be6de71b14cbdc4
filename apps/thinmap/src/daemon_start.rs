//! Reaching the daemon, and starting one when there is none.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use thinmap_control::Client;

use crate::run_paths::RunPaths;

/// How long a daemon may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Set to anything but nothing and 0, commands start no daemon.
const NO_AUTOSTART: &str = "THINMAP_NO_AUTOSTART";

/// Connects to the daemon, starting one if that is allowed and none answers.
pub fn connect(paths: &RunPaths, autostart: bool) -> io::Result<Client> {
    let socket = paths.control_socket();
    let error = match Client::connect(&socket) {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    let absent = matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    );
    if !absent || !autostart {
        return Err(error);
    }
    start(paths)
}

/// A daemon that is stopping no longer listens, but still has the run directory until all is taken down.
fn wait_for_predecessor(paths: &RunPaths) -> io::Result<()> {
    let lock_path = paths.control_socket().with_extension("lock");
    let Ok(lock) = File::open(lock_path) else {
        return Ok(());
    };
    let deadline = Instant::now() + START_TIMEOUT;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
        if Instant::now() >= deadline {
            return Err(io::Error::other(
                "another daemon has the run directory and does not answer",
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Whether the environment lets commands start a daemon.
pub fn autostart_allowed() -> bool {
    std::env::var_os(NO_AUTOSTART).is_none_or(|value| value.is_empty() || value == "0")
}

/// Starts a daemon and connects to it. Of several starters at once the first does it and the others find it there.
fn start(paths: &RunPaths) -> io::Result<Client> {
    paths.make_run_dir().map_err(io::Error::other)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(paths.run_dir.join("start.lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    if let Ok(client) = Client::connect(&paths.control_socket()) {
        return Ok(client);
    }
    wait_for_predecessor(paths)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.log_file())?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--run-dir")
        .arg(&paths.run_dir)
        .arg("--dev-dir")
        .arg(&paths.dev_dir)
        .args(["daemon", "--detach"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;

    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        // A detaching daemon's first process ends at once, without error.
        let ended = child.try_wait()?;
        if let Ok(client) = Client::connect(&paths.control_socket()) {
            return Ok(client);
        }
        let failed = ended.is_some_and(|status| !status.success());
        if failed || Instant::now() >= deadline {
            let log = paths.log_file();
            return Err(io::Error::other(format!(
                "the daemon did not start; see {}",
                log.display()
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
