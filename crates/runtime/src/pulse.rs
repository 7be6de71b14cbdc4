//! Pulses: threads that others rely on say when they work and when they wait for work, so that one that hangs can be seen.
//!
//! A pulse is a count, stored once for each turn. Nothing here takes time or judges; that is for who looks.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// What it means when a thread does not come to the end of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PulseKind {
    /// It never waits but for work, and everybody's requests go through it: it hangs.
    Serving,
    /// It may wait for a device in the middle of its work: that device may be slow.
    Working,
}

/// The calling thread's own pulse; goes with it.
pub struct Pulse(Arc<Shared>);

struct Shared {
    /// Of this pulse alone: the kernel gives a thread's number to others after it.
    id: u64,
    name: String,
    kind: PulseKind,
    thread: u32,
    /// Odd while it works; another number for each turn.
    turn: AtomicU64,
    panicked: AtomicBool,
}

/// What is seen of one thread's pulse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PulseSeen {
    /// Which pulse.
    pub id: u64,
    /// The thread's name.
    pub name: String,
    /// See there.
    pub kind: PulseKind,
    /// The kernel's number of the thread.
    pub thread: u32,
    /// Another number for each turn.
    pub turn: u64,
    /// It is in a turn, and does not wait for work.
    pub works: bool,
    /// It is no more: it ended by a panic. Only of [`PulseKind::Serving`].
    pub panicked: bool,
}

static ALL: Mutex<Vec<Arc<Shared>>> = Mutex::new(Vec::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static MINE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

impl Pulse {
    /// Begins the pulse of the calling thread, which works.
    pub fn begin(kind: PulseKind) -> Self {
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let shared = Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name,
            kind,
            thread: rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs(),
            turn: AtomicU64::new(1),
            panicked: AtomicBool::new(false),
        });
        ALL.lock().push(shared.clone());
        MINE.set(Some(shared.clone()));
        Self(shared)
    }

    /// A turn begins.
    pub fn works(&self) {
        self.0.works();
    }

    /// The thread will wait for work.
    pub fn waits(&self) {
        let turn = self.0.turn.load(Ordering::Relaxed);
        self.0.turn.store((turn | 1) + 1, Ordering::Relaxed);
    }
}

impl Shared {
    fn works(&self) {
        // Nobody else stores.
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store((turn | 1) + 2, Ordering::Relaxed);
    }
}

/// The calling thread has got on with one piece of a turn that may have very many.
pub fn pulse_goes_on() {
    MINE.with_borrow(|mine| mine.iter().for_each(|pulse| pulse.works()));
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let _ = MINE.try_with(|mine| mine.take());
        if std::thread::panicking() && self.0.kind == PulseKind::Serving {
            self.0.panicked.store(true, Ordering::Relaxed);
            return;
        }
        ALL.lock().retain(|other| !Arc::ptr_eq(other, &self.0));
    }
}

/// All pulses of this process.
pub fn pulses() -> Vec<PulseSeen> {
    let seen = |shared: &Arc<Shared>| {
        let turn = shared.turn.load(Ordering::Relaxed);
        PulseSeen {
            id: shared.id,
            name: shared.name.clone(),
            kind: shared.kind,
            thread: shared.thread,
            turn,
            works: turn % 2 == 1,
            panicked: shared.panicked.load(Ordering::Relaxed),
        }
    };
    ALL.lock().iter().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::Builder;

    use super::*;

    fn of(name: &str) -> Option<PulseSeen> {
        pulses().into_iter().find(|seen| seen.name == name)
    }

    #[test]
    fn a_pulse_tells_work_from_waiting_and_goes_with_its_thread() {
        let (go_on, wait) = channel::<()>();
        let (told, step) = channel();
        let thread = Builder::new().name("pulse-steps".to_owned());
        let thread = thread.spawn(move || {
            let pulse = Pulse::begin(PulseKind::Working);
            for works in [true, true, false] {
                if works {
                    pulse_goes_on();
                } else {
                    pulse.waits();
                }
                told.send(()).expect("heard");
                wait.recv().expect("told");
            }
        });
        let mut turns = Vec::new();
        for works in [true, true, false] {
            step.recv().expect("a step");
            let seen = of("pulse-steps").expect("it beats");
            assert_eq!(seen.works, works);
            assert!(!turns.contains(&seen.turn), "{turns:?}");
            turns.push(seen.turn);
            go_on.send(()).expect("it waits");
        }
        thread.expect("a thread").join().expect("no panic");
        assert_eq!(of("pulse-steps"), None);
    }

    #[test]
    fn only_who_serves_is_missed_after_a_panic() {
        for (name, kind, is_missed) in [
            ("pulse-serves", PulseKind::Serving, true),
            ("pulse-at-work", PulseKind::Working, false),
        ] {
            let thread = Builder::new().name(name.to_owned()).spawn(move || {
                let _pulse = Pulse::begin(kind);
                panic!("wanted by the test");
            });
            assert!(thread.expect("a thread").join().is_err());
            assert_eq!(of(name).is_some_and(|seen| seen.panicked), is_missed);
        }
    }
}
