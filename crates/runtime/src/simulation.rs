//! Waiting on a thread that a simulation runs on.
//!
//! Everything in a simulated process shares one thread, so nothing may sleep: what would wait for somebody else has the
//! simulation let somebody else have a turn instead. Asked on paths that are about to sleep only, never by the data path.

use std::cell::RefCell;
use std::rc::Rc;

/// What a wait is for, and so what may go on meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// For a device. Locks may be held, so only devices go on, and those who submit requests.
    ForDevices,
    /// For an actor or for requests in flight. No lock is held that an actor takes: actors go on too.
    ForActors,
}

/// A single-threaded process: devices, actors, clients, and their schedule.
pub trait Simulation {
    /// Lets something else happen that a wait of this kind may be waiting for.
    ///
    /// # Panics
    /// When nothing can ever happen any more: the wait would be for ever.
    fn go_on(&self, waiting: Waiting);
}

thread_local! {
    static SIMULATION: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// Makes the calling thread one that `simulation` runs on, or with `None` a usual one again.
pub fn set_simulation(simulation: Option<Rc<dyn Simulation>>) {
    SIMULATION.set(simulation);
}

/// Whether the calling thread belongs to a simulation, which has then made a step: look again whether the wait is over.
/// `false`: sleep.
pub fn simulate(waiting: Waiting) -> bool {
    let simulation = SIMULATION.with_borrow(Clone::clone);
    let simulated = simulation.is_some();
    if let Some(simulation) = simulation {
        simulation.go_on(waiting);
    }
    simulated
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Steps(Cell<u32>);

    impl Simulation for Steps {
        fn go_on(&self, _waiting: Waiting) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn a_wait_steps_the_simulation_of_its_own_thread_only() {
        let steps = Rc::new(Steps(Cell::new(0)));
        assert!(!simulate(Waiting::ForActors));
        set_simulation(Some(steps.clone()));
        assert!(simulate(Waiting::ForDevices));
        std::thread::spawn(|| assert!(!simulate(Waiting::ForActors)))
            .join()
            .expect("the other thread");
        set_simulation(None);
        assert!(!simulate(Waiting::ForDevices));
        assert_eq!(steps.0.get(), 1);
    }
}
