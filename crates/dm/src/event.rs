//! Events: a counter for each mapped device, and word of every event to those who watch them all.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often a waiter asks whether it should stop.
const STOP_POLL: Duration = Duration::from_millis(500);

/// Told of each event; `false` when it wants to hear of no more. Must not block.
pub type Watcher = Box<dyn FnMut() -> bool + Send>;

/// Who wants to hear of the events of all devices: the kernel's global event number, on which `poll` of the control
/// node stands. One for an [`Environment`](crate::Environment), in its shared state.
#[derive(Default)]
pub struct GlobalEvents(Mutex<Watchers>);

#[derive(Default)]
struct Watchers {
    last_id: u64,
    list: Vec<(u64, Watcher)>,
}

impl GlobalEvents {
    /// An event of some device, or of devices coming, going and being renamed.
    pub fn issue(&self) {
        self.0.lock().list.retain_mut(|(_, tell)| tell());
    }

    /// Watches until the returned value is dropped. `begin` makes the watcher; every event that is issued after `begin` has
    /// returned is told to it.
    pub fn watch<E>(
        self: &Arc<Self>,
        begin: impl FnOnce() -> Result<Watcher, E>,
    ) -> Result<Watching, E> {
        let mut watchers = self.0.lock();
        let watcher = begin()?;
        watchers.last_id += 1;
        let id = watchers.last_id;
        watchers.list.push((id, watcher));
        Ok(Watching {
            events: self.clone(),
            id,
        })
    }
}

/// A watcher's registration.
pub struct Watching {
    events: Arc<GlobalEvents>,
    id: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.events.0.lock().list.retain(|(id, _)| *id != self.id);
    }
}

/// A mapped device's event counter; targets raise it, `dmsetup wait` sleeps on it.
#[derive(Default)]
pub struct TableEvent {
    state: Mutex<EventState>,
    changed: Condvar,
    global: Arc<GlobalEvents>,
}

#[derive(Default)]
struct EventState {
    number: u32,
    closed: bool,
}

impl TableEvent {
    /// A counter whose events are told to those who watch all devices, too.
    pub fn new(global: Arc<GlobalEvents>) -> Self {
        Self {
            global,
            ..Self::default()
        }
    }

    /// Raises the counter and wakes those who wait.
    pub fn trigger(&self) {
        let mut state = self.state.lock();
        state.number = state.number.wrapping_add(1);
        self.changed.notify_all();
        drop(state);
        self.global.issue();
    }

    /// Goes on from a number that an earlier process had reached.
    pub fn restore(&self, number: u32) {
        self.state.lock().number = number;
    }

    /// The present number.
    pub fn number(&self) -> u32 {
        self.state.lock().number
    }

    /// The device goes away: nobody waits any more.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Sleeps until the counter differs from `seen`, the device goes away, or `stop` says so (asked about twice a
    /// second). The number then.
    pub fn wait(&self, seen: u32, stop: &dyn Fn() -> bool) -> u32 {
        let mut state = self.state.lock();
        while state.number == seen && !state.closed && !stop() {
            self.changed.wait_for(&mut state, STOP_POLL);
        }
        state.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_watcher_hears_of_every_device_until_it_is_dropped() {
        let global = Arc::new(GlobalEvents::default());
        let devices = [
            TableEvent::new(global.clone()),
            TableEvent::new(global.clone()),
        ];
        let heard = Arc::new(AtomicU32::new(0));
        let begin = |heard: Arc<AtomicU32>| -> Result<Watcher, ()> {
            Ok(Box::new(move || heard.fetch_add(1, Ordering::Relaxed) < 2))
        };
        devices[0].trigger();
        let watching = global.watch(|| begin(heard.clone())).expect("watching");
        devices[0].trigger();
        devices[1].trigger();
        assert_eq!(heard.load(Ordering::Relaxed), 2);
        // It says itself that it has had enough.
        devices[1].trigger();
        devices[1].trigger();
        assert_eq!(heard.load(Ordering::Relaxed), 3);
        drop(watching);
        let watching = global.watch(|| begin(Arc::default())).expect("watching");
        drop(watching);
        assert!(global.0.lock().list.is_empty());
    }
}
