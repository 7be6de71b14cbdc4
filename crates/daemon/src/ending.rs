//! All devices go at the daemon's end.

use rustix::io::Errno;
use thinmap_control::{DmError, DmService};
use thinmap_dm::SuspendFlags;

use crate::daemon::Daemon;
use crate::devices::Device;

impl Daemon {
    /// A suspended device holds the requests of those that stand on it. Nobody will resume it any more, so neither a removal nor a flush
    /// nor a suspend of those would end.
    pub(crate) fn let_everything_through(&self) {
        for device in self.devices.all() {
            if let Some((stand_in, _)) = device.stand_in() {
                stand_in.fail();
            }
            resume_as_it_is(&device);
        }
    }

    /// Takes all devices down that nobody uses, for an end without force. When one is left that cannot go, all goes on without those that
    /// are gone, and the error names it.
    pub(crate) fn empty(&self) -> Result<(), DmError> {
        *self.emptying.write() = true;
        let before = self.devices.all().len();
        let refused = loop {
            let _ = self.remove_all(false);
            let left = self.devices.all();
            // Rather what is open than what it stands on.
            let on_top = left.iter().find(|device| device.md.open_count() == 0);
            let Some(device) = on_top.or(left.first()) else {
                return Ok(());
            };
            if let Err(error) = self.remove_now(device) {
                break (error.text, before.saturating_sub(left.len()));
            }
        };
        *self.emptying.write() = false;
        let gone = match refused.1 {
            0 => String::new(),
            gone => format!(" (devices removed by now: {gone})"),
        };
        let text = format!(
            "{}: unmount or close it first, or stop with --force{gone}",
            refused.0
        );
        Err(DmError::new(Errno::BUSY, text))
    }

    /// Takes all devices down: flushed and removed top down; what is still open goes by force when asked to.
    pub(crate) fn remove_everything(&self, force: bool) {
        if force {
            self.let_everything_through();
        }
        let _ = self.remove_all(false);
        if !force {
            return;
        }
        loop {
            // Only what nothing stands on: a suspended pool would keep its volumes from being flushed.
            let removed = self
                .devices
                .all()
                .iter()
                .filter(|device| device.md.open_count() == 0)
                .filter(|device| {
                    flush_by_suspending(device);
                    self.remove_device(device, true).is_ok()
                })
                .count();
            if removed == 0 {
                for device in self.devices.all() {
                    tracing::error!(device = %device.md.name(), "could not be removed");
                }
                return;
            }
        }
    }
}

/// Lets requests through a suspended device again, with the table that it has.
fn resume_as_it_is(device: &Device) {
    let flags = SuspendFlags {
        noflush: true,
        lockfs: false,
    };
    if device.md.is_suspended() && device.md.info().live.is_some() {
        device.md.clear();
        if let Err(error) = device.md.resume(flags) {
            tracing::warn!(device = %device.md.name(), %error, "could not be resumed before removal");
        }
    }
}

/// Makes everything durable that was acknowledged: a suspend commits.
fn flush_by_suspending(device: &Device) {
    let flags = SuspendFlags {
        noflush: true,
        lockfs: false,
    };
    if let Err(error) = device.md.suspend(flags) {
        tracing::warn!(device = %device.md.name(), %error, "could not be suspended before removal");
    }
}
