//! The caller of a stopped system call, seen from the supervisor: its memory, its descriptors, its signals.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use thinmap_interpose::{
    CAP_DAC_OVERRIDE, CAP_SYS_ADMIN, Caller, ProcessMemory, effective_capabilities, status_field,
};

use crate::listener::Pending;

/// How often a caller that waits for an event is looked at for signals.
const SIGNAL_POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// The caller of one stopped call.
#[derive(Clone, Copy)]
pub struct Remote<'a>(pub &'a Pending);

impl Remote<'_> {
    fn memory(&self) -> ProcessMemory {
        ProcessMemory::of(self.0.thread())
    }

    /// A path at an address of its memory.
    pub fn path(&self, address: u64) -> Result<Vec<u8>, Errno> {
        let path = self.memory().read_text(address, libc::PATH_MAX as usize)?;
        self.still_waits().map(|()| path)
    }

    /// Whether nothing stands at an absolute path, as the caller sees it.
    pub fn misses(&self, path: &Path) -> bool {
        let mut seen = std::ffi::OsString::from(format!("/proc/{}/root", self.0.thread()));
        seen.push(path);
        rustix::fs::lstat(Path::new(&seen)).is_err_and(|errno| errno == Errno::NOENT)
    }

    /// A descriptor for what the caller has open as `fd`.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let process = self.status_field("Tgid:", 10).ok_or(Errno::SRCH)?;
        let process = Pid::from_raw(process as i32).ok_or(Errno::SRCH)?;
        let process = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
        let fd = rustix::process::pidfd_getfd(&process, fd, PidfdGetfdFlags::empty())?;
        self.still_waits().map(|()| fd)
    }

    /// Its thread number may by now be another's: what was read by it counts only if it still waits.
    fn still_waits(&self) -> Result<(), Errno> {
        if self.0.is_waited_for() {
            Ok(())
        } else {
            Err(Errno::SRCH)
        }
    }

    /// Whether the caller could open a node that belongs to the supervisor's user and to nobody else.
    pub fn may_open_control(&self) -> bool {
        let Some(uids) = status_field(self.0.thread(), "Uid:") else {
            return false;
        };
        // Real, effective, saved, and the one that files are opened with.
        let user = uids
            .split_whitespace()
            .nth(3)
            .and_then(|uid| uid.parse().ok());
        user == Some(rustix::process::geteuid().as_raw())
            || effective_capabilities(self.0.thread())
                .is_some_and(|capabilities| capabilities & CAP_DAC_OVERRIDE != 0)
    }

    fn has_signal(&self) -> bool {
        let signals = |field| self.status_field(field, 16).unwrap_or(0);
        (signals("SigPnd:") | signals("ShdPnd:")) & !signals("SigBlk:") != 0
    }

    /// A number in `/proc/THREAD/status`.
    fn status_field(&self, field: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(&status_field(self.0.thread(), field)?, radix).ok()
    }
}

impl Caller for Remote<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.memory().read(address, into)?;
        self.still_waits()
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.still_waits()?;
        self.memory().write(address, bytes)
    }

    fn is_admin(&self) -> bool {
        effective_capabilities(self.0.thread())
            .is_none_or(|capabilities| capabilities & CAP_SYS_ADMIN != 0)
    }

    /// The stopped caller cannot be woken by a signal that it handles, so its signals are looked for.
    fn wait_for(&self, answer: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            let mut poll = [PollFd::new(&answer, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&SIGNAL_POLL)) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(ready) if ready > 0 => return Ok(()),
                Ok(_) => {
                    self.still_waits()?;
                    if self.has_signal() {
                        return Err(Errno::INTR);
                    }
                }
            }
        }
    }
}
