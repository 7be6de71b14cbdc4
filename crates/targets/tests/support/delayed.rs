//! A device that completes on another thread, in a shuffled order.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Io, QueueLimits};
use thinmap_units::Sector;

pub struct Delayed {
    below: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<(Vec<Io>, bool)>,
    changed: Condvar,
}

impl Delayed {
    pub fn new(below: Arc<dyn BlockDevice>, seed: u64) -> Arc<Self> {
        let shared = Arc::new(Shared::default());
        let thread = {
            let (shared, below) = (shared.clone(), below.clone());
            std::thread::spawn(move || run(&shared, &*below, seed))
        };
        Arc::new(Self {
            below,
            shared,
            thread: Some(thread),
        })
    }
}

fn run(shared: &Shared, below: &dyn BlockDevice, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let io = {
            let mut state = shared.state.lock();
            while state.0.is_empty() {
                if state.1 {
                    return;
                }
                shared.changed.wait(&mut state);
            }
            let pick = rng.random_range(0..state.0.len());
            state.0.swap_remove(pick)
        };
        below.submit(io);
    }
}

impl BlockDevice for Delayed {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.shared.state.lock().0.push(io);
        self.shared.changed.notify_one();
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.shared.state.lock().1 = true;
        self.shared.changed.notify_one();
        // The last user may be a completion on the thread itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            thread.join().expect("the delaying thread does not panic");
        }
    }
}
