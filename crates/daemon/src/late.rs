//! Devices whose backings did not answer when the others were served. Requests wait for them ([`crate::stand_in`]), and each comes back
//! when all that it stands on has answered.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use thinmap_control::DmError;
use thinmap_dm::KeptMemory;
use thinmap_units::DevNo;

use crate::daemon::Daemon;
use crate::devices::{Device, Lost, Visible};
use crate::order::{Returning, Tables};
use crate::question::Question;

/// How often it is looked whether the daemon ends, and whether a device that could not be had before can be now.
const LOOK: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Late {
    question: Question,
    /// Each after those that its tables name.
    devices: Vec<Returning>,
    /// Devices that are being brought back, each stack in a thread of its own: it may hang again.
    under_way: BTreeSet<DevNo>,
    ended: (Sender<Ended>, Receiver<Ended>),
}

/// A thread has done with a stack.
struct Ended {
    stack: Vec<DevNo>,
    /// Those that have to wait once more.
    again: Vec<Returning>,
}

impl Late {
    pub fn new(question: Question, devices: Vec<Returning>) -> Self {
        Self {
            question,
            devices,
            under_way: BTreeSet::new(),
            ended: channel(),
        }
    }

    /// Brings them back, in threads. Everything else is served.
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
        while !self.devices.is_empty() || !self.under_way.is_empty() {
            let Some(serving) = daemon.upgrade().filter(|d| !d.is_stopping()) else {
                return;
            };
            for stack in self.take_ready() {
                self.bring_back(&serving, stack);
            }
            drop(serving);
            if self.question.is_over() {
                let ended = self.ended.1.recv_timeout(LOOK);
                ended.into_iter().for_each(|ended| self.take(ended));
            } else {
                self.question.listen(LOOK);
            }
            while let Ok(ended) = self.ended.1.try_recv() {
                self.take(ended);
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

    fn take(&mut self, ended: Ended) {
        ended.stack.iter().for_each(|number| {
            self.under_way.remove(number);
        });
        self.devices.extend(ended.again);
        self.devices.sort_by_key(|one| one.place);
    }

    /// Takes those of which something waits for nothing more out of the list: stacks that have no device in common.
    fn take_ready(&mut self) -> Vec<Vec<Due>> {
        let mut unserved = self.under_way.clone();
        let mut stacks: Vec<Vec<Due>> = Vec::new();
        for one in std::mem::take(&mut self.devices) {
            if one.device.md.is_destroyed() {
                continue;
            }
            let ready = one.ready(&self.question, &unserved);
            if (!ready.live && !ready.inactive) || is_given_a_table(&one.device) {
                if one.late.live && one.device.md.info().live.is_none() {
                    unserved.insert(one.saved.dev_no());
                }
                self.devices.push(one);
                continue;
            }
            let below = |stack: &Vec<Due>| {
                stack
                    .iter()
                    .any(|(other, _)| one.needs(other.saved.dev_no()))
            };
            let (mine, others): (Vec<_>, Vec<_>) = stacks.into_iter().partition(below);
            stacks = others;
            let mine = mine.into_iter().flatten();
            stacks.push(mine.chain([(one, ready)]).collect());
        }
        for stack in &mut stacks {
            stack.sort_by_key(|(one, _)| one.place);
        }
        stacks
    }

    fn bring_back(&mut self, daemon: &Arc<Daemon>, due: Vec<Due>) {
        let stack: Vec<DevNo> = due.iter().map(|(one, _)| one.saved.dev_no()).collect();
        self.under_way.extend(&stack);
        let (daemon, sender, numbers) = (daemon.clone(), self.ended.0.clone(), stack.clone());
        let back = move || {
            let again = catch_unwind(AssertUnwindSafe(|| come_back(&daemon, due)));
            // After a panic, of which the log tells, they wait for the next daemon.
            let again = again.unwrap_or_default();
            let _ = sender.send(Ended { stack, again });
        };
        let thread = std::thread::Builder::new().name("thinmap-back".to_owned());
        if let Err(error) = thread.spawn(back) {
            tracing::error!(%error, "no thread to bring devices back: they wait for the next daemon");
            numbers.iter().for_each(|number| {
                self.under_way.remove(number);
            });
        }
    }
}

/// A device, and what of it shall come back now.
type Due = (Returning, Tables);

/// Somebody gives it another table; he may clear it again.
fn is_given_a_table(device: &Device) -> bool {
    device.md.info().inactive.is_some()
}

/// What a stack waited for has answered. Those of which something is still missing are returned: also those on which a command is under way,
/// and what stands on them.
fn come_back(daemon: &Daemon, stack: Vec<Due>) -> Vec<Returning> {
    let mut busy = BTreeSet::new();
    let mut controls = Vec::new();
    for (one, _) in &stack {
        let on_busy = busy.iter().any(|number| one.needs(*number));
        let control = one.device.control.try_lock().filter(|_| !on_busy);
        let control = control.filter(|_| !is_given_a_table(&one.device));
        if control.is_none() {
            busy.insert(one.saved.dev_no());
        }
        controls.push(control);
    }
    let is_free = |one: &Returning| !busy.contains(&one.saved.dev_no());
    let free = stack.iter().filter(|(one, _)| is_free(one));
    let due: Vec<_> = free
        .map(|(one, ready)| (one, still_wanted(one, *ready)))
        .collect();
    let kept = daemon.env.shared.of::<KeptMemory>();
    kept.set_bringing_back(true);
    daemon.bring_back_tables(&due);
    kept.set_bringing_back(false);
    for ((Returning { device, .. }, due), visible) in due.iter().zip(controls.iter_mut().flatten())
    {
        if due.live || due.inactive {
            came_back(daemon, device, visible);
        }
    }
    let all_free = busy.is_empty();
    drop(controls);
    if !all_free {
        std::thread::sleep(LOOK);
    }
    let left = |(mut one, ready): Due| {
        if !busy.contains(&one.saved.dev_no()) {
            one.late.live &= !ready.live;
            one.late.inactive &= !ready.inactive;
        }
        (one.late.live || one.late.inactive).then_some(one)
    };
    stack.into_iter().filter_map(left).collect()
}

/// Makes what is there now reachable, and notes it.
fn came_back(daemon: &Daemon, device: &Arc<Device>, visible: &mut Visible) {
    let facts = device.md.info();
    let mut lost = device.lost.lock();
    let is_back = facts.live.is_some() && !lost.could_not_come();
    if is_back {
        let was = std::mem::take(&mut *lost);
        if facts.inactive.is_none() && was.inactive.is_some() {
            *lost = Lost {
                live: None,
                suspended: false,
                frozen: false,
                ..was
            };
        }
        drop(lost);
        tracing::info!(device = %device.md.name(), "is back: its backings have answered");
    } else {
        drop(lost);
    }
    if let Err(error) = daemon.make_visible(device, visible) {
        tracing::error!(device = %device.md.name(), %error, "its block device cannot be told its size and limits");
    }
    daemon.save(device);
}

/// Somebody may have removed the device meanwhile, or given it another table.
fn still_wanted(one: &Returning, ready: Tables) -> Tables {
    let (device, lost) = (&one.device, one.device.lost.lock());
    let is_there = !device.removing();
    Tables {
        live: ready.live && is_there && lost.live.is_some() && device.md.info().live.is_none(),
        inactive: ready.inactive && is_there && lost.inactive.is_some(),
    }
}

impl Daemon {
    /// Refused while a snapshot of an origin that the device will change is not back: its old data would go uncopied.
    pub(crate) fn has_snapshots_of(
        &self,
        device: &Device,
        changes: &BTreeSet<String>,
    ) -> Result<(), DmError> {
        if changes.is_empty() {
            return Ok(());
        }
        let lost = self.lost_snapshots(changes).into_iter();
        let mut silent = lost
            .filter(|snapshot| snapshot.dev_no() != device.dev_no())
            .filter_map(|snapshot| Some((snapshot.silent_backing()?, snapshot.md.name())));
        match silent.next() {
            None => Ok(()),
            Some((backing, snapshot)) => {
                let name = device.md.name();
                let text = format!(
                    "device-mapper: {name}: {snapshot}, a snapshot of its origin, is not back since the last daemon's end: {backing} does not answer (remove it to go on without)"
                );
                Err(DmError::new(Errno::BUSY, text))
            }
        }
    }
}

/// Refused while the device does not have the table that it had under the last daemon: there is nothing to suspend, resume or send a message to.
pub(crate) fn has_its_table(device: &Device) -> Result<(), DmError> {
    let lost = device.lost.lock();
    if lost.live.is_none() || device.md.info().live.is_some() {
        return Ok(());
    }
    Err(not_back(device, &lost, "table"))
}

/// The same for the table that a resume would make live.
pub(crate) fn has_its_inactive_table(device: &Device) -> Result<(), DmError> {
    let lost = device.lost.lock();
    match lost.inactive {
        Some(_) => Err(not_back(device, &lost, "inactive table")),
        None => Ok(()),
    }
}

fn not_back(device: &Device, lost: &Lost, what: &str) -> DmError {
    let (errno, why) = match &lost.silent {
        Some(backing) => (Errno::BUSY, format!("{backing} does not answer")),
        None => (Errno::IO, "it could not be loaded".to_owned()),
    };
    let name = device.md.name();
    let text =
        format!("device-mapper: {name}: its {what} is not back since the last daemon's end: {why}");
    DmError::new(errno, text)
}
