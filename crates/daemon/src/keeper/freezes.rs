//! Which file systems are frozen in the daemon's name, and what is under way: no threads and no system calls, only what comes next.
//!
//! INVARIANT: of one file system one thing is under way at a time. Beside a thaw a freeze would find it frozen, or be undone.
//! INVARIANT: a daemon is told of the end of what it has asked for, and of nothing else: it would take a thaw that its predecessor
//! left for the answer to a freeze of its own.

use std::collections::HashMap;

use super::message::{Number, ToDaemon};

/// What the keeper does next. `F` is a descriptor on the file system.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Step<F> {
    /// Freeze, and tell [`Freezes::froze`] with this generation.
    Freeze(u32, Number, F),
    /// Thaw, and tell [`Freezes::thawed`] who has asked for it.
    Thaw(Number, F, AskedBy),
    /// Tell the daemon.
    Tell(ToDaemon),
}

/// The generation of the daemon that asked, if one did.
pub(super) type AskedBy = Option<u32>;

/// See the module.
pub(super) struct Freezes<F> {
    frozen: HashMap<Number, F>,
    /// Under way, with the freeze that waits for its end and the generation that wants it.
    busy: HashMap<Number, Option<(u32, F)>>,
}

impl<F> Default for Freezes<F> {
    fn default() -> Self {
        Self {
            frozen: HashMap::new(),
            busy: HashMap::new(),
        }
    }
}

impl<F> Freezes<F> {
    /// The daemon of this generation wants a file system frozen.
    pub fn freeze(&mut self, generation: u32, number: Number, fd: F) -> Option<Step<F>> {
        if let Some(next) = self.busy.get_mut(&number) {
            *next = Some((generation, fd));
            return None;
        }
        self.busy.insert(number, None);
        Some(Step::Freeze(generation, number, fd))
    }

    /// The daemon of this generation wants one thawed.
    pub fn thaw(&mut self, generation: u32, number: Number) -> Step<F> {
        match self.frozen.remove(&number) {
            Some(fd) => {
                self.busy.insert(number, None);
                Step::Thaw(number, fd, Some(generation))
            }
            None => Step::Tell(ToDaemon::Thawed(number)),
        }
    }

    /// The daemon serves, and knows of these that they are frozen: the others its predecessor has left.
    pub fn keep_only(&mut self, known: &[Number]) -> Vec<Step<F>> {
        let left = self.frozen.extract_if(|number, _| !known.contains(number));
        let left: Vec<_> = left.collect();
        let thaw = |(number, fd)| {
            self.busy.insert(number, None);
            Step::Thaw(number, fd, None)
        };
        left.into_iter().map(thaw).collect()
    }

    /// A freeze for `asked_by` has ended while `generation` runs: with the descriptor if the file system is frozen by it, without where
    /// there is nothing to thaw.
    pub fn froze(
        &mut self,
        (asked_by, generation): (u32, u32),
        number: Number,
        result: Result<Option<F>, i32>,
    ) -> Vec<Step<F>> {
        let is_current = asked_by == generation;
        let errno = *result.as_ref().err().unwrap_or(&0);
        if let Ok(Some(fd)) = result {
            if !is_current {
                // Who wanted it is gone. What waits for this waits for the thaw as well.
                return vec![Step::Thaw(number, fd, None)];
            }
            self.frozen.insert(number, fd);
        }
        let mut steps = Vec::new();
        if is_current {
            steps.push(Step::Tell(ToDaemon::Frozen(number, errno)));
        }
        steps.extend(self.ended(generation, number));
        steps
    }

    /// A thaw that `asked_by` wanted has ended while `generation` runs.
    pub fn thawed(
        &mut self,
        (asked_by, generation): (AskedBy, u32),
        number: Number,
    ) -> Vec<Step<F>> {
        let mut steps = Vec::new();
        if asked_by == Some(generation) {
            steps.push(Step::Tell(ToDaemon::Thawed(number)));
        }
        steps.extend(self.ended(generation, number));
        steps
    }

    fn ended(&mut self, generation: u32, number: Number) -> Option<Step<F>> {
        let (asked_by, fd) = self.busy.remove(&number).flatten()?;
        // A daemon that is gone wants nothing any more.
        (asked_by == generation)
            .then(|| self.freeze(generation, number, fd))
            .flatten()
    }

    /// All that is frozen, to be thawed at once.
    pub fn take_all(&mut self) -> Vec<F> {
        self.frozen.drain().map(|(_, fd)| fd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: Number = (7, 3);

    fn told(frozen: i32) -> Step<u32> {
        Step::Tell(ToDaemon::Frozen(NUMBER, frozen))
    }

    /// Has NUMBER frozen for generation 0.
    fn frozen() -> Freezes<u32> {
        let mut freezes = Freezes::default();
        let step = freezes.freeze(0, NUMBER, 1);
        assert_eq!(step, Some(Step::Freeze(0, NUMBER, 1)));
        assert_eq!(freezes.froze((0, 0), NUMBER, Ok(Some(1))), [told(0)]);
        freezes
    }

    #[test]
    fn what_is_frozen_is_thawed_once() {
        let mut freezes = frozen();
        let step = freezes.thaw(0, NUMBER);
        assert_eq!(step, Step::Thaw(NUMBER, 1, Some(0)));
        let told = || Step::Tell(ToDaemon::Thawed(NUMBER));
        assert_eq!(freezes.thawed((Some(0), 0), NUMBER), [told()]);
        assert_eq!(freezes.thaw(0, NUMBER), told());
        assert!(freezes.take_all().is_empty());
    }

    #[test]
    fn a_thaw_of_what_a_dead_daemon_left_is_no_answer_to_a_freeze() {
        let mut freezes = frozen();
        assert_eq!(freezes.keep_only(&[]), [Step::Thaw(NUMBER, 1, None)]);
        // The next daemon asks while the thaw is under way: after it, and told of the freeze alone.
        assert_eq!(freezes.freeze(1, NUMBER, 2), None);
        let next = freezes.thawed((None, 1), NUMBER);
        assert_eq!(next, [Step::Freeze(1, NUMBER, 2)]);
        assert_eq!(freezes.froze((1, 1), NUMBER, Ok(Some(2))), [told(0)]);
        assert_eq!(freezes.take_all(), [2]);
    }

    #[test]
    fn a_freeze_that_ends_after_its_daemon_is_undone_before_the_next() {
        let mut freezes = Freezes::default();
        assert!(freezes.freeze(0, NUMBER, 1).is_some());
        assert_eq!(freezes.freeze(1, NUMBER, 2), None);
        let undo = freezes.froze((0, 1), NUMBER, Ok(Some(1)));
        assert_eq!(undo, [Step::Thaw(NUMBER, 1, None)]);
        let next = freezes.thawed((None, 1), NUMBER);
        assert_eq!(next, [Step::Freeze(1, NUMBER, 2)]);
        assert_eq!(freezes.froze((1, 1), NUMBER, Err(5)), [told(5)]);
        assert!(freezes.take_all().is_empty());
    }

    #[test]
    fn a_dead_daemons_wishes_are_forgotten() {
        let mut freezes = frozen();
        assert_eq!(freezes.keep_only(&[NUMBER]), []);
        assert_eq!(freezes.thaw(1, NUMBER), Step::Thaw(NUMBER, 1, Some(1)));
        assert_eq!(freezes.freeze(1, NUMBER, 2), None);
        assert_eq!(freezes.thawed((Some(1), 2), NUMBER), []);
        assert!(freezes.freeze(2, NUMBER, 3).is_some());
        // Nothing to thaw: the file system is not of the kind, or an administrator froze it.
        assert_eq!(freezes.froze((2, 2), NUMBER, Ok(None)), [told(0)]);
        assert!(freezes.take_all().is_empty());
    }
}
