//! md's write-intent bitmap on a metadata device: 4 KiB behind the superblock, a head of 256 bytes and a bit for each region, the lowest
//! bit of a byte first.

use thinmap_units::Sector;

/// Where it begins.
pub(super) const BITMAP_SECTOR: Sector = Sector(8);
/// Bytes before the first bit.
const HEAD_BYTES: usize = 256;
/// The unit in which it is written.
pub(super) const PAGE_BYTES: usize = 4096;

const MAGIC: u32 = 0x6d74_6962;
const VERSION: u32 = 4;
/// The bits mean nothing: all regions are dirty.
const STATE_STALE: u32 = 1 << 1;

/// The head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BitmapHead {
    /// As of the superblocks; fewer, and the bitmap is out of date.
    pub events: u64,
    /// As of the last region that became clean while no member was missing.
    pub events_cleared: u64,
    pub sync_len: Sector,
    pub state: u32,
    pub region: Sector,
    /// Seconds.
    pub daemon_sleep: u32,
    /// KiB.
    pub write_behind: u32,
}

impl BitmapHead {
    /// Reads a head; what is wrong with it.
    pub fn unpack(bytes: &[u8]) -> Result<Self, &'static str> {
        if u32_at(bytes, 0) != MAGIC {
            return Err("bad magic");
        }
        if !(3..=5).contains(&u32_at(bytes, 4)) {
            return Err("unrecognized superblock version");
        }
        let region_bytes = u32_at(bytes, 52);
        if region_bytes < 512 {
            return Err("bitmap chunksize too small");
        }
        if !region_bytes.is_power_of_two() {
            return Err("bitmap chunksize not a power of 2");
        }
        Ok(Self {
            events: u64_at(bytes, 24),
            events_cleared: u64_at(bytes, 32),
            sync_len: Sector(u64_at(bytes, 40)),
            state: u32_at(bytes, 48),
            region: Sector::from_bytes(u64::from(region_bytes)),
            daemon_sleep: u32_at(bytes, 56),
            write_behind: u32_at(bytes, 60),
        })
    }

    /// Whether the bits mean nothing.
    pub fn is_stale(&self) -> bool {
        self.state & STATE_STALE != 0
    }

    fn pack(&self, bytes: &mut [u8]) {
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(4, &VERSION.to_le_bytes());
        put(24, &self.events.to_le_bytes());
        put(32, &self.events_cleared.to_le_bytes());
        put(40, &self.sync_len.raw().to_le_bytes());
        put(48, &self.state.to_le_bytes());
        // Regions have at most 2^22 sectors.
        put(52, &(self.region.bytes() as u32).to_le_bytes());
        put(56, &self.daemon_sleep.to_le_bytes());
        put(60, &self.write_behind.to_le_bytes());
    }
}

/// A bitmap's bytes, and which pages of it the devices do not have yet.
pub(super) struct BitmapImage {
    bytes: Vec<u8>,
    changed: Vec<bool>,
}

impl BitmapImage {
    /// How many bytes a bitmap of so many regions has, in whole pages.
    pub fn bytes_for(regions: usize) -> usize {
        (HEAD_BYTES + regions.div_ceil(8)).next_multiple_of(PAGE_BYTES)
    }

    /// All clean, nothing of it written.
    pub fn new(regions: usize) -> Self {
        let bytes = vec![0; Self::bytes_for(regions)];
        let pages = bytes.len() / PAGE_BYTES;
        Self {
            bytes,
            changed: vec![true; pages],
        }
    }

    /// What was read.
    pub fn of(bytes: Vec<u8>) -> Self {
        let pages = bytes.len() / PAGE_BYTES;
        Self {
            bytes,
            changed: vec![false; pages],
        }
    }

    /// Whether a region is dirty.
    pub fn is_set(&self, region: usize) -> bool {
        let byte = self.bytes.get(HEAD_BYTES + region / 8);
        byte.is_some_and(|byte| byte >> (region % 8) & 1 != 0)
    }

    /// Makes a region dirty or clean.
    pub fn set(&mut self, region: usize, dirty: bool) {
        let at = HEAD_BYTES + region / 8;
        let bit = 1_u8 << (region % 8);
        let was = self.bytes[at];
        self.bytes[at] = if dirty { was | bit } else { was & !bit };
        if self.bytes[at] != was {
            self.changed[at / PAGE_BYTES] = true;
        }
    }

    /// Writes the head.
    pub fn set_head(&mut self, head: &BitmapHead) {
        head.pack(&mut self.bytes);
        self.changed[0] = true;
    }

    /// Pages that are to be written, as (number, bytes); they count as written afterwards.
    pub fn take_changed(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut pages = Vec::new();
        for (page, changed) in self.changed.iter_mut().enumerate() {
            if std::mem::take(changed) {
                let at = page * PAGE_BYTES;
                pages.push((page, self.bytes[at..at + PAGE_BYTES].to_vec()));
            }
        }
        pages
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_bits_lie_where_the_kernel_looks() {
        let head = BitmapHead {
            events: 0x12,
            events_cleared: 1,
            sync_len: Sector(0x4000),
            state: 0,
            region: Sector(1024),
            daemon_sleep: 5,
            write_behind: 0,
        };
        let mut image = BitmapImage::new(40_000);
        image.set_head(&head);
        image.set(4, true);
        image.set(39_999, true);
        let pages = image.take_changed();
        assert_eq!(pages.len(), 2);
        assert_eq!(&pages[0].1[..4], b"bitm");
        assert_eq!(pages[0].1[256], 0x10);
        assert_eq!(&pages[0].1[52..56], [0, 0, 8, 0]);
        assert_eq!(BitmapHead::unpack(&pages[0].1), Ok(head));
        assert!(image.take_changed().is_empty());
        image.set(4, true);
        assert!(image.take_changed().is_empty(), "nothing has changed");
        image.set(39_999, false);
        assert_eq!(image.take_changed()[0].0, 1);
    }
}
