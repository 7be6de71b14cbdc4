//! A metadata image made of nothing but the input: any bytes in any of the first blocks, sealed as any kind or not at all.
//!
//! Input: records of block, kind (the fifth: as it is), length and bytes, zeroes to the end of the block, until block 255; then
//! operations.

use thinmap_persistent_data::seal;
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{MetadataDevice, PoolMetadata};
use thinmap_units::{DataBlock, MetaBlock, VirtBlock};

use super::Target;
use super::metadata::{KINDS, id, kind_of, options, use_image};
use crate::Input;

pub const TARGET: Target = Target {
    name: "metadata_image",
    run,
    seeds,
};

/// As many as a volume with a few snapshots needs, and more than an index entry needs to be wrong about.
const BLOCKS: u64 = 64;
const END: u8 = 255;

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = SimMetadataDisk::new(BLOCKS);
    while !input.is_empty() {
        let block = input.u8();
        if block == END {
            break;
        }
        let block = u64::from(block) % BLOCKS;
        let kind = KINDS.get(input.below(KINDS.len() + 1));
        let len = usize::from(input.u16()).min(4096);
        let content = input.bytes(len);
        disk.damage(block, |bytes| {
            bytes.fill(0);
            bytes[..content.len()].copy_from_slice(content);
            if let Some(kind) = kind {
                seal(*kind, block, bytes);
            }
        });
    }
    use_image(&disk, &mut input);
}

/// Small pools, as records.
fn seeds() -> Vec<Vec<u8>> {
    (0..4)
        .map(|volumes| records(&small_pool(volumes)))
        .collect()
}

fn small_pool(volumes: u64) -> std::sync::Arc<SimMetadataDisk> {
    let disk = SimMetadataDisk::new(BLOCKS);
    let mut pool = PoolMetadata::open(disk.clone(), &options(true)).expect("formatted");
    pool.resize_data(DataBlock(100)).expect("resized");
    for volume in 0..volumes {
        if volume < 2 {
            pool.create_thin(id(volume)).expect("created");
        } else {
            pool.create_snap(id(volume), id(0)).expect("snapped");
        }
        for v in 0..6 {
            let data = pool.alloc_data_block().expect("allocated");
            pool.insert(id(volume), VirtBlock(v * volume), data)
                .expect("mapped");
        }
    }
    pool.commit().expect("committed");
    disk
}

fn records(disk: &std::sync::Arc<SimMetadataDisk>) -> Vec<u8> {
    let mut seed = Vec::new();
    let mut content = thinmap_thin_metadata::Block4k::boxed();
    for block in disk.written_blocks() {
        disk.read(MetaBlock(block), &mut content).expect("read");
        let kind = kind_of(block, &content.0);
        let kind = KINDS.iter().position(|k| Some(*k) == kind);
        let used = content
            .0
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        seed.push(block as u8);
        seed.push(kind.unwrap_or(KINDS.len()) as u8);
        seed.extend_from_slice(&(used as u16).to_le_bytes());
        seed.extend_from_slice(&content.0[..used]);
    }
    seed.push(END);
    // Reads, a snapshot, a write, a commit.
    seed.extend_from_slice(&[0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 15, 0, 3, 0, 5, 7, 0, 0, 0]);
    seed
}
