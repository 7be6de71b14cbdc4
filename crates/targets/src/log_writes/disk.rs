//! The log on disk: the super, and entries. See `docs/internals/log-writes.md`.
//!
//! All numbers are little-endian. A block is the logged device's logical block: what the kernel calls the log's sector size.

/// "rhswfsj".
const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of an entry's head; a mark's text follows it at once.
pub(super) const HEAD_BYTES: usize = 32;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct EntryFlags(u64);

impl EntryFlags {
    pub const FLUSH: Self = Self(1 << 0);
    pub const FUA: Self = Self(1 << 1);
    pub const DISCARD: Self = Self(1 << 2);
    pub const MARK: Self = Self(1 << 3);

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The head of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EntryDisk {
    /// In blocks.
    pub first: u64,
    /// In blocks.
    pub blocks: u64,
    pub flags: EntryFlags,
    /// Bytes of a mark's text.
    pub text_bytes: u64,
}

impl EntryDisk {
    /// Writes it to the beginning of `into`.
    pub fn pack(&self, into: &mut [u8]) {
        put(
            into,
            [self.first, self.blocks, self.flags.0, self.text_bytes],
        );
    }
}

/// Writes the super to the beginning of a block.
pub(super) fn pack_super(into: &mut [u8], entries: u64, block_bytes: u32) {
    put(into, [MAGIC, VERSION, entries, u64::from(block_bytes)]);
}

fn put(into: &mut [u8], words: [u64; 4]) {
    for (to, word) in into[..HEAD_BYTES].chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_and_entry_have_the_kernels_bytes() {
        let mut bytes = [0xff; 64];
        pack_super(&mut bytes, 3, 512);
        assert_eq!(
            &bytes[..34],
            b"rhswfsj\0\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\xff\xff"
        );
        let entry = EntryDisk {
            first: 0x0102,
            blocks: 8,
            flags: EntryFlags::FUA,
            text_bytes: 0,
        };
        entry.pack(&mut bytes);
        assert_eq!(bytes[..3], [2, 1, 0]);
        assert_eq!((bytes[8], bytes[16], bytes[24]), (8, 2, 0));
    }
}
