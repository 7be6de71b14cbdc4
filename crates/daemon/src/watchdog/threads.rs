//! What a thread of this process is doing, as the kernel tells.

use std::time::Duration;

/// What a thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    /// It has a processor or wants one.
    Runs,
    /// It sleeps until something in the process wakes it, or a signal.
    Sleeps,
    /// It waits in the kernel for a device.
    WaitsInKernel,
    /// Somebody has stopped it, or looks at it with a debugger.
    IsStopped,
}

/// See there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Activity {
    pub doing: Doing,
    /// Processor time that the thread has had.
    pub used: Duration,
}

/// Of a thread of this process; `None` when it is gone.
pub(super) fn activity(thread: u32) -> Option<Activity> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    parse(&stat)
}

/// A line of `/proc/PID/stat`, see proc(5).
fn parse(stat: &str) -> Option<Activity> {
    // The name may hold anything, a parenthesis too.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let doing = match *fields.first()? {
        "R" => Doing::Runs,
        "D" => Doing::WaitsInKernel,
        "T" | "t" => Doing::IsStopped,
        _ => Doing::Sleeps,
    };
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    let used = ticks(UTIME)? + ticks(STIME)?;
    let used = Duration::from_millis(used * 1000 / rustix::param::clock_ticks_per_second());
    Some(Activity { doing, used })
}

/// Fields 14 and 15, counted from the state, which is the third.
const UTIME: usize = 14 - 3;
const STIME: usize = 15 - 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_understood() {
        let line = "77 (a) b (c) D 1 77 77 0 -1 4194304 100 0 0 0 250 150 0 0 20 0 9 0 1 2 3";
        let activity = parse(line).expect("well-formed");
        assert_eq!(activity.doing, Doing::WaitsInKernel);
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(activity.used, Duration::from_millis(400 * 1000 / ticks));
        assert_eq!(parse("77 (cut"), None);
        assert_eq!(parse("77 (cut) R 1"), None);
    }

    #[test]
    fn this_thread_runs() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let activity = activity(thread.unsigned_abs()).expect("it is there");
        assert_eq!(activity.doing, Doing::Runs);
    }
}
