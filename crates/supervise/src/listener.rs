//! The kernel's side of the supervisor: stopped calls come out of a descriptor, answers go into it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use libc::{
    SECCOMP_IOCTL_NOTIF_ADDFD, SECCOMP_IOCTL_NOTIF_ID_VALID, SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_IOCTL_NOTIF_SET_FLAGS, seccomp_data, seccomp_notif,
    seccomp_notif_addfd, seccomp_notif_resp,
};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// Linux 6.6: supervisor and caller take turns on one processor, which spares a wake-up of another.
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// The descriptor that came with the filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    pub fn new(fd: OwnedFd) -> Arc<Self> {
        // SAFETY: takes a number, no address. An older kernel refuses it, and nothing is lost.
        unsafe { libc::ioctl(fd.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
        Arc::new(Self(fd))
    }

    /// The next stopped call; `None` when no process is left under the filter.
    pub fn next(self: &Arc<Self>) -> Result<Option<Pending>, Errno> {
        loop {
            let mut poll = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut poll, None) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let ready = poll[0].revents();
            if !ready.contains(PollFlags::IN) {
                return Ok(None);
            }
            // SAFETY: a structure of integers, for which zeroes are a value; the kernel asks for zeroes.
            let mut notice: seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel fills the structure, which lives beyond the call.
            match unsafe { self.ioctl(SECCOMP_IOCTL_NOTIF_RECV, &mut notice) } {
                // The caller was killed in between.
                Err(Errno::NOENT | Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => {
                    return Ok(Some(Pending {
                        listener: self.clone(),
                        id: notice.id,
                        thread: notice.pid as i32,
                        data: notice.data,
                        is_answered: false,
                    }));
                }
            }
        }
    }

    /// # Safety
    /// `argument` is what the request asks for.
    unsafe fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> Result<i32, Errno> {
        // SAFETY: promised by the caller; the reference is valid for the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Ok(result)
    }
}

/// A stopped call. Whatever becomes of its handling, it gets an answer: dropped, it is the kernel's to perform.
#[derive(Debug)]
pub struct Pending {
    listener: Arc<Listener>,
    id: u64,
    thread: i32,
    data: seccomp_data,
    is_answered: bool,
}

impl Pending {
    /// The calling thread, by its number here.
    pub fn thread(&self) -> i32 {
        self.thread
    }

    /// The call's number and arguments.
    pub fn data(&self) -> &seccomp_data {
        &self.data
    }

    /// Whether the caller still waits: if so, its thread number has not become another's.
    pub fn is_waited_for(&self) -> bool {
        let mut id = self.id;
        // SAFETY: the kernel reads one 64-bit number.
        unsafe { self.listener.ioctl(SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id) }.is_ok()
    }

    /// The kernel performs the call.
    pub fn pass(self) {}

    /// The call's result is 0, or it fails with an errno.
    pub fn answer(mut self, result: Result<(), Errno>) {
        let error = result.map_or_else(|errno| -errno.raw_os_error(), |()| 0);
        self.respond(error, 0);
    }

    /// The call's result is a descriptor for the same as `fd`.
    pub fn answer_with(mut self, fd: impl AsFd, close_on_exec: bool) {
        let mut addfd = seccomp_notif_addfd {
            id: self.id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: fd.as_fd().as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec {
                libc::O_CLOEXEC as u32
            } else {
                0
            },
        };
        // SAFETY: the structure that the request asks for, with a descriptor that is open.
        match unsafe { self.listener.ioctl(SECCOMP_IOCTL_NOTIF_ADDFD, &mut addfd) } {
            Ok(_) | Err(Errno::NOENT) => self.is_answered = true,
            // The caller has no descriptor left, say.
            Err(errno) => self.answer(Err(errno)),
        }
    }

    fn respond(&mut self, error: i32, flags: u32) {
        self.is_answered = true;
        let mut response = seccomp_notif_resp {
            id: self.id,
            val: 0,
            error,
            flags,
        };
        // SAFETY: the structure that the request asks for. It fails if the caller is gone: then nobody waits.
        let _ = unsafe { self.listener.ioctl(SECCOMP_IOCTL_NOTIF_SEND, &mut response) };
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_answered {
            self.respond(0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
        }
    }
}
