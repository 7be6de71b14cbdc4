//! A good metadata image with words changed and whole blocks gone, repaired.
//!
//! Input: damage as in `metadata_damage`, then up to seven blocks that are zeroed, repeated elsewhere or broken, then what the
//! administrator says. What `repair` writes must be without a fault to `check`, and `check` must end on the damage itself.

use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;
use thinmap_thin_metadata::{Block4k, MetadataDevice};
use thinmap_thin_tools::check::{Depth, check};
use thinmap_thin_tools::repair::{RepairOptions, repair};
use thinmap_thin_tools::{Access, Image, RootChoice};
use thinmap_units::MetaBlock;

use super::Target;
use super::metadata::good_image;
use super::metadata_damage::damage;
use crate::Input;

pub const TARGET: Target = Target {
    name: "metadata_repair",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = good_image().copy();
    let is_good = bytes.iter().all(|byte| *byte == 0);
    damage(&disk, &mut input);
    let blocks = disk.written_blocks();
    for _ in 0..input.below(8) {
        let block = blocks[input.below(blocks.len())];
        match input.below(3) {
            0 => disk.damage(block, |bytes| bytes.fill(0)),
            1 => {
                let mut other = Block4k::boxed();
                let from = blocks[input.below(blocks.len())];
                disk.read(MetaBlock(from), &mut other).expect("read");
                disk.damage(block, |bytes| bytes.copy_from_slice(&other.0));
            }
            _ => disk.damage(block, |bytes| bytes[0] ^= 1),
        }
    }
    let options = RepairOptions {
        transaction_id: input.flag().then(|| input.u64()),
        data_block_size: input.flag().then(|| input.u32()),
        nr_data_blocks: input.flag().then(|| input.u64()),
        quiet: true,
    };
    let (damaged, repaired) = (file(&*disk), file(&*disk));
    let source = Image::open(damaged.path(), Access::Read).expect("the damaged image");
    check(&source, RootChoice::Live, Depth::All, true);
    let output = Image::open(repaired.path(), Access::Write).expect("the output");
    let done = repair(&source, &output, &options);
    match done {
        Ok(report) => {
            assert!(
                !is_good || report.volumes.iter().all(|volume| volume.is_whole()),
                "nothing was damaged: {report:?}"
            );
            let outcome = check(&output, RootChoice::Live, Depth::All, true).report;
            assert_eq!(outcome.findings, [], "what repair wrote is not clean");
        }
        Err(error) => assert!(!is_good, "nothing was damaged: {error}"),
    }
}

/// The device as a file.
fn file(disk: &dyn MetadataDevice) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    let blocks = disk.size();
    file.as_file().set_len(blocks.0 * 4096).expect("its size");
    let mut content = Block4k::boxed();
    for block in 0..blocks.0 {
        disk.read(MetaBlock(block), &mut content).expect("read");
        if content.0.iter().any(|byte| *byte != 0) {
            file.as_file()
                .write_all_at(&content.0, block * 4096)
                .expect("written");
        }
    }
    file
}

fn seeds() -> Vec<Vec<u8>> {
    // Nothing; each kind of damage to each of the first blocks; the superblock lost and replaced.
    let mut seeds = vec![Vec::new()];
    for block in 0..24 {
        seeds.push(vec![1, block, 1, block + 4, 3, 0, 0, 0]);
        for kind in 0..3 {
            seeds.push(vec![0, 1, block, kind, block + 1]);
        }
    }
    let mut lost = vec![0, 1, 0, 0, 1];
    lost.extend(3u64.to_le_bytes());
    lost.push(1);
    lost.extend(128u32.to_le_bytes());
    lost.push(1);
    lost.extend(4000u64.to_le_bytes());
    seeds.push(lost);
    seeds
}
