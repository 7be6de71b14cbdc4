//! The store on disk: header and slots. See `docs/internals/snapshot-store.md`.

/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
/// The only version there is.
pub(super) const VERSION: u32 = 1;
/// Bytes of the header; the rest of its chunk is zero.
const HEADER_BYTES: usize = 16;
/// Bytes of a slot.
pub(super) const SLOT_BYTES: usize = 16;

/// Chunk 0 of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HeaderDisk {
    pub valid: bool,
    pub version: u32,
    /// Sectors.
    pub chunk: u32,
}

/// What a device's first bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// No store was ever made here.
    Nothing,
    /// Somebody else's data.
    Foreign,
    /// A store.
    Header(HeaderDisk),
}

impl HeaderDisk {
    /// Reads the beginning of a device, at least 16 bytes.
    pub fn unpack(bytes: &[u8]) -> Found {
        match word(bytes, 0) {
            0 => Found::Nothing,
            MAGIC => Found::Header(Self {
                valid: word(bytes, 4) != 0,
                version: word(bytes, 8),
                chunk: word(bytes, 12),
            }),
            _ => Found::Foreign,
        }
    }

    /// Writes it to the beginning of `into`.
    pub fn pack(&self, into: &mut [u8]) {
        let words = [MAGIC, u32::from(self.valid), self.version, self.chunk];
        for (to, word) in into[..HEADER_BYTES].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// An exception: this chunk of the origin lies in that chunk of the COW device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Slot {
    pub old: u64,
    /// Zero: the slot is free, and ends the list.
    pub new: u64,
}

impl Slot {
    /// Reads the slot with this index of an area.
    pub fn unpack(area: &[u8], index: usize) -> Self {
        let at = index * SLOT_BYTES;
        Self {
            old: long(area, at),
            new: long(area, at + 8),
        }
    }

    /// Writes it.
    pub fn pack(&self, area: &mut [u8], index: usize) {
        let at = index * SLOT_BYTES;
        area[at..at + 8].copy_from_slice(&self.old.to_le_bytes());
        area[at + 8..at + SLOT_BYTES].copy_from_slice(&self.new.to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_kernels_bytes() {
        let header = HeaderDisk {
            valid: true,
            version: VERSION,
            chunk: 8,
        };
        let mut bytes = [0; 16];
        header.pack(&mut bytes);
        assert_eq!(&bytes, b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
        assert_eq!(HeaderDisk::unpack(&bytes), Found::Header(header));
        assert_eq!(HeaderDisk::unpack(&[0; 16]), Found::Nothing);
        assert_eq!(HeaderDisk::unpack(&[1; 16]), Found::Foreign);
    }

    #[test]
    fn slots_lie_one_after_another() {
        let mut area = [0; 48];
        let slot = Slot {
            old: 0x0102,
            new: u64::MAX,
        };
        slot.pack(&mut area, 1);
        assert_eq!(area[16..18], [2, 1]);
        assert_eq!(Slot::unpack(&area, 1), slot);
        assert_eq!(Slot::unpack(&area, 2), Slot::default());
    }
}
