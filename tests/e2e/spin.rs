//! Makes one thread of another process run in a circle, as a bug would: by way of ptrace(2).

use std::fs;
use std::os::unix::fs::FileExt;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A thread of this process whose name begins so is caught when it has just been handed work, and spins from then on. There must be
/// a load that gives it work.
pub fn spin_in_a_turn(pid: i32, name: &str) {
    let thread = thread_of(pid, name);
    let endless = endless_loop_in(pid);
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("seize");
    ptrace::interrupt(thread).expect("interrupt");
    stopped(thread);
    while !has_waited_for_work(thread) {
        ptrace::syscall(thread, None).expect("go on to a system call");
        stopped(thread);
    }
    // From the wake-up into the turn.
    for _ in 0..STEPS {
        ptrace::step(thread, None).expect("step");
        stopped(thread);
    }
    let mut registers = ptrace::getregs(thread).expect("registers");
    registers.rip = endless;
    // Nothing is to be done again that a stop may have cut off.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers).expect("registers");
    ptrace::detach(thread, None).expect("detach");
}

fn stopped(thread: Pid) {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).expect("wait");
    assert!(
        !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)),
        "the thread is gone: {status:?}"
    );
}

/// At the end of an `io_uring_enter` that waited for something, and got it.
fn has_waited_for_work(thread: Pid) -> bool {
    let registers = ptrace::getregs(thread).expect("registers");
    let result = registers.rax.cast_signed();
    registers.orig_rax == IO_URING_ENTER && registers.rdx > 0 && result >= 0
}

fn thread_of(pid: i32, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let mut found = tasks.flatten().filter(|task| {
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        comm.starts_with(name)
    });
    let thread = found.next().expect("a thread of this name").file_name();
    let thread = thread.to_str().and_then(|t| t.parse().ok());
    Pid::from_raw(thread.expect("a number"))
}

/// Where in the process's code a jump to itself lies (two bytes that are found in any large program).
fn endless_loop_in(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let code = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with("/thinmap"))
        .and_then(|line| line.split_once('-'))
        .map(|(start, rest)| (start, rest.split(' ').next().unwrap_or_default()))
        .expect("its code");
    let address = |text| u64::from_str_radix(text, 16).expect("an address");
    let (start, end) = (address(code.0), address(code.1));
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let mut bytes = vec![0; usize::try_from(end - start).expect("in memory")];
    memory.read_exact_at(&mut bytes, start).expect("its code");
    let at = bytes.windows(2).position(|two| two == [0xeb, 0xfe]);
    start + at.expect("a jump to itself") as u64
}

const STEPS: u32 = 300;
/// The number of the system call.
const IO_URING_ENTER: u64 = 426;
