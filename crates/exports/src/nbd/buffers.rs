//! Buffers for a queue's requests, by size class, so that the usual sizes cost no allocation and no zeroing.
//!
//! A buffer returns to its class when its last part is dropped, on whichever thread.

use thinmap_runtime::{BufferPool, IoBuf};

/// The size classes of one queue.
pub struct Buffers {
    classes: Vec<BufferPool>,
}

impl Buffers {
    /// Allocates them all now.
    pub fn new() -> Self {
        let classes = CLASSES
            .iter()
            .map(|&(count, bytes)| BufferPool::new(count, bytes))
            .collect();
        Self { classes }
    }

    /// A buffer of exactly `len` bytes; its content is what a former request left there.
    pub fn take(&self, len: usize) -> IoBuf {
        let class = self
            .classes
            .iter()
            .find(|class| class.buffer_bytes() >= len);
        match class.and_then(BufferPool::take) {
            Some(mut buf) if buf.len() > len => buf.split_to(len),
            Some(buf) => buf,
            None => IoBuf::alloc(len),
        }
    }
}

/// Count and bytes of each, smallest first: 23 MiB a queue, touched only as far as it is used.
const CLASSES: [(usize, usize); 4] = [
    (256, 4 << 10),
    (32, 64 << 10),
    (16, 256 << 10),
    (16, 1 << 20),
];
