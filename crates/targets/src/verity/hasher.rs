//! Salted digests of blocks, by any of the algorithms there are.

use blake2::{Blake2b256, Blake2b512};
use md5::Md5;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::digest::consts::{U20, U48};
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512};

/// The digest of a block.
#[derive(Clone, Copy)]
pub(super) struct Digest {
    bytes: [u8; DIGEST_BYTES_MAX],
    len: usize,
}

impl Digest {
    /// The first [`DIGEST_BYTES_MAX`] bytes at most.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(DIGEST_BYTES_MAX);
        let mut digest = Self {
            bytes: [0; DIGEST_BYTES_MAX],
            len,
        };
        digest.bytes[..len].copy_from_slice(&bytes[..len]);
        digest
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The kernel's names of the algorithms, and those who compute them.
macro_rules! algorithms {
    ($($name:literal => $variant:ident($state:ty),)*) => {
        /// What has been taken in so far.
        #[derive(Clone)]
        enum State {
            $($variant($state),)*
        }

        impl State {
            fn of(name: &str) -> Option<(Self, usize)> {
                match name {
                    $($name => Some((Self::$variant(<$state>::new()), <$state>::output_size())),)*
                    _ => None,
                }
            }

            fn update(&mut self, bytes: &[u8]) {
                match self {
                    $(Self::$variant(state) => state.update(bytes),)*
                }
            }

            /// The digest of what has been taken in, then `data`, then `tail`.
            fn digest(&self, data: &[u8], tail: &[u8]) -> Digest {
                match self {
                    $(Self::$variant(state) => {
                        let mut state = state.clone();
                        state.update(data);
                        state.update(tail);
                        Digest::new(&state.finalize())
                    })*
                }
            }
        }
    };
}

algorithms! {
    "sha256" => Sha256(Sha256),
    "sha1" => Sha1(Sha1),
    "sha512" => Sha512(Sha512),
    "sha224" => Sha224(Sha224),
    "sha384" => Sha384(Sha384),
    "sha3-224" => Sha3x224(Sha3_224),
    "sha3-256" => Sha3x256(Sha3_256),
    "sha3-384" => Sha3x384(Sha3_384),
    "sha3-512" => Sha3x512(Sha3_512),
    "blake2b-160" => Blake2x160(blake2::Blake2b<U20>),
    "blake2b-256" => Blake2x256(Blake2b256),
    "blake2b-384" => Blake2x384(blake2::Blake2b<U48>),
    "blake2b-512" => Blake2x512(Blake2b512),
    "rmd160" => Ripemd160(Ripemd160),
    "md5" => Md5(Md5),
}

/// An algorithm with a salt.
pub(super) struct Hasher {
    /// Has taken in a salt that goes first.
    state: State,
    /// A salt that goes last.
    tail: Vec<u8>,
    digest_bytes: usize,
}

impl Hasher {
    /// `None` when there is no such algorithm.
    pub(super) fn new(name: &str) -> Option<Self> {
        let (state, digest_bytes) = State::of(name)?;
        Some(Self {
            state,
            tail: Vec::new(),
            digest_bytes,
        })
    }

    /// Puts a salt before every block, or behind it, as format version 0 has it.
    pub(super) fn add_salt(&mut self, salt: &[u8], version: u32) {
        if version == 0 {
            self.tail = salt.to_vec();
        } else {
            self.state.update(salt);
        }
    }

    pub(super) fn digest_bytes(&self) -> usize {
        self.digest_bytes
    }

    pub(super) fn digest(&self, block: &[u8]) -> Digest {
        self.state.digest(block, &self.tail)
    }
}

const DIGEST_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: Digest) -> String {
        let digits = digest.as_slice().iter().map(|byte| format!("{byte:02x}"));
        digits.collect()
    }

    #[test]
    fn a_salt_goes_first_or_last() {
        let whole = hex(Hasher::new("sha256")
            .expect("sha256")
            .digest(b"salty block"));
        let mut first = Hasher::new("sha256").expect("sha256");
        first.add_salt(b"salty", 1);
        assert_eq!(hex(first.digest(b" block")), whole);
        let mut last = Hasher::new("sha256").expect("sha256");
        last.add_salt(b" block", 0);
        assert_eq!(hex(last.digest(b"salty")), whole);
    }

    /// The digests of "abc" in the algorithms' own papers.
    #[test]
    fn algorithms_are_those_that_their_names_say() {
        let known = [
            ("md5", "900150983cd24fb0d6963f7d28e17f72"),
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("rmd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
            (
                "sha256",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "sha3-256",
                "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
            ),
            (
                "blake2b-512",
                "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1\
                 7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
            ),
        ];
        for (name, digest) in known {
            let hasher = Hasher::new(name).expect(name);
            assert_eq!(hex(hasher.digest(b"abc")), digest, "{name}");
            assert_eq!(hasher.digest_bytes() * 2, digest.len(), "{name}");
        }
        assert!(Hasher::new("crc32").is_none());
    }
}
