//! The superblock: 4096 bytes at the beginning of the device that has the tags. See `docs/internals/integrity.md`.

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::hash::{HASH_BYTES_MAX, Hash};

/// Sectors that it takes; the journal follows.
pub(super) const SUPERBLOCK_SECTORS: u64 = 8;
const MAGIC: &[u8; 8] = b"integrt\0";
/// The last version that the kernel of this target knows.
pub(super) const VERSION_MAX: u8 = 5;
/// Bytes that a signature may cover, itself at their end.
const SIGNED_BYTES: usize = 512;
/// Bytes in use before that.
const USED_BYTES: usize = 64;

/// What is said of a device by bits of the superblock.
pub(super) mod flag {
    /// Journal sectors have signatures.
    pub const JOURNAL_MAC: u32 = 1 << 0;
    /// Tags from `recalc_sector` on are not right yet.
    pub const RECALCULATING: u32 = 1 << 1;
    /// The journal's place holds a bitmap.
    pub const DIRTY_BITMAP: u32 = 1 << 2;
    /// Runs of tags are padded to 4 KiB, not to 128 KiB.
    pub const FIXED_PADDING: u32 = 1 << 3;
    /// Salt and section number are part of what is hashed.
    pub const FIXED_HMAC: u32 = 1 << 4;
}

/// See the module. Bytes that have no meaning stay what they were.
#[derive(Clone)]
pub(super) struct Superblock {
    raw: Vec<u8>,
    pub version: u8,
    pub log2_interleave: u8,
    pub tag_size: u16,
    pub journal_sections: u32,
    pub provided: u64,
    pub flags: u32,
    pub log2_block: u8,
    pub log2_blocks_per_bit: u8,
    pub recalc_sector: u64,
    pub salt: [u8; 16],
}

/// What lies where a superblock should be.
pub(super) enum Found {
    Superblock(Superblock),
    /// Nothing: the device may be formatted.
    Zeroes,
    Other,
}

impl Superblock {
    /// One that says nothing yet.
    pub fn empty() -> Self {
        Self::unpack(vec![0; (SUPERBLOCK_SECTORS * 512) as usize])
    }

    /// What is at `start`.
    pub fn read(device: &dyn BlockDevice, start: Sector) -> Result<Found, BlkStatus> {
        let buf = IoBuf::alloc((SUPERBLOCK_SECTORS * 512) as usize);
        let (buf, status) = thinmap_block::read(device, start, buf);
        if !status.is_ok() {
            return Err(status);
        }
        let bytes = buf.as_slice();
        Ok(if bytes[..8] == *MAGIC {
            Found::Superblock(Self::unpack(bytes.to_vec()))
        } else if bytes.iter().all(|byte| *byte == 0) {
            Found::Zeroes
        } else {
            Found::Other
        })
    }

    fn unpack(raw: Vec<u8>) -> Self {
        let long = |at: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(le)
        };
        let word = |at: usize| (long(at) & u64::from(u32::MAX)) as u32;
        let mut salt = [0; 16];
        salt.copy_from_slice(&raw[48..64]);
        Self {
            version: raw[8],
            log2_interleave: raw[9],
            tag_size: (word(8) >> 16) as u16,
            journal_sections: word(12),
            provided: long(16),
            flags: word(24),
            log2_block: raw[28],
            log2_blocks_per_bit: raw[29],
            recalc_sector: long(32),
            salt,
            raw,
        }
    }

    fn pack(&mut self) {
        let raw = &mut self.raw;
        raw[..8].copy_from_slice(MAGIC);
        raw[8] = self.version;
        raw[9] = self.log2_interleave;
        raw[10..12].copy_from_slice(&self.tag_size.to_le_bytes());
        raw[12..16].copy_from_slice(&self.journal_sections.to_le_bytes());
        raw[16..24].copy_from_slice(&self.provided.to_le_bytes());
        raw[24..28].copy_from_slice(&self.flags.to_le_bytes());
        raw[28] = self.log2_block;
        raw[29] = self.log2_blocks_per_bit;
        raw[32..40].copy_from_slice(&self.recalc_sector.to_le_bytes());
        raw[48..64].copy_from_slice(&self.salt);
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The least version that knows what this one has; `bitmap` and `separate` as the line has it.
    pub fn set_version(&mut self, bitmap: bool, separate: bool) {
        self.version = if self.has(flag::FIXED_HMAC) {
            5
        } else if self.has(flag::FIXED_PADDING) {
            4
        } else if bitmap || self.has(flag::DIRTY_BITMAP) {
            3
        } else if separate || self.has(flag::RECALCULATING) {
            2
        } else {
            1
        };
    }

    /// Whether the signature is that of `mac`.
    pub fn is_signed_by(&self, mac: &Hash) -> bool {
        let at = SIGNED_BYTES - mac.size();
        let mut wanted = [0; HASH_BYTES_MAX];
        let wanted = &mut wanted[..mac.size()];
        mac.digest([&self.raw[..at]].into_iter(), wanted);
        self.raw[at..SIGNED_BYTES] == *wanted
    }

    /// Writes it, durably, signed by `mac` where superblocks of its version are.
    pub fn write(
        &mut self,
        device: &dyn BlockDevice,
        start: Sector,
        mac: Option<&Hash>,
    ) -> BlkStatus {
        self.pack();
        if let Some(mac) = mac
            && self.has(flag::FIXED_HMAC)
        {
            let (signed, place) = self.raw[..SIGNED_BYTES].split_at_mut(SIGNED_BYTES - mac.size());
            mac.digest([&*signed].into_iter(), place);
        }
        let mut buf = IoBuf::alloc(self.raw.len());
        buf.as_mut_slice().copy_from_slice(&self.raw);
        let flags = IoFlags {
            fua: true,
            ..IoFlags::default()
        };
        let request = (Op::Write, flags, start, Sector(SUPERBLOCK_SECTORS), buf);
        submit_and_wait(device, request).1
    }
}

const _: () = assert!(USED_BYTES + HASH_BYTES_MAX <= SIGNED_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        let mut sb = Superblock::empty();
        sb.log2_interleave = 15;
        sb.tag_size = 0x0104;
        sb.journal_sections = 0x0203_0405;
        sb.provided = 0x11_2233_4455_6677;
        sb.flags = flag::RECALCULATING;
        sb.log2_block = 3;
        sb.log2_blocks_per_bit = 12;
        sb.recalc_sector = 8;
        sb.salt = [9; 16];
        sb.set_version(false, false);
        sb.pack();
        assert_eq!(
            sb.raw[..32],
            *b"integrt\0\x02\x0f\x04\x01\x05\x04\x03\x02\x77\x66\x55\x44\x33\x22\x11\0\x02\0\0\0\x03\x0c\0\0"
        );
        let again = Superblock::unpack(sb.raw.clone());
        assert_eq!(again.tag_size, 0x0104);
        assert_eq!((again.recalc_sector, again.salt), (8, [9; 16]));
        assert_eq!((again.version, again.flags), (2, flag::RECALCULATING));
    }

    #[test]
    fn the_version_is_the_least_that_will_do() {
        let mut sb = Superblock::empty();
        let mut version = |flags, bitmap, separate| {
            sb.flags = flags;
            sb.set_version(bitmap, separate);
            sb.version
        };
        assert_eq!(version(0, false, false), 1);
        assert_eq!(version(0, false, true), 2);
        assert_eq!(version(0, true, true), 3);
        assert_eq!(version(flag::FIXED_PADDING, true, false), 4);
        assert_eq!(
            version(flag::FIXED_PADDING | flag::FIXED_HMAC, true, false),
            5
        );
    }
}
