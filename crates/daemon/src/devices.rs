//! The devices there are, by number, name and uuid.
//!
//! INVARIANT: the three maps always agree; names, uuids and numbers are unique. Locks here are held for look-ups only,
//! never while a device does I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use thinmap_dm::{DeviceUse, MappedDevice};
use thinmap_exports::block_node::BlockNode;
use thinmap_units::{DevNo, DmName, DmUuid};

use crate::stand_in::StandIn;
use crate::state::SavedTable;

/// A mapped device and what makes it reachable.
pub struct Device {
    /// The mapping itself.
    pub md: Arc<MappedDevice>,
    /// Its block device, whose number is the device's number.
    pub node: Arc<dyn BlockNode>,
    /// Commands on one device come one at a time.
    pub control: Mutex<Visible>,
    /// Held around the writing of its state: what that is to show.
    pub saving: Mutex<Saving>,
    /// What it had under the last daemon and has not got back; noted until it has something else.
    pub lost: Mutex<Lost>,
    /// What its users reach while it has no table for that reason.
    pub stand_in: Mutex<Option<Arc<StandIn>>>,
    deferred_remove: AtomicBool,
    /// When its removal was deferred it had NBD clients.
    nbd_clients: AtomicBool,
    /// Those of the last daemon, as long as they may come back to it.
    awaited_clients: Mutex<Option<Awaited>>,
    removing: AtomicBool,
}

/// NBD clients that a dead daemon has lost: nothing of theirs is left until they come back.
struct Awaited {
    /// When they are not waited for any more.
    until: Duration,
    /// One has come.
    seen: bool,
}

/// What a device had under the last daemon and does not have: its tables' backings do not answer yet, or its tables cannot be loaded.
#[derive(Default)]
pub struct Lost {
    /// The table that took requests.
    pub live: Option<SavedTable>,
    /// The table that waited for a resume.
    pub inactive: Option<SavedTable>,
    /// Requests waited for a resume. As the next one, of a device that waits.
    pub suspended: bool,
    /// The file system on it was, and is, frozen.
    pub frozen: bool,
    /// The backing that does not answer. Until it does, requests wait.
    pub silent: Option<String>,
    /// Keeps the devices open that the tables name, as the tables would.
    pub below: Vec<DeviceUse>,
}

impl Lost {
    /// Its table could not be loaded or resumed, and nothing is waited for.
    pub fn could_not_come(&self) -> bool {
        self.live.is_some() && self.silent.is_none()
    }
}

/// What a state that is noted now shows of the inactive table.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// That it is one.
    #[default]
    AsIs,
    /// That it is live, which a resume under way will have made it.
    AfterResume,
    /// Nothing: it is the live one of before, on its way back.
    OnTheWayBack,
}

/// Where the device can be seen now.
#[derive(Default)]
pub struct Visible {
    /// Its block device is attached and its name is in the device directory.
    pub node: bool,
    /// It is exported over NBD, under this name.
    pub nbd: Option<DmName>,
}

impl Device {
    /// A device that nobody can see yet.
    pub fn new(md: Arc<MappedDevice>, node: Arc<dyn BlockNode>) -> Self {
        Self {
            md,
            node,
            control: Mutex::default(),
            saving: Mutex::default(),
            lost: Mutex::default(),
            stand_in: Mutex::default(),
            deferred_remove: AtomicBool::new(false),
            nbd_clients: AtomicBool::new(false),
            awaited_clients: Mutex::default(),
            removing: AtomicBool::new(false),
        }
    }

    /// It does not have all that it had under the last daemon.
    pub fn is_lost(&self) -> bool {
        let lost = self.lost.lock();
        lost.inactive.is_some() || (lost.live.is_some() && self.md.info().live.is_none())
    }

    /// Requests wait for a resume, or will when its table is back.
    pub fn is_suspended(&self) -> bool {
        self.md.is_suspended() || self.lost.lock().suspended
    }

    /// The file system on it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.md.is_frozen() || self.lost.lock().frozen
    }

    /// What its users reach while its table is not back, and whether they may only read.
    pub fn stand_in(&self) -> Option<(Arc<StandIn>, bool)> {
        let stand_in = self.stand_in.lock().clone()?;
        let lost = self.lost.lock();
        Some((stand_in, lost.live.as_ref().is_some_and(|t| t.read_only)))
    }

    /// The inactive table that did not come back is not wanted any more.
    pub fn forget_lost_inactive(&self) {
        let mut lost = self.lost.lock();
        lost.inactive = None;
        let rest = match lost.live {
            Some(_) => None,
            None => Some(std::mem::take(&mut *lost)),
        };
        drop(lost);
        // Closes what it stood on, which may wake somebody.
        drop(rest);
    }

    /// A table that it will have when a backing answers.
    pub fn awaited_table(&self, inactive: bool) -> Option<SavedTable> {
        let lost = self.lost.lock();
        lost.silent.as_ref()?;
        match inactive {
            false => lost.live.clone(),
            true => lost.inactive.clone(),
        }
    }

    /// The backing that its table waits for.
    pub fn silent_backing(&self) -> Option<String> {
        self.lost.lock().silent.clone()
    }

    /// Its number.
    pub fn dev_no(&self) -> DevNo {
        self.node.dev_no()
    }

    /// Removal waits for the last user.
    pub fn deferred_remove(&self) -> bool {
        self.deferred_remove.load(Ordering::Acquire)
    }

    /// Asks for removal after the last user, or takes that back.
    pub fn set_deferred_remove(&self, on: bool) {
        self.deferred_remove.store(on, Ordering::Release);
    }

    /// Whether NBD clients had it open when its removal was deferred.
    pub fn nbd_clients(&self) -> bool {
        self.nbd_clients.load(Ordering::Acquire)
    }

    /// Notes whether NBD clients have it open.
    pub fn set_nbd_clients(&self, on: bool) {
        self.nbd_clients.store(on, Ordering::Release);
    }

    /// NBD clients of the last daemon may come back until then.
    pub fn await_clients(&self, until: Duration) {
        let seen = false;
        *self.awaited_clients.lock() = Some(Awaited { until, seen });
    }

    /// Whether a deferred removal is to wait for the last daemon's NBD clients: until one has come and gone, or the time is over.
    pub fn awaits_clients(&self, now: Duration, connected: bool) -> bool {
        let mut awaited = self.awaited_clients.lock();
        let waits = awaited.as_mut().is_some_and(|awaited| {
            let has_gone = awaited.seen && !connected;
            awaited.seen |= connected;
            !has_gone && (connected || now < awaited.until)
        });
        if !waits {
            *awaited = None;
        }
        waits
    }

    /// Removal has begun: no command finds the device any more.
    pub fn removing(&self) -> bool {
        self.removing.load(Ordering::Acquire)
    }

    /// Begins removal, or gives it up.
    pub fn set_removing(&self, on: bool) {
        self.removing.store(on, Ordering::Release);
    }
}

/// A name or uuid is taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// By this device.
    Name(DevNo),
    /// By this device.
    Uuid(DevNo),
    /// By this device.
    Number(DevNo),
}

/// Why a device does not get another name, or a uuid.
#[derive(Debug, PartialEq, Eq)]
pub enum NotLabelled {
    /// Another device has it.
    Taken(Taken),
    /// The device has a uuid.
    HasUuid(DmUuid),
    /// The device is not there any more.
    Gone,
}

impl From<Taken> for NotLabelled {
    fn from(taken: Taken) -> Self {
        Self::Taken(taken)
    }
}

/// All devices.
#[derive(Default)]
pub struct Devices {
    maps: RwLock<Maps>,
}

#[derive(Default)]
struct Maps {
    by_dev: BTreeMap<DevNo, Arc<Device>>,
    by_name: BTreeMap<DmName, DevNo>,
    by_uuid: BTreeMap<DmUuid, DevNo>,
}

impl Devices {
    /// Whether a name or uuid is free.
    pub fn check_free(&self, name: &DmName, uuid: Option<&DmUuid>) -> Result<(), Taken> {
        self.maps.read().check_free(name, uuid)
    }

    /// Whether a uuid is free.
    pub fn check_uuid_free(&self, uuid: &DmUuid) -> Result<(), Taken> {
        self.maps.read().check_uuid_free(uuid)
    }

    /// Adds a device; refused when its name, uuid or number is taken.
    pub fn insert(&self, device: Arc<Device>) -> Result<(), Taken> {
        let (name, uuid, dev) = (device.md.name(), device.md.uuid(), device.dev_no());
        let mut maps = self.maps.write();
        maps.check_free(&name, uuid.as_ref())?;
        if maps.by_dev.contains_key(&dev) {
            return Err(Taken::Number(dev));
        }
        maps.by_name.insert(name, dev);
        if let Some(uuid) = uuid {
            maps.by_uuid.insert(uuid, dev);
        }
        maps.by_dev.insert(dev, device);
        Ok(())
    }

    /// Takes a device out.
    pub fn remove(&self, device: &Device) {
        let mut maps = self.maps.write();
        if !maps.has(device) {
            return;
        }
        maps.by_name.remove(&device.md.name());
        if let Some(uuid) = device.md.uuid() {
            maps.by_uuid.remove(&uuid);
        }
        maps.by_dev.remove(&device.dev_no());
    }

    /// Gives a device another name. One that is not there gets none: nobody would take that out again, and the number behind it
    /// may be another device's by and by.
    pub fn rename(&self, device: &Device, name: &DmName) -> Result<(), NotLabelled> {
        let mut maps = self.maps.write();
        maps.check_free(name, None)?;
        if !maps.has(device) {
            return Err(NotLabelled::Gone);
        }
        maps.by_name.remove(&device.md.name());
        maps.by_name.insert(name.clone(), device.dev_no());
        device.md.set_name(name.clone());
        Ok(())
    }

    /// Gives a device its uuid, once. Decided here: the command waits for no other one on the device.
    pub fn set_uuid(&self, device: &Device, uuid: &DmUuid) -> Result<(), NotLabelled> {
        let mut maps = self.maps.write();
        maps.check_uuid_free(uuid)?;
        if !maps.has(device) {
            return Err(NotLabelled::Gone);
        }
        if device.md.set_uuid(uuid.clone()).is_err() {
            let has = device.md.uuid().unwrap_or_else(|| uuid.clone());
            return Err(NotLabelled::HasUuid(has));
        }
        maps.by_uuid.insert(uuid.clone(), device.dev_no());
        Ok(())
    }

    /// The device of this number.
    pub fn by_dev(&self, dev: DevNo) -> Option<Arc<Device>> {
        self.maps.read().by_dev.get(&dev).cloned()
    }

    /// The device of this name.
    pub fn by_name(&self, name: &DmName) -> Option<Arc<Device>> {
        let maps = self.maps.read();
        maps.by_name
            .get(name)
            .and_then(|dev| maps.by_dev.get(dev))
            .cloned()
    }

    /// The device of this uuid.
    pub fn by_uuid(&self, uuid: &DmUuid) -> Option<Arc<Device>> {
        let maps = self.maps.read();
        maps.by_uuid
            .get(uuid)
            .and_then(|dev| maps.by_dev.get(dev))
            .cloned()
    }

    /// All, sorted by name.
    pub fn all(&self) -> Vec<Arc<Device>> {
        let maps = self.maps.read();
        maps.by_name
            .values()
            .filter_map(|dev| maps.by_dev.get(dev))
            .cloned()
            .collect()
    }
}

impl Maps {
    /// Whether this very device is in, and no other one of its number.
    fn has(&self, device: &Device) -> bool {
        let there = self.by_dev.get(&device.dev_no());
        there.is_some_and(|there| std::ptr::eq(&raw const **there, device))
    }

    fn check_free(&self, name: &DmName, uuid: Option<&DmUuid>) -> Result<(), Taken> {
        if let Some(dev) = self.by_name.get(name) {
            return Err(Taken::Name(*dev));
        }
        uuid.map_or(Ok(()), |uuid| self.check_uuid_free(uuid))
    }

    fn check_uuid_free(&self, uuid: &DmUuid) -> Result<(), Taken> {
        match self.by_uuid.get(uuid) {
            Some(dev) => Err(Taken::Uuid(*dev)),
            None => Ok(()),
        }
    }
}
