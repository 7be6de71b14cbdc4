//! Small gathered writes, collected and handed to the kernel in one system call.
//!
//! Not only the calls are saved: what each write wakes in the kernel runs after the last of them, instead of
//! taking the processor from the writer after each.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use crate::buffer::IoBuf;

/// Writes to one descriptor that wait to be sent. Belongs to one thread.
pub struct WriteBatch {
    uring: IoUring,
    // Open as long as entries name it.
    _fd: Arc<OwnedFd>,
    target: Target,
    /// Never moved while an entry names their memory: a boxed slice, sent before more are taken.
    slots: Box<[Slot]>,
    used: usize,
}

struct Slot {
    tag: u64,
    head: [u8; WriteBatch::HEAD_BYTES_MAX],
    parts: [libc::iovec; 2],
    buf: IoBuf,
}

/// The descriptor: registered with the ring, which saves the kernel a look-up per write, or by number.
#[derive(Clone, Copy)]
enum Target {
    Registered,
    Number(types::Fd),
}

impl Slot {
    const EMPTY: Self = Self {
        tag: 0,
        head: [0; WriteBatch::HEAD_BYTES_MAX],
        parts: [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; 2],
        buf: IoBuf::empty(),
    };
}

impl WriteBatch {
    /// Bytes that may stand before the buffer.
    pub const HEAD_BYTES_MAX: usize = 32;

    /// A batch of at most `capacity` writes to `fd`.
    pub fn new(fd: Arc<OwnedFd>, capacity: u32) -> std::io::Result<Self> {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(capacity)
            .or_else(|_| IoUring::new(capacity))?;
        let slots = std::iter::repeat_with(|| Slot::EMPTY);
        let number = fd.as_raw_fd();
        let target = match uring.submitter().register_files(&[number]) {
            Ok(()) => Target::Registered,
            Err(_) => Target::Number(types::Fd(number)),
        };
        Ok(Self {
            uring,
            _fd: fd,
            target,
            slots: slots.take(capacity as usize).collect(),
            used: 0,
        })
    }

    /// Whether [`push`](Self::push) has no room.
    pub fn is_full(&self) -> bool {
        self.used == self.slots.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Notes one write: `head`, then `buf`. `tag` comes back if it fails.
    ///
    /// # Panics
    /// When the batch is full, or `head` longer than [`HEAD_BYTES_MAX`](Self::HEAD_BYTES_MAX).
    pub fn push(&mut self, head: &[u8], buf: IoBuf, tag: u64) {
        let slot = &mut self.slots[self.used];
        slot.head[..head.len()].copy_from_slice(head);
        slot.tag = tag;
        slot.buf = buf;
        slot.parts[0].iov_base = slot.head.as_mut_ptr().cast();
        slot.parts[0].iov_len = head.len();
        slot.parts[1].iov_base = slot.buf.as_ptr().cast();
        slot.parts[1].iov_len = slot.buf.len();
        let (small, parts) = (slot.head.as_ptr(), slot.parts.as_ptr());
        let small_bytes = head.len() as u32;
        let entry = match (self.target, slot.buf.is_empty()) {
            (Target::Registered, true) => {
                opcode::Write::new(types::Fixed(0), small, small_bytes).build()
            }
            (Target::Registered, false) => opcode::Writev::new(types::Fixed(0), parts, 2).build(),
            (Target::Number(fd), true) => opcode::Write::new(fd, small, small_bytes).build(),
            (Target::Number(fd), false) => opcode::Writev::new(fd, parts, 2).build(),
        };
        let entry = entry.user_data(self.used as u64);
        // SAFETY: head, parts and buffer belong to the slot, which is neither moved, changed nor emptied before the
        // entry's completion (`send`); the descriptor is ours.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "as many entries as slots");
        self.used += 1;
    }

    /// Sends all of it and waits until it is written; `failed` gets the tag and errno of what was refused.
    pub fn send(&mut self, mut failed: impl FnMut(u64, i32)) {
        let mut left = self.used;
        while left > 0 {
            match self.uring.submit_and_wait(left) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                    _ => panic!("io_uring_enter: {error}"),
                },
            }
            let mut completion = self.uring.completion();
            completion.sync();
            for cqe in completion {
                let slot = &mut self.slots[cqe.user_data() as usize];
                slot.buf = IoBuf::empty();
                left -= 1;
                if cqe.result() < 0 {
                    failed(slot.tag, -cqe.result());
                }
            }
        }
        self.used = 0;
    }
}

impl Drop for WriteBatch {
    fn drop(&mut self) {
        // Entries that were never handed over are not the kernel's; those that were have completed in `send`.
        self.send(|_, _| {});
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn writes_arrive_whole_and_in_order() {
        let (read_end, write_end) = rustix::pipe::pipe().expect("pipe");
        let mut batch = WriteBatch::new(Arc::new(write_end), 4).expect("io_uring");
        for round in 0..3u8 {
            for number in 0..4u8 {
                let mut buf = IoBuf::alloc(if number % 2 == 0 { 0 } else { 3 });
                buf.as_mut_slice().fill(number);
                assert!(!batch.is_full());
                batch.push(&[round, number], buf, 0);
            }
            assert!(batch.is_full());
            batch.send(|_, errno| panic!("errno {errno}"));
            assert!(batch.is_empty());
        }
        drop(batch);
        let mut all = Vec::new();
        std::fs::File::from(read_end)
            .read_to_end(&mut all)
            .expect("read");
        let expected: Vec<u8> = (0..3)
            .flat_map(|r| [r, 0, r, 1, 1, 1, 1, r, 2, r, 3, 3, 3, 3])
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn what_is_refused_is_told_by_its_tag() {
        let (read_end, _write_end) = rustix::pipe::pipe().expect("pipe");
        let mut batch = WriteBatch::new(Arc::new(read_end), 4).expect("io_uring");
        batch.push(b"one", IoBuf::empty(), 1);
        batch.push(b"two", IoBuf::alloc(5), 2);
        let mut failed = Vec::new();
        batch.send(|tag, errno| failed.push((tag, errno)));
        assert_eq!(failed, [(1, libc::EBADF), (2, libc::EBADF)]);
    }
}
