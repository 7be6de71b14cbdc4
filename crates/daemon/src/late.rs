//! Devices whose backings did not answer when the others were served. Requests wait for them ([`crate::stand_in`]), and each comes back
//! when all that it stands on has answered.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use thinmap_control::DmError;
use thinmap_dm::KeptMemory;

use crate::daemon::Daemon;
use crate::devices::{Device, Lost};
use crate::question::Question;
use crate::resume::{Returning, Tables};

/// How often it is looked whether the daemon ends.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Late {
    question: Question,
    /// Each after those that its tables name.
    devices: Vec<Returning>,
}

impl Late {
    pub fn new(question: Question, devices: Vec<Returning>) -> Self {
        Self { question, devices }
    }

    /// Brings them back, in a thread. Everything else is served.
    ///
    /// # Errors
    /// The system's, when no thread can be had.
    pub fn start(self, daemon: &Arc<Daemon>) -> std::io::Result<()> {
        let daemon = Arc::downgrade(daemon);
        std::thread::Builder::new()
            .name("thinmap-late".to_owned())
            .spawn(move || self.run(&daemon))
            .map(drop)
    }

    fn run(mut self, daemon: &Weak<Daemon>) {
        while !self.devices.is_empty() {
            self.question.listen(LOOK);
            let Some(daemon) = daemon.upgrade().filter(|d| !d.is_stopping()) else {
                return;
            };
            let question = &self.question;
            let (silent, come): (Vec<_>, Vec<_>) = (self.devices.drain(..))
                .partition(|one| question.first_silent(one.stands_on()).is_some());
            self.devices = come_back(&daemon, come);
            self.devices.extend(silent);
            if self.question.is_over() && !self.devices.is_empty() {
                std::thread::sleep(LOOK);
            }
        }
        let Some(daemon) = daemon.upgrade() else {
            return;
        };
        let all_are_back = !daemon.devices.all().iter().any(|device| device.is_lost());
        if let Some(continuity) = daemon.continuity.as_ref().filter(|_| all_are_back) {
            continuity.link.all_are_back();
        }
    }
}

/// Their backings have answered. Commands on them wait meanwhile. Those that somebody is giving another table are returned: he may clear it.
fn come_back(daemon: &Daemon, come: Vec<Returning>) -> Vec<Returning> {
    let (come, others): (Vec<_>, Vec<_>) =
        (come.into_iter()).partition(|one| one.device.md.info().inactive.is_none());
    let mut controls: Vec<_> = come.iter().map(|one| one.device.control.lock()).collect();
    let due: Vec<_> = come.iter().map(|one| (one, still_wanted(one))).collect();
    let kept = daemon.env.shared.of::<KeptMemory>();
    kept.set_bringing_back(true);
    daemon.bring_back_tables(&due);
    kept.set_bringing_back(false);
    for ((Returning { device, .. }, due), visible) in due.iter().zip(&mut controls) {
        if !due.live && !due.inactive {
            continue;
        }
        if device.md.info().live.is_some() {
            *device.lost.lock() = Lost::default();
            tracing::info!(device = %device.md.name(), "is back: its backings have answered");
        }
        if let Err(error) = daemon.make_visible(device, visible) {
            tracing::error!(device = %device.md.name(), %error, "its block device cannot be told its size and limits");
        }
        daemon.save(device);
    }
    others
}

/// Somebody may have removed the device meanwhile, or given it another table.
fn still_wanted(one: &Returning) -> Tables {
    let (device, lost) = (&one.device, one.device.lost.lock());
    let facts = device.md.info();
    let is_there = !device.removing() && facts.inactive.is_none();
    Tables {
        live: is_there && lost.live.is_some() && facts.live.is_none(),
        inactive: is_there && lost.inactive.is_some(),
    }
}

/// Refused while the device waits for the table that it had under the last daemon: there is nothing to suspend or resume yet.
pub(crate) fn has_its_table(device: &Device) -> Result<(), DmError> {
    match device.silent_backing() {
        None => Ok(()),
        Some(backing) => Err(DmError::new(
            Errno::BUSY,
            format!(
                "device-mapper: {}: its table is not back since the last daemon's end: {backing} does not answer",
                device.md.name()
            ),
        )),
    }
}

impl Daemon {
    /// The device has another table than the one that did not come back.
    pub(crate) fn forget_lost(&self, device: &Device) {
        let lost = std::mem::take(&mut *device.lost.lock());
        if lost.frozen
            && let Some(freezer) = &self.env.freezer
        {
            freezer.thaw(device.dev_no());
        }
    }
}
