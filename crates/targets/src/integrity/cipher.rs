//! Encryption of the journal: AES, either as one key stream over all of it (`ctr(aes)`), or section by section (`cbc(aes)`).
//!
//! COMPAT: with a key stream commit ids are encrypted too, by what follows the journal's pages; otherwise they are the usual ones.

use super::hash::{BadHash, HashSpec};
use super::journal::{COMMIT_IDS, CommitIds};
use super::layout::Shape;
use crate::crypt::{Aes, BLOCK_BYTES};

/// Of a kernel's page: the key stream covers whole ones.
const PAGE: u64 = 4096;
/// Blocks of the key stream made at once.
const STREAM_BLOCKS: usize = 32;

/// See the module.
pub(super) enum JournalCipher {
    Ctr(Aes),
    Cbc(Aes),
}

impl JournalCipher {
    /// By its kernel name, with its key.
    pub fn new(spec: &HashSpec) -> Result<Self, BadHash> {
        let make = match spec.name.as_str() {
            "ctr(aes)" => Self::Ctr,
            "cbc(aes)" => Self::Cbc,
            _ => return Err(BadHash::Unknown),
        };
        let key = spec.key().ok_or(BadHash::Key(ENOKEY, "it needs a key"))?;
        let aes = Aes::new(key);
        aes.map(make)
            .ok_or(BadHash::Key(EINVAL, "its key has 16, 24 or 32 bytes"))
    }

    /// What commit ids are.
    pub fn commit_ids(&self, shape: Shape) -> CommitIds {
        let Self::Ctr(aes) = self else {
            return COMMIT_IDS;
        };
        let mut bytes: Vec<u8> = COMMIT_IDS.iter().flat_map(|id| id.to_le_bytes()).collect();
        let behind = (shape.all_sectors() * 512).next_multiple_of(PAGE);
        stream(aes, behind, &mut bytes);
        let mut ids = COMMIT_IDS;
        for (id, le) in ids.iter_mut().zip(bytes.as_chunks().0) {
            *id = u64::from_le_bytes(*le);
        }
        for i in 1..ids.len() {
            while ids[..i].contains(&ids[i]) {
                ids[i] = ids[i].wrapping_add(1);
            }
        }
        ids
    }

    /// Encrypts a section's bytes.
    pub fn encrypt(&self, section: u32, bytes: &mut [u8]) {
        match self {
            Self::Ctr(aes) => stream(aes, u64::from(section) * bytes.len() as u64, bytes),
            Self::Cbc(aes) => {
                let mut before = first_vector(aes, section);
                for block in bytes.as_chunks_mut::<BLOCK_BYTES>().0 {
                    xor(block, &before);
                    aes.encrypt_blocks(std::slice::from_mut(block));
                    before = *block;
                }
            }
        }
    }

    /// The reverse.
    pub fn decrypt(&self, section: u32, bytes: &mut [u8]) {
        match self {
            Self::Ctr(_) => self.encrypt(section, bytes),
            Self::Cbc(aes) => {
                let mut before = first_vector(aes, section);
                for block in bytes.as_chunks_mut::<BLOCK_BYTES>().0 {
                    let encrypted = *block;
                    aes.decrypt_blocks(std::slice::from_mut(block));
                    xor(block, &before);
                    before = encrypted;
                }
            }
        }
    }
}

fn first_vector(aes: &Aes, section: u32) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..4].copy_from_slice(&section.to_le_bytes());
    aes.encrypt_blocks(std::slice::from_mut(&mut block));
    block
}

fn xor(block: &mut [u8], with: &[u8]) {
    block.iter_mut().zip(with).for_each(|(b, w)| *b ^= w);
}

/// Lays the key stream from byte `at` on, a multiple of the block's, over these bytes.
fn stream(aes: &Aes, at: u64, bytes: &mut [u8]) {
    let mut counter = u128::from(at) / BLOCK_BYTES as u128;
    for some in bytes.chunks_mut(BLOCK_BYTES * STREAM_BLOCKS) {
        let mut keys = [[0; BLOCK_BYTES]; STREAM_BLOCKS];
        for key in &mut keys {
            *key = counter.to_be_bytes();
            counter += 1;
        }
        aes.encrypt_blocks(&mut keys);
        xor(some, keys.as_flattened());
    }
}

const EINVAL: i32 = 22;
const ENOKEY: i32 = 126;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_back() {
        for name in ["ctr(aes)", "cbc(aes)"] {
            let text = format!("{name}:000102030405060708090a0b0c0d0e0f");
            let spec = HashSpec::parse(&text).expect("spec");
            let Ok(cipher) = JournalCipher::new(&spec) else {
                panic!("{name}");
            };
            let plain: Vec<u8> = (0..2048_u32).map(|i| i.to_le_bytes()[0]).collect();
            let mut first = plain.clone();
            cipher.encrypt(0, &mut first);
            let mut second = plain.clone();
            cipher.encrypt(1, &mut second);
            assert!(first != plain && second != plain && first != second);
            cipher.decrypt(1, &mut second);
            assert!(second == plain, "{name}");
        }
    }

    #[test]
    fn keys_must_fit() {
        let bad = |text: &str| {
            let spec = HashSpec::parse(text).expect("spec");
            JournalCipher::new(&spec).err()
        };
        assert_eq!(bad("xts(aes):00"), Some(BadHash::Unknown));
        assert!(matches!(bad("ctr(aes)"), Some(BadHash::Key(ENOKEY, _))));
        assert!(matches!(bad("ctr(aes):00"), Some(BadHash::Key(EINVAL, _))));
    }
}
