//! A device in memory: the simplest complete [`BlockDevice`], for tests and as a template.

use parking_lot::RwLock;
use thinmap_units::{BlkStatus, Sector};

use crate::device::{BlockDevice, out_of_range};
use crate::io::{Io, Op};
use crate::limits::{QueueLimits, SECTORS_UNLIMITED};

/// Bytes in memory behind the block interface. Completes inside `submit`.
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryDevice {
    /// A zeroed device of `size`.
    pub fn new(size: Sector) -> Self {
        let len = usize::try_from(size.bytes()).expect("a memory device fits memory");
        Self {
            bytes: RwLock::new(vec![0; len]),
        }
    }

    /// Makes the device larger; new bytes are zero.
    pub fn grow(&self, size: Sector) {
        let len = usize::try_from(size.bytes()).expect("a memory device fits memory");
        let mut bytes = self.bytes.write();
        assert!(len >= bytes.len(), "grow only");
        bytes.resize(len, 0);
    }
}

impl BlockDevice for MemoryDevice {
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            discard_granularity: 512,
            max_discard: SECTORS_UNLIMITED,
            max_write_zeroes: SECTORS_UNLIMITED,
            ..QueueLimits::STACKING
        }
    }

    fn size(&self) -> Sector {
        Sector::from_bytes(self.bytes.read().len() as u64)
    }

    fn submit(&self, mut io: Io) {
        if out_of_range(&io, self.size()) {
            io.complete(BlkStatus::IoErr);
            return;
        }
        let start = usize::try_from(io.sector.bytes()).expect("in range, so in memory");
        let end = usize::try_from(io.end().bytes()).expect("in range, so in memory");
        match io.op {
            Op::Read => io
                .buf
                .as_mut_slice()
                .copy_from_slice(&self.bytes.read()[start..end]),
            Op::Write => self.bytes.write()[start..end].copy_from_slice(io.buf.as_slice()),
            Op::Discard | Op::WriteZeroes => self.bytes.write()[start..end].fill(0),
            Op::Flush => {}
        }
        io.complete(BlkStatus::Ok);
    }
}

#[cfg(test)]
mod tests {
    use thinmap_runtime::IoBuf;

    use super::*;
    use crate::sync;

    #[test]
    fn what_is_written_is_read() {
        let dev = MemoryDevice::new(Sector(16));
        let mut buf = IoBuf::alloc(1024);
        buf.as_mut_slice().fill(9);
        assert_eq!(sync::write(&dev, Sector(3), buf).1, BlkStatus::Ok);
        let (buf, status) = sync::read(&dev, Sector(2), IoBuf::alloc(1024));
        assert_eq!(status, BlkStatus::Ok);
        assert_eq!((buf.as_slice()[511], buf.as_slice()[512]), (0, 9));
    }

    #[test]
    fn beyond_the_end_is_an_error() {
        let dev = MemoryDevice::new(Sector(4));
        for start in [4, 1 << 60, u64::MAX] {
            assert_eq!(
                sync::read(&dev, Sector(start), IoBuf::alloc(512)).1,
                BlkStatus::IoErr
            );
        }
    }
}
