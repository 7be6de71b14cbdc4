//! A daemon that nothing leads out of: no sockets, no nodes, no block devices, and of the host's devices none.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use thinmap_dm::{DeviceOpener, Environment, Registry, SharedState};
use thinmap_exports::block_node::{self, NodesConfig};
use thinmap_runtime::{Spawner, ThreadSpawner};

pub use crate::daemon::Daemon;
use crate::daemon::Stopping;
use crate::devices::Devices;
use crate::nodes::Nodes;
use crate::opener::Opener;
use crate::reaper::Reaper;

/// A daemon whose tables find, beside the daemon's own devices, those of `others` alone. `dir` is an empty directory for what it
/// notes.
///
/// # Errors
/// When `dir` cannot be used or a thread cannot be started.
pub fn contained_daemon(dir: &Path, others: Arc<dyn DeviceOpener>) -> std::io::Result<Arc<Daemon>> {
    let (block_nodes, notes) = block_node::open(&NodesConfig {
        run_dir: dir.to_owned(),
        queues: 1,
        enabled: false,
    });
    let devices = Arc::new(Devices::default());
    let spawner = Arc::new(ThreadSpawner::new());
    let (reaper, handle) = Reaper::start(&*spawner)?;
    let daemon = Arc::new(Daemon {
        run_dir: dir.to_owned(),
        env: Arc::new(Environment {
            opener: Arc::new(Opener::without_host(devices.clone(), others)),
            clock: spawner.clock(),
            spawner,
            shared: SharedState::default(),
            freezer: None,
        }),
        registry: Registry::new(thinmap_targets::ALL),
        devices,
        nodes: Some(Nodes::open(&dir.join("mapper"), dir, false)?),
        block_nodes,
        nbd: RwLock::new(None),
        reaper: handle,
        notes,
        continuity: None,
        stopping: Stopping::default(),
        emptying: RwLock::default(),
    });
    reaper.serve(&daemon);
    Ok(daemon)
}

/// Takes all devices of a daemon down, in use or not, suspended or not; whether all went.
pub fn remove_everything(daemon: &Daemon) -> bool {
    daemon.remove_everything(true);
    daemon.devices.all().is_empty()
}
