//! Devices come back as the last daemon had them: tables, states, nodes, exports, requests that waited.
//!
//! Until everything stands nothing is served, so that no request meets half of it. A device that cannot come back (its backing has
//! gone) stays without a table: its users get errors, and the log says why; the others are served.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thinmap_dm::{DeviceError, MappedDevice, SuspendFlags, TableLine};
use thinmap_units::{DevNo, DmName, DmUuid, Sector};

use crate::daemon::Daemon;
use crate::devices::Device;
use crate::state::{SavedDevice, SavedTable};

/// How long backings may be held by what the dead daemon had in flight on them, all together: the keeper waits 60 s for a daemon to
/// serve.
const BUSY_MAX: Duration = Duration::from_secs(45);
const BUSY_PAUSE: Duration = Duration::from_millis(2);

impl Daemon {
    /// Brings back what was saved. Nothing is served yet.
    pub(crate) fn bring_back(self: &Arc<Self>, all: Vec<SavedDevice>) -> io::Result<()> {
        let mut devices = Vec::new();
        for saved in all {
            if let Some(device) = self.adopt(&saved)? {
                devices.push((saved, device));
            }
        }
        let order = bottom_up(&devices);
        let until = Instant::now() + BUSY_MAX;
        for (saved, device) in order.iter().map(|i| &devices[*i]) {
            if let Some(table) = &saved.live
                && let Err(error) = make_live(device, table, until)
            {
                tracing::error!(device = %device.md.name(), %error, "cannot come back: I/O on it fails. Load its table when the cause is cured; the next daemon tries again");
                *device.lost.lock() = Some(table.clone());
            }
        }
        // After all that is live: a line that will take a snapshot over would be taken for the snapshot's first one.
        for (saved, device) in order.iter().map(|i| &devices[*i]) {
            if let Some(table) = &saved.inactive
                && let Err(error) =
                    patiently(until, || device.md.load(&lines(table), table.read_only))
            {
                tracing::error!(device = %device.md.name(), %error, "its inactive table cannot come back");
            }
        }
        for (saved, device) in order.iter().rev().map(|i| &devices[*i]) {
            if saved.suspended
                && let Err(error) = device.md.suspend_again(saved.frozen)
            {
                tracing::error!(device = %device.md.name(), %error, "cannot be suspended again");
            }
            if let Some(live) = device.md.info().live {
                device.node.attach(device.md.clone(), live.read_only);
                device.control.lock().node = true;
            }
        }
        let names: Vec<DmName> = devices.iter().map(|(_, device)| device.md.name()).collect();
        if let Some(nodes) = &self.nodes {
            nodes.remove_stale(&names);
        }
        Ok(())
    }

    /// What may ask the devices something, as they are served now.
    pub(crate) fn after_bring_back(&self) {
        for device in self.devices.all() {
            let mut visible = device.control.lock();
            if let Err(error) = self.make_visible(&device, &mut visible) {
                tracing::error!(device = %device.md.name(), %error, "its block device cannot be told its size and limits");
            }
            if visible.node {
                self.add_node(&device);
            }
            drop(visible);
            self.save(&device);
        }
        self.block_nodes.clean_orphans();
        self.reaper.wake();
    }

    /// The device itself, without a table; `None` when its removal had begun.
    fn adopt(&self, saved: &SavedDevice) -> io::Result<Option<Arc<Device>>> {
        let bad = |what: String| io::Error::other(format!("saved device {}: {what}", saved.name));
        let name = DmName::new(&saved.name).map_err(|e| bad(e.to_string()))?;
        let uuid = saved.uuid.as_deref().map(DmUuid::new).transpose();
        let uuid = uuid.map_err(|e| bad(e.to_string()))?;
        let node = self.block_nodes.adopt(saved.node());
        let Some(node) = node.map_err(|e| bad(e.to_string()))? else {
            tracing::warn!(device = %name, "was being removed: it is gone");
            self.forget(saved.dev_no());
            return Ok(None);
        };
        let (env, registry) = (self.env.clone(), self.registry);
        let md = MappedDevice::new(env, registry, saved.dev_no(), name, uuid);
        let device = Arc::new(Device::new(md, node));
        device.set_deferred_remove(saved.deferred_remove);
        // One more than the last that was noted: who waits for an event looks anew.
        device.md.event().restore(saved.event_nr.wrapping_add(1));
        self.devices
            .insert(device.clone())
            .map_err(|taken| bad(format!("{taken:?} twice")))?;
        Ok(Some(device))
    }
}

fn make_live(device: &Device, table: &SavedTable, until: Instant) -> Result<(), DeviceError> {
    patiently(until, || device.md.load(&lines(table), table.read_only))?;
    let event = device.md.event().number();
    let resumed = device.md.resume(SuspendFlags {
        noflush: true,
        lockfs: false,
    });
    device.md.event().restore(event);
    resumed
}

fn lines(table: &SavedTable) -> Vec<TableLine> {
    let line = |(start, len, target, params): &(u64, u64, String, String)| TableLine {
        start: Sector(*start),
        len: Sector(*len),
        target: target.clone(),
        params: params.clone(),
    };
    table.lines.iter().map(line).collect()
}

/// Tries again while a backing is busy: requests of the dead daemon are still in flight on it, and may not meet their repetition.
/// The kernel holds the dead one's lock (of a file) or claim (of a block device) as long as they are.
fn patiently(
    until: Instant,
    mut load: impl FnMut() -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    loop {
        match load() {
            Err(error) if is_busy(&error) && Instant::now() < until => {
                std::thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

fn is_busy(error: &DeviceError) -> bool {
    use rustix::io::Errno;
    [Errno::BUSY, Errno::AGAIN]
        .iter()
        .any(|errno| errno.raw_os_error() == error.errno())
}

/// The devices' places in an order in which each comes after those that its tables name.
fn bottom_up(devices: &[(SavedDevice, Arc<Device>)]) -> Vec<usize> {
    fn visit(
        at: usize,
        devices: &[(SavedDevice, Arc<Device>)],
        seen: &mut [bool],
        order: &mut Vec<usize>,
    ) {
        if std::mem::replace(&mut seen[at], true) {
            return;
        }
        let saved = &devices[at].0;
        for table in saved.live.iter().chain(&saved.inactive) {
            for (.., params) in &table.lines {
                for below in params.split(' ').filter_map(|w| w.parse::<DevNo>().ok()) {
                    if let Some(below) = devices.iter().position(|d| d.0.dev_no() == below) {
                        visit(below, devices, seen, order);
                    }
                }
            }
        }
        order.push(at);
    }
    let (mut seen, mut order) = (vec![false; devices.len()], Vec::new());
    for at in 0..devices.len() {
        visit(at, devices, &mut seen, &mut order);
    }
    order
}
