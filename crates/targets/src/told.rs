//! Waiting for word from an actor.

use std::sync::mpsc::{Receiver, TryRecvError};

use thinmap_runtime::{Waiting, simulate};

/// Waits until an actor says so, or is gone. For control threads.
pub(crate) fn wait_until_told(told: &Receiver<()>) {
    while matches!(told.try_recv(), Err(TryRecvError::Empty)) {
        if !simulate(Waiting::ForActors) {
            // An error is an answer too: there is nobody any more.
            let _ = told.recv();
            return;
        }
    }
}
