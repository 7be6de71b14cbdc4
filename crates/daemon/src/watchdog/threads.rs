//! What a thread of this process is doing, as the kernel tells.

use std::time::Duration;

/// What a thread does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    /// It has a processor or wants one.
    Runs,
    /// It waits for another thread of the process.
    Sleeps,
    /// It waits in the kernel for something else: a device, a file system, a pipe.
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
    let task = |file: &str| std::fs::read_to_string(format!("/proc/self/task/{thread}/{file}"));
    let mut activity = parse(&task("stat").ok()?)?;
    // Waits for a FUSE server, a socket or a pipe can be interrupted, and look like sleep.
    if activity.doing == Doing::Sleeps && !task("syscall").is_ok_and(|call| is_futex(&call)) {
        activity.doing = Doing::WaitsInKernel;
    }
    Some(activity)
}

/// Whether a line of `/proc/PID/syscall` says that the thread waits for another one: a lock, a condition.
fn is_futex(call: &str) -> bool {
    let number = call.split(' ').next().and_then(|n| n.parse::<i64>().ok());
    number == Some(FUTEX)
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

/// The system call's number.
#[cfg(target_arch = "x86_64")]
const FUTEX: i64 = 202;
#[cfg(not(target_arch = "x86_64"))]
const FUTEX: i64 = 98;
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
    fn waiting_for_a_thread_is_told_from_waiting_for_others() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let (told, numbers) = std::sync::mpsc::channel();
        let number = || {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            thread.unsigned_abs()
        };
        let (end, mouth) = std::io::pipe().expect("a pipe");
        let told_too = told.clone();
        let of_thread = std::thread::spawn(move || {
            told.send((number(), Doing::Sleeps)).expect("heard");
            receive.recv()
        });
        let of_pipe = std::thread::spawn(move || {
            told_too
                .send((number(), Doing::WaitsInKernel))
                .expect("heard");
            std::io::Read::read(&mut { end }, &mut [0])
        });
        for (thread, wanted) in numbers.iter().take(2) {
            // Until it is there.
            let is = |doing| activity(thread).is_some_and(|a| a.doing == doing);
            while !is(wanted) {
                std::thread::yield_now();
            }
        }
        drop((send, mouth));
        assert!(of_thread.join().expect("no panic").is_err());
        assert!(of_pipe.join().expect("no panic").is_ok());
    }

    #[test]
    fn this_thread_runs() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let activity = activity(thread.unsigned_abs()).expect("it is there");
        assert_eq!(activity.doing, Doing::Runs);
    }
}
