//! Waiting for a dead daemon's end, which its own devices may keep it from.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use thinmap_exports::block_node;

/// Waits until a daemon is gone with all its threads.
///
/// A thread that waited in the kernel for an answer of its own process would keep it: such requests are answered here.
/// Threads that wait by way of others (the kernel's, writing back) cannot be helped so: then the mount is aborted.
pub(super) fn wait(
    mut child: Child,
    fuse: &OnceLock<OwnedFd>,
    run_dir: &Path,
    aborted: &AtomicBool,
) -> ExitStatus {
    let pid = child.id();
    let pidfd = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| {
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        });
    let Some(pidfd) = pidfd else {
        return child.wait().unwrap_or_default();
    };
    let mut stuck_since = None;
    loop {
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: STUCK_LOOK.as_nanos() as _,
        };
        if rustix::event::poll(&mut fds, Some(&timeout)).unwrap_or(0) > 0 {
            return child.wait().unwrap_or_default();
        }
        let stuck = threads_of_dead(pid);
        if stuck.is_empty() {
            continue;
        }
        if let Some(fuse) = fuse.get() {
            block_node::answer_for_dead(fuse, &stuck);
        }
        let is_long = stuck_since.get_or_insert_with(Instant::now).elapsed() > STUCK_MAX;
        if is_long && !aborted.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "threads of the dead daemon wait for its devices: I/O on all of them fails from now on"
            );
            block_node::abort(run_dir);
        }
    }
}

/// The threads of a process whose first thread has ended by a signal, as all do then that do not wait in the kernel.
fn threads_of_dead(pid: u32) -> Vec<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_dead = stat
        .rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('Z'));
    if !is_dead {
        return Vec::new();
    }
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        // I/O under way on backings, which may be slow: nothing of ours keeps it.
        .filter(|thread: &u32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
            !comm.is_ok_and(|comm| comm.starts_with("iou-"))
        })
        .collect()
}

/// How often a dead daemon's remaining threads are looked at.
const STUCK_LOOK: Duration = Duration::from_millis(200);
/// How long they may wait before their devices are given up.
const STUCK_MAX: Duration = Duration::from_secs(60);
