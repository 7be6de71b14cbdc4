//! Which threads do not come to the end of a turn, from look to look.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use thinmap_runtime::{PulseKind, PulseSeen};

use super::threads::{Activity, Doing};

/// So often a thread must be seen in the same turn. Looks are counted and not seconds: while the whole process stands still
/// nobody is at fault.
pub(super) const LOOKS: u32 = 12;

/// What is remembered from look to look.
pub(super) struct Watch {
    period: Duration,
    /// By pulse.
    known: HashMap<u64, Known>,
}

struct Known {
    seen: PulseSeen,
    /// Processor time that it had had at the last look in this turn; `None` before the first one.
    used: Option<Duration>,
    /// Looks in the same turn, asleep or running.
    stuck: u32,
    /// Looks in the same turn in which it waited for a device.
    waited: u32,
    told: bool,
}

/// What was found of a thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    pub seen: PulseSeen,
    pub trouble: Trouble,
    /// For how long, at least.
    pub time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// It ended by a panic.
    Gone,
    /// It runs and runs.
    Runs,
    /// It sleeps in the middle of its work.
    Sleeps,
    /// It waits in the kernel.
    Waits,
    /// It has come to the end of a turn that was told of.
    Over,
}

impl Finding {
    /// Nothing that the thread waits for will come.
    pub fn is_hang(&self) -> bool {
        self.seen.kind == PulseKind::Serving
            && matches!(
                self.trouble,
                Trouble::Gone | Trouble::Runs | Trouble::Sleeps
            )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, secs) = (&self.seen.name, self.time.as_secs_f64().round());
        match self.trouble {
            Trouble::Gone => write!(f, "thread {name} has ended by a panic"),
            Trouble::Runs => write!(f, "thread {name} has run for {secs} s without an end"),
            Trouble::Sleeps => write!(
                f,
                "thread {name} has slept for {secs} s in the middle of its work"
            ),
            Trouble::Waits => write!(f, "thread {name} has waited in the kernel for {secs} s"),
            Trouble::Over => write!(f, "thread {name} goes on after {secs} s"),
        }
    }
}

impl Watch {
    /// For looks at this interval.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            known: HashMap::new(),
        }
    }

    /// A look at all threads. A trouble is found once, a hang again after as many looks.
    pub fn look(
        &mut self,
        seen: Vec<PulseSeen>,
        activity: impl Fn(u32) -> Option<Activity>,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut known = HashMap::new();
        for seen in seen {
            let before = self.known.remove(&seen.id);
            let (now, finding) = self.compare(before, seen, &activity);
            findings.extend(finding);
            known.insert(now.seen.id, now);
        }
        self.known = known;
        findings
    }

    fn compare(
        &self,
        before: Option<Known>,
        seen: PulseSeen,
        activity: &impl Fn(u32) -> Option<Activity>,
    ) -> (Known, Option<Finding>) {
        let finding = |trouble, time| Finding {
            seen: seen.clone(),
            trouble,
            time,
        };
        if seen.panicked {
            let is_new = before.is_none_or(|before| !before.seen.panicked);
            let finding = is_new.then(|| finding(Trouble::Gone, Duration::ZERO));
            return (Known::new(seen, true), finding);
        }
        let mut now = match before {
            Some(before) if seen.works && before.seen == seen => before,
            Some(before) if before.told => {
                let over = finding(Trouble::Over, before.time(self.period));
                return (Known::new(seen, false), Some(over));
            }
            _ => return (Known::new(seen, false), None),
        };
        let Some(Activity { doing, used }) = activity(seen.thread) else {
            return (now, None);
        };
        let share = now
            .used
            .replace(used)
            .map(|before| used.saturating_sub(before));
        let stuck_before = now.stuck;
        match doing {
            Doing::Runs if share.is_some_and(|share| share >= self.period / SHARE_MIN) => {
                now.stuck += 1;
            }
            Doing::Sleeps => now.stuck += 1,
            Doing::WaitsInKernel => now.waited += 1,
            Doing::Runs | Doing::IsStopped => {}
        }
        // Once more after as long again: what could not be done about it may be possible then.
        let hangs = now.stuck > stuck_before && now.stuck.is_multiple_of(LOOKS);
        if !hangs && (now.told || now.stuck + now.waited < LOOKS) {
            return (now, None);
        }
        now.told = true;
        let trouble = match doing {
            _ if !hangs => Trouble::Waits,
            Doing::Runs => Trouble::Runs,
            _ => Trouble::Sleeps,
        };
        let time = now.time(self.period);
        (now, Some(finding(trouble, time)))
    }
}

impl Known {
    fn new(seen: PulseSeen, told: bool) -> Self {
        Self {
            seen,
            used: None,
            stuck: 0,
            waited: 0,
            told,
        }
    }

    fn time(&self, period: Duration) -> Duration {
        period * (self.stuck + self.waited)
    }
}

/// Who runs for less than this part of the time wants a processor and does not get it.
const SHARE_MIN: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(5);

    fn seen(kind: PulseKind, turn: u64) -> Vec<PulseSeen> {
        vec![PulseSeen {
            id: 1,
            name: "t".to_owned(),
            kind,
            thread: 7,
            turn,
            works: turn % 2 == 1,
            panicked: false,
        }]
    }

    /// Looks so often at a thread that does this with so much of its time; what was found, and at which look.
    fn looks(
        watch: &mut Watch,
        seen: &[PulseSeen],
        (doing, share): (Doing, f64),
        times: u32,
    ) -> Vec<(u32, Trouble, bool)> {
        let mut found = Vec::new();
        for look in 1..=times {
            let used = Duration::from_secs(100) + PERIOD.mul_f64(share) * look;
            let activity = |_| Some(Activity { doing, used });
            let findings = watch.look(seen.to_vec(), activity);
            found.extend(findings.iter().map(|f| (look, f.trouble, f.is_hang())));
        }
        found
    }

    #[test]
    fn who_serves_and_sleeps_or_runs_in_one_turn_hangs() {
        for (activity, trouble, at) in [
            ((Doing::Sleeps, 0.0), Trouble::Sleeps, 13),
            // The first look is the one that its time is counted from.
            ((Doing::Runs, 0.9), Trouble::Runs, 14),
            ((Doing::Runs, 0.06), Trouble::Runs, 14),
        ] {
            let mut watch = Watch::new(PERIOD);
            let serving = seen(PulseKind::Serving, 3);
            let found = looks(&mut watch, &serving, activity, at + LOOKS);
            let again = [at, at + LOOKS].map(|at| (at, trouble, true));
            assert_eq!(found, again, "{activity:?}");
        }
    }

    #[test]
    fn who_waits_for_work_or_a_processor_or_is_stopped_does_not_hang() {
        for (turn, activity) in [
            (4, (Doing::Sleeps, 0.0)),
            (3, (Doing::Runs, 0.01)),
            (3, (Doing::IsStopped, 0.0)),
        ] {
            let mut watch = Watch::new(PERIOD);
            let serving = seen(PulseKind::Serving, turn);
            let found = looks(&mut watch, &serving, activity, 50);
            assert_eq!(found, [], "{activity:?}");
        }
    }

    #[test]
    fn turns_that_come_to_an_end_are_no_hang() {
        let mut watch = Watch::new(PERIOD);
        for turn in 0..50 {
            let serving = seen(PulseKind::Serving, 2 * turn + 1);
            assert_eq!(
                looks(&mut watch, &serving, (Doing::Sleeps, 0.0), 11),
                [],
                "{turn}"
            );
        }
    }

    #[test]
    fn who_waits_for_a_device_is_told_of_and_is_no_hang_until_it_sleeps() {
        let mut watch = Watch::new(PERIOD);
        let serving = seen(PulseKind::Serving, 3);
        let waits = (Doing::WaitsInKernel, 0.0);
        let found = looks(&mut watch, &serving, waits, 50);
        assert_eq!(found, [(13, Trouble::Waits, false)]);
        let found = looks(&mut watch, &serving, (Doing::Sleeps, 0.0), 20);
        assert_eq!(found, [(12, Trouble::Sleeps, true)]);
    }

    #[test]
    fn a_worker_that_sleeps_is_told_of_and_told_of_when_it_goes_on() {
        let mut watch = Watch::new(PERIOD);
        let sleeps = (Doing::Sleeps, 0.0);
        let found = looks(&mut watch, &seen(PulseKind::Working, 3), sleeps, 20);
        assert_eq!(found, [(13, Trouble::Sleeps, false)]);
        let found = looks(&mut watch, &seen(PulseKind::Working, 4), sleeps, 30);
        assert_eq!(found, [(1, Trouble::Over, false)]);
    }

    #[test]
    fn a_panic_is_found_once() {
        let mut watch = Watch::new(PERIOD);
        let mut gone = seen(PulseKind::Serving, 3);
        gone[0].panicked = true;
        let found = looks(&mut watch, &gone, (Doing::Sleeps, 0.0), 30);
        assert_eq!(found, [(1, Trouble::Gone, true)]);
    }
}
