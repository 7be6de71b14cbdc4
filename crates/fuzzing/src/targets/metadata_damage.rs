//! A good metadata image with words changed in it, sealed again so that the damage is reached; then used.
//!
//! Input: how many changes, each a block (one of those in use), a word and a value; then operations.

use std::sync::Arc;

use thinmap_persistent_data::seal;
use thinmap_sim::SimMetadataDisk;

use super::Target;
use super::metadata::{good_image, kind_of, use_image};
use crate::Input;

pub const TARGET: Target = Target {
    name: "metadata_damage",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = good_image().copy();
    damage(&disk, &mut input);
    use_image(&disk, &mut input);
}

/// Up to 15 changed words.
pub fn damage(disk: &Arc<SimMetadataDisk>, input: &mut Input<'_>) {
    let blocks = disk.written_blocks();
    for _ in 0..input.below(16) {
        let block = blocks[input.below(blocks.len())];
        let in_header = input.flag();
        let word = input.below(if in_header { 48 } else { 512 });
        let value = match input.below(6) {
            0 => input.u64(),
            1 => blocks[input.below(blocks.len())],
            2 => u64::from(input.u16()),
            3 => u64::MAX,
            4 => 1 << input.below(64),
            _ => u64::from(input.u16()) << 24 | u64::from(input.u8()),
        };
        let half = input.below(3);
        disk.damage(block, |bytes| {
            let kind = kind_of(block, bytes);
            let value = value.to_le_bytes();
            match half {
                0 => bytes[word * 8..word * 8 + 8].copy_from_slice(&value),
                1 => bytes[word * 8..word * 8 + 4].copy_from_slice(&value[..4]),
                _ => bytes[word * 8 + 4..word * 8 + 8].copy_from_slice(&value[..4]),
            }
            if let Some(kind) = kind {
                seal(kind, block, bytes);
            }
        });
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // Each operation once on a good image, then damage in each of the first blocks.
    let mut seeds: Vec<Vec<u8>> = (0..16).map(|op| vec![0, 0, op, 1, 10, 0, 40, 0]).collect();
    seeds.extend((0..24).map(|block| vec![1, block, 1, block + 4, 3, 0, 0, 12, 1, 5, 0, 7, 0]));
    seeds
}
