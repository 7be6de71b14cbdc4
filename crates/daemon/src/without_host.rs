//! A daemon without a host: the same devices, commands and workers over devices and a schedule that a simulator supplies. No
//! sockets, nodes, mounts or signals; volumes are reached by [`Daemon::block_device`].

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use thinmap_block::BlockDevice;
use thinmap_dm::{DeviceOpener, Environment, Registry, SharedState};
use thinmap_exports::block_node::{self, NodesConfig};
use thinmap_runtime::Spawner;
use thinmap_units::DmName;

use crate::daemon::{Daemon, Stopping};
use crate::devices::Devices;
use crate::opener::Opener;
use crate::reaper::Reaper;

impl Daemon {
    /// A daemon whose actors live in `spawner` and whose tables stand on devices of `outside`.
    ///
    /// # Errors
    /// When the spawner refuses.
    pub fn without_host(
        spawner: Arc<dyn Spawner>,
        outside: Arc<dyn DeviceOpener>,
        shared: SharedState,
    ) -> std::io::Result<Arc<Self>> {
        let devices = Arc::new(Devices::default());
        let env = Arc::new(Environment {
            opener: Arc::new(Opener::without_host(devices.clone(), outside)),
            clock: spawner.clock(),
            spawner: spawner.clone(),
            freezer: None,
            shared,
        });
        let (block_nodes, notes) = block_node::open(&NodesConfig {
            run_dir: PathBuf::new(),
            queues: 0,
            enabled: false,
        });
        let (reaper, handle) = Reaper::start(&*spawner)?;
        let daemon = Arc::new(Self {
            run_dir: PathBuf::new(),
            env,
            registry: Registry::new(thinmap_targets::ALL),
            devices,
            nodes: None,
            block_nodes,
            nbd: RwLock::new(None),
            reaper: handle,
            notes,
            stopping: Stopping::default(),
            emptying: RwLock::default(),
            continuity: None,
        });
        reaper.serve(&daemon);
        Ok(daemon)
    }

    /// Takes all devices down by force, as an end by a signal does; how many could not be.
    pub fn stop_by_force(&self) -> usize {
        self.remove_everything(true);
        self.devices.all().len()
    }

    /// A mapped device, for requests.
    pub fn block_device(&self, name: &DmName) -> Option<Arc<dyn BlockDevice>> {
        let device = self.devices.by_name(name)?;
        Some(device.md.clone())
    }
}
