//! The log of type `disk`: which regions are clean, in the kernel's format, on a device of its own.
//!
//! INVARIANT: a region whose bit is set on the medium reads the same on all legs after a power cut. So the legs are flushed before
//! a bit is set there, and a bit is cleared there, and flushed, before a leg is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use thinmap_block::{BlockDevice, flush, read, write};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::args::Sync;

/// See the module. All of it is kept in memory.
pub(super) struct DiskLog {
    device: Arc<dyn BlockDevice>,
    /// Header and bits as they are to be on the device, whole logical blocks.
    image: Vec<u8>,
    regions: u64,
    /// Bytes of a block, in which the image is written.
    block_bytes: usize,
    /// Blocks that differ from the device's.
    touched: BTreeSet<usize>,
    /// Some bit was cleared since the last flush, or set since the last write.
    dirtied: bool,
    cleaned: bool,
    /// The legs could not be flushed: no bit is set any more.
    legs_failed: bool,
}

/// What went wrong with the log's device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogFailure {
    /// A read or a write.
    Transfer,
    /// A flush.
    Flush,
}

impl DiskLog {
    /// A log that is not read yet; what is wrong with the device.
    pub fn new(device: Arc<dyn BlockDevice>, regions: u64) -> Result<Self, String> {
        let logical = (device.limits().logical_block_size as usize).max(512);
        let bits_bytes = regions.div_ceil(32).saturating_mul(4);
        let bytes = usize::try_from(bits_bytes)
            .ok()
            .and_then(|bits| bits.checked_add(BITS_AT)?.checked_next_multiple_of(logical))
            .ok_or_else(|| "too many regions".to_owned())?;
        if bytes as u64 > device.size().bytes() {
            return Err(format!("log device too small: need {bytes} bytes"));
        }
        let mut image = Vec::new();
        if image.try_reserve_exact(bytes).is_err() {
            return Err("couldn't allocate disk log buffer".to_owned());
        }
        image.resize(bytes, 0);
        Ok(Self {
            device,
            image,
            regions,
            block_bytes: logical.max(BLOCK_BYTES),
            touched: BTreeSet::new(),
            dirtied: false,
            cleaned: false,
            legs_failed: false,
        })
    }

    /// Reads the log, makes it one of the present length, and writes it. After a failure to read every region is dirty.
    pub fn open(&mut self, sync: Sync) -> Result<(), LogFailure> {
        let readable = self.load(sync);
        let known = if readable { self.header().regions } else { 0 };
        for region in known..self.regions {
            self.put(region, sync == Sync::Nosync);
        }
        // Bits behind the last region, of a mirror that was longer.
        for region in self.regions..self.regions.next_multiple_of(32) {
            self.put(region, false);
        }
        let header = HeaderDisk {
            regions: self.regions,
            ..self.header()
        };
        header.pack(&mut self.image);
        self.touched = (0..self.image.len().div_ceil(self.block_bytes)).collect();
        (self.dirtied, self.cleaned) = (true, false);
        self.write_touched()?;
        if readable {
            Ok(())
        } else {
            Err(LogFailure::Transfer)
        }
    }

    /// Whether the device holds a log of ours, or room for a new one.
    fn load(&mut self, sync: Sync) -> bool {
        let buf = IoBuf::alloc(self.image.len());
        let (buf, status) = read(&*self.device, Sector::ZERO, buf);
        let fresh = HeaderDisk {
            version: VERSION,
            regions: 0,
        };
        if !status.is_ok() {
            tracing::warn!("mirror: the log could not be read: all regions are out of sync");
            fresh.pack(&mut self.image);
            return false;
        }
        self.image.copy_from_slice(buf.as_slice());
        if sync != Sync::Default || !HeaderDisk::is_in(&self.image) {
            fresh.pack(&mut self.image);
        }
        let mut header = self.header();
        // Version 1 is the same where numbers are little-endian.
        if header.version == 1 {
            header.version = VERSION;
            header.pack(&mut self.image);
        }
        if header.version != VERSION {
            tracing::warn!(
                version = header.version,
                "mirror: incompatible disk log version"
            );
        }
        header.version == VERSION
    }

    fn header(&self) -> HeaderDisk {
        HeaderDisk::unpack(&self.image)
    }

    pub fn is_clean(&self, region: u64) -> bool {
        let (byte, mask) = place(region);
        self.image.get(byte).is_some_and(|bits| bits & mask != 0)
    }

    /// Notes that a region is about to be written. In force when [`DiskLog::write`] has returned.
    pub fn mark_dirty(&mut self, region: u64) {
        if self.is_clean(region) {
            self.put(region, false);
            self.dirtied = true;
        }
    }

    /// Notes that legs agree in a region, and no write to it is under way.
    pub fn mark_clean(&mut self, region: u64) {
        if !self.legs_failed && !self.is_clean(region) {
            self.put(region, true);
            self.cleaned = true;
        }
    }

    fn put(&mut self, region: u64, clean: bool) {
        let (byte, mask) = place(region);
        if let Some(bits) = self.image.get_mut(byte) {
            *bits = if clean { *bits | mask } else { *bits & !mask };
            self.touched.insert(byte / self.block_bytes);
        }
    }

    /// Puts what was noted on the device. `flush_legs` flushes all of them; whether each did.
    pub fn write(&mut self, flush_legs: impl FnOnce() -> bool) -> Result<(), LogFailure> {
        if !self.dirtied && !self.cleaned {
            return Ok(());
        }
        // CRASH: what a clean region holds is on all legs before its bit says so.
        if self.cleaned && !flush_legs() {
            tracing::warn!(
                "mirror: the legs could not be flushed: all regions are dirty from now on"
            );
            self.legs_failed = true;
            for region in 0..self.regions {
                self.mark_dirty(region);
            }
        }
        self.write_touched()
    }

    fn write_touched(&mut self) -> Result<(), LogFailure> {
        while let Some(&first) = self.touched.first() {
            let mut end = first + 1;
            while self.touched.contains(&end) {
                end += 1;
            }
            self.write_blocks(first, end)?;
            for block in first..end {
                self.touched.remove(&block);
            }
        }
        self.cleaned = false;
        if self.dirtied {
            // CRASH: before the writes that made them dirty.
            if !flush(&*self.device).is_ok() {
                return Err(LogFailure::Flush);
            }
            self.dirtied = false;
        }
        Ok(())
    }

    fn write_blocks(&self, first: usize, end: usize) -> Result<(), LogFailure> {
        let (begin, end) = (first * self.block_bytes, end * self.block_bytes);
        let bytes = &self.image[begin..end.min(self.image.len())];
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        let status = write(&*self.device, Sector::from_bytes(begin as u64), buf).1;
        if status == BlkStatus::Ok {
            Ok(())
        } else {
            Err(LogFailure::Transfer)
        }
    }
}

/// The first 16 bytes of the device, little-endian.
struct HeaderDisk {
    version: u32,
    /// How many bits mean something.
    regions: u64,
}

impl HeaderDisk {
    fn is_in(image: &[u8]) -> bool {
        image.starts_with(&MAGIC)
    }

    fn unpack(image: &[u8]) -> Self {
        let field = |at: usize, bytes: usize| {
            let digits = image[at..at + bytes].iter().rev();
            digits.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        Self {
            version: u32::try_from(field(4, 4)).unwrap_or(0),
            regions: field(8, 8),
        }
    }

    fn pack(&self, image: &mut [u8]) {
        image[..4].copy_from_slice(&MAGIC);
        image[4..8].copy_from_slice(&self.version.to_le_bytes());
        image[8..16].copy_from_slice(&self.regions.to_le_bytes());
    }
}

/// Where a region's bit is in the image.
fn place(region: u64) -> (usize, u8) {
    let byte = usize::try_from(region / 8).unwrap_or(usize::MAX - BITS_AT);
    (BITS_AT + byte, 1 << (region % 8))
}

/// 0x4d695272, little-endian.
const MAGIC: [u8; 4] = *b"rRiM";
const VERSION: u32 = 2;
/// The bits begin in the third sector.
const BITS_AT: usize = 1024;
/// Smallest write, unless the device's blocks are larger or its log is smaller.
const BLOCK_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use thinmap_block::backing::MemoryDevice;

    use super::*;

    fn bytes_of(device: &MemoryDevice) -> Vec<u8> {
        let (buf, status) = read(device, Sector(0), IoBuf::alloc(4096));
        assert!(status.is_ok());
        buf.as_slice().to_vec()
    }

    fn log_on(device: &Arc<MemoryDevice>, regions: u64, sync: Sync) -> DiskLog {
        let mut log = DiskLog::new(device.clone(), regions).expect("room");
        assert_eq!(log.open(sync), Ok(()));
        log
    }

    #[test]
    fn a_new_log_is_dirty_unless_it_is_said_to_be_in_sync() {
        let device = Arc::new(MemoryDevice::new(Sector(8)));
        let mut log = log_on(&device, 40, Sync::Default);
        assert!((0..40).all(|region| !log.is_clean(region)));
        log.mark_clean(33);
        assert_eq!(log.write(|| true), Ok(()));
        let bytes = bytes_of(&device);
        assert_eq!(bytes[..16], *b"rRiM\x02\0\0\0\x28\0\0\0\0\0\0\0");
        assert_eq!(bytes[1024..1032], [0, 0, 0, 0, 2, 0, 0, 0]);
        let log = log_on(&device, 40, Sync::Nosync);
        assert!((0..40).all(|region| log.is_clean(region)));
        assert_eq!(
            bytes_of(&device)[1024..1032],
            [255, 255, 255, 255, 255, 0, 0, 0]
        );
        let log = log_on(&device, 40, Sync::Force);
        assert!((0..40).all(|region| !log.is_clean(region)));
    }

    #[test]
    fn a_log_grows_and_shrinks_with_its_mirror() {
        let device = Arc::new(MemoryDevice::new(Sector(8)));
        log_on(&device, 32, Sync::Nosync);
        let log = log_on(&device, 40, Sync::Default);
        assert!(log.is_clean(31) && !log.is_clean(32));
        log_on(&device, 20, Sync::Default);
        assert_eq!(bytes_of(&device)[1024..1028], [255, 255, 15, 0]);
        let log = log_on(&device, 32, Sync::Default);
        assert!(log.is_clean(19) && !log.is_clean(20));
    }

    #[test]
    fn what_is_no_log_of_this_version_makes_everything_dirty() {
        let device = Arc::new(MemoryDevice::new(Sector(8)));
        let mut junk = IoBuf::alloc(4096);
        junk.as_mut_slice().fill(255);
        assert!(write(&*device, Sector(0), junk).1.is_ok());
        let log = log_on(&device, 40, Sync::Default);
        assert!((0..40).all(|region| !log.is_clean(region)));
        for (version, known) in [(1, true), (3, false)] {
            let mut log = log_on(&device, 40, Sync::Nosync);
            log.image[4] = version;
            log.touched.insert(0);
            assert_eq!(log.write_touched(), Ok(()));
            let mut log = DiskLog::new(device.clone(), 40).expect("room");
            assert_eq!(log.open(Sync::Default).is_ok(), known, "version {version}");
            assert!((0..40).all(|region| log.is_clean(region) == known));
        }
    }

    #[test]
    fn legs_that_cannot_be_flushed_leave_nothing_clean() {
        let device = Arc::new(MemoryDevice::new(Sector(8)));
        let mut log = log_on(&device, 40, Sync::Nosync);
        log.mark_dirty(3);
        assert_eq!(log.write(|| unreachable!("nothing was cleaned")), Ok(()));
        log.mark_clean(3);
        assert_eq!(log.write(|| false), Ok(()));
        assert!(bytes_of(&device)[1024..1032].iter().all(|bits| *bits == 0));
        log.mark_clean(3);
        assert!(!log.is_clean(3));
    }

    #[test]
    fn a_device_too_small_is_refused() {
        let device = Arc::new(MemoryDevice::new(Sector(2)));
        assert!(DiskLog::new(device, 1).is_err());
        let device = Arc::new(MemoryDevice::new(Sector(3)));
        assert!(DiskLog::new(device.clone(), 4096).is_ok());
        assert!(DiskLog::new(device, 4097).is_err());
    }
}
