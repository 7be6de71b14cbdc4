//! One descriptor of the FUSE connection: where a queue thread reads requests and where their replies go.
//!
//! COMPAT: the kernel takes a reply only on the descriptor that the request was read from.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;
use thinmap_runtime::Waker;
use zerocopy::{Immutable, IntoBytes};

use super::abi::OutHeader;

/// One descriptor.
pub(crate) struct Channel {
    fd: OwnedFd,
    waker: Arc<Waker>,
    /// Requests handed to devices and not answered.
    in_flight: AtomicUsize,
    /// Buffer bytes they hold.
    bytes_in_flight: AtomicUsize,
    /// The queue waits for in-flight requests: wake it at each end.
    waiting: AtomicBool,
    closing: AtomicBool,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            fd,
            waker: Arc::new(Waker::new()?),
            in_flight: AtomicUsize::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            closing: AtomicBool::new(false),
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

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Whether the queue should leave requests in the kernel for now; if so, ends wake it.
    pub(super) fn is_full(&self) -> bool {
        if self.bytes_in_flight.load(Ordering::SeqCst) < BYTES_IN_FLIGHT_MAX {
            return false;
        }
        self.waiting.store(true, Ordering::SeqCst);
        // Looked at again after the flag: an end in between has not seen it.
        self.bytes_in_flight.load(Ordering::SeqCst) >= BYTES_IN_FLIGHT_MAX
    }

    pub(super) fn begin(&self, bytes: usize) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        self.bytes_in_flight.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(super) fn end(&self, bytes: usize) {
        self.bytes_in_flight.fetch_sub(bytes, Ordering::SeqCst);
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.is_closing() || self.waiting.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// A reply without content: `errno` 0 is success.
    pub(super) fn reply(&self, unique: u64, errno: i32) {
        self.send(unique, -errno, &[]);
    }

    pub(super) fn reply_bytes(&self, unique: u64, content: &[u8]) {
        self.send(unique, 0, content);
    }

    pub(super) fn reply_struct<T: IntoBytes + Immutable>(&self, unique: u64, content: &T) {
        self.send(unique, 0, content.as_bytes());
    }

    fn send(&self, unique: u64, error: i32, content: &[u8]) {
        let len = size_of::<OutHeader>() + content.len();
        let len = u32::try_from(len).expect("replies are below 4 GiB");
        let header = OutHeader { len, error, unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(content)];
        match rustix::io::writev(&self.fd, &parts[..if content.is_empty() { 1 } else { 2 }]) {
            // NOENT: nobody waits for this request any more. NODEV, PERM: the mount is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::PERM) => {}
            Err(errno) => tracing::error!(unique, %errno, "FUSE: a reply was refused"),
        }
    }
}

/// A queue takes no more requests while those it has hold this much; far above what one device can have in
/// flight, so that a device that stalls (a full pool that waits for space) does not stall the others.
const BYTES_IN_FLIGHT_MAX: usize = 256 << 20;
