//! The cipher against published vectors, and against a block-by-block account of the modes.

use aes::cipher::array::ArraySize;
use aes::cipher::consts::{U1, U8, U16, U30, U64};
use aes::cipher::inout::InOut;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
    ParBlocksSizeUser,
};

use super::aes::Aes;
use super::cipher::CipherSpec;
use super::engine::{Engine, SectorSize};
use super::xts::{self, doubled};

const SMALL: SectorSize = SectorSize {
    bytes: 512,
    counted_large: false,
};

fn engine(spec: &str, sectors: SectorSize, key: &[u8]) -> Engine {
    let spec = CipherSpec::parse(spec).expect(spec);
    Engine::new(&spec, sectors, key).expect("a key")
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex"))
        .collect()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// IEEE 1619, vector 4 (its data unit 0): the first and the last blocks of 512 bytes.
#[test]
fn xts_is_that_of_the_standard() {
    let key = hex("2718281828459045235360287471352631415926535897932384626433832795");
    let plain: Vec<u8> = (0..512).map(|i| (i % 256) as u8).collect();
    let mut cipher = vec![0; 512];
    let engine = engine("aes-xts-plain64", SMALL, &key);
    engine.encrypt(&plain, &mut cipher, 0);
    assert_eq!(cipher[..16], hex("27a7479befa1d476489f308cd4cfa6e2"));
    assert_eq!(cipher[16..32], hex("a96e4bbe3208ff25287dd3819616e89c"));
    engine.decrypt(&mut cipher, 0);
    assert_eq!(cipher, plain);
}

/// NIST SP 800-38A, F.2.1, in a sector whose number makes its vector zero: the first block is plain AES.
#[test]
fn a_vector_of_zero_leaves_the_first_block_to_aes() {
    let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
    let mut plain = vec![0; 512];
    plain[..16].copy_from_slice(&hex("6bc1bee22e409f96e93d7e117393172a"));
    let mut cipher = vec![0; 512];
    engine("aes-cbc-plain", SMALL, &key).encrypt(&plain, &mut cipher, 0);
    assert_eq!(cipher[..16], hex("3ad77bb40d7a3660a89ecaf32466ef97"));
    engine("aes-ecb", SMALL, &key).encrypt(&plain, &mut cipher, 0);
    assert_eq!(cipher[..16], hex("3ad77bb40d7a3660a89ecaf32466ef97"));
}

fn naive_xts(key: &[u8], sector: &mut [u8], iv: [u8; 16]) {
    let (data, tweak) = key.split_at(key.len() / 2);
    let (data, tweak) = (Aes::new(data).expect("key"), Aes::new(tweak).expect("key"));
    let mut first = [iv];
    tweak.encrypt_blocks(&mut first);
    let mut t = u128::from_le_bytes(first[0]);
    for block in sector.as_chunks_mut::<16>().0 {
        let mut one = [(u128::from_le_bytes(*block) ^ t).to_le_bytes()];
        data.encrypt_blocks(&mut one);
        *block = (u128::from_le_bytes(one[0]) ^ t).to_le_bytes();
        t = doubled(t);
    }
}

fn naive_cbc(key: &[u8], sector: &mut [u8], iv: [u8; 16]) {
    let aes = Aes::new(key).expect("key");
    let mut chain = iv;
    for block in sector.as_chunks_mut::<16>().0 {
        let mut one = [(u128::from_le_bytes(*block) ^ u128::from_le_bytes(chain)).to_le_bytes()];
        aes.encrypt_blocks(&mut one);
        (chain, *block) = (one[0], one[0]);
    }
}

/// Every size of a run, of a sector and of a key, from places that overflow 32 bits.
#[test]
fn runs_of_sectors_are_their_sectors_one_by_one() {
    for mode in ["xts", "cbc"] {
        for key_bytes in [16, 24, 32] {
            let key = noise(if mode == "xts" {
                2 * key_bytes
            } else {
                key_bytes
            });
            for bytes in [512_u16, 1024, 2048, 4096] {
                for counted_large in [false, true] {
                    let sectors = SectorSize {
                        bytes,
                        counted_large,
                    };
                    for count in [1, 2, 3, 7, 8, 9, 30, 63, 64, 65, 130, 200] {
                        check_run(mode, &key, sectors, count);
                    }
                }
            }
        }
    }
}

fn check_run(mode: &str, key: &[u8], sectors: SectorSize, count: usize) {
    let engine = engine(&format!("aes-{mode}-plain64"), sectors, key);
    let size = usize::from(sectors.bytes);
    let first = (1 << 32) - 4 * sectors.sectors();
    let plain = noise(size * count);
    let mut cipher = vec![0; plain.len()];
    engine.encrypt(&plain, &mut cipher, first);
    let mut expected = plain.clone();
    for (nr, sector) in expected.chunks_mut(size).enumerate() {
        let mut number = first + nr as u64 * sectors.sectors();
        if sectors.counted_large {
            number /= sectors.sectors();
        }
        let iv = u128::from(number).to_le_bytes();
        match mode {
            "xts" => naive_xts(key, sector, iv),
            _ => naive_cbc(key, sector, iv),
        }
    }
    assert!(cipher == expected, "{mode} {sectors:?} {count}");
    engine.decrypt(&mut cipher, first);
    assert!(cipher == plain, "{mode} {sectors:?} {count}");
}

#[test]
fn initial_vectors_count_as_they_are_called() {
    let key = noise(32);
    let number = 0x1_2345_6789_u64;
    let zeroes = vec![0; 512];
    let first_block = |spec: &str| {
        let mut cipher = vec![0; 512];
        engine(spec, SMALL, &key).encrypt(&zeroes, &mut cipher, number);
        let mut block = [cipher[..16].try_into().expect("a block")];
        Aes::new(&key).expect("key").decrypt_blocks(&mut block);
        u128::from_be_bytes(block[0])
    };
    let reversed = |number: u64| u128::from(number).swap_bytes();
    assert_eq!(first_block("aes-cbc-plain"), reversed(0x2345_6789));
    assert_eq!(first_block("aes-cbc-plain64"), reversed(number));
    assert_eq!(first_block("aes-cbc-plain64be"), u128::from(number));
    assert_eq!(first_block("aes-cbc-benbi"), u128::from(number * 32 + 1));
    assert_eq!(first_block("aes-cbc-null"), 0);
    let mut place = [u128::from(number * 512).to_le_bytes()];
    Aes::new(&key).expect("key").encrypt_blocks(&mut place);
    assert_eq!(first_block("aes-cbc-eboiv"), u128::from_be_bytes(place[0]));
}

/// A processor's way with AES that does `N` blocks at once.
struct Wide<N>(aes::Aes128, std::marker::PhantomData<N>);

impl<N> BlockSizeUser for Wide<N> {
    type BlockSize = U16;
}

impl<N: ArraySize> ParBlocksSizeUser for Wide<N> {
    type ParBlocksSize = N;
}

impl<N: ArraySize> BlockCipherEncBackend for Wide<N> {
    fn encrypt_block(&self, block: InOut<'_, '_, aes::Block>) {
        self.0.encrypt_block_inout(block);
    }
}

fn wide_xts<N: ArraySize>(key: &[u8], plain: &[u8], tweaks: &[[u8; 16]]) -> Vec<u8> {
    let aes = aes::Aes128::new_from_slice(key).expect("key");
    let mut cipher = vec![0; plain.len()];
    let run = xts::Run {
        src: Some(plain),
        dst: &mut cipher,
        tweaks,
        sector_blocks: plain.len() / 16 / tweaks.len(),
    };
    BlockCipherEncClosure::call(run, &Wide(aes, std::marker::PhantomData::<N>));
    cipher
}

/// As many as processors do at once, with AES-NI, VAES and AVX-512; this one has one of them.
#[test]
fn xts_is_the_same_however_many_blocks_a_processor_does_at_once() {
    let key = noise(16);
    for (sector, count) in [(512, 1), (512, 5), (1024, 3), (4096, 2)] {
        let plain = noise(sector * count);
        let tweaks: Vec<[u8; 16]> = noise(16 * count).as_chunks().0.to_vec();
        let one = wide_xts::<U1>(&key, &plain, &tweaks);
        assert!(one != plain);
        assert!(one == wide_xts::<U8>(&key, &plain, &tweaks));
        assert!(one == wide_xts::<U30>(&key, &plain, &tweaks));
        assert!(one == wide_xts::<U64>(&key, &plain, &tweaks));
    }
}
