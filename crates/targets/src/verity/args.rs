//! The ten arguments, looked at in the kernel's order.

use thinmap_dm::{ConstructCx, DeviceUse, TableError, TargetArgs};

use super::NAME;
use super::features::{Features, counted};
use super::geometry::Geometry;
use super::hasher::{Digest, Hasher};
use crate::args::{open_device, parse_u64, scan_u32};

/// What a table line says, understood.
pub(super) struct Arguments {
    pub(super) version: u32,
    pub(super) data: DeviceUse,
    pub(super) hash: DeviceUse,
    pub(super) data_block_bytes: usize,
    pub(super) hash_block_bytes: usize,
    pub(super) data_blocks: u64,
    /// In hash blocks.
    pub(super) hash_start: u64,
    pub(super) algorithm: String,
    /// With the salt.
    pub(super) hasher: Hasher,
    pub(super) root: Digest,
    pub(super) salt: Vec<u8>,
    pub(super) features: Features,
    pub(super) geometry: Geometry,
}

impl Arguments {
    pub(super) fn parse(args: &TargetArgs<'_>, cx: &ConstructCx<'_>) -> Result<Self, TableError> {
        if !cx.read_only {
            return Err(invalid("Device must be readonly"));
        }
        let [
            version,
            data,
            hash,
            data_block,
            hash_block,
            data_blocks,
            hash_start,
            algorithm,
            root,
            salt,
            optional @ ..,
        ] = args.argv
        else {
            return Err(invalid("Not enough arguments"));
        };
        let optional = counted(optional)?;
        let version = scan_u32(version)
            .filter(|version| *version <= 1)
            .ok_or_else(|| invalid(format!("Invalid version: '{version}'")))?;
        let data = open_device(cx, NAME, data, true, "Data device lookup failed")?;
        let hash = open_device(cx, NAME, hash, true, "Hash device lookup failed")?;
        let data_block_bytes = block_bytes(data_block, &data, DATA_BLOCK_BYTES_MAX, "data")?;
        let hash_block_bytes = block_bytes(hash_block, &hash, HASH_BLOCK_BYTES_MAX, "hash")?;
        let data_blocks = in_blocks(data_blocks, data_block_bytes, "Invalid data blocks")?;
        if args.len.bytes() > data_blocks * data_block_bytes as u64 {
            let reason = format!(
                "Data device is too small: {data_blocks} blocks are less than {} sectors",
                args.len
            );
            return Err(invalid(reason));
        }
        let hash_start = in_blocks(hash_start, hash_block_bytes, "Invalid hash start")?;
        let mut hasher = Hasher::new(algorithm).ok_or_else(|| {
            let reason = format!("Cannot initialize hash function: there is no '{algorithm}' here");
            TableError::new(NAME, reason, ENOENT)
        })?;
        let digest_bytes = hasher.digest_bytes();
        if hash_block_bytes < digest_bytes * 2 {
            return Err(invalid("Digest size too big"));
        }
        let root = bytes_of(root)
            .filter(|root| root.len() == digest_bytes)
            .map(|root| Digest::new(&root))
            .ok_or_else(|| {
                let digits = digest_bytes * 2;
                invalid(format!(
                    "Invalid root digest: '{root}' is not {digits} hexadecimal digits"
                ))
            })?;
        let salt = match salt.as_str() {
            "-" => Vec::new(),
            digits => {
                bytes_of(digits).ok_or_else(|| invalid(format!("Invalid salt: '{digits}'")))?
            }
        };
        hasher.add_salt(&salt, version);
        let features = Features::parse(optional, cx)?;
        let too_big = |reason: String| TableError::new(NAME, reason, E2BIG);
        if features.check_at_most_once && data_blocks > CHECKED_BLOCKS_MAX {
            return Err(too_big(
                "device too large to use check_at_most_once".to_owned(),
            ));
        }
        let geometry = Geometry::new(
            version,
            data_blocks,
            hash_start,
            hash_block_bytes,
            digest_bytes,
        )
        .ok_or_else(|| too_big("Hash device offset overflow".to_owned()))?;
        let there = hash.dev.size().bytes() / hash_block_bytes as u64;
        if there < geometry.end() {
            return Err(too_big(format!(
                "Hash device is too small: {hash} has {there} blocks, the tree ends at {}",
                geometry.end()
            )));
        }
        Ok(Self {
            version,
            data,
            hash,
            data_block_bytes,
            hash_block_bytes,
            data_blocks,
            hash_start,
            algorithm: algorithm.clone(),
            hasher,
            root,
            salt,
            features,
            geometry,
        })
    }
}

fn block_bytes(word: &str, device: &DeviceUse, max: u32, what: &str) -> Result<usize, TableError> {
    let least = device.dev.limits().logical_block_size;
    scan_u32(word)
        .filter(|bytes| bytes.is_power_of_two() && (least..=max).contains(bytes))
        .map(|bytes| bytes as usize)
        .ok_or_else(|| {
            invalid(format!(
                "Invalid {what} device block size: '{word}' is no power of two from {least} to {max}"
            ))
        })
}

/// A count of blocks that can be told in sectors.
fn in_blocks(word: &str, block_bytes: usize, what: &str) -> Result<u64, TableError> {
    let sectors = block_bytes as u64 >> 9;
    parse_u64(word)
        .filter(|blocks| *blocks <= (u64::MAX >> 9) / sectors)
        .ok_or_else(|| invalid(format!("{what}: '{word}'")))
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    pairs.iter().map(byte).collect()
}

fn invalid(reason: impl Into<String>) -> TableError {
    TableError::invalid(NAME, reason)
}

/// A page of the kernel's.
const DATA_BLOCK_BYTES_MAX: u32 = 4096;
/// COMPAT: a kernel goes up to 1 GiB, and has to read such a block for one sector.
const HASH_BLOCK_BYTES_MAX: u32 = 1 << 20;
const CHECKED_BLOCKS_MAX: u64 = i32::MAX as u64;
const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
