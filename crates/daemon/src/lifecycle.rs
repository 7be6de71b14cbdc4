//! The daemon from start to end.
//!
//! Start: claim the run directory, clean up what a killed daemon left there, bring up exports, listen. End (a stop
//! request, SIGTERM, SIGINT): take no more commands, remove all devices top down so that everything acknowledged is
//! durable, take exports, mounts and sockets away.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thinmap_control::server::{Server, ServerError};
use thinmap_dm::{Environment, Registry, SharedState};
use thinmap_exports::block_node::{self, BlockNodes, NodesConfig};
use thinmap_exports::nbd::{NbdConfig, NbdServer, TcpConfig, TlsConfig};
use thinmap_runtime::{Spawner, ThreadSpawner};

use crate::config::{Config, NbdSection};
use crate::daemon::{Daemon, Stopping};
use crate::devices::Devices;
use crate::nodes::Nodes;
use crate::opener::Opener;
use crate::reaper::Reaper;

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
    /// Threads or signals.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Runs a daemon until it is told to stop.
pub fn run(config: &Config) -> Result<(), RunError> {
    make_private_directory(&config.run_dir)?;
    let server = Server::bind(&config.run_dir.join("control.sock"))?;
    prepare_process(config);
    block_node::clean_stale(&config.run_dir);
    let daemon = build(config)?;
    let signals = watch_signals(&daemon)?;
    let running = server.start(daemon.clone())?;
    tracing::info!(run_dir = %config.run_dir.display(), dev_dir = %config.dev_dir.display(), "serving");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);

    let force = daemon.stopping.wait();

    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
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

fn build(config: &Config) -> Result<Arc<Daemon>, RunError> {
    let directory = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Directory { path, source }
    };
    let links = config.file.block_devices.links;
    let nodes =
        Nodes::open(&config.dev_dir, &config.run_dir, links).map_err(directory(&config.dev_dir))?;
    let (block_nodes, notes) = open_block_nodes(config);
    for note in &notes {
        tracing::warn!("{note}");
    }
    let nbd = start_nbd(config)?;
    let devices = Arc::new(Devices::default());
    let spawner = Arc::new(ThreadSpawner::new());
    let env = Arc::new(Environment {
        opener: Arc::new(Opener::new(devices.clone(), config.dev_dir.clone())),
        clock: spawner.clock(),
        spawner: spawner.clone(),
        shared: SharedState::default(),
        freezer: Some(Arc::new(MountFreezer)),
    });
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
        nbd: RwLock::new(nbd),
        reaper: handle,
        notes,
        stopping: Stopping::default(),
    });
    reaper.serve(&daemon);
    Ok(daemon)
}

/// What keeps a daemon that serves disks from waiting for itself when memory is short.
fn prepare_process(config: &Config) {
    if let Err(error) = thinmap_runtime::mark_io_flusher() {
        tracing::warn!(error = %error.0, "not marked as an I/O flusher (needs CAP_SYS_RESOURCE): under memory pressure writes may wait for themselves");
    }
    if config.file.memory.lock {
        // With a limit, locking would succeed now and threads could not be started later.
        let locked = if may_lock_all_memory() {
            thinmap_runtime::lock_memory()
        } else {
            Err(std::io::ErrorKind::PermissionDenied.into())
        };
        if let Err(error) = locked {
            tracing::warn!(%error, "memory is not locked (needs CAP_IPC_LOCK or no memlock limit): the daemon may be paged out");
        }
    }
}

fn may_lock_all_memory() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::IPC_LOCK)
    });
    capable || limit.current.is_none()
}

fn open_block_nodes(config: &Config) -> (Arc<dyn BlockNodes>, Vec<String>) {
    block_node::open(&NodesConfig {
        run_dir: config.run_dir.clone(),
        queues: config.file.queue_count(),
        enabled: config.file.block_devices.enabled,
    })
}

fn start_nbd(config: &Config) -> Result<Option<NbdServer>, RunError> {
    let section = &config.file.nbd;
    if !section.unix && section.tcp.is_none() {
        return Ok(None);
    }
    let tcp = match section.tcp {
        Some(addr) => Some(TcpConfig {
            addr,
            tls: tls(section)?,
        }),
        None => None,
    };
    let nbd_config = NbdConfig {
        unix: section.unix.then(|| config.run_dir.join("nbd.sock")),
        tcp,
        queues: config.file.queue_count(),
        ..NbdConfig::default()
    };
    NbdServer::start(nbd_config)
        .map(Some)
        .map_err(|e| RunError::Nbd(e.to_string()))
}

fn tls(section: &NbdSection) -> Result<Option<TlsConfig>, RunError> {
    match (&section.tls_certificate, &section.tls_key) {
        (Some(cert), Some(key)) => Ok(Some(TlsConfig {
            certificate: cert.clone(),
            key: key.clone(),
            client_authorities: section.tls_client_ca.clone(),
        })),
        (None, None) => Ok(None),
        _ => Err(RunError::Nbd(
            "tls_certificate and tls_key go together".to_owned(),
        )),
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

/// SIGTERM, SIGINT and SIGHUP end the daemon in good order.
fn watch_signals(daemon: &Arc<Daemon>) -> Result<signal_hook::iterator::Handle, RunError> {
    let system = |source| RunError::System {
        what: "watch signals",
        source,
    };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system)?;
    let handle = signals.handle();
    let daemon = daemon.clone();
    std::thread::Builder::new()
        .name("thinmap-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                tracing::info!(signal, "asked to end by a signal");
                daemon.stopping.begin(true);
            }
        })
        .map_err(system)?;
    Ok(handle)
}

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
