//! Reaching the daemon, and starting one when there is none.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use thinmap_control::native::{NativeRequest, NativeResponse};
use thinmap_control::{CallError, Client};

use crate::run_paths::RunPaths;

/// How long a daemon may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Set to anything but nothing and 0, commands start no daemon.
const NO_AUTOSTART: &str = "THINMAP_NO_AUTOSTART";

/// Connects to the daemon, starting one if that is allowed and none answers.
pub fn connect(paths: &RunPaths, autostart: bool) -> io::Result<Client> {
    let socket = paths.control_socket();
    let error = match answering(&socket) {
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

/// A connection to a daemon that answers. One that is being killed still takes connections for a moment, and then
/// is as good as none.
fn answering(socket: &Path) -> io::Result<Client> {
    let mut client = Client::connect(socket)?;
    match client.native(&NativeRequest::Ping) {
        Err(CallError::Transport { .. }) => Err(io::ErrorKind::ConnectionRefused.into()),
        _ => Ok(client),
    }
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
    paths
        .make_run_dir()
        .map_err(|error| io::Error::other(crate::error_text(&error)))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(paths.run_dir.join("start.lock"))?;
    // Also one that was made with another mode: whoever may open it may hold it for ever.
    let _ = rustix::fs::fchmod(&lock, Mode::RUSR | Mode::WUSR);
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    if let Ok(client) = answering(&paths.control_socket()) {
        return Ok(client);
    }
    wait_for_predecessor(paths)?;
    match start_logging(paths, None, false) {
        // Somebody may have started one by hand meanwhile.
        Err(error) => Client::connect(&paths.control_socket()).map_err(|_| error),
        started => started,
    }
}

/// Starts a daemon that logs to the log file: it must not keep its starter's terminal or pipes. Returns when it serves.
pub fn start_logging(
    paths: &RunPaths,
    config_file: Option<&Path>,
    no_keeper: bool,
) -> io::Result<Client> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.log_file())?;
    let log_start = log.metadata()?.len();
    let mut command = daemon_command(paths)?;
    if let Some(file) = config_file {
        command.arg("--config").arg(std::path::absolute(file)?);
    }
    if no_keeper {
        command.arg("--no-keeper");
    }
    command.stdout(log.try_clone()?).stderr(log);
    wait_until_it_serves(paths, &mut command)?.ok_or_else(|| {
        let log = paths.log_file();
        let reason =
            last_words(&log, log_start).map_or(String::new(), |words| format!(": {words}"));
        let log = log.display();
        io::Error::other(format!("the daemon did not start{reason} (see {log})"))
    })
}

/// The command line of a daemon that outlives its starter: it makes a session of its own.
fn daemon_command(paths: &RunPaths) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--run-dir")
        .arg(&paths.run_dir)
        .arg("--dev-dir")
        .arg(&paths.dev_dir)
        .arg("daemon")
        .current_dir("/")
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs the command and waits until that very daemon answers; `None` when it ends or keeps silent instead.
fn wait_until_it_serves(paths: &RunPaths, command: &mut Command) -> io::Result<Option<Client>> {
    let mut daemon = command.spawn()?;
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        let ended = daemon.try_wait()?.is_some();
        if let Ok(mut client) = Client::connect(&paths.control_socket())
            && let Ok(NativeResponse::Pong(info)) = client.native(&NativeRequest::Ping)
            && (info.pid == daemon.id() || info.keeper == Some(daemon.id()))
        {
            return Ok(Some(client));
        }
        if ended {
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(None)
}

/// What a daemon that ended said last, from its log behind `start` (bytes).
fn last_words(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut text = String::new();
    file.take(LAST_WORDS_MAX).read_to_string(&mut text).ok()?;
    let at = text.rfind("thinmap: ")?;
    let words = text[at..].trim_start_matches("thinmap: ").trim_end();
    Some(words.to_owned())
}

/// Of the log, in bytes: far more than a daemon says that does not start.
const LAST_WORDS_MAX: u64 = 64 * 1024;
