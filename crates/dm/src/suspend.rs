//! Suspend, resume, and the end of a mapped device: the order in which targets, gate and file system are told.

use std::sync::Arc;

use thinmap_units::{Sector, TableLine};

use crate::mapped_device::{DeviceError, MappedDevice};
use crate::table::{LiveTable, Table, retire};

/// How to suspend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuspendFlags {
    /// Targets may give back what they cannot finish; it is mapped anew after the resume. No file system is frozen.
    pub noflush: bool,
    /// Freeze the file system that is mounted on the device.
    pub lockfs: bool,
}

impl Default for SuspendFlags {
    fn default() -> Self {
        Self {
            noflush: false,
            lockfs: true,
        }
    }
}

impl MappedDevice {
    /// Makes requests wait and returns when the last one in flight has ended. Does nothing on a suspended device,
    /// as the suspend command does.
    pub fn suspend(&self, flags: SuspendFlags) -> Result<(), DeviceError> {
        self.suspend_unless(flags, &|| false)
    }

    /// [`MappedDevice::suspend`], given up when `stop` says so (asked some times a second) before the last request has ended.
    pub fn suspend_unless(
        &self,
        flags: SuspendFlags,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), DeviceError> {
        let mut control = self.control.lock();
        self.not_destroyed()?;
        if self.is_suspended() {
            return Ok(());
        }
        self.do_suspend(&mut control, flags, stop)
    }

    /// Suspends a device as an earlier process had it suspended: the file system on it is `frozen` already, or not.
    pub fn suspend_again(&self, frozen: bool) -> Result<(), DeviceError> {
        let mut control = self.control.lock();
        self.not_destroyed()?;
        let flags = SuspendFlags {
            noflush: true,
            lockfs: false,
        };
        self.do_suspend(&mut control, flags, &|| false)?;
        self.set_frozen(&mut control, frozen);
        Ok(())
    }

    /// Puts the inactive table, if there is one, in place of the live one (suspending first with `flags`), and lets
    /// requests through.
    ///
    /// When a target of the new table refuses, the new table stays in place, suspended: its cause may be
    /// cured and the device resumed again, or another table loaded.
    pub fn resume(&self, flags: SuspendFlags) -> Result<(), DeviceError> {
        self.resume_unless(flags, &|| false)
    }

    /// [`MappedDevice::resume`], whose suspend is given up when `stop` says so: see [`MappedDevice::suspend_unless`].
    pub fn resume_unless(
        &self,
        flags: SuspendFlags,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), DeviceError> {
        let mut control = self.control.lock();
        self.not_destroyed()?;
        let inactive = self.staged.lock().inactive.take();
        let Some(table) = inactive else {
            return self.do_resume(&mut control);
        };
        if !self.is_suspended()
            && let Err(error) = self.do_suspend(&mut control, flags, stop)
        {
            // Loads wait for `control`, so the slot is still empty.
            self.staged.lock().inactive = Some(table);
            return Err(error);
        }
        // Looked at anew: a device may have grown since the table was loaded.
        let live = match LiveTable::new(table.clone()) {
            Ok(live) => live,
            Err(error) => {
                retire(table);
                return Err(error.into());
            }
        };
        drop(table);
        let old = self.core.swap(Some(Arc::new(live)));
        let resumed = self.do_resume(&mut control);
        old.into_iter().for_each(retire_live);
        resumed
    }

    fn do_suspend(
        &self,
        control: &mut crate::mapped_device::Control,
        flags: SuspendFlags,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), DeviceError> {
        let live = self.core.live();
        let table = live.as_deref().map(|live| &*live.table);
        self.core.allow_requeue(flags.noflush);
        self.each_target(table, |target| target.presuspend(flags.noflush));
        if !flags.noflush
            && flags.lockfs
            && table.is_some()
            && let Err(error) = self.freeze(control)
        {
            self.core.allow_requeue(false);
            self.each_target(table, |target| target.presuspend_undo());
            return Err(error);
        }
        self.core.close_gate();
        if !self.core.wait_idle(stop) {
            // Targets first: what waited is mapped as the gate opens, and may not be given back any more.
            self.each_target(table, |target| target.presuspend_undo());
            self.core.allow_requeue(false);
            self.core.open_gate();
            self.thaw(control);
            return Err(DeviceError::Interrupted { dev: self.dev_no() });
        }
        self.core.allow_requeue(false);
        self.staged.lock().suspended = true;
        self.each_target(table, |target| target.postsuspend());
        Ok(())
    }

    fn do_resume(&self, control: &mut crate::mapped_device::Control) -> Result<(), DeviceError> {
        if !self.is_suspended() {
            return Ok(());
        }
        let live = self.core.live();
        let Some(live) = live.as_deref() else {
            return Err(DeviceError::NoTable {
                dev: self.dev_no(),
                errno: EINVAL,
            });
        };
        {
            let _calls = self.target_calls.lock();
            for line in &live.table.lines {
                line.target.preresume()?;
            }
            for line in &live.table.lines {
                line.target.resume();
            }
        }
        self.staged.lock().suspended = false;
        self.core.open_gate();
        self.thaw(control);
        Ok(())
    }

    /// Fails what waits and what comes from now on, as the first step of an end by force: whoever still has the device
    /// open must not wait for it. Only [`MappedDevice::destroy`] may follow.
    pub fn shut(&self) {
        let _control = self.control.lock();
        self.core.shut();
    }

    /// Ends the device: fails what waits and what comes, waits for what is in flight, drops both tables, which closes their
    /// devices. Call [`MappedDevice::begin_removal`] first; nobody has the device open any more.
    pub fn destroy(&self) {
        let mut control = self.control.lock();
        if self.is_destroyed() {
            return;
        }
        let live = self.core.live();
        let table = live.as_deref().map(|live| &*live.table);
        let was_suspended = self.is_suspended();
        self.core.shut();
        if !was_suspended {
            self.each_target(table, |target| target.presuspend(false));
            self.core.wait_idle(&|| false);
            self.staged.lock().suspended = true;
            self.each_target(table, |target| target.postsuspend());
        }
        self.thaw(&mut control);
        drop(live);
        let inactive = {
            let mut staged = self.staged.lock();
            staged.destroyed = true;
            staged.inactive.take()
        };
        if let Some(old) = self.core.swap(None) {
            retire_live(old);
        }
        inactive.into_iter().for_each(retire);
        self.event().trigger();
        self.event().close();
    }

    /// Puts an `error` target of the same length in place of whatever is live, without waiting for
    /// requests that cannot end: what a forced removal does to a device that somebody has open.
    pub fn replace_with_error_table(&self) -> Result<(), DeviceError> {
        let size = self.core.size();
        if size == Sector::ZERO {
            return Ok(());
        }
        let line = TableLine {
            start: Sector::ZERO,
            len: size,
            target: "error".to_owned(),
            params: String::new(),
        };
        self.load(&[line], false)?;
        self.resume(SuspendFlags {
            noflush: true,
            lockfs: false,
        })
    }

    fn each_target(&self, table: Option<&Table>, call: impl Fn(&dyn crate::target::Target)) {
        let _calls = self.target_calls.lock();
        for line in table.into_iter().flat_map(|table| &table.lines) {
            call(&*line.target);
        }
    }

    fn freeze(&self, control: &mut crate::mapped_device::Control) -> Result<(), DeviceError> {
        let Some(freezer) = &self.env().freezer else {
            return Ok(());
        };
        let dev = self.dev_no();
        freezer
            .freeze(dev)
            .map_err(|errno| DeviceError::Freeze { dev, errno })?;
        self.set_frozen(control, true);
        Ok(())
    }

    fn thaw(&self, control: &mut crate::mapped_device::Control) {
        if control.frozen
            && let Some(freezer) = &self.env().freezer
        {
            freezer.thaw(self.dev_no());
        }
        self.set_frozen(control, false);
    }

    fn set_frozen(&self, control: &mut crate::mapped_device::Control, frozen: bool) {
        control.frozen = frozen;
        self.staged.lock().frozen = frozen;
    }
}

fn retire_live(live: Arc<LiveTable>) {
    let table = live.table.clone();
    retire(live);
    retire(table);
}

const EINVAL: i32 = 22;
