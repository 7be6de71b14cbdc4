//! io_uring commands: requests in a driver's own format (IORING_OP_URING_CMD), as the user-space block driver takes.
//!
//! Queue commands are 16 bytes and stay in the kernel until there is work, so they have a ring of their own, whose
//! descriptor can be polled by the thread's main ring. Control commands are 80 bytes, need entries of 128 bytes, and
//! block: each has a ring for itself.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// A ring for a driver's 16-byte commands. Belongs to the thread that makes it: drivers look at who sends.
pub struct CommandRing {
    uring: IoUring,
}

impl CommandRing {
    /// A ring whose submission queue holds `entries`; any number of commands may be in the kernel.
    pub fn new(entries: u32) -> std::io::Result<Self> {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_cqsize(entries.saturating_mul(4))
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self { uring })
    }

    /// Queues a command to the driver behind `fd`; `user_data` comes back with its result.
    ///
    /// # Safety
    /// The kernel must not read or write this process's memory for the command: no addresses in `command`, or only
    /// of memory that stays valid until the result has come.
    pub unsafe fn push(&mut self, fd: BorrowedFd<'_>, op: u32, command: [u8; 16], user_data: u64) {
        let entry = opcode::UringCmd16::new(types::Fd(fd.as_raw_fd()), op)
            .cmd(command)
            .build()
            .user_data(user_data);
        loop {
            // SAFETY: the entry names no memory (this function's own contract), and carries its bytes itself. A
            // descriptor closed before the submission makes the command fail, nothing else.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter();
        }
    }

    /// Hands queued commands to the kernel; does not wait.
    pub fn submit(&mut self) {
        let submission = self.uring.submission();
        let nothing_to_do = submission.is_empty() && !submission.cq_overflow();
        drop(submission);
        if !nothing_to_do {
            self.enter();
        }
    }

    fn enter(&mut self) {
        loop {
            match self.uring.submit() {
                Ok(_) => return,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Results must be reaped first: the caller does so next.
                    Some(libc::EBUSY | libc::EAGAIN) => return,
                    _ => panic!("io_uring_enter: {error}"),
                },
            }
        }
    }

    /// Moves the results that have come to `out`: the command's `user_data` and what the driver answered.
    pub fn reap(&mut self, out: &mut Vec<(u64, i32)>) {
        let mut completion = self.uring.completion();
        completion.sync();
        out.extend(completion.map(|cqe| (cqe.user_data(), cqe.result())));
    }

    /// The descriptor to poll for input: readable when results have come.
    pub fn raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

/// A ring for a driver's 80-byte commands that stay in the kernel until there is work. Belongs to the thread that makes it.
pub struct WideCommandRing {
    uring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl WideCommandRing {
    /// A ring that up to `commands` may be in at once.
    pub fn new(commands: u32) -> std::io::Result<Self> {
        let builder = || {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(commands.max(WIDE_ENTRIES));
            builder
        };
        let uring = builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(WIDE_ENTRIES)
            .or_else(|_| builder().build(WIDE_ENTRIES))?;
        Ok(Self { uring })
    }

    /// Queues a command to the driver behind `fd`, with the address of `parts`, if any; `user_data` comes back with its result.
    ///
    /// # Safety
    /// `parts` must stay valid until the next [`submit_all`](Self::submit_all) has returned; memory that they or the command name,
    /// until its result has come.
    pub unsafe fn push(
        &mut self,
        fd: BorrowedFd<'_>,
        op: u32,
        command: &[u8; 80],
        parts: Option<*const [libc::iovec; 2]>,
        user_data: u64,
    ) {
        let entry = opcode::UringCmd80::new(types::Fd(fd.as_raw_fd()), op)
            .cmd(*command)
            .addr(parts.map(|parts| parts as u64))
            .build()
            .user_data(user_data);
        let mut entry = entry;
        if parts.is_some() {
            // SAFETY: the entry is the kernel's `struct io_uring_sqe` of 128 bytes (asserted); `len` is a plain u32 at byte
            // 24 of it, which the builder has no way to set.
            unsafe { (&raw mut entry).cast::<u32>().add(6).write(2) }
        }
        loop {
            // SAFETY: passed on to our own caller; a descriptor closed before the submission makes the command fail.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter();
        }
    }

    /// Hands queued commands to the kernel; does not wait.
    pub fn submit(&mut self) {
        let submission = self.uring.submission();
        let nothing_to_do = submission.is_empty() && !submission.cq_overflow();
        drop(submission);
        if !nothing_to_do {
            self.enter();
        }
    }

    /// The same, until the kernel has taken every one.
    pub fn submit_all(&mut self) {
        while !self.uring.submission().is_empty() {
            self.enter();
            std::thread::yield_now();
        }
    }

    fn enter(&mut self) {
        loop {
            match self.uring.submit() {
                Ok(_) => return,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Results must be reaped first: the caller does so next.
                    Some(libc::EBUSY | libc::EAGAIN) => return,
                    _ => panic!("io_uring_enter: {error}"),
                },
            }
        }
    }

    /// The next result that has come: the command's `user_data` and what the driver answered.
    pub fn next_result(&mut self) -> Option<(u64, i32)> {
        let cqe = self.uring.completion().next()?;
        Some((cqe.user_data(), cqe.result()))
    }

    /// The descriptor to poll for input: readable when results have come.
    pub fn raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

const _: () = assert!(size_of::<squeue::Entry128>() == 128);
const WIDE_ENTRIES: u32 = 64;

/// Sends one command of up to 80 bytes and waits for its result; errors are the driver's, or io_uring's own.
///
/// # Safety
/// Memory whose address is in `command` must be valid for what the driver does with it, until this returns.
pub unsafe fn control_command(
    fd: BorrowedFd<'_>,
    op: u32,
    command: [u8; 80],
) -> std::io::Result<i32> {
    let mut uring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(1)?;
    let entry = opcode::UringCmd80::new(types::Fd(fd.as_raw_fd()), op)
        .cmd(command)
        .build();
    // SAFETY: memory that the command names is valid until we return (our contract), and we return only after its
    // result has come; `fd` is borrowed for as long.
    unsafe { uring.submission().push(&entry) }.map_err(std::io::Error::other)?;
    loop {
        match uring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // Nothing was taken: the entry is still ours.
            Err(error) if !uring.submission().is_empty() => return Err(error),
            Err(_) => std::thread::yield_now(),
        }
        if let Some(cqe) = uring.completion().next() {
            let result = cqe.result();
            return if result < 0 {
                Err(std::io::Error::from_raw_os_error(-result))
            } else {
                Ok(result)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::Ring;

    fn file() -> std::os::fd::OwnedFd {
        rustix::fs::memfd_create("command-test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd")
    }

    #[test]
    fn every_command_gets_its_answer_even_more_than_the_queue_holds() {
        let mut ring = CommandRing::new(4).expect("io_uring");
        let file = file();
        for number in 0..50 {
            // SAFETY: the command is zeroes; a memory file takes no commands anyway.
            unsafe { ring.push(file.as_fd(), 0, [0; 16], number) }
        }
        let mut results = Vec::new();
        while results.len() < 50 {
            ring.submit();
            ring.reap(&mut results);
        }
        results.sort_unstable();
        assert!(results.iter().map(|r| r.0).eq(0..50));
        assert!(results.iter().all(|r| r.1 == -libc::EOPNOTSUPP));
    }

    #[test]
    fn another_ring_can_wait_for_results() {
        let mut commands = CommandRing::new(4).expect("io_uring");
        let mut main = Ring::<()>::new(4).expect("io_uring");
        let file = file();
        main.poll_once(commands.raw_fd(), libc::POLLIN as u32, 7);
        main.submit();
        // SAFETY: the command is zeroes.
        unsafe { commands.push(file.as_fd(), 0, [0; 16], 1) }
        commands.submit();
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        main.submit_and_wait();
        main.reap(&mut done, &mut ready);
        assert_eq!(ready, [7]);
    }

    #[test]
    fn a_file_without_commands_says_so() {
        // SAFETY: the command is zeroes.
        let answer = unsafe { control_command(file().as_fd(), 0, [0; 80]) };
        assert_eq!(
            answer.expect_err("no driver").raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
    }
}
