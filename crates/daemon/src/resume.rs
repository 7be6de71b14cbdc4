//! Devices come back as the last daemon had them: tables, states, nodes, exports, requests that waited.
//!
//! Until everything stands nothing is served, so that no request meets half of it; but for devices whose backings do not answer:
//! [`crate::late`]. A device that cannot come back (its backing has gone) stays without a table: its users get errors, and the log says
//! why; the others are served.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thinmap_dm::{DeviceError, DeviceUse, MappedDevice, SuspendFlags, TableError, WhichTable};
use thinmap_units::{DevNo, DmName, DmUuid};

use crate::daemon::{CLIENTS_BACK, Daemon};
use crate::devices::{Device, Lost, Saving};
use crate::late::Late;
use crate::opener::{patient_until, while_busy};
use crate::order::{Returning, StandsOn, Tables, backings, bottom_up};
use crate::question::Question;
use crate::stand_in::StandIn;
use crate::state::{SavedDevice, SavedTable};

/// How long backings may take to answer before the others are served without them.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long backings may be held by what the dead daemon had in flight on them, all together: the keeper waits 60 s for the next table.
pub(crate) const BUSY_MAX: Duration = Duration::from_secs(45);

impl Daemon {
    /// Brings back what was saved, but for what comes late. Nothing is served yet.
    pub(crate) fn bring_back(self: &Arc<Self>, all: Vec<SavedDevice>) -> io::Result<Option<Late>> {
        let ours: BTreeSet<DevNo> = all.iter().map(SavedDevice::dev_no).collect();
        let tables = all.iter().flat_map(SavedDevice::tables);
        let backings = tables.flat_map(|table| backings(table, &ours));
        let mut question = Question::ask(backings.collect());
        let mut adopted = Vec::new();
        for saved in all {
            if let Some(device) = self.adopt(&saved)? {
                adopted.push((saved, device));
            }
        }
        let mut returning = bottom_up(adopted, &ours);
        question.wait(ANSWER_MAX, &ours);
        let mut late = BTreeSet::new();
        for one in &mut returning {
            self.expect(one, &question, &ours, &mut late);
        }
        let in_time = |one: &Returning| Tables {
            live: !one.late.live,
            inactive: !one.late.inactive,
        };
        let in_time: Vec<_> = returning.iter().map(|one| (one, in_time(one))).collect();
        self.bring_back_tables(&in_time);
        for Returning { device, .. } in &returning {
            if let Some(live) = device.md.info().live {
                device.node.attach(device.md.clone(), live.read_only);
                device.control.lock().node = true;
            }
        }
        let names: Vec<DmName> = returning.iter().map(|r| r.device.md.name()).collect();
        if let Some(nodes) = &self.nodes {
            nodes.remove_stale(&names);
        }
        returning.retain(|one| one.late.live || one.late.inactive);
        Ok((!returning.is_empty()).then(|| Late::new(question, returning)))
    }

    /// Finds out what of a device comes late. `late` has the devices so far whose live tables do.
    fn expect(
        &self,
        one: &mut Returning,
        question: &Question,
        ours: &BTreeSet<DevNo>,
        late: &mut BTreeSet<DevNo>,
    ) {
        // Before anything is served no file on a device of ours can be opened.
        let waits_for = |on: &StandsOn| on.waits_for(question, ours, late);
        let (device, saved) = (&one.device, &one.saved);
        let live = waits_for(&one.live_on).filter(|_| saved.live.is_some());
        let inactive = waits_for(&one.inactive_on).filter(|_| saved.inactive.is_some());
        let mut lost = device.lost.lock();
        if let Some(backing) = &live {
            tracing::error!(device = %device.md.name(), %backing, "this backing does not answer: the device's I/O waits for it");
            late.insert(saved.dev_no());
            lost.live.clone_from(&saved.live);
            lost.suspended = saved.suspended;
            lost.frozen = saved.frozen;
            self.put_in_place(device, saved);
        }
        let silent = live.or(inactive);
        if silent.is_some() {
            // With a late live table the other one comes after it.
            lost.inactive.clone_from(&saved.inactive);
            lost.below = self.hold_below(one);
        }
        lost.silent = silent;
        one.late = Tables {
            live: lost.live.is_some(),
            inactive: lost.inactive.is_some(),
        };
    }

    /// Opens the devices of ours that its tables name, as the tables will.
    fn hold_below(&self, one: &Returning) -> Vec<DeviceUse> {
        let named: BTreeSet<DevNo> = one.saved.tables().flat_map(SavedTable::numbers).collect();
        let below = named
            .into_iter()
            .filter_map(|number| self.devices.by_dev(number));
        let open = |below: Arc<Device>| below.md.open_for_table(one.saved.dev_no(), false).ok();
        below.filter_map(open).collect()
    }

    /// Puts something that holds requests where the device's table would be.
    fn put_in_place(&self, device: &Device, saved: &SavedDevice) -> Arc<StandIn> {
        let (size, read_only) = (saved.live.as_ref())
            .map_or_else(Default::default, |table| (table.size(), table.read_only));
        let stand_in = StandIn::new(size, saved.limits);
        device.node.attach(stand_in.clone(), read_only);
        device.control.lock().node = true;
        *device.stand_in.lock() = Some(stand_in.clone());
        stand_in
    }

    /// Brings tables back, and states with the live ones. Each device comes after those that its tables name.
    pub(crate) fn bring_back_tables(&self, due: &[(&Returning, Tables)]) {
        let until = Instant::now() + BUSY_MAX;
        for (one, _) in due.iter().filter(|(_, due)| due.live) {
            let Some(table) = &one.saved.live else {
                continue;
            };
            let device = &one.device;
            *device.saving.lock() = Saving::OnTheWayBack;
            let made = make_live(device, table, until);
            *device.saving.lock() = Saving::AsIs;
            self.got_on();
            if let Err(error) = made {
                self.did_not_come_back(one, table, &error);
            }
        }
        if self.devices.all().iter().any(|device| device.is_lost()) {
            self.give_up_snapshots(&self.changed_origins());
        }
        // After all that is live: a line that will take a snapshot over would be taken for the snapshot's first one.
        for (one, _) in due.iter().filter(|(_, due)| due.inactive) {
            let Some(table) = &one.saved.inactive else {
                continue;
            };
            let device = &one.device;
            let loaded = load_again(device, table, until);
            self.got_on();
            if let Err(error) = loaded {
                tracing::error!(device = %device.md.name(), %error, "its inactive table cannot come back; the next daemon tries again");
                device.lost.lock().inactive = Some(table.clone());
            }
        }
        for (one, _) in due.iter().rev().filter(|(_, due)| due.live) {
            let SavedDevice {
                suspended, frozen, ..
            } = one.saved;
            let facts = one.device.md.info();
            let is_back = facts.live.is_some() && !facts.suspended;
            if suspended
                && is_back
                && let Err(error) = one.device.md.suspend_again(frozen)
            {
                tracing::error!(device = %one.device.md.name(), %error, "cannot be suspended again");
            }
        }
    }

    /// Many slow tables take long together: the keeper need not think that this daemon hangs.
    fn got_on(&self) {
        if let Some(continuity) = &self.continuity {
            continuity.link.progress();
        }
    }

    /// A live table could not be loaded, or was refused when it was resumed.
    fn did_not_come_back(&self, one: &Returning, table: &SavedTable, error: &DeviceError) {
        let device = &one.device;
        let refused = device.md.info().live.is_some();
        let mut lost = device.lost.lock();
        *lost = Lost {
            live: Some(table.clone()),
            // It may still come.
            inactive: lost.inactive.take(),
            suspended: one.saved.suspended,
            frozen: one.saved.frozen,
            below: match refused {
                // They are in its table.
                true => Vec::new(),
                false => self.hold_below(one),
            },
            silent: None,
        };
        drop(lost);
        let name = device.md.name();
        if refused {
            tracing::error!(device = %name, %error, "its table is back and cannot be resumed: I/O on it waits. When the cause is cured resume it, or run `thinmap upgrade`");
            return;
        }
        tracing::error!(device = %name, %error, "cannot come back: I/O on it fails. When the cause is cured run `thinmap upgrade` (the next daemon tries again), or load its table");
        let present = device.stand_in.lock().clone();
        let stand_in = present.unwrap_or_else(|| self.put_in_place(device, &one.saved));
        stand_in.fail();
    }

    /// Snapshots of these origins, as tables name them, that have no table since the last daemon's end.
    pub(crate) fn lost_snapshots(&self, origins: &BTreeSet<String>) -> Vec<Arc<Device>> {
        let is_one = |device: &Arc<Device>| {
            let lost = device.lost.lock();
            let mut kept = lost.live.iter().flat_map(SavedTable::origins_kept);
            kept.any(|origin| origins.contains(origin)) && device.md.info().live.is_none()
        };
        let devices = self.devices.all().into_iter();
        devices.filter(is_one).collect()
    }

    /// Snapshots of these origins that could not be loaded are none any more, as the origins change without them.
    pub(crate) fn give_up_snapshots(&self, origins: &BTreeSet<String>) {
        for device in self.lost_snapshots(origins) {
            if device.silent_backing().is_some() {
                continue;
            }
            tracing::error!(device = %device.md.name(), "its origin is changed without it from now on: the snapshot is lost");
            let lost = std::mem::take(&mut *device.lost.lock());
            drop(lost);
            self.save(&device);
        }
    }

    /// Origins that devices change which are live.
    fn changed_origins(&self) -> BTreeSet<String> {
        let devices = self.devices.all().into_iter();
        let tables = devices.filter_map(|device| SavedTable::of(&device, WhichTable::Live));
        let origins = |table: SavedTable| -> Vec<String> {
            table.origins_changed().map(str::to_owned).collect()
        };
        tables.flat_map(origins).collect()
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
        device.set_nbd_clients(saved.nbd_clients);
        if saved.nbd_clients {
            device.await_clients(self.env.clock.now() + CLIENTS_BACK);
        }
        // One more than the last that was noted: who waits for an event looks anew.
        device.md.event().restore(saved.event_nr.wrapping_add(1));
        self.devices
            .insert(device.clone())
            .map_err(|taken| bad(format!("{taken:?} twice")))?;
        Ok(Some(device))
    }
}

fn make_live(device: &Device, table: &SavedTable, until: Instant) -> Result<(), DeviceError> {
    load_again(device, table, until)?;
    let event = device.md.event().number();
    let resumed = device.md.resume(SuspendFlags {
        noflush: true,
        lockfs: false,
    });
    device.md.event().restore(event);
    resumed
}

fn load_again(device: &Device, table: &SavedTable, until: Instant) -> Result<(), DeviceError> {
    if let Some(path) = table.exchanged_file() {
        let reason = format!("{path}: is another file than the one that the device stood on");
        return Err(TableError::new("table", reason, Errno::STALE.raw_os_error()).into());
    }
    patiently(until, || device.md.load(&table.lines(), table.read_only))
}

/// Tries again while a backing is busy: requests of the dead daemon are still in flight on it, and may not meet their repetition.
/// The kernel holds the dead one's lock (of a file) or claim (of a block device) as long as they are.
fn patiently(
    until: Instant,
    load: impl FnMut() -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    patient_until(until, || while_busy(Some(until), DeviceError::errno, load))
}
