//! Hashes by their kernel names: what tags are made of, and the journal's and superblock's signatures.
//!
//! The kernel's bytes, which for CRCs are not everybody's: `crc32` begins with zero and is not inverted.

use std::hash::Hasher;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use twox_hash::XxHash64;
use zeroize::Zeroizing;

/// Bytes of the longest hash there is here.
pub(super) const HASH_BYTES_MAX: usize = 64;

/// An algorithm with its key, ready for use.
pub(super) enum Hash {
    /// Where it begins.
    Crc32c(u32),
    /// Where it begins.
    Crc32(u32),
    /// Its seed.
    XxHash64(u64),
    Sha1,
    Sha256,
    Sha512,
    HmacSha1(Hmac<Sha1>),
    HmacSha256(Hmac<Sha256>),
    HmacSha512(Hmac<Sha512>),
}

/// Why there is no such hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHash {
    /// There is no such algorithm here.
    Unknown,
    /// The key does not fit the algorithm; an errno, and why.
    Key(i32, &'static str),
}

/// `NAME[:KEY]`, the key in hexadecimal digits, as a table has it.
pub(super) struct HashSpec {
    pub name: String,
    digits: Option<Zeroizing<String>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

impl HashSpec {
    /// `None` when the key is not whole bytes of hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((name, digits)) = text.split_once(':') else {
            return Some(Self {
                name: text.to_owned(),
                digits: None,
                key: None,
            });
        };
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        let digit = |c: u8| char::from(c).to_digit(16).map(|d| d.to_le_bytes()[0]);
        let mut key = Zeroizing::new(Vec::with_capacity(pairs.len()));
        for [high, low] in pairs {
            key.push(digit(*high)? << 4 | digit(*low)?);
        }
        Some(Self {
            name: name.to_owned(),
            digits: Some(Zeroizing::new(digits.to_owned())),
            key: Some(key),
        })
    }

    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_ref().map(|key| key.as_slice())
    }

    /// As it was given.
    pub fn tell(&self, out: &mut String) {
        out.push_str(&self.name);
        if let Some(digits) = &self.digits {
            out.push(':');
            out.push_str(digits);
        }
    }

    /// The algorithm with its key.
    pub fn hash(&self) -> Result<Hash, BadHash> {
        let key = self.key();
        let seed4 = |usual: u32| match key {
            None => Ok(usual),
            Some(key) => <[u8; 4]>::try_from(key)
                .map(u32::from_le_bytes)
                .map_err(|_| BadHash::Key(EINVAL, "its key has 4 bytes")),
        };
        let unkeyed = |hash| match key {
            None => Ok(hash),
            Some(_) => Err(BadHash::Key(ENOSYS, "it takes no key")),
        };
        let needed = || key.ok_or(BadHash::Key(ENOKEY, "it needs a key"));
        // An HMAC takes keys of any length.
        let any = |_| BadHash::Key(EINVAL, "its key does not fit");
        match self.name.as_str() {
            "crc32c" => seed4(u32::MAX).map(Hash::Crc32c),
            "crc32" => seed4(0).map(Hash::Crc32),
            "xxhash64" => match key {
                None => Ok(Hash::XxHash64(0)),
                Some(key) => <[u8; 8]>::try_from(key)
                    .map(|key| Hash::XxHash64(u64::from_le_bytes(key)))
                    .map_err(|_| BadHash::Key(EINVAL, "its key has 8 bytes")),
            },
            "sha1" => unkeyed(Hash::Sha1),
            "sha256" => unkeyed(Hash::Sha256),
            "sha512" => unkeyed(Hash::Sha512),
            "hmac(sha1)" => Hmac::new_from_slice(needed()?)
                .map(Hash::HmacSha1)
                .map_err(any),
            "hmac(sha256)" => Hmac::new_from_slice(needed()?)
                .map(Hash::HmacSha256)
                .map_err(any),
            "hmac(sha512)" => Hmac::new_from_slice(needed()?)
                .map(Hash::HmacSha512)
                .map_err(any),
            _ => Err(BadHash::Unknown),
        }
    }
}

impl Hash {
    /// Bytes of a digest.
    pub fn size(&self) -> usize {
        match self {
            Self::Crc32c(_) | Self::Crc32(_) => 4,
            Self::XxHash64(_) => 8,
            Self::Sha1 | Self::HmacSha1(_) => 20,
            Self::Sha256 | Self::HmacSha256(_) => 32,
            Self::Sha512 | Self::HmacSha512(_) => 64,
        }
    }

    /// The digest of the parts one after another: what of it fits `out`, and zeroes after it.
    pub fn digest<'a>(&self, parts: impl Iterator<Item = &'a [u8]>, out: &mut [u8]) {
        let mut whole = [0; HASH_BYTES_MAX];
        match self {
            Self::Crc32c(begin) => {
                let crc = parts.fold(!begin, crc32c::crc32c_append);
                whole[..4].copy_from_slice(&crc.to_le_bytes());
            }
            Self::Crc32(begin) => {
                let mut crc = crc32fast::Hasher::new_with_initial(!begin);
                parts.for_each(|part| crc.update(part));
                whole[..4].copy_from_slice(&(!crc.finalize()).to_le_bytes());
            }
            Self::XxHash64(seed) => {
                let mut hash = XxHash64::with_seed(*seed);
                parts.for_each(|part| hash.write(part));
                whole[..8].copy_from_slice(&hash.finish().to_le_bytes());
            }
            Self::Sha1 => hashed(Sha1::new(), parts, &mut whole),
            Self::Sha256 => hashed(Sha256::new(), parts, &mut whole),
            Self::Sha512 => hashed(Sha512::new(), parts, &mut whole),
            Self::HmacSha1(mac) => signed(mac.clone(), parts, &mut whole),
            Self::HmacSha256(mac) => signed(mac.clone(), parts, &mut whole),
            Self::HmacSha512(mac) => signed(mac.clone(), parts, &mut whole),
        }
        let len = out.len().min(self.size());
        out[..len].copy_from_slice(&whole[..len]);
        out[len..].fill(0);
    }
}

fn hashed<'a, D: Digest>(
    mut hash: D,
    parts: impl Iterator<Item = &'a [u8]>,
    out: &mut [u8; HASH_BYTES_MAX],
) {
    parts.for_each(|part| hash.update(part));
    let digest = hash.finalize();
    out[..digest.len()].copy_from_slice(&digest);
}

fn signed<'a, M: Mac>(
    mut mac: M,
    parts: impl Iterator<Item = &'a [u8]>,
    out: &mut [u8; HASH_BYTES_MAX],
) {
    parts.for_each(|part| mac.update(part));
    let digest = mac.finalize().into_bytes();
    out[..digest.len()].copy_from_slice(&digest);
}

const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const ENOKEY: i32 = 126;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str, text: &[u8]) -> Vec<u8> {
        let hash = HashSpec::parse(spec).expect("spec").hash();
        let Ok(hash) = hash else {
            panic!("{spec}");
        };
        let mut out = vec![0xff; hash.size() + 2];
        let (a, b) = text.split_at(text.len() / 2);
        hash.digest([a, b].into_iter(), &mut out);
        assert_eq!(out.split_off(hash.size()), [0, 0]);
        out
    }

    #[test]
    fn digests_are_the_kernels() {
        let text = b"123456789";
        assert_eq!(of("crc32c", text), 0xe306_9283_u32.to_le_bytes());
        // The usual CRC-32 begins with all ones and is inverted at the end.
        assert_eq!(of("crc32:ffffffff", text), (!0xcbf4_3926_u32).to_le_bytes());
        assert_eq!(of("crc32", text), 0x2dfd_2d88_u32.to_le_bytes());
        assert_eq!(of("xxhash64", b""), 0xef46_db37_51d8_e999_u64.to_le_bytes());
        assert_eq!(of("sha1", b"abc")[..4], [0xa9, 0x99, 0x3e, 0x36]);
        assert_eq!(of("sha256", b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        // RFC 4231, test case 2.
        let mac = of("hmac(sha256):4a656665", b"what do ya want for nothing?");
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }

    #[test]
    fn keys_must_fit() {
        let bad = |spec: &str| HashSpec::parse(spec).expect("spec").hash().err();
        assert_eq!(bad("md99"), Some(BadHash::Unknown));
        assert!(matches!(bad("hmac(sha256)"), Some(BadHash::Key(ENOKEY, _))));
        assert!(matches!(bad("sha256:00"), Some(BadHash::Key(ENOSYS, _))));
        assert!(matches!(bad("crc32c:00"), Some(BadHash::Key(EINVAL, _))));
        assert!(HashSpec::parse("hmac(sha256):0").is_none());
        assert!(HashSpec::parse("hmac(sha256):0g").is_none());
    }
}
