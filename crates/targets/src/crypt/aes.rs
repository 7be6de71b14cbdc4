//! AES under a key of any of its three lengths.

use aes::cipher::array::Array;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};

use super::{cbc, xts};

/// Bytes of a block of the cipher.
pub(crate) const BLOCK_BYTES: usize = 16;

/// An expanded key. Wipes itself when dropped.
pub(crate) enum Aes {
    Key128(Aes128),
    Key192(Aes192),
    Key256(Aes256),
}

/// `$call` with the cipher as `$cipher`, whatever its length.
macro_rules! each {
    ($aes:expr, $cipher:ident => $call:expr) => {
        match $aes {
            Aes::Key128($cipher) => $call,
            Aes::Key192($cipher) => $call,
            Aes::Key256($cipher) => $call,
        }
    };
}

impl Aes {
    /// `None` when AES has no keys of this length.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(Self::Key128),
            24 => Aes192::new_from_slice(key).ok().map(Self::Key192),
            32 => Aes256::new_from_slice(key).ok().map(Self::Key256),
            _ => None,
        }
    }

    /// Each block by itself, in place.
    pub(crate) fn encrypt_blocks(&self, blocks: &mut [[u8; BLOCK_BYTES]]) {
        let blocks = Array::cast_slice_from_core_mut(blocks);
        each!(self, cipher => cipher.encrypt_blocks(blocks));
    }

    /// The reverse.
    pub(crate) fn decrypt_blocks(&self, blocks: &mut [[u8; BLOCK_BYTES]]) {
        let blocks = Array::cast_slice_from_core_mut(blocks);
        each!(self, cipher => cipher.decrypt_blocks(blocks));
    }

    pub(super) fn encrypt_xts(&self, run: xts::Run<'_>) {
        each!(self, cipher => cipher.encrypt_with_backend(run));
    }

    pub(super) fn decrypt_xts(&self, run: xts::Run<'_>) {
        each!(self, cipher => cipher.decrypt_with_backend(run));
    }

    pub(super) fn encrypt_cbc(&self, run: cbc::Encrypt<'_>) {
        each!(self, cipher => cipher.encrypt_with_backend(run));
    }

    pub(super) fn decrypt_cbc(&self, run: cbc::Decrypt<'_>) {
        each!(self, cipher => cipher.decrypt_with_backend(run));
    }
}
