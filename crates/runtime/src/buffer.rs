//! Owned, aligned I/O buffers that can be cut into disjoint parts and put together again.
//!
//! INVARIANT: no two live [`IoBuf`]s cover the same byte. Cutting moves a range from one handle to
//! another, so each handle may hand out `&mut [u8]` safely, also on different threads.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

/// Alignment of every buffer's start in bytes: enough for O_DIRECT on any logical block size.
pub const BUFFER_ALIGN: usize = 4096;

/// A uniquely owned range of an aligned allocation.
pub struct IoBuf {
    ptr: NonNull<u8>,
    len: usize,
    owner: Option<Arc<Allocation>>,
}

impl IoBuf {
    /// A zeroed buffer of `len` bytes, aligned to [`BUFFER_ALIGN`].
    pub fn alloc(len: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        let allocation = Arc::new(Allocation::new(len));
        Self {
            ptr: allocation.ptr,
            len,
            owner: Some(allocation),
        }
    }

    /// A buffer of no bytes: what a flush or discard carries. Does not allocate.
    pub const fn empty() -> Self {
        Self {
            ptr: NonNull::dangling(),
            len: 0,
            owner: None,
        }
    }

    /// Bytes in this buffer.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr..ptr+len` lies in the live allocation that `owner` holds (or len is 0 and
        // ptr dangles, well aligned), is initialised (zeroed at allocation), and by the module's
        // invariant no other handle covers it.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The address of the first byte, for system calls.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Cuts off and returns the first `at` bytes; `self` keeps the rest.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    pub fn split_to(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split_to({at}) of {} bytes", self.len);
        let front = Self {
            ptr: self.ptr,
            len: at,
            owner: self.owner.clone(),
        };
        // SAFETY: `at <= len`, so the result stays inside the allocation or one past its end.
        self.ptr = unsafe { self.ptr.add(at) };
        self.len -= at;
        front
    }

    /// Joins `next` back on when it follows `self` in the same allocation; gives it back otherwise.
    pub fn unsplit(&mut self, next: Self) -> Result<(), Self> {
        if next.is_empty() {
            return Ok(());
        }
        if self.is_empty() {
            *self = next;
            return Ok(());
        }
        let same_owner = match (&self.owner, &next.owner) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        // SAFETY: one past the end of our own range is a valid address to compute.
        let end = unsafe { self.ptr.add(self.len) };
        if !same_owner || end != next.ptr {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }
}

// SAFETY: an IoBuf is the only handle to its bytes (module invariant), so it may move to another
// thread like a Box<[u8]>; the shared Allocation is only used to free memory, by its last Arc.
unsafe impl Send for IoBuf {}
// SAFETY: `&IoBuf` only gives `&[u8]`.
unsafe impl Sync for IoBuf {}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

struct Allocation {
    ptr: NonNull<u8>,
    layout: Layout,
    /// Where it goes when its last part is dropped; set while a pool's buffer is out.
    pool: Option<Arc<PoolShared>>,
}

impl Allocation {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, BUFFER_ALIGN).expect("buffer length fits isize");
        // SAFETY: the layout has a non-zero size: all callers refuse zero lengths.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self {
            ptr,
            layout,
            pool: None,
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Two parts were dropped at once on two threads, and neither saw itself as the last.
        if let Some(pool) = self.pool.take() {
            let again = Self {
                pool: None,
                ..*self
            };
            pool.take_back(Arc::new(again));
            return;
        }
        // SAFETY: allocated in `new` with this very layout, and the last handle is gone.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

// SAFETY: an Allocation is only an address and its layout; freeing may happen on any thread.
unsafe impl Send for Allocation {}
// SAFETY: no method of Allocation gives access to the bytes.
unsafe impl Sync for Allocation {}

impl Drop for IoBuf {
    fn drop(&mut self) {
        let Some(mut owner) = self.owner.take() else {
            return;
        };
        // The last part brings the buffer back whole, without a call to the allocator.
        if let Some(allocation) = Arc::get_mut(&mut owner)
            && let Some(pool) = allocation.pool.take()
        {
            pool.take_back(owner);
        }
    }
}

/// A set of equal buffers made ahead, so that an I/O path need not ask the system for memory.
///
/// A buffer goes back to its pool when its last part is dropped. The one that came back last goes out first: its
/// bytes are most likely still in the processor's cache.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    buffer_bytes: usize,
    keep: usize,
    free: Mutex<Vec<Arc<Allocation>>>,
}

impl PoolShared {
    /// `allocation` has no other handle and names no pool.
    fn take_back(&self, allocation: Arc<Allocation>) {
        let mut free = self.free.lock();
        if free.len() < self.keep {
            free.push(allocation);
        }
    }
}

impl BufferPool {
    /// A pool of `count` buffers of `buffer_bytes` each, all allocated now.
    pub fn new(count: usize, buffer_bytes: usize) -> Self {
        assert!(buffer_bytes > 0, "a pool of empty buffers");
        let made = (0..count).map(|_| Arc::new(Allocation::new(buffer_bytes)));
        let shared = Arc::new(PoolShared {
            buffer_bytes,
            keep: count,
            free: Mutex::new(made.collect()),
        });
        Self { shared }
    }

    /// A buffer made ahead, or `None` when all are in use. Its content is whatever it held last.
    pub fn take(&self) -> Option<IoBuf> {
        let allocation = self.shared.free.lock().pop()?;
        Some(self.hand_out(allocation))
    }

    /// A buffer made ahead, or a fresh one of the same size when all are in use.
    pub fn take_or_alloc(&self) -> IoBuf {
        self.take()
            .unwrap_or_else(|| self.hand_out(Arc::new(Allocation::new(self.shared.buffer_bytes))))
    }

    /// Bytes in each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    fn hand_out(&self, mut allocation: Arc<Allocation>) -> IoBuf {
        let ptr = allocation.ptr;
        Arc::get_mut(&mut allocation)
            .expect("a free buffer has one handle")
            .pool = Some(self.shared.clone());
        IoBuf {
            ptr,
            len: self.shared.buffer_bytes,
            owner: Some(allocation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_parts_are_disjoint_and_join_again() {
        let mut whole = IoBuf::alloc(8192);
        let mut front = whole.split_to(4096);
        front.as_mut_slice().fill(1);
        whole.as_mut_slice().fill(2);
        assert!(front.as_slice().iter().all(|b| *b == 1));
        front.unsplit(whole).expect("neighbours join");
        assert_eq!(front.len(), 8192);
        assert_eq!((front.as_slice()[4095], front.as_slice()[4096]), (1, 2));
    }

    #[test]
    fn strangers_do_not_join() {
        let mut a = IoBuf::alloc(512);
        let b = IoBuf::alloc(512);
        assert!(a.unsplit(b).is_err());
    }

    #[test]
    fn alignment_holds() {
        for len in [1, 512, 4096, 1 << 20] {
            assert_eq!(IoBuf::alloc(len).as_ptr() as usize % BUFFER_ALIGN, 0);
        }
    }

    #[test]
    fn pool_hands_out_each_buffer_once_and_takes_it_back() {
        let pool = BufferPool::new(2, 4096);
        let a = pool.take().expect("first");
        let mut b = pool.take().expect("second");
        assert!(pool.take().is_none());
        let tail = b.split_to(100);
        drop(b);
        assert!(pool.take().is_none(), "a part is still out");
        drop(tail);
        drop(a);
        assert!(pool.take().is_some());
        let extra = pool.take_or_alloc();
        assert_eq!(extra.len(), 4096);
    }

    #[test]
    fn parts_may_cross_threads() {
        let mut whole = IoBuf::alloc(4096);
        let mut front = whole.split_to(2048);
        let front = std::thread::spawn(move || {
            front.as_mut_slice().fill(7);
            front
        })
        .join()
        .expect("thread");
        assert_eq!(front.as_slice()[0], 7);
    }
}
