//! Encrypts and decrypts runs of sectors under one key.

use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use super::aes::{Aes, BLOCK_BYTES};
use super::cipher::{CipherSpec, IvKind, Mode};
use super::{cbc, xts};

/// A mapping's cipher with its key, expanded. Holds its secrets in itself, for
/// [`SecretBox`](thinmap_runtime::SecretBox).
pub(super) struct Engine {
    keyed: Keyed,
    /// Encrypts initial vectors.
    essiv: Option<Aes>,
    iv: IvKind,
    sectors: SectorSize,
}

/// The unit of encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SectorSize {
    /// 512 to 4096, a power of two.
    pub(super) bytes: u16,
    /// Vectors count such sectors (iv_large_sectors) instead of those of 512 bytes.
    pub(super) counted_large: bool,
}

impl SectorSize {
    /// In sectors of 512 bytes.
    pub(super) fn sectors(self) -> u64 {
        u64::from(self.bytes >> 9)
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "a box would take keys out of their memory"
)]
enum Keyed {
    Xts { data: Aes, tweak: Aes },
    Cbc(Aes),
    Ecb(Aes),
}

impl Engine {
    /// `None` when the cipher has no keys of this length.
    pub(super) fn new(spec: &CipherSpec, sectors: SectorSize, key: &[u8]) -> Option<Self> {
        let keyed = match spec.mode {
            Mode::Xts => {
                if !key.len().is_multiple_of(2) {
                    return None;
                }
                let (data, tweak) = key.split_at(key.len() / 2);
                Keyed::Xts {
                    data: Aes::new(data)?,
                    tweak: Aes::new(tweak)?,
                }
            }
            Mode::Cbc => Keyed::Cbc(Aes::new(key)?),
            Mode::Ecb => Keyed::Ecb(Aes::new(key)?),
        };
        let essiv = if spec.essiv {
            let mut salt: [u8; 32] = Sha256::digest(key).into();
            let aes = Aes::new(&salt);
            salt.zeroize();
            Some(aes?)
        } else {
            None
        };
        Some(Self {
            keyed,
            essiv,
            iv: spec.iv,
            sectors,
        })
    }

    /// Encrypts whole sectors of `src` to `dst`; `first` is the number of the first, in sectors of 512 bytes, as
    /// initial vectors count. Leaves the key on the stack: [`scrub_stack`](thinmap_runtime::scrub_stack) behind it.
    #[inline(never)]
    pub(super) fn encrypt(&self, src: &[u8], dst: &mut [u8], first: u64) {
        let group = GROUP * usize::from(self.sectors.bytes);
        let mut first = first;
        for (src, dst) in src.chunks(group).zip(dst.chunks_mut(group)) {
            let mut ivs = [[0; BLOCK_BYTES]; GROUP];
            let ivs = self.ivs(first, src.len(), &mut ivs);
            match &self.keyed {
                Keyed::Xts { data, tweak } => {
                    tweak.encrypt_blocks(ivs);
                    data.encrypt_xts(xts::Run {
                        src: Some(src),
                        dst,
                        tweaks: ivs,
                        sector_blocks: self.sector_blocks(),
                    });
                }
                Keyed::Cbc(data) => data.encrypt_cbc(cbc::Encrypt {
                    src,
                    dst,
                    chains: ivs,
                    sector_bytes: usize::from(self.sectors.bytes),
                }),
                Keyed::Ecb(data) => {
                    dst.copy_from_slice(src);
                    data.encrypt_blocks(dst.as_chunks_mut().0);
                }
            }
            first = first.wrapping_add(GROUP as u64 * self.sectors.sectors());
        }
    }

    /// Decrypts whole sectors in place. Leaves the key on the stack, too.
    #[inline(never)]
    pub(super) fn decrypt(&self, data: &mut [u8], first: u64) {
        let group = GROUP * usize::from(self.sectors.bytes);
        let mut first = first;
        for data in data.chunks_mut(group) {
            let mut ivs = [[0; BLOCK_BYTES]; GROUP];
            let ivs = self.ivs(first, data.len(), &mut ivs);
            match &self.keyed {
                Keyed::Xts { data: key, tweak } => {
                    tweak.encrypt_blocks(ivs);
                    key.decrypt_xts(xts::Run {
                        src: None,
                        dst: data,
                        tweaks: ivs,
                        sector_blocks: self.sector_blocks(),
                    });
                }
                Keyed::Cbc(key) => key.decrypt_cbc(cbc::Decrypt {
                    data,
                    chains: ivs,
                    sector_blocks: self.sector_blocks(),
                }),
                Keyed::Ecb(key) => key.decrypt_blocks(data.as_chunks_mut().0),
            }
            first = first.wrapping_add(GROUP as u64 * self.sectors.sectors());
        }
    }

    fn sector_blocks(&self) -> usize {
        usize::from(self.sectors.bytes) / BLOCK_BYTES
    }

    /// The initial vectors of the sectors in `bytes` bytes.
    fn ivs<'a>(
        &self,
        first: u64,
        bytes: usize,
        out: &'a mut [[u8; BLOCK_BYTES]; GROUP],
    ) -> &'a mut [[u8; BLOCK_BYTES]] {
        let count = bytes / usize::from(self.sectors.bytes);
        let out = &mut out[..count];
        let mut sector = first;
        for iv in out.iter_mut() {
            let number = match self.sectors.counted_large {
                true => sector / self.sectors.sectors(),
                false => sector,
            };
            *iv = self.plain_iv(number);
            sector = sector.wrapping_add(self.sectors.sectors());
        }
        if let Some(essiv) = &self.essiv {
            essiv.encrypt_blocks(out);
        }
        if let (IvKind::Eboiv, Keyed::Cbc(key)) = (self.iv, &self.keyed) {
            // The kernel encrypts a block of zeroes in CBC, with the place as its vector: the same.
            key.encrypt_blocks(out);
        }
        out
    }

    fn plain_iv(&self, number: u64) -> [u8; BLOCK_BYTES] {
        let low = |number: u64| u128::from(number).to_le_bytes();
        let high = |number: u64| u128::from(number).to_be_bytes();
        match self.iv {
            IvKind::Plain => low(number & u64::from(u32::MAX)),
            IvKind::Plain64 => low(number),
            IvKind::Plain64Be => high(number),
            // Blocks to a sector: 2^5.
            IvKind::Benbi => high((number << 5).wrapping_add(1)),
            IvKind::Null => [0; BLOCK_BYTES],
            IvKind::Eboiv => low(number.wrapping_mul(u64::from(self.sectors.bytes))),
        }
    }
}

/// What [`Engine::encrypt`] and [`Engine::decrypt`] may use of the stack: round keys for wide registers, and a batch of blocks.
pub(super) const STACK_BYTES: usize = 16 << 10;

/// Sectors whose vectors are made at once.
const GROUP: usize = 64;
