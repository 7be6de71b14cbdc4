//! Notices a daemon that hangs, and ends it where a keeper starts the next one. Why so: `docs/decisions/0109-*`.

mod threads;
mod watch;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use thinmap_dm::MemoryKeeper;
use thinmap_runtime::{Pulse, PulseKind, PulseSeen, SharedMemory, pulses};

use self::watch::{Finding, LOOKS, Trouble, Watch};
use crate::daemon::Daemon;
use crate::keeper::link::KeeperLink;

/// Starts to watch the daemon's threads; one that serves may be in one turn for `limit`.
pub(crate) fn start(daemon: &Arc<Daemon>, limit: Duration) -> std::io::Result<()> {
    let period = limit / LOOKS;
    let link = daemon.continuity.as_ref().map(|c| c.link.clone());
    let keeper = match link {
        Some(link) => Some(Keeper {
            ends: link.open("watchdog", ENDS_MAX)?,
            link,
        }),
        None => None,
    };
    let asked = Arc::downgrade(daemon);
    std::thread::Builder::new()
        .name("thinmap-ask".to_owned())
        .spawn(move || ask(&asked, period))?;
    let watched = Arc::downgrade(daemon);
    std::thread::Builder::new()
        .name("thinmap-watch".to_owned())
        .spawn(move || watch(&watched, period, keeper.as_ref()))?;
    Ok(())
}

/// Looks at every device again and again, as commands do. Where it waits, they all wait.
fn ask(daemon: &Weak<Daemon>, period: Duration) {
    let pulse = Pulse::begin(PulseKind::Serving);
    while let Some(daemon) = serving(daemon) {
        pulse.works();
        for device in daemon.devices.all() {
            device.md.info();
        }
        drop(daemon);
        pulse.waits();
        std::thread::sleep(period);
    }
}

/// The daemon, while it is not ending.
fn serving(daemon: &Weak<Daemon>) -> Option<Arc<Daemon>> {
    daemon.upgrade().filter(|daemon| !daemon.is_stopping())
}

fn watch(daemon: &Weak<Daemon>, period: Duration, keeper: Option<&Keeper>) {
    let mut watch = Watch::new(period);
    loop {
        std::thread::sleep(period);
        if daemon.strong_count() == 0 {
            return;
        }
        let findings = watch.look(pulses(), threads::activity);
        let hang = findings.iter().find(|found| found.is_hang());
        if let Some(hang) = hang {
            // An end that waits for such a thread would never come.
            let is_ending = serving(daemon).is_none();
            if is_ending || keeper.is_some_and(Keeper::starts_another) {
                match is_ending {
                    true => tracing::error!(
                        "{hang}. The daemon's end would wait for it for ever: it ends without order"
                    ),
                    false => tracing::error!(
                        "{hang}. This daemon hangs: it ends itself, and the keeper starts the next one"
                    ),
                }
                // Telling may have waited for who reads the log, and the thread for the same.
                let is_same = |now: &PulseSeen| *now == hang.seen;
                if pulses().iter().any(is_same) {
                    crate::lifecycle::abort();
                }
                continue;
            }
        }
        findings.iter().for_each(|found| tell(found, keeper));
    }
}

fn tell(found: &Finding, keeper: Option<&Keeper>) {
    if found.trouble == Trouble::Over {
        tracing::warn!("{found}");
    } else if found.is_hang() {
        let why = match keeper {
            None => "there is no keeper that would start another daemon",
            Some(keeper) if keeper.link.is_gone() => "the keeper is gone",
            Some(_) => "that has not helped often enough within the last hour",
        };
        tracing::error!(
            "{found}. I/O and commands may wait for ever; the daemon goes on, as {why}"
        );
    } else if found.trouble == Trouble::Runs {
        tracing::warn!("{found}");
    } else {
        tracing::error!("{found}: what it waits for does not answer");
    }
}

struct Keeper {
    link: Arc<KeeperLink>,
    /// When daemons ended themselves, in seconds since the machine's start; 0 for never.
    ends: SharedMemory,
}

impl Keeper {
    /// Whether a daemon that ends itself now is followed by another; takes note of it.
    fn starts_another(&self) -> bool {
        if self.link.is_gone() {
            return false;
        }
        let now = clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs();
        let is_free = |end: u64| end == 0 || end + ENDS_WINDOW_SECS < now;
        let ends = self.ends.words();
        let Some(free) = ends.iter().find(|e| is_free(e.load(Ordering::Relaxed))) else {
            return false;
        };
        free.store(now, Ordering::Relaxed);
        true
    }
}

const ENDS_MAX: usize = 3;
const ENDS_WINDOW_SECS: u64 = 3600;
