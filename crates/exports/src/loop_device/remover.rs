//! Takes the numbers of unbound loop devices out of the kernel, beside the removal of the nodes: the kernel needs
//! some 45 ms for each, most of it waiting, so several go at once and nobody waits for them but the shutdown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::{ensure_node, ioctl, is_bound, node_path};

/// The removals of one daemon.
#[derive(Default)]
pub(super) struct Remover {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// Number, and whether we made its node.
    waiting: VecDeque<(u32, bool)>,
    threads: usize,
    /// Still open when their node was removed by force; tried again at the end.
    open: Vec<(u32, bool)>,
}

impl Remover {
    /// Removes `number` soon, and its node when it was `made_node` by us.
    pub(super) fn push(self: &Arc<Self>, number: u32, made_node: bool) {
        let mut state = self.state.lock();
        state.waiting.push_back((number, made_node));
        if state.threads >= THREADS_MAX {
            return;
        }
        state.threads += 1;
        drop(state);
        let remover = self.clone();
        let thread = std::thread::Builder::new().name("thinmap-loop-rm".to_owned());
        if thread.spawn(move || remover.work()).is_err() {
            self.work();
        }
    }

    /// Notes a device that goes at its last close.
    pub(super) fn push_open(&self, number: u32, made_node: bool) {
        self.state.lock().open.push((number, made_node));
    }

    /// Waits until all is done.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        while state.threads > 0 {
            self.idle.wait(&mut state);
        }
        let closed: Vec<_> = state
            .open
            .extract_if(.., |(number, _)| !is_bound(*number))
            .collect();
        drop(state);
        closed
            .into_iter()
            .for_each(|(number, made_node)| remove(number, made_node));
    }

    fn work(&self) {
        loop {
            let mut state = self.state.lock();
            let Some((number, made_node)) = state.waiting.pop_front() else {
                state.threads -= 1;
                self.idle.notify_all();
                return;
            };
            drop(state);
            remove(number, made_node);
        }
    }
}

/// Removes one number now, if need be after its last short-lived opener.
pub(super) fn remove(number: u32, made_node: bool) {
    let Ok(control) = ioctl::open_control() else {
        return;
    };
    if is_bound(number) {
        // Taken by somebody who looked for a free one: it is theirs.
        return;
    }
    // The node first: once the number is free, a node of that name may be another daemon's.
    if made_node {
        let _ = std::fs::remove_file(node_path(number));
    }
    let mut last = Errno::BUSY;
    let removed = wait_until(|| match ioctl::remove(&control, number) {
        Ok(()) | Err(Errno::NODEV) => true,
        Err(errno) => {
            last = errno;
            false
        }
    });
    if !removed {
        let device = node_path(number);
        tracing::warn!(device = %device.display(), errno = %last, "the unbound loop device stays");
        if made_node {
            let _ = ensure_node(number);
        }
    }
}

/// Waits a little for something that follows a close; whether it came.
pub(super) fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    for attempt in 0..WAIT_STEPS {
        if done() {
            return true;
        }
        if attempt + 1 < WAIT_STEPS {
            std::thread::sleep(WAIT_STEP);
        }
    }
    false
}

const THREADS_MAX: usize = 8;
/// Programs that look at every block device (udev, blkid) have one open for some milliseconds.
const WAIT_STEPS: u32 = 20;
const WAIT_STEP: Duration = Duration::from_millis(5);
