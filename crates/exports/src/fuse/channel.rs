//! One descriptor of the FUSE connection: where a queue thread reads requests and where their replies go.
//!
//! COMPAT: the kernel takes a reply only on the descriptor that the request was read from.

use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use thinmap_runtime::{IoBuf, Waker, WriteBatch};
use zerocopy::{Immutable, IntoBytes};

use super::abi::{NOTIFY_RESEND, OutHeader, WriteOut};
use super::uring::{self, Replies, Reply, is_ring_tag};

/// One descriptor.
pub(crate) struct Channel {
    fd: Arc<OwnedFd>,
    waker: Arc<Waker>,
    /// Requests handed to devices and not answered, times [`ONE_REQUEST`], plus the buffer bytes they hold.
    in_flight: AtomicU64,
    /// The queue waits for in-flight requests: wake it at each end.
    waiting: AtomicBool,
    closing: AtomicBool,
    /// Where answers to requests go that came over io_uring.
    ring: OnceLock<Arc<Replies>>,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            fd: Arc::new(fd),
            waker: Arc::new(Waker::new()?),
            in_flight: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            ring: OnceLock::new(),
        })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// Ends the queue when its last request has been answered.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// From now on each end of a request wakes the queue.
    pub(super) fn expect_end(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) == 0
    }

    fn bytes_in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst) % ONE_REQUEST
    }

    /// Whether the queue should leave requests in the kernel for now; if so, ends wake it.
    pub(super) fn is_full(&self) -> bool {
        if self.bytes_in_flight() < BYTES_IN_FLIGHT_MAX {
            return false;
        }
        self.waiting.store(true, Ordering::SeqCst);
        // Looked at again after the flag: an end in between has not seen it.
        self.bytes_in_flight() >= BYTES_IN_FLIGHT_MAX
    }

    pub(super) fn begin(&self, bytes: usize) {
        self.in_flight
            .fetch_add(ONE_REQUEST + bytes as u64, Ordering::SeqCst);
    }

    pub(super) fn end(&self, bytes: usize) {
        self.in_flight
            .fetch_sub(ONE_REQUEST + bytes as u64, Ordering::SeqCst);
        let waiting =
            self.waiting.load(Ordering::SeqCst) && self.waiting.swap(false, Ordering::SeqCst);
        if waiting || self.is_closing() {
            self.waker.wake();
        }
    }

    /// Has the kernel hand out anew what was read from any descriptor of the connection and not answered.
    pub(super) fn resend_all(&self) -> std::io::Result<()> {
        let notification = OutHeader {
            len: size_of::<OutHeader>() as u32,
            error: NOTIFY_RESEND,
            unique: 0,
        };
        rustix::io::write(&self.fd, notification.as_bytes())?;
        Ok(())
    }

    pub(super) fn answer_over(&self, ring: Arc<Replies>) {
        // Once per queue thread; a second one would be of a thread that failed.
        let _ = self.ring.set(ring);
    }

    /// A reply without content: `errno` 0 is success.
    pub(super) fn reply(&self, unique: u64, errno: i32) {
        self.send(unique, -errno, &[], IoBuf::empty());
    }

    /// An error for a request that has a buffer, which goes back where it came from.
    pub(super) fn reply_error(&self, unique: u64, errno: i32, buf: IoBuf) {
        if is_ring_tag(unique) {
            return self.send_over_ring(unique, -errno, &[], buf, false);
        }
        self.reply(unique, errno);
    }

    /// The reply to a write of all of `buf`, which goes back where it came from.
    pub(super) fn reply_written(&self, unique: u64, buf: IoBuf) {
        let size = u32::try_from(buf.len()).expect("a request is below 4 GiB");
        let content = WriteOut { size, padding: 0 };
        if is_ring_tag(unique) {
            return self.send_over_ring(unique, 0, content.as_bytes(), buf, false);
        }
        self.reply_struct(unique, &content);
    }

    /// A reply with a buffer for its content.
    pub(super) fn reply_data(&self, unique: u64, content: IoBuf) {
        self.send(unique, 0, &[], content);
    }

    pub(super) fn reply_bytes(&self, unique: u64, content: &[u8]) {
        if content.len() <= SMALL_BYTES_MAX {
            return self.send(unique, 0, content, IoBuf::empty());
        }
        if is_ring_tag(unique) {
            let mut buf = IoBuf::alloc(content.len());
            buf.as_mut_slice().copy_from_slice(content);
            return self.send(unique, 0, &[], buf);
        }
        self.send_now(&out_header(unique, 0, content.len()), unique, content);
    }

    pub(super) fn reply_struct<T: IntoBytes + Immutable>(&self, unique: u64, content: &T) {
        self.reply_bytes(unique, content.as_bytes());
    }

    /// Sends `small` and then `content`: with others at the end of the turn on a thread that collects replies, at
    /// once on any other.
    fn send(&self, unique: u64, error: i32, small: &[u8], content: IoBuf) {
        if is_ring_tag(unique) {
            let sends_buf = !content.is_empty();
            return self.send_over_ring(unique, error, small, content, sends_buf);
        }
        let mut head = [0; WriteBatch::HEAD_BYTES_MAX];
        let head_len = HEADER_BYTES + small.len();
        let header = out_header(unique, error, small.len() + content.len());
        head[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        head[HEADER_BYTES..head_len].copy_from_slice(small);
        let left = COLLECTED.with_borrow_mut(|collected| match collected {
            Some((fd, batch)) if *fd == self.raw_fd() => {
                if batch.is_full() {
                    batch.send(report);
                }
                batch.push(&head[..head_len], content, unique);
                None
            }
            _ => Some(content),
        });
        if let Some(content) = left {
            self.write_now(&[&head[..head_len], content.as_slice()], unique);
        }
    }

    fn send_over_ring(&self, tag: u64, error: i32, content: &[u8], buf: IoBuf, sends_buf: bool) {
        let ring = self.ring.get().expect("the request came over it");
        let mut small = [0; uring::SMALL_BYTES_MAX];
        small[..content.len()].copy_from_slice(content);
        ring.push(Reply {
            tag,
            error,
            small,
            small_len: content.len(),
            buf,
            sends_buf,
        });
    }

    fn send_now(&self, header: &OutHeader, unique: u64, content: &[u8]) {
        self.write_now(&[header.as_bytes(), content], unique);
    }

    fn write_now(&self, parts: &[&[u8]; 2], unique: u64) {
        let parts = parts.map(IoSlice::new);
        if let Err(errno) = rustix::io::writev(&self.fd, &parts) {
            report(unique, errno.raw_os_error());
        }
    }
}

/// From now on the calling thread collects its replies on `channel`; it must call [`send_replies`] before it sleeps.
pub(super) fn collect_replies(channel: &Channel) {
    match WriteBatch::new(channel.fd.clone(), REPLIES_MAX) {
        Ok(batch) => COLLECTED.set(Some((channel.raw_fd(), batch))),
        Err(error) => tracing::warn!(%error, "FUSE: replies are sent one by one"),
    }
}

/// Sends what the calling thread has collected.
pub(super) fn send_replies() {
    COLLECTED.with_borrow_mut(|collected| {
        if let Some((_, batch)) = collected
            && !batch.is_empty()
        {
            batch.send(report);
        }
    });
}

fn out_header(unique: u64, error: i32, content: usize) -> OutHeader {
    let len = u32::try_from(HEADER_BYTES + content).expect("replies are below 4 GiB");
    OutHeader { len, error, unique }
}

fn report(unique: u64, errno: i32) {
    match Errno::from_raw_os_error(errno) {
        // NOENT: nobody waits for this request any more. NODEV, PERM: the mount is gone.
        Errno::NOENT | Errno::NODEV | Errno::PERM => {}
        errno => tracing::error!(unique, %errno, "FUSE: a reply was refused"),
    }
}

thread_local! {
    static COLLECTED: RefCell<Option<(RawFd, WriteBatch)>> = const { RefCell::new(None) };
}

const HEADER_BYTES: usize = size_of::<OutHeader>();
const SMALL_BYTES_MAX: usize = WriteBatch::HEAD_BYTES_MAX - HEADER_BYTES;
/// Replies collected before they are sent.
const REPLIES_MAX: u32 = 32;
/// A queue takes no more requests while those it has hold this much; far above what one device can have in
/// flight, so that a device that stalls (a full pool that waits for space) does not stall the others.
const BYTES_IN_FLIGHT_MAX: u64 = 256 << 20;
/// Above all bytes that can be in flight: 1 TiB.
const ONE_REQUEST: u64 = 1 << 40;
