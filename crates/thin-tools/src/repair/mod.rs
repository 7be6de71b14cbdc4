//! Repair: what survives of a damaged image, written as a clean one elsewhere, and a report of what does not.
//!
//! The algorithm, and why nothing stale is taken for live, is in `docs/internals/repair.md`. In short:
//! `scan` looks at every block and says what it is by its checksum; `candidates` and `choice` find the roots
//! when the superblock is lost; `rescue` finds the volumes, by the live
//! roots where they can be read and by what was scanned where not; `copy` writes what was found, shared
//! nodes shared again; `space_maps` counts references in the new image and writes its space maps.
//!
//! INVARIANT: the input is only read. The output has no superblock until all else is on it.

mod candidates;
mod choice;
mod copy;
mod in_use;
mod report;
mod rescue;
mod scan;
mod space_maps;
mod superblock;
mod tree;

use thinmap_persistent_data::{Block4k, ErrorKind, MetadataDevice, MetadataError, Result};
use thinmap_thin_metadata::Superblock;
use thinmap_units::MetaBlock;

use crate::check::{Depth, Finding, Findings, check};
use crate::image::Image;
use crate::walk::{Role, Walk};
use crate::{Progress, RootChoice};

pub use report::{LostRange, RepairReport, RescuedVolume};

/// What the user knows better than the image.
#[derive(Clone, Copy, Default, Debug)]
pub struct RepairOptions {
    /// The pool's transaction id.
    pub transaction_id: Option<u64>,
    /// The pool's data block size in sectors.
    pub data_block_size: Option<u32>,
    /// Blocks of the data device.
    pub nr_data_blocks: Option<u64>,
    /// Show no progress.
    pub quiet: bool,
}

/// Writes what survives on `input` to `output`, all of which is overwritten.
///
/// # Errors
/// `Inval` when the superblock is lost and the options do not replace it, `NoSpace` when the output is too
/// small, `Io` for the devices', `Corrupt` when there is no pool on the input at all.
pub fn repair(input: &Image, output: &Image, options: &RepairOptions) -> Result<RepairReport> {
    let progress = Progress::new("scanning", input.blocks(), options.quiet);
    let blocks = input
        .blocks()
        .min(thinmap_persistent_data::METADATA_BLOCKS_MAX);
    let (findings, scratch) = (Findings::default(), Findings::default());
    // What a scan turns up need not be whole, so its findings are nobody's.
    let mut candidates = Walk::new(input, blocks, &scratch, &progress);
    let scan = scan::Scan::of(&candidates);
    let superblock::Found {
        mut superblock,
        origin,
        mut known,
    } = superblock::find(&mut candidates, &scan, options).map_err(|e| on(input, &e))?;
    // Candidates gave blocks roles that they may not have in the pool that was chosen.
    drop(candidates);
    let mut walk = Walk::new(input, blocks, &findings, &progress);
    superblock::adjust(&mut superblock, options);
    let mut rescued = rescue::rescue(&mut walk, &scan, &superblock, &scratch);
    drop_old_superblock(output)?;
    let mut writer = copy::Writer::new(&walk, output);
    let roots = writer.mappings(&rescued, &walk)?;
    let time_at_end = superblock::settle_times(&mut superblock, &mut rescued, writer.time());
    let (top, details) = writer.volumes(&rescued, &roots)?;
    let (used, data_end) = writer.finish()?;
    superblock::cover(&mut superblock, data_end, origin, options).map_err(|e| on(input, &e))?;
    let mut report = report::of(&rescued, &superblock, origin);
    report.time_at_end = time_at_end;
    let told = report.volumes.iter().map(|volume| volume.id);
    for id in told.chain(report.lost_volumes.iter().map(|(id, _)| *id)) {
        known.remove(&id);
    }
    report.possibly_missing = known.into_iter().collect();
    let mut new = Superblock {
        flags: 0,
        held_root: 0,
        data_mapping_root: top,
        device_details_root: details,
        metadata_nr_blocks: output.blocks(),
        ..superblock
    };
    space_maps::write(output, &mut new, used, options.quiet)?;
    let sealed = new.pack();
    output
        .write(&[(MetaBlock(0), &sealed)])
        .and_then(|()| output.flush())
        .map_err(|e| {
            on(
                output,
                &MetadataError::io(e, "cannot write the superblock of the output"),
            )
        })?;
    drop(walk);
    report.damage = findings.into_report().findings;
    verify(output, options.quiet)?;
    Ok(report)
}

/// The error with the path of the one of the two images that it is about.
fn on(image: &Image, error: &MetadataError) -> MetadataError {
    MetadataError::new(error.kind(), format!("{}: {error}", image.path().display()))
}

/// An interrupted repair must not look like a pool.
fn drop_old_superblock(output: &Image) -> Result<()> {
    let zeroes = Block4k::boxed();
    output
        .write(&[(MetaBlock(0), &zeroes)])
        .and_then(|()| output.flush())
        .map_err(|e| on(output, &MetadataError::io(e, "cannot write to the output")))
}

/// What was written is read back and checked.
fn verify(output: &Image, quiet: bool) -> Result<()> {
    let outcome = check(output, RootChoice::Live, Depth::All, quiet);
    match outcome.report.findings.first() {
        None => Ok(()),
        Some(finding) => {
            let what = format!("the output is not right, do not use it: {finding}");
            Err(on(output, &MetadataError::new(ErrorKind::Corrupt, what)))
        }
    }
}

fn add_trees(walk: &mut Walk<'_>, superblock: &Superblock) {
    // 0 stands for a tree of which nothing is left.
    if superblock.device_details_root != 0 {
        walk.add_root(superblock.device_details_root, Role::Details);
    }
    walk.add_root(superblock.data_mapping_root, Role::Top);
    walk.run();
}

fn first_finding(findings: Findings) -> Option<Finding> {
    findings.into_report().findings.into_iter().next()
}
