//! The daemon's own state, and how devices become visible and go away.
//!
//! INVARIANT: a device is visible (block device, name, NBD export) only while its mapping exists; removal goes top down:
//! first nobody can find it, then nobody can reach it, then the mapping goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use rustix::io::Errno;
use thinmap_block::BlockDevice;
use thinmap_control::DmError;
use thinmap_dm::{Environment, GlobalEvents, Registry};
use thinmap_exports::block_node::{BlockNodes, NodeError, NodeKind};
use thinmap_exports::nbd::NbdServer;
use thinmap_runtime::ActorHandle;
use thinmap_units::{DevNo, DmName, Sector};

use crate::devices::{Device, Devices, Lost, Visible};
use crate::keeper::link::KeeperLink;
use crate::nodes::Nodes;
use crate::state_log::StateLog;

/// Everything that runs in the daemon. Shared by all command threads.
pub struct Daemon {
    pub(crate) run_dir: PathBuf,
    pub(crate) env: Arc<Environment>,
    pub(crate) registry: Registry,
    pub(crate) devices: Arc<Devices>,
    /// `None` without a host.
    pub(crate) nodes: Option<Nodes>,
    pub(crate) block_nodes: Arc<dyn BlockNodes>,
    /// `None` when not wanted, and after the end.
    pub(crate) nbd: RwLock<Option<NbdServer>>,
    pub(crate) reaper: ActorHandle,
    pub(crate) notes: Vec<String>,
    pub(crate) stopping: Stopping,
    /// A stop is removing all devices: there are to be no new ones.
    pub(crate) emptying: RwLock<bool>,
    pub(crate) continuity: Option<Continuity>,
}

/// What a daemon has that another one may follow.
pub(crate) struct Continuity {
    pub link: Arc<KeeperLink>,
    pub state: StateLog,
}

/// How the daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Everything is taken down, by force what is in use.
    Stop { force: bool },
    /// Everything is left to a successor.
    Upgrade,
}

/// The way to the daemon's end.
#[derive(Default)]
pub(crate) struct Stopping {
    /// Some end was asked for; what is not a `stop` is an upgrade.
    flag: AtomicBool,
    stop: AtomicBool,
    force: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stopping {
    /// Asks for the end. It goes before an upgrade that nobody has made way for yet.
    pub(crate) fn begin(&self, force: bool) {
        self.force.fetch_or(force, Ordering::AcqRel);
        self.stop.store(true, Ordering::Release);
        self.end();
    }

    fn end(&self) {
        self.flag.store(true, Ordering::Release);
        let _guard = self.lock.lock();
        self.changed.notify_all();
    }

    /// Asks for an end that leaves everything to a successor.
    pub(crate) fn begin_upgrade(&self) {
        self.end();
    }

    /// Sleeps until the end is asked for.
    pub(crate) fn wait(&self) -> Ending {
        let mut guard = self.lock.lock();
        while !self.flag.load(Ordering::Acquire) {
            self.changed.wait(&mut guard);
        }
        self.ending()
    }

    /// What counts of what was asked for.
    pub(crate) fn ending(&self) -> Ending {
        if !self.stop.load(Ordering::Acquire) {
            return Ending::Upgrade;
        }
        Ending::Stop {
            force: self.force.load(Ordering::Acquire),
        }
    }
}

impl Daemon {
    /// The daemon is ending: waiters give up.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.flag.load(Ordering::Acquire)
    }

    /// Word of every event. The kernel counts one when devices come, go and are renamed, too.
    pub(crate) fn events(&self) -> Arc<GlobalEvents> {
        self.env.shared.of()
    }

    /// Notes a device's state for a successor. A command that changes something is only answered well when this was done.
    /// In the log it stands when it could not be.
    pub(crate) fn save(&self, device: &Device) {
        let _ = self.note_as(device, NOTED_AFTER);
    }

    /// As [`Daemon::save`], as an answer.
    pub(crate) fn note(&self, device: &Device) -> Result<(), DmError> {
        self.note_as(device, NOTED_AFTER)
    }

    /// As [`Daemon::note`], for a command of which something else is to be said.
    pub(crate) fn note_as(&self, device: &Device, what: &str) -> Result<(), DmError> {
        let Some(continuity) = &self.continuity else {
            return Ok(());
        };
        continuity.state.save(device).map_err(|error| {
            let name = device.md.name();
            tracing::error!(device = %name, %error, "its state cannot be noted: a crash of the daemon would bring back an older one");
            let text = format!(
                "device-mapper: {name}: {what} cannot be written to the run directory: {error}"
            );
            DmError::new(Errno::IO, text)
        })
    }

    /// A device is gone.
    pub(crate) fn forget(&self, dev_no: DevNo) {
        if let Some(continuity) = &self.continuity {
            continuity.state.remove(dev_no);
        }
    }

    /// Users of a device: tables of other devices, openers of its block device, NBD clients.
    pub(crate) fn open_count(&self, device: &Device) -> u32 {
        device.md.open_count() + device.node.open_count() + self.nbd_connections(device)
    }

    /// Makes what was just resumed reachable, or tells its block device of a new size.
    pub(crate) fn make_visible(
        &self,
        device: &Arc<Device>,
        visible: &mut Visible,
    ) -> Result<(), NodeError> {
        let Some(live) = device.md.info().live else {
            return Ok(());
        };
        if let Some(stand_in) = device.stand_in.lock().take() {
            device.node.attach(device.md.clone(), live.read_only);
            stand_in.pass_to(device.md.clone());
        }
        if visible.node {
            device.node.refresh()?;
        } else {
            device
                .node
                .activate(device.md.clone(), device.md.name().as_str(), live.read_only)?;
            visible.node = true;
            self.add_node(device);
        }
        if visible.nbd.is_none()
            && let Some(nbd) = &*self.nbd.read()
        {
            let name = device.md.name();
            match nbd.add_export(name.as_str(), device.md.clone(), live.read_only) {
                Ok(()) => visible.nbd = Some(name),
                Err(error) => tracing::error!(device = %name, %error, "no NBD export"),
            }
        }
        Ok(())
    }

    /// Puts the device's present name into the device directory.
    pub(crate) fn add_node(&self, device: &Device) {
        let is_block = match self.block_nodes.kind() {
            NodeKind::Loop | NodeKind::Ublk => true,
            NodeKind::FuseFile => false,
            NodeKind::None => return,
        };
        let Some(nodes) = &self.nodes else { return };
        let name = device.md.name();
        if let Err(error) = nodes.add(&name, device.dev_no(), &device.node.path(), is_block) {
            tracing::error!(device = %name, %error, "no node in the device directory");
        }
    }

    /// Takes a name out of the device directory.
    pub(crate) fn remove_node(&self, name: &DmName) {
        if let Some(nodes) = &self.nodes {
            nodes.remove(name);
        }
    }

    /// Where a name's node is or would be, if it belongs to somebody else's device.
    pub(crate) fn foreign_node(&self, name: &DmName) -> Option<PathBuf> {
        let nodes = self.nodes.as_ref()?;
        nodes.is_taken(name).then(|| nodes.path(name))
    }

    pub(crate) fn nbd_rename(&self, from: &DmName, to: &DmName) {
        if let Some(nbd) = &*self.nbd.read()
            && let Err(error) = nbd.rename_export(from.as_str(), to.as_str())
        {
            tracing::error!(%from, %to, %error, "NBD export keeps its old name");
        }
    }

    pub(crate) fn nbd_connections(&self, device: &Device) -> u32 {
        let connections = self
            .nbd
            .read()
            .as_ref()
            .map_or(0, |nbd| nbd.connections(device.md.name().as_str()));
        u32::try_from(connections).unwrap_or(u32::MAX)
    }

    /// Removes a device, or says that it is busy.
    pub(crate) fn remove_now(&self, device: &Arc<Device>) -> Result<(), DmError> {
        self.remove_device(device, false)
    }

    pub(crate) fn remove_device(&self, device: &Arc<Device>, force: bool) -> Result<(), DmError> {
        // Of a command that hangs the end need not be waited for.
        let is_end = self.is_stopping() || *self.emptying.read();
        let control = match is_end {
            false => Some(device.control.lock()),
            true => device.control.try_lock_for(CONTROL_PATIENCE),
        };
        let Some(control) = control else {
            let text = format!("device-mapper: {}: a command on it hangs", device.md.name());
            return Err(DmError::new(Errno::BUSY, text));
        };
        self.remove_locked(device, control, force)
    }

    fn remove_locked(
        &self,
        device: &Arc<Device>,
        mut visible: MutexGuard<'_, Visible>,
        force: bool,
    ) -> Result<(), DmError> {
        if device.removing() {
            return Err(DmError::no_device());
        }
        let name = device.md.name();
        let busy = |by: &str| {
            DmError::new(
                Errno::BUSY,
                format!("device-mapper: {name} is in use by {by}"),
            )
        };
        if device.md.open_count() > 0 {
            return Err(busy("another mapped device"));
        }
        if !force && self.nbd_connections(device) > 0 {
            return Err(busy("an NBD client"));
        }
        // While it is still to be seen: a device that stays must never seem to be gone.
        let outside = "a mount or a program that has its block device open";
        if !force && device.node.is_in_use() {
            return Err(busy(outside));
        }
        device.set_removing(true);
        if device.md.begin_removal(&|| false).is_err() {
            device.set_removing(false);
            return Err(busy("another mapped device"));
        }
        if force {
            // Its users are still there; what they ask from now on must not wait for a device that goes.
            device.md.shut();
        }
        if let Some((stand_in, _)) = device.stand_in() {
            stand_in.fail();
        }
        if let Err(error) = device.node.remove(force) {
            device.md.cancel_removal();
            device.set_removing(false);
            // What changed meanwhile was not noted.
            self.save(device);
            if let (Some((stand_in, _)), Some(_)) = (device.stand_in(), device.silent_backing()) {
                stand_in.hold();
            }
            return Err(match error {
                NodeError::Busy { .. } => busy(outside),
                error => DmError {
                    errno: error.errno(),
                    text: format!("device-mapper: {name}: {error}"),
                },
            });
        }
        // One that did not come back after a crash has its name still.
        if self.foreign_node(&name).is_none() {
            self.remove_node(&name);
        }
        if let (Some(nbd), Some(export)) = (&*self.nbd.read(), visible.nbd.take()) {
            // Not waited for: the mapping fails what its last clients still have in flight.
            let _ = nbd.remove_export(export.as_str());
        }
        visible.node = false;
        self.devices.remove(device);
        // Before the number can be another device's.
        self.forget(device.dev_no());
        device.md.destroy();
        *device.lost.lock() = Lost::default();
        Ok(())
    }

    /// Removes the devices whose removal was deferred, as far as they are free; whether some are left.
    pub(crate) fn reap(&self) -> bool {
        let mut left = false;
        for device in self.devices.all() {
            // Asked often and of all: the count of a few milliseconds ago will do to leave one for the next time.
            let free = |d: &Arc<Device>| {
                // INVARIANT: every command comes by here, so it waits for no command.
                d.node.open_count() == 0
                    && (d.control.try_lock())
                        .is_some_and(|visible| self.remove_locked(d, visible, false).is_ok())
            };
            if !device.deferred_remove() {
                continue;
            }
            let connected = self.nbd_connections(&device) > 0;
            if device.awaits_clients(self.env.clock.now(), connected) || !free(&device) {
                left = true;
            }
        }
        left
    }

    /// Whether a device is in use from outside the daemon, and by whom.
    pub(crate) fn first_open(&self) -> Option<(DmName, u32)> {
        self.devices.all().into_iter().find_map(|device| {
            let openers = device.node.open_count() + self.nbd_connections(&device);
            (openers > 0).then(|| (device.md.name(), openers))
        })
    }

    /// Size of a device as its users see it.
    pub(crate) fn size(device: &Device) -> Sector {
        match device.stand_in() {
            Some((stand_in, _)) => stand_in.size(),
            None => device.md.size(),
        }
    }
}

/// How long a removal that was deferred for NBD clients waits for them after a daemon's death: a client tries again at once, or every
/// few seconds.
pub(crate) const CLIENTS_BACK: Duration = Duration::from_secs(60);
const NOTED_AFTER: &str = "done, but its state";
/// How long the daemon's end waits for a command on a device.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);
