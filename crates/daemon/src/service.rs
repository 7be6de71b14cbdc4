//! Device mapper's commands on the daemon's devices: what the kernel's ioctls do.

use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use thinmap_control::{
    CancelToken, DeviceDeps, DeviceInfo, DeviceListEntry, DeviceSelector, DeviceStatus, DmError,
    DmService, Geometry, Removal, StatusKind, StatusQuery, SuspendOptions, TableInfo, TableLine,
    TargetVersion,
};
use thinmap_dm::{DeviceError, MappedDevice, SuspendFlags, WhichTable};
use thinmap_exports::block_node::NodeError;
use thinmap_units::{DmName, DmUuid, Sector};
use zeroize::Zeroize;

use crate::daemon::Daemon;
use crate::devices::{Device, Lost, NotLabelled, Saving, Taken, Visible};
use crate::late::{has_its_inactive_table, has_its_table};
use crate::state::SavedTable;

impl DmService for Daemon {
    fn remove_all(&self, deferred: bool) -> Result<(), DmError> {
        // A device goes only after those that stand on it: go round until nothing more goes.
        loop {
            let removed = self
                .devices
                .all()
                .iter()
                .filter(|d| self.remove_now(d).is_ok())
                .count();
            if removed == 0 {
                break;
            }
        }
        if deferred {
            for device in self.devices.all() {
                self.defer(&device)?;
            }
            self.reaper.wake();
        }
        self.events().issue();
        Ok(())
    }

    fn list_devices(&self) -> Result<Vec<DeviceListEntry>, DmError> {
        self.reap();
        let entry = |device: Arc<Device>| DeviceListEntry {
            name: device.md.name(),
            uuid: device.md.uuid(),
            dev: device.dev_no(),
            event_nr: device.md.event().number(),
        };
        Ok(self.devices.all().into_iter().map(entry).collect())
    }

    fn create(
        &self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        minor: Option<u32>,
    ) -> Result<DeviceInfo, DmError> {
        self.reap();
        self.devices
            .check_free(name, uuid)
            .map_err(|taken| taken_error(&taken, name, uuid))?;
        if let Some(path) = self.foreign_node(name) {
            let text = format!(
                "device-mapper: {name}: {} is there already and belongs to another device",
                path.display()
            );
            return Err(DmError::new(Errno::BUSY, text));
        }
        let node = self.block_nodes.create(minor).map_err(|e| DmError {
            // COMPAT: a minor that is taken is ENXIO.
            errno: match e {
                NodeError::Busy { .. } => Errno::NXIO.raw_os_error(),
                _ => e.errno(),
            },
            text: format!("device-mapper: {name}: no block device can be made: {e}"),
        })?;
        let emptying = self.emptying.read();
        if *emptying {
            let _ = node.remove(true);
            return Err(DmError::new(
                Errno::BUSY,
                "device-mapper: the daemon is stopping",
            ));
        }
        let md = MappedDevice::new(
            self.env.clone(),
            self.registry,
            node.dev_no(),
            name.clone(),
            uuid.cloned(),
        );
        let device = Arc::new(Device::new(md, node));
        if let Err(taken) = self.devices.insert(device.clone()) {
            let _ = device.node.remove(true);
            return Err(taken_error(&taken, name, uuid));
        }
        drop(emptying);
        self.note(&device)?;
        self.events().issue();
        Ok(self.info(&device))
    }

    fn remove(&self, selector: &DeviceSelector, deferred: bool) -> Result<Removal, DmError> {
        let device = self.find(selector)?;
        let facts = device.md.info();
        let mut removal = Removal {
            name: facts.name,
            uuid: facts.uuid,
            inactive: facts.inactive.is_some(),
            waits: false,
            uevent: facts.loaded_once,
        };
        match self.remove_now(&device) {
            // It may have been the last user of one whose removal was deferred.
            Ok(()) => {
                self.reap();
            }
            Err(error) if deferred && error.errno == Errno::BUSY.raw_os_error() => {
                self.defer(&device)?;
                self.reaper.wake();
                removal.waits = true;
                removal.uevent = false;
            }
            Err(error) => return Err(error),
        }
        self.events().issue();
        Ok(removal)
    }

    fn cancel_deferred_remove(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        let device = self.find(selector)?;
        device.set_deferred_remove(false);
        self.note(&device)?;
        Ok(self.info(&device))
    }

    fn rename(&self, device: &DmName, new_name: &DmName) -> Result<DeviceInfo, DmError> {
        // As in the kernel, first whether the new name is free, then whether there is such a device.
        self.devices
            .check_free(new_name, None)
            .map_err(|taken| taken_error(&taken, new_name, None))?;
        let asked = device;
        let device = self.find(&DeviceSelector::Name(asked.clone()))?;
        if let Some(path) = self.foreign_node(new_name) {
            let text = format!(
                "device-mapper: {} belongs to another device",
                path.display()
            );
            return Err(DmError::new(Errno::BUSY, text));
        }
        let mut visible = control(&device)?;
        let old_name = device.md.name();
        if old_name != *asked {
            return Err(DmError::no_device());
        }
        self.devices
            .rename(&device, new_name)
            .map_err(|why| not_labelled(&why, new_name, None))?;
        if visible.node {
            self.add_node(&device);
            self.remove_node(&old_name);
        }
        if let Some(exported) = visible.nbd.take() {
            self.nbd_rename(&exported, new_name);
            visible.nbd = Some(new_name.clone());
        }
        self.note(&device)?;
        drop(visible);
        self.events().issue();
        Ok(self.changed(&device))
    }

    fn set_uuid(&self, device: &DmName, uuid: &DmUuid) -> Result<DeviceInfo, DmError> {
        // In the kernel's order: a device's own uuid is taken, too.
        self.devices
            .check_uuid_free(uuid)
            .map_err(|taken| taken_error(&taken, device, Some(uuid)))?;
        let device = self.find(&DeviceSelector::Name(device.clone()))?;
        self.devices
            .set_uuid(&device, uuid)
            .map_err(|why| not_labelled(&why, &device.md.name(), Some(uuid)))?;
        self.note(&device)?;
        self.events().issue();
        Ok(self.changed(&device))
    }

    fn suspend(
        &self,
        selector: &DeviceSelector,
        options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError> {
        let device = self.find(selector)?;
        let control = control(&device)?;
        has_its_table(&device)?;
        // Who makes way for a successor, or ends, does not wait for requests that nobody may let through any more.
        device
            .md
            .suspend_unless(suspend_flags(options), &|| self.is_stopping())
            .map_err(|e| failed(&device, "suspend", &e))?;
        let mut lost = device.lost.lock();
        // Until now it was only because its table was refused on its way back.
        lost.suspended |= lost.could_not_come();
        drop(lost);
        self.note(&device)?;
        drop(control);
        Ok(self.info(&device))
    }

    fn resume(
        &self,
        selector: &DeviceSelector,
        options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError> {
        let device = self.find(selector)?;
        let mut visible = control(&device)?;
        let name = device.md.name();
        let facts = device.md.info();
        if facts.inactive.is_none() {
            has_its_table(&device)?;
            has_its_inactive_table(&device)?;
        }
        let changes = SavedTable::of(&device, WhichTable::Inactive);
        let changes = changes.iter().flat_map(SavedTable::origins_changed);
        let changes = changes.map(str::to_owned).collect();
        self.has_snapshots_of(&device, &changes)?;
        // COMPAT: a resume that finds nothing to do sends no uevent.
        let uevent = facts.suspended || facts.inactive.is_some();
        // CRASH: noted before it is done. From then on requests go by the new table, and a successor must not take the old one.
        *device.saving.lock() = Saving::AfterResume;
        let noted = self.note_as(&device, "not resumed: its state");
        let resumed = noted.and_then(|()| {
            device
                .md
                .resume_unless(suspend_flags(options), &|| self.is_stopping())
                .map_err(|e| failed(&device, "resume", &e))
        });
        *device.saving.lock() = Saving::AsIs;
        let lost = match resumed.is_ok() {
            true => std::mem::take(&mut *device.lost.lock()),
            false => Lost::default(),
        };
        let noted = self.note(&device);
        resumed?;
        if !changes.is_empty() {
            self.give_up_snapshots(&changes);
        }
        let made_visible = self.make_visible(&device, &mut visible);
        // A file system that thaws writes: only now does that reach the device.
        if lost.frozen
            && let Some(freezer) = &self.env.freezer
        {
            freezer.thaw(device.dev_no());
        }
        made_visible.map_err(|e| DmError {
            errno: e.errno(),
            text: format!("device-mapper: {name}: live, but its block device failed: {e}"),
        })?;
        noted?;
        drop(visible);
        if facts.inactive.is_some() {
            self.events().issue();
        }
        Ok(DeviceInfo {
            uevent,
            ..self.info(&device)
        })
    }

    fn status(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        Ok(self.info(&*self.find(selector)?))
    }

    fn wait_event(
        &self,
        selector: &DeviceSelector,
        event_nr: u32,
        query: StatusQuery,
        cancel: &CancelToken,
    ) -> Result<DeviceStatus, DmError> {
        let device = self.find(selector)?;
        device
            .md
            .event()
            .wait(event_nr, &|| cancel.is_cancelled() || self.is_stopping());
        if device.removing() {
            return Err(DmError::no_device());
        }
        if device.md.event().number() == event_nr {
            return Err(DmError::new(Errno::INTR, ""));
        }
        Ok(self.status_of(&device, query))
    }

    fn table_load(
        &self,
        selector: &DeviceSelector,
        lines: Vec<TableLine>,
        read_only: bool,
    ) -> Result<DeviceInfo, DmError> {
        let lines = Wiped(lines);
        let device = self.find(selector)?;
        let control = control(&device)?;
        device
            .md
            .load(&lines.0, read_only)
            .map_err(|e| failed(&device, "table", &e))?;
        device.forget_lost_inactive();
        self.note(&device)?;
        drop(control);
        Ok(self.info(&device))
    }

    fn table_clear(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        let device = self.find(selector)?;
        let control = control(&device)?;
        device.md.clear();
        device.forget_lost_inactive();
        self.note(&device)?;
        drop(control);
        Ok(self.info(&device))
    }

    fn table_deps(&self, selector: &DeviceSelector, inactive: bool) -> Result<DeviceDeps, DmError> {
        let device = self.find(selector)?;
        Ok(DeviceDeps {
            devices: device.md.deps(slot(inactive)).or_else(|| {
                let table = device.awaited_table(inactive)?;
                Some(table.numbers().collect())
            }),
            info: self.info(&device),
        })
    }

    fn table_status(
        &self,
        selector: &DeviceSelector,
        query: StatusQuery,
    ) -> Result<DeviceStatus, DmError> {
        let device = self.find(selector)?;
        Ok(self.status_of(&device, query))
    }

    fn target_versions(&self) -> Result<Vec<TargetVersion>, DmError> {
        let version = |info: thinmap_dm::TargetInfo| TargetVersion {
            name: info.name.to_owned(),
            version: info.version,
        };
        Ok(self.registry.list().map(version).collect())
    }

    fn message(
        &self,
        selector: &DeviceSelector,
        sector: Sector,
        args: &[String],
    ) -> Result<(DeviceInfo, Option<String>), DmError> {
        let device = self.find(selector)?;
        has_its_table(&device)?;
        let reply = device
            .md
            .message(sector, args)
            .map_err(|e| failed(&device, "message", &e))?;
        Ok((self.info(&device), reply))
    }

    fn set_geometry(&self, selector: &DeviceSelector, geometry: Geometry) -> Result<(), DmError> {
        self.find(selector)?;
        // Kept by nobody: loop devices have no geometry. Checked as the kernel does.
        let size = u64::from(geometry.cylinders)
            * u64::from(geometry.heads)
            * u64::from(geometry.sectors_per_track);
        if geometry.start.raw() > size {
            let text = "device-mapper: ioctl: Start sector is beyond the geometry limits.";
            return Err(DmError::new(Errno::INVAL, text));
        }
        Ok(())
    }
}

impl Daemon {
    /// COMPAT: the kernel removes a deferred device as its last user goes. Nobody tells us when that is, so every
    /// command looks first; then none sees a device that should be gone.
    fn find(&self, selector: &DeviceSelector) -> Result<Arc<Device>, DmError> {
        self.reap();
        let device = match selector {
            DeviceSelector::Name(name) => self.devices.by_name(name),
            DeviceSelector::Uuid(uuid) => self.devices.by_uuid(uuid),
            DeviceSelector::Dev(dev) => self.devices.by_dev(*dev),
        };
        device
            .filter(|device| !device.removing())
            .ok_or_else(DmError::no_device)
    }

    /// Has a device removed when its last user goes.
    fn defer(&self, device: &Device) -> Result<(), DmError> {
        device.set_nbd_clients(self.nbd_connections(device) > 0);
        device.set_deferred_remove(true);
        self.note(device)
    }

    fn info(&self, device: &Device) -> DeviceInfo {
        let facts = device.md.info();
        let table = |facts: Option<thinmap_dm::TableFacts>| {
            facts.map(|t| TableInfo {
                target_count: t.target_count,
                read_only: t.read_only,
            })
        };
        let awaited = |inactive| {
            device.awaited_table(inactive).map(|t| TableInfo {
                target_count: u32::try_from(t.lines.len()).unwrap_or(u32::MAX),
                read_only: t.read_only,
            })
        };
        DeviceInfo {
            name: device.md.name(),
            uuid: device.md.uuid(),
            dev: device.dev_no(),
            open_count: self.open_count(device),
            event_nr: device.md.event().number(),
            suspended: device.is_suspended(),
            internally_suspended: false,
            deferred_remove: device.deferred_remove(),
            uevent: false,
            live: table(facts.live).or_else(|| awaited(false)),
            inactive: table(facts.inactive).or_else(|| awaited(true)),
        }
    }

    /// The device's state after a change of which the kernel would tell udev: it has a block device to tell of once a
    /// table was loaded.
    fn changed(&self, device: &Device) -> DeviceInfo {
        DeviceInfo {
            uevent: device.md.info().loaded_once,
            ..self.info(device)
        }
    }

    fn status_of(&self, device: &Device, query: StatusQuery) -> DeviceStatus {
        let kind = match query.kind {
            StatusKind::Info => thinmap_dm::StatusKind::Info,
            StatusKind::Table => thinmap_dm::StatusKind::Table,
            StatusKind::Measurement => thinmap_dm::StatusKind::Measurement,
        };
        let lines = device
            .md
            .table_status(kind, slot(query.inactive), query.no_flush);
        let line = |status: thinmap_dm::TargetStatus| TableLine {
            start: status.start,
            len: status.len,
            target: status.target.to_owned(),
            params: status.text,
        };
        let lines = lines.map(|lines| lines.into_iter().map(line).collect());
        let awaited = || awaited_lines(device, query);
        DeviceStatus {
            info: self.info(device),
            lines: lines.or_else(awaited),
        }
    }
}

/// The lines of a table that the device waits for; without a status, and without the key of a cipher, which only the next table has.
fn awaited_lines(device: &Device, query: StatusQuery) -> Option<Vec<TableLine>> {
    let words = |params: &str| {
        let shown = |word: &str| match word.starts_with(':') && word.contains(":kept:") {
            true => "-".to_owned(),
            false => word.to_owned(),
        };
        let words: Vec<String> = params.split(' ').map(shown).collect();
        words.join(" ")
    };
    let line = |line: TableLine| TableLine {
        params: match query.kind {
            StatusKind::Table => words(&line.params),
            _ => String::new(),
        },
        ..line
    };
    let table = device.awaited_table(query.inactive)?;
    Some(table.lines().into_iter().map(line).collect())
}

/// A table's lines, which may hold a key, overwritten when they go.
struct Wiped(Vec<TableLine>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|line| line.params.zeroize());
    }
}

/// What the kernel would log: "device-mapper: table: 7:3: linear: ...".
fn failed(device: &Device, what: &str, error: &DeviceError) -> DmError {
    let text = match error {
        DeviceError::Table(_) => format!("device-mapper: table: {}: {error}", device.dev_no()),
        DeviceError::Resume(_) | DeviceError::Message(_) => {
            format!("device-mapper: {}: {error}", device.dev_no())
        }
        _ => format!("device-mapper: {}: {what}: {error}", device.md.name()),
    };
    DmError {
        errno: error.errno(),
        text,
    }
}

/// The right to change a device. Who has waited for it may find that the command before removed the device.
fn control(device: &Device) -> Result<MutexGuard<'_, Visible>, DmError> {
    let control = device.control.lock();
    match device.removing() {
        false => Ok(control),
        true => Err(DmError::no_device()),
    }
}

fn slot(inactive: bool) -> WhichTable {
    if inactive {
        WhichTable::Inactive
    } else {
        WhichTable::Live
    }
}

fn suspend_flags(options: SuspendOptions) -> SuspendFlags {
    SuspendFlags {
        noflush: options.no_flush,
        lockfs: options.lock_fs,
    }
}

fn not_labelled(why: &NotLabelled, name: &DmName, uuid: Option<&DmUuid>) -> DmError {
    match why {
        NotLabelled::Taken(taken) => taken_error(taken, name, uuid),
        NotLabelled::Gone => DmError::no_device(),
        NotLabelled::HasUuid(has) => {
            let uuid = uuid.map_or("", DmUuid::as_str);
            let text = format!(
                "device-mapper: ioctl: Unable to change uuid of mapped device {name} to {uuid} because uuid is already set to {has}"
            );
            DmError::new(Errno::INVAL, text)
        }
    }
}

fn taken_error(taken: &Taken, name: &DmName, uuid: Option<&DmUuid>) -> DmError {
    let text = match taken {
        Taken::Name(dev) => format!("device-mapper: ioctl: name {name} is in use by {dev}"),
        Taken::Uuid(dev) => format!(
            "device-mapper: ioctl: uuid {} is in use by {dev}",
            uuid.map_or("", DmUuid::as_str)
        ),
        Taken::Number(dev) => format!("device-mapper: {dev} is in use"),
    };
    DmError::new(Errno::BUSY, text)
}
