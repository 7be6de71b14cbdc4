//! Requests over io_uring instead of read and write on the descriptor: for kernels that offer it.
//!
//! The kernel has a queue for each processor it may ever have. Each queue gets entries of ours: a head and a payload in our
//! memory, and a command that stays in the kernel until it has put a request there. Answering and waiting for the next request
//! is one command, and a turn's commands are one system call. A queue thread serves every n-th queue.
//!
//! INVARIANT: an entry's head and payload are the kernel's while its command is in the ring (`Entry::ours` is false). Its payload
//! is only offered again when all of it has come back.

use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::ThreadId;

use parking_lot::Mutex;
use thinmap_runtime::{IoBuf, Waker, WideCommandRing};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, InHeader, OutHeader, RingCommand, RingHead};
use super::channel::Channel;
use super::server::REQUEST_BYTES_MAX;

/// Marks a request that came over the ring; the rest of such a tag is the entry's index. The kernel's own numbers count up from
/// zero in steps of two and do not get there.
/// The kernel marks requests that it sends again by bit 63, and counts up from 0.
const RING_BIT: u64 = 1 << 62;

/// Whether a request came over the ring.
pub(super) fn is_ring_tag(tag: u64) -> bool {
    tag & RING_BIT != 0
}

/// A request's end, on its way to the queue thread.
pub(super) struct Reply {
    pub tag: u64,
    pub error: i32,
    pub small: [u8; SMALL_BYTES_MAX],
    pub small_len: usize,
    /// The request's buffer, or any other.
    pub buf: IoBuf,
    /// Whether `buf` is content of the reply.
    pub sends_buf: bool,
}

/// Content that needs no buffer.
pub(super) const SMALL_BYTES_MAX: usize = 16;

/// Replies of one queue, from whatever thread.
pub(super) struct Replies {
    inbox: Mutex<Vec<Reply>>,
    owner: ThreadId,
    waker: Arc<Waker>,
}

impl Replies {
    pub(super) fn push(&self, reply: Reply) {
        self.inbox.lock().push(reply);
        if std::thread::current().id() != self.owner {
            self.waker.wake();
        }
    }
}

/// A request out of the ring.
pub(super) struct RingRequest {
    /// `unique` is the tag for the reply.
    pub header: InHeader,
    pub op_in: [u8; 128],
    pub op_in_len: usize,
    pub payload_len: usize,
}

struct Entry {
    qid: u16,
    commit_id: u64,
    ours: bool,
    /// What of the payload is not in a request's hands. Never empty: it keeps the memory from being freed.
    payload: IoBuf,
}

/// One thread's entries.
pub(super) struct RingQueue {
    ring: ManuallyDrop<WideCommandRing>,
    channel: Arc<Channel>,
    replies: Arc<Replies>,
    taken: Vec<Reply>,
    /// Never moved; the kernel has the addresses.
    heads: ManuallyDrop<Box<[UnsafeCell<RingHead>]>>,
    entries: ManuallyDrop<Vec<Entry>>,
    /// Requests that came while entries were still being offered.
    early: Vec<(u64, i32)>,
    /// Entries whose command is in the kernel, or among the `early`.
    in_kernel: usize,
}

impl RingQueue {
    /// Offers entries for the queues `first`, `first + step`, ... below `queues`; an error when the kernel refuses one.
    pub(super) fn register(
        channel: &Arc<Channel>,
        first: usize,
        step: usize,
        queues: usize,
    ) -> std::io::Result<Self> {
        if queues > QUEUES_MAX {
            return Err(std::io::Error::other(format!(
                "{queues} possible processors, at most {QUEUES_MAX} are served over the ring"
            )));
        }
        let each = ENTRIES_PER_QUEUE;
        let qids: Vec<u16> = (first..queues)
            .step_by(step)
            .filter_map(|qid| u16::try_from(qid).ok())
            .collect();
        let count = qids.len() * each;
        let mut memory = IoBuf::alloc(count * ENTRY_BYTES);
        let entries: Vec<Entry> = (0..count)
            .map(|index| Entry {
                qid: qids[index / each],
                commit_id: 0,
                ours: true,
                payload: memory.split_to(ENTRY_BYTES),
            })
            .collect();
        let zeroed = || UnsafeCell::new(RingHead::read_from_bytes(&[0; 288]).expect("its size"));
        let ring = WideCommandRing::new(u32::try_from(count).unwrap_or(u32::MAX).max(1))?;
        let replies = Arc::new(Replies {
            inbox: Mutex::default(),
            owner: std::thread::current().id(),
            waker: channel.waker(),
        });
        channel.answer_over(replies.clone());
        let mut queue = Self {
            ring: ManuallyDrop::new(ring),
            channel: channel.clone(),
            replies,
            taken: Vec::new(),
            heads: ManuallyDrop::new(std::iter::repeat_with(zeroed).take(count).collect()),
            entries: ManuallyDrop::new(entries),
            early: Vec::new(),
            in_kernel: 0,
        };
        queue.offer_all()?;
        Ok(queue)
    }

    fn offer_all(&mut self) -> std::io::Result<()> {
        let parts: Vec<[libc::iovec; 2]> = self
            .entries
            .iter_mut()
            .zip(self.heads.iter())
            .map(|(entry, head)| {
                [
                    libc::iovec {
                        iov_base: head.get().cast(),
                        iov_len: size_of::<RingHead>(),
                    },
                    libc::iovec {
                        iov_base: entry.payload.as_mut_slice().as_mut_ptr().cast(),
                        iov_len: REQUEST_BYTES_MAX,
                    },
                ]
            })
            .collect();
        for (index, parts) in parts.iter().enumerate() {
            self.push(index, abi::RING_REGISTER, Some(parts));
        }
        // After this the kernel has read `parts`.
        self.ring.submit_all();
        // A refusal comes at once; what is accepted comes back with a request, the first maybe already.
        let mut refused = None;
        while let Some((index, result)) = self.ring.next_result() {
            if result < 0 {
                self.in_kernel -= 1;
                self.entries[index as usize].ours = true;
                refused = Some(std::io::Error::from_raw_os_error(-result));
            } else {
                self.early.push((index, result));
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn push(&mut self, index: usize, op: u32, parts: Option<*const [libc::iovec; 2]>) {
        let entry = &mut self.entries[index];
        let command = RingCommand {
            commit_id: entry.commit_id,
            qid: entry.qid,
            ..RingCommand::default()
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<RingCommand>()].copy_from_slice(command.as_bytes());
        entry.ours = false;
        self.in_kernel += 1;
        // SAFETY: `parts` outlives the submission (`offer_all`). Head and payload live until the command has come back, or
        // are leaked (`drop`); neither is touched meanwhile (`ours`).
        unsafe {
            self.ring
                .push(self.channel.fd().as_fd(), op, &bytes, parts, index as u64);
        }
    }

    /// The next request; `Err` when the kernel takes no more part: the mount is gone.
    pub(super) fn next(&mut self) -> Result<Option<RingRequest>, ()> {
        while let Some((index, result)) = self.early.pop().or_else(|| self.ring.next_result()) {
            self.in_kernel -= 1;
            let index = index as usize;
            let entry = &mut self.entries[index];
            entry.ours = true;
            if result < 0 {
                match -result {
                    libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV => {}
                    errno => tracing::error!(errno, "FUSE: a ring entry was refused"),
                }
                if self.in_kernel == 0 {
                    return Err(());
                }
                continue;
            }
            // SAFETY: the entry is ours, so the kernel does not write; nobody else has a reference.
            let head = unsafe { self.heads[index].get().read() };
            let (mut header, _) = InHeader::read_from_prefix(&head.in_out).expect("128 bytes");
            entry.commit_id = head.entry.commit_id;
            header.unique = RING_BIT | index as u64;
            let payload_len = (head.entry.payload_bytes as usize).min(REQUEST_BYTES_MAX);
            let op_in_len =
                (header.len as usize).saturating_sub(size_of::<InHeader>() + payload_len);
            return Ok(Some(RingRequest {
                header,
                op_in: head.op_in,
                op_in_len: op_in_len.min(head.op_in.len()),
                payload_len,
            }));
        }
        Ok(None)
    }

    /// The first `len` bytes of the request's payload, to go on with.
    pub(super) fn take_payload(&mut self, tag: u64, len: usize) -> IoBuf {
        self.entry_of(tag).payload.split_to(len)
    }

    /// The first `len` bytes of the request's payload.
    pub(super) fn payload(&self, tag: u64, len: usize) -> &[u8] {
        &self.entries[(tag & !RING_BIT) as usize].payload.as_slice()[..len]
    }

    fn entry_of(&mut self, tag: u64) -> &mut Entry {
        &mut self.entries[(tag & !RING_BIT) as usize]
    }

    /// Hands all replies that have come to the kernel, and its entries with them.
    pub(super) fn send_replies(&mut self) {
        let mut taken = std::mem::take(&mut self.taken);
        std::mem::swap(&mut taken, &mut *self.replies.inbox.lock());
        for reply in taken.drain(..) {
            self.answer(reply);
        }
        self.taken = taken;
        self.ring.submit();
    }

    fn answer(&mut self, mut reply: Reply) {
        let index = (reply.tag & !RING_BIT) as usize;
        let entry = &mut self.entries[index];
        if !entry.ours {
            return tracing::error!(index, "FUSE: a second reply to one request");
        }
        let mut content = reply.small_len;
        if reply.sends_buf {
            content = reply.buf.len();
        }
        // The payload's front comes home; any other buffer is copied.
        let home = std::mem::replace(&mut entry.payload, IoBuf::empty());
        entry.payload = match reply.buf.unsplit(home) {
            Ok(()) => reply.buf,
            Err(mut home) => {
                if reply.sends_buf && home.len() == ENTRY_BYTES {
                    let bytes = reply.buf.as_slice();
                    home.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
                }
                home
            }
        };
        if entry.payload.len() != ENTRY_BYTES {
            // Somebody may still hold the rest, so the kernel must not write there.
            return tracing::error!(
                index,
                "FUSE: a request came back without its buffer: it stays unanswered"
            );
        }
        if !reply.sends_buf {
            entry.payload.as_mut_slice()[..content].copy_from_slice(&reply.small[..content]);
        }
        let out = OutHeader {
            len: (size_of::<OutHeader>() + content) as u32,
            error: reply.error,
            unique: entry.commit_id,
        };
        // SAFETY: the entry is ours, so nobody else reads or writes its head.
        let head = unsafe { &mut *self.heads[index].get() };
        head.in_out[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
        head.entry.payload_bytes = content as u32;
        self.push(index, abi::RING_COMMIT_AND_FETCH, None);
    }

    pub(super) fn raw_fd(&self) -> std::os::fd::RawFd {
        self.ring.raw_fd()
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        // What a kernel that is done with the mount has given back by now.
        while self.next().is_ok_and(|request| request.is_some()) {}
        // SAFETY: not used after this. Closing it ends the commands, some time later.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if self.in_kernel == 0 {
            // SAFETY: not used after this, and the kernel has no command that names them.
            unsafe {
                ManuallyDrop::drop(&mut self.heads);
                ManuallyDrop::drop(&mut self.entries);
            }
        }
        // Else they are leaked: of a mount that somebody still uses while the daemon ends.
    }
}

/// Whether the administrator has allowed it.
pub(super) fn is_allowed() -> bool {
    std::fs::read_to_string(PARAMETER).is_ok_and(|text| matches!(text.trim(), "Y" | "1"))
}

/// The kernel's number of queues: processors that it may ever have.
pub(super) fn kernel_queues() -> Option<usize> {
    let text = std::fs::read_to_string(POSSIBLE).ok()?;
    count_of_list(text.trim())
}

/// Members of a list like `0-3,8`.
fn count_of_list(text: &str) -> Option<usize> {
    text.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            (last + 1).checked_sub(first)
        })
        .sum()
}

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// A page more than the kernel is told of, which is never in a request's hands.
const ENTRY_BYTES: usize = REQUEST_BYTES_MAX + 4096;
/// As many as two devices can have in flight, so that one that stalls does not stall the others.
const ENTRIES_PER_QUEUE: usize = 256;
/// Queues that there is memory for: 1 GiB of addresses in all, used as far as entries have ever carried a payload.
const QUEUES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_counted() {
        assert_eq!(count_of_list("0-1"), Some(2));
        assert_eq!(count_of_list("0"), Some(1));
        assert_eq!(count_of_list("0-3,8,10-11"), Some(7));
        assert_eq!(count_of_list(""), None);
        assert_eq!(count_of_list("3-1"), None);
    }
}
