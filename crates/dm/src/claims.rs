//! Who has a mapped device open: tables of other mapped devices, counted here; outside openers the daemon knows.

use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_units::DevNo;

use crate::device_use::{DeviceId, DeviceName, DeviceUse, OpenDeviceError};
use crate::mapped_device::{DeviceError, MappedDevice};
use crate::table::Table;

/// An opening of a mapped device; closes it when dropped.
pub struct OpenClaim {
    device: Arc<MappedDevice>,
    opener: Opener,
}

/// Who opened; `None` is somebody else than a table.
///
/// COMPAT: all of a mapped device's tables together open another device once per mode, as open counts show.
type Opener = Option<(DevNo, bool)>;

impl OpenClaim {
    /// The device that is open.
    pub fn device(&self) -> &Arc<MappedDevice> {
        &self.device
    }
}

impl Drop for OpenClaim {
    fn drop(&mut self) {
        self.device.openings().close(self.opener);
    }
}

type CloseHook = Box<dyn Fn() + Send + Sync>;

/// The openings of one device, and whether it may still be opened.
#[derive(Default)]
pub(crate) struct Openings {
    state: Mutex<State>,
    /// Told after a close left none open: a deferred removal looks again.
    on_last_close: Mutex<Option<CloseHook>>,
}

#[derive(Default)]
struct State {
    /// How many claims each opener holds.
    openers: Vec<(Opener, u32)>,
    removing: bool,
}

impl Openings {
    pub(crate) fn count(&self) -> u32 {
        let state = self.state.lock();
        let count = |(opener, claims): &(Opener, u32)| if opener.is_some() { 1 } else { *claims };
        state.openers.iter().map(count).sum()
    }

    fn open(&self, opener: Opener) -> bool {
        let mut state = self.state.lock();
        if state.removing {
            return false;
        }
        match state.openers.iter_mut().find(|(who, _)| *who == opener) {
            Some((_, claims)) => *claims += 1,
            None => state.openers.push((opener, 1)),
        }
        true
    }

    fn close(&self, opener: Opener) {
        let last = {
            let mut state = self.state.lock();
            if let Some((_, claims)) = state.openers.iter_mut().find(|(who, _)| *who == opener) {
                *claims -= 1;
            }
            state.openers.retain(|(_, claims)| *claims > 0);
            state.openers.is_empty()
        };
        if last && let Some(hook) = self.on_last_close.lock().as_ref() {
            hook();
        }
    }

    /// From now on nobody opens the device; `false` when somebody has it open.
    fn begin_removal(&self, open_outside: &dyn Fn() -> bool) -> bool {
        let mut state = self.state.lock();
        if !state.openers.is_empty() || open_outside() {
            return false;
        }
        state.removing = true;
        true
    }
}

impl MappedDevice {
    /// Opens the device; it cannot be removed until the claim is dropped. ENXIO when it is being removed.
    pub fn open(self: &Arc<Self>) -> Result<OpenClaim, DeviceError> {
        self.open_as(None)
    }

    fn open_as(self: &Arc<Self>, opener: Opener) -> Result<OpenClaim, DeviceError> {
        if !self.openings().open(opener) {
            return Err(DeviceError::Removed { dev: self.dev_no() });
        }
        Ok(OpenClaim {
            device: self.clone(),
            opener,
        })
    }

    /// Opens the device for another device's table: what a [`DeviceOpener`](crate::DeviceOpener) answers with
    /// when a table names one of the daemon's own devices. Refuses when this device is `by` (EINVAL, as the kernel) or
    /// stands on it (ELOOP).
    pub fn open_for_table(
        self: &Arc<Self>,
        by: DevNo,
        read_only: bool,
    ) -> Result<DeviceUse, OpenDeviceError> {
        if self.dev_no() == by {
            return Err(OpenDeviceError {
                reason: format!("{by} cannot stand on itself"),
                errno: EINVAL,
            });
        }
        if self.stands_on(by) {
            return Err(OpenDeviceError {
                reason: format!("{} stands on {by} itself", self.dev_no()),
                errno: ELOOP,
            });
        }
        let claim = self
            .open_as(Some((by, read_only)))
            .map_err(|error| OpenDeviceError {
                reason: error.to_string(),
                errno: error.errno(),
            })?;
        Ok(DeviceUse {
            dev: self.clone(),
            id: DeviceId::Block(self.dev_no()),
            name: DeviceName::Number(self.dev_no()),
            read_only,
            claim: Arc::new(claim),
        })
    }

    /// Whether the device is `dev`, or one of its tables (live or inactive) reaches it over any number of mapped devices.
    pub fn stands_on(&self, dev: DevNo) -> bool {
        if self.dev_no() == dev {
            return true;
        }
        self.tables().iter().any(|table| reaches(table, dev))
    }

    /// Refuses further openings, for removal; busy (EBUSY) when the device is open here, or outside by the word of
    /// `open_outside`, which must not call back.
    pub fn begin_removal(&self, open_outside: &dyn Fn() -> bool) -> Result<(), DeviceError> {
        if self.openings().begin_removal(open_outside) {
            Ok(())
        } else {
            Err(DeviceError::Busy { dev: self.dev_no() })
        }
    }

    /// Takes back a [`MappedDevice::begin_removal`]: something else could not go.
    pub fn cancel_removal(&self) {
        self.openings().state.lock().removing = false;
    }

    /// How many other devices' tables have the device open, plus the claims of [`MappedDevice::open`].
    pub fn open_count(&self) -> u32 {
        self.openings().count()
    }

    /// Has `hook` called after each close that leaves no opening. It may run on any thread, with locks of
    /// other devices held: it must only wake somebody.
    pub fn on_last_close(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.openings().on_last_close.lock() = Some(Box::new(hook));
    }
}

/// Whether one of a table's devices is `dev` or, being a mapped device, stands on it.
pub(crate) fn reaches(table: &Table, dev: DevNo) -> bool {
    let mut found = false;
    table.visit_devices(&mut |device| {
        if found {
            return;
        }
        found = device.id == DeviceId::Block(dev)
            || device
                .claim
                .downcast_ref::<OpenClaim>()
                .is_some_and(|claim| claim.device.stands_on(dev));
    });
    found
}

const EINVAL: i32 = 22;
const ELOOP: i32 = 40;
