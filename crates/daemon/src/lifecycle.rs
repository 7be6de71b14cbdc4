//! The daemon from start to end.
//!
//! Start: claim the run directory, clean up what a killed daemon left there, bring up exports, listen. End (a stop
//! request, SIGTERM, SIGINT): take no more commands, remove all devices top down so that everything acknowledged is
//! durable, take exports, mounts and sockets away.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use thinmap_control::server::{Server, ServerError};
use thinmap_dm::{Environment, KeptMemory, Registry, SharedState};
use thinmap_exports::block_node::{self, BlockNodes, DescriptorKeeper, NodesConfig};
use thinmap_runtime::{Spawner, ThreadSpawner};
use thinmap_targets::NoPathTimeout;

use crate::access::{Access, AccessError};
use crate::config::Config;
use crate::daemon::{Continuity, Daemon, Ending, Stopping};
use crate::devices::{Device, Devices};
use crate::keeper::link::KeeperLink;
use crate::keeper::message::UPGRADE_EXIT;
use crate::late::Late;
use crate::nodes::Nodes;
use crate::opener::Opener;
use crate::reaper::Reaper;
use crate::state_log::{self, Before, StateLog};
use crate::{nbd, process};

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory cannot be made or used.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The run directory belongs to somebody else, who could then command the daemon.
    #[error("{}: must belong to the user who runs the daemon", .0.display())]
    NotOurs(PathBuf),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ServerError),
    /// The NBD server.
    #[error("NBD: {0}")]
    Nbd(String),
    /// A group that should be let in.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Threads or signals.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Runs a daemon until it is told to stop. With a link to a keeper it goes on where the keeper's last daemon was.
///
/// Does not return when it leaves everything to a successor.
pub fn run(config: &Config, link: Option<Arc<KeeperLink>>) -> Result<(), RunError> {
    make_private_directory(&config.run_dir)?;
    let is_successor = link.as_ref().is_some_and(|link| link.is_successor());
    if is_successor {
        abort_when_main_panics();
        return match serve(config, link) {
            Ok(()) => Ok(()),
            // Ending in order would take devices down that the next one may bring back.
            Err(error) => {
                tracing::error!(%error, "cannot take over");
                std::process::exit(1);
            }
        };
    }
    serve(config, link)
}

/// Unwinding would run destructors that take devices down.
fn abort_when_main_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if std::thread::current().name() == Some("main") {
            abort();
        }
    }));
}

/// Ends the process as a crash does, when its log has been written (by a thread of its own, where somebody might not read it).
pub(crate) fn abort() -> ! {
    std::thread::sleep(LOG_PATIENCE);
    std::process::abort()
}

fn serve(config: &Config, link: Option<Arc<KeeperLink>>) -> Result<(), RunError> {
    let is_successor = link.as_ref().is_some_and(|link| link.is_successor());
    let access = can_do_without(is_successor, NO_ACCESS, config.file.access.resolve())?;
    let mut server = claim(config, link.as_deref())?;
    server.admit_whom_the_mode_admits(access.administrators.is_some());
    config.keep_for_successors(is_successor);
    process::prepare(config);
    if !is_successor {
        block_node::clean_stale(&config.run_dir);
    }
    let (daemon, nbd, late) = build(config, link.clone(), &access)?;
    let signals = process::watch_signals(&daemon)?;
    daemon.after_bring_back();
    *daemon.nbd.write() = can_do_without(is_successor, NO_NBD, nbd::start(&daemon, nbd))?;
    can_do_without(
        is_successor,
        NO_ACCESS,
        access.grant_sockets(&config.run_dir),
    )?;
    let running = server.start(daemon.clone())?;
    watch_threads(&daemon, config.file.continuity.hang_secs)?;
    if let Some(link) = &link {
        let frozen = daemon.devices.all().into_iter();
        let frozen = frozen.filter(|device| device.is_frozen());
        let number = |device: Arc<Device>| (device.dev_no().major, device.dev_no().minor);
        let all_are_back = !daemon.devices.all().iter().any(|device| device.is_lost());
        link.ready(frozen.map(number).collect(), all_are_back);
    }
    if let Some(late) = late {
        late.start(&daemon).map_err(|source| RunError::System {
            what: "start a thread",
            source,
        })?;
    }
    tracing::info!(run_dir = %config.run_dir.display(), dev_dir = %config.dev_dir.display(), "serving");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);

    let mut ending = daemon.stopping.wait();
    if let Some(link) = &link {
        link.leave();
    }
    if ending == Ending::Upgrade {
        tracing::info!("making way for the next daemon");
        if !running.leave(COMMANDS_PATIENCE) {
            tracing::warn!("a command is cut off: it waits for a device");
        }
        // Somebody may have been told since that the daemon stops.
        ending = daemon.stopping.ending();
        if ending != Ending::Upgrade {
            running.remove_socket();
        }
    }
    let force = match ending {
        Ending::Stop { force } => force,
        Ending::Upgrade => {
            if let Some(nbd) = &*daemon.nbd.read() {
                nbd.leave(LEAVE_PATIENCE);
            }
            daemon.block_nodes.leave(LEAVE_PATIENCE);
            // What is open, claimed or mounted here stays as it is.
            std::process::exit(UPGRADE_EXIT);
        }
    };

    if let Some(link) = &link {
        link.stopping();
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    if force {
        // Commands may wait for requests that suspended devices hold.
        daemon.let_everything_through();
    }
    running.stop();
    daemon.remove_everything(force);
    if let Some(nbd) = daemon.nbd.write().take() {
        nbd.shutdown();
    }
    daemon.block_nodes.shutdown();
    signals.close();
    tracing::info!("stopped");
    Ok(())
}

/// What a first daemon fails for a successor says, and does without: the devices that are in use must not go for it.
fn can_do_without<T: Default, E: std::fmt::Display>(
    is_successor: bool,
    without: &str,
    had: Result<T, E>,
) -> Result<T, E> {
    match had {
        Err(error) if is_successor => {
            tracing::error!(%error, "{without}");
            Ok(T::default())
        }
        had => had,
    }
}

/// Claims the run directory, or goes on with the claim of the last daemon.
fn claim(config: &Config, link: Option<&KeeperLink>) -> Result<Server, RunError> {
    let path = config.run_dir.join("control.sock");
    let Some(link) = link else {
        return Ok(Server::bind(&path)?);
    };
    if let (Some(socket), Some(lock)) = (link.take(CONTROL[0]), link.take(CONTROL[1])) {
        return Ok(Server::adopt(&path, socket, lock));
    }
    let server = Server::bind(&path)?;
    for (name, fd) in CONTROL.into_iter().zip(server.descriptors()) {
        link.keep(name, fd).map_err(keeping)?;
    }
    Ok(server)
}

pub(crate) fn keeping(source: std::io::Error) -> RunError {
    RunError::System {
        what: "hand a descriptor to the keeper",
        source,
    }
}

/// The daemon with the devices of the last one, which are served when this returns; how NBD is to be; and devices that come later.
fn build(
    config: &Config,
    link: Option<Arc<KeeperLink>>,
    access: &Access,
) -> Result<(Arc<Daemon>, Option<nbd::Nbd>, Option<Late>), RunError> {
    let directory = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Directory { path, source }
    };
    let links = config.file.block_devices.links;
    let mut nodes =
        Nodes::open(&config.dev_dir, &config.run_dir, links).map_err(directory(&config.dev_dir))?;
    nodes.give_to(access.devices);
    let (block_nodes, notes) = open_block_nodes(config, link.as_ref());
    for note in &notes {
        tracing::warn!("{note}");
    }
    let is_successor = link.as_ref().is_some_and(|link| link.is_successor());
    let nbd = can_do_without(is_successor, NO_NBD, nbd::open(config, link.as_deref()))?;
    let devices = Arc::new(Devices::default());
    let spawner = Arc::new(ThreadSpawner::new());
    let env = Arc::new(Environment {
        opener: Arc::new(Opener::new(devices.clone(), config.dev_dir.clone())),
        clock: spawner.clock(),
        spawner: spawner.clone(),
        shared: SharedState::default(),
        freezer: Some(Arc::new(MountFreezer)),
    });
    let timeout = config.file.multipath.queue_if_no_path_timeout_secs;
    env.shared.of::<NoPathTimeout>().set_seconds(timeout);
    let taking_over = |source| RunError::System {
        what: "take over from the last daemon",
        source,
    };
    let (continuity, saved) = match link {
        Some(link) => {
            env.shared.of::<KeptMemory>().set(link.clone());
            thinmap_exports::freeze::set_holder(link.clone());
            let before = Before {
                file: link.take(state_log::HELD_AS),
                is_successor,
            };
            let (keeper, holder) = (link.keeper(), link.clone());
            let opened = StateLog::open(&config.run_dir, keeper, Some(holder), before);
            let (state, saved) = opened.map_err(taking_over)?;
            (Some(Continuity { link, state }), saved)
        }
        None => (None, Vec::new()),
    };
    let (reaper, handle) = Reaper::start(&*spawner).map_err(|source| RunError::System {
        what: "start a thread",
        source,
    })?;
    let daemon = Arc::new(Daemon {
        run_dir: config.run_dir.clone(),
        env,
        registry: Registry::new(thinmap_targets::ALL),
        devices,
        nodes: Some(nodes),
        block_nodes,
        nbd: RwLock::new(None),
        reaper: handle,
        notes,
        stopping: Stopping::default(),
        emptying: RwLock::default(),
        continuity,
    });
    let kept = daemon.env.shared.of::<KeptMemory>();
    kept.set_bringing_back(true);
    let late = daemon.bring_back(saved).map_err(taking_over)?;
    kept.set_bringing_back(false);
    daemon.block_nodes.serve().map_err(taking_over)?;
    reaper.serve(&daemon);
    Ok((daemon, nbd, late))
}

fn open_block_nodes(
    config: &Config,
    link: Option<&Arc<KeeperLink>>,
) -> (Arc<dyn BlockNodes>, Vec<String>) {
    let mut nodes = NodesConfig {
        run_dir: config.run_dir.clone(),
        queues: config.file.queue_count(),
        enabled: config.file.block_devices.enabled,
    };
    match link {
        None => block_node::open(&nodes),
        Some(link) => {
            let continuity = block_node::Continuity {
                keeper: link.clone(),
                held: link.take_fuse(),
                generation: link.generation(),
            };
            if !nodes.enabled && !continuity.held.is_empty() {
                tracing::error!(
                    "[block_devices] enabled = false takes effect after a stop: there are block devices in use"
                );
                nodes.enabled = true;
            }
            block_node::open_kept(&nodes, continuity)
        }
    }
}

fn make_private_directory(path: &Path) -> Result<(), RunError> {
    let error = |source| RunError::Directory {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(error(e)),
        _ => {}
    }
    let metadata = std::fs::metadata(path).map_err(error)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(RunError::NotOurs(path.to_owned()));
    }
    Ok(())
}

const NO_ACCESS: &str =
    "[access] cannot be had as it is now: only root and the daemon's user are let in";
const NO_NBD: &str = "no NBD: its clients are cut off until the next upgrade or start";

/// Before the keeper's memory that nobody has taken is let go.
fn watch_threads(daemon: &Arc<Daemon>, hang_secs: u32) -> Result<(), RunError> {
    if hang_secs == 0 {
        return Ok(());
    }
    let limit = Duration::from_secs(u64::from(hang_secs));
    crate::watchdog::start(daemon, limit).map_err(|source| RunError::System {
        what: "watch threads",
        source,
    })
}

/// Names under which the keeper holds the control socket and the lock of the run directory.
const CONTROL: [&str; 2] = ["control", "control-lock"];
/// How long commands may take that are under way when the daemon makes way.
const COMMANDS_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests in flight may take when the daemon makes way. What is left is the successor's, and some (those that a suspended
/// device holds) do not end.
const LEAVE_PATIENCE: Duration = Duration::from_millis(250);
/// How long the log's thread may take for the last lines of a daemon that ends without order.
const LOG_PATIENCE: Duration = Duration::from_millis(100);

/// Freezes the file system that is mounted on a device.
struct MountFreezer;

impl thinmap_dm::FileSystemFreezer for MountFreezer {
    fn freeze(&self, dev: thinmap_units::DevNo) -> Result<(), i32> {
        thinmap_exports::freeze::freeze(dev)
    }

    fn thaw(&self, dev: thinmap_units::DevNo) {
        thinmap_exports::freeze::thaw(dev);
    }
}
