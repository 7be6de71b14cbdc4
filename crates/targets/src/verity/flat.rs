//! Continuations that do not nest.
//!
//! A device may end a request inside its submission, and the end of one block's read begins the next one's: without this a
//! request over many blocks of the tree would use the stack up.

use std::cell::RefCell;
use std::collections::VecDeque;

type Job = Box<dyn FnOnce()>;

thread_local! {
    /// What this thread has still to do; `None` when it is in no [`flat`].
    static TODO: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
}

/// Runs `job`, now or, when the thread is in a job already, right behind that.
pub(super) fn flat(job: impl FnOnce() + 'static) {
    let nested = TODO.with_borrow(Option::is_some);
    if nested {
        TODO.with_borrow_mut(|todo| todo.get_or_insert_default().push_back(Box::new(job)));
        return;
    }
    TODO.set(Some(VecDeque::new()));
    let _running = Running;
    job();
    while let Some(job) = TODO.with_borrow_mut(|todo| todo.as_mut().and_then(VecDeque::pop_front)) {
        job();
    }
}

/// Also after a panic: what is left then fails by being dropped.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        drop(TODO.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_down(left: u32, depth: u32) {
        assert!(depth <= 1, "nested");
        if left > 0 {
            flat(move || count_down(left - 1, 1));
        }
    }

    #[test]
    fn a_chain_uses_no_stack() {
        count_down(1_000_000, 0);
    }
}
