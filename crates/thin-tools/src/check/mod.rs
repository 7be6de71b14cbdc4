//! A check of a whole image, and the repair of leaks.
//!
//! All trees are walked once ([`crate::walk`]), every reference is counted, and the counts are compared with
//! both space maps. Damage becomes a [`Finding`]; an error is only what keeps a check from being made.

mod finding;
mod fix;
mod space_maps;
mod volumes;

use thinmap_persistent_data::{Block4k, ErrorKind, METADATA_BLOCKS_MAX, Result};
use thinmap_thin_metadata::{SUPERBLOCK_MAGIC, Superblock};

use crate::image::Image;
use crate::roots::superblock_at;
use crate::walk::{DataCounts, Role, Walk};
use crate::{Progress, RootChoice};

pub use finding::{Area, Finding, Findings, Report, Severity};
pub use fix::{clear_needs_check, fix_leaks};
pub(crate) use space_maps::{Leak, large_counts};
pub(crate) use volumes::{collect_details, collect_roots};

/// The most data blocks that a mapping can name.
const DATA_BLOCKS_MAX: u64 = 1 << 40;

/// The byte of a superblock at which its magic number begins.
const MAGIC_AT: usize = 32;

/// How far to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The superblock.
    Superblock,
    /// All but the trees of the volumes' mappings; the space maps are read but not compared.
    SkipMappings,
    /// Everything.
    All,
}

/// What a check found, and what a repair of leaks needs of it.
pub struct Outcome {
    /// For people and programs.
    pub report: Report,
    superblock: Option<Superblock>,
    leaks: Vec<Leak>,
}

/// Checks the live metadata, or a metadata snapshot.
pub fn check(image: &Image, choice: RootChoice, depth: Depth, quiet: bool) -> Outcome {
    let findings = Findings::default();
    let superblock = match superblock_at(image, 0) {
        Ok(superblock) => superblock,
        Err(error) => {
            let is_unreadable = error.kind() == ErrorKind::Io;
            let finding = Finding::fatal(Area::Superblock, error.context());
            findings.add(finding.in_block(0).unreadable(is_unreadable));
            return Outcome {
                report: Report {
                    is_foreign: !is_unreadable && !has_magic(image),
                    ..findings.into_report()
                },
                superblock: None,
                leaks: Vec::new(),
            };
        }
    };
    check_superblock(&superblock, image, &findings);
    let mut check = Check {
        image,
        superblock: &superblock,
        findings: &findings,
        quiet,
        facts: Report::default(),
        leaks: Vec::new(),
    };
    // A metadata snapshot's superblock is there or not, and has its own transaction id.
    if depth != Depth::Superblock || choice != RootChoice::Live {
        check.trees(choice, depth);
    }
    let (facts, leaks) = (check.facts, check.leaks);
    let report = Report {
        transaction_id: (facts.transaction_id).or(Some(superblock.transaction_id)),
        needs_check: superblock.needs_check(),
        data_blocks: superblock.data_space_map.nr_blocks,
        metadata_blocks: superblock.metadata_space_map.nr_blocks,
        volumes: facts.volumes,
        mappings: facts.mappings,
        metadata_blocks_used: facts.metadata_blocks_used,
        ..findings.into_report()
    };
    Outcome {
        report,
        superblock: Some(superblock),
        leaks,
    }
}

/// Whether the first block has the number that marks thin metadata.
fn has_magic(image: &Image) -> bool {
    let mut bytes = Block4k::boxed();
    let is_read = image.read_run(0, &mut bytes.0).is_ok();
    is_read && bytes.0[MAGIC_AT..MAGIC_AT + 8] == SUPERBLOCK_MAGIC.to_le_bytes()
}

fn check_superblock(superblock: &Superblock, image: &Image, findings: &Findings) {
    let fatal = |what: String| findings.add(Finding::fatal(Area::Superblock, what).in_block(0));
    if !(1..=2).contains(&superblock.version) {
        fatal(format!("has version {}, not 1 or 2", superblock.version));
    }
    let size = superblock.data_block_size;
    if !Superblock::is_data_block_size(size) {
        fatal(format!(
            "has data blocks of {size} sectors; a multiple of 128 up to 2097152 is possible"
        ));
    }
    if superblock.incompat_flags != 0 {
        fatal(format!(
            "has unknown features ({:#x})",
            superblock.incompat_flags
        ));
    }
    let (metadata, data) = (&superblock.metadata_space_map, &superblock.data_space_map);
    if metadata.nr_blocks > image.blocks() {
        let (claimed, there) = (metadata.nr_blocks, image.blocks());
        fatal(format!(
            "counts {claimed} metadata blocks, the device has {there}"
        ));
    }
    if metadata.nr_blocks == 0 || metadata.nr_blocks > METADATA_BLOCKS_MAX {
        fatal(format!("counts {} metadata blocks", metadata.nr_blocks));
    }
    if data.nr_blocks > DATA_BLOCKS_MAX {
        fatal(format!(
            "counts {} data blocks, more than can be mapped",
            data.nr_blocks
        ));
    }
}

struct Check<'a> {
    image: &'a Image,
    superblock: &'a Superblock,
    findings: &'a Findings,
    quiet: bool,
    facts: Report,
    leaks: Vec<Leak>,
}

impl Check<'_> {
    fn trees(&mut self, choice: RootChoice, depth: Depth) {
        let superblock = self.superblock;
        let metadata = &superblock.metadata_space_map;
        let total = metadata.nr_allocated.min(metadata.nr_blocks);
        let progress = Progress::new("checking", total, self.quiet);
        let blocks = metadata.nr_blocks.min(METADATA_BLOCKS_MAX);
        let mut walk = Walk::new(self.image, blocks, self.findings, &progress);
        walk.tops_only = depth != Depth::All;
        if let RootChoice::MetadataSnap(wanted) = choice {
            return self.metadata_snap(&mut walk, wanted, depth);
        }
        walk.refer_single(0);
        // The space maps first: how many bitmaps there are bounds what is counted.
        let index = self.space_map_trees(&mut walk);
        let chunks = walk
            .bitmaps
            .iter()
            .map(|(at, _)| at.saturating_add(1))
            .max()
            .unwrap_or(0);
        let chunks = chunks.min(walk.blocks.len());
        let data = DataCounts::new(superblock.data_space_map.nr_blocks, 0, chunks);
        walk.data = Some(data);
        let held = self.held_superblock(&walk);
        let sets: Vec<&Superblock> = std::iter::once(superblock).chain(held.as_ref()).collect();
        for set in &sets {
            walk.add_root(set.device_details_root, Role::Details);
            walk.add_root(set.data_mapping_root, Role::Top);
        }
        walk.run();
        for set in &sets {
            let volumes = self.volumes(&walk, set, depth);
            if std::ptr::eq(*set, superblock) {
                (self.facts.volumes, self.facts.mappings) = volumes;
            }
        }
        // References that are not known for damage would all look like leaks.
        if depth == Depth::All && self.findings.fatal() == 0 {
            self.compare(&mut walk, &index, chunks);
        }
        self.facts.metadata_blocks_used = (0..walk.blocks.len())
            .filter(|block| walk.blocks.refs(*block) > 0)
            .count() as u64;
    }

    fn metadata_snap(&mut self, walk: &mut Walk<'_>, wanted: Option<u64>, depth: Depth) {
        let choice = RootChoice::MetadataSnap(wanted);
        let roots = match crate::Roots::read(self.image, choice) {
            Ok(roots) => roots,
            Err(error) => {
                let is_unreadable = error.kind() == ErrorKind::Io;
                let finding = Finding::fatal(Area::Superblock, error.to_string());
                return self.findings.add(finding.unreadable(is_unreadable));
            }
        };
        self.facts.transaction_id = Some(roots.superblock.transaction_id);
        if depth == Depth::Superblock {
            return;
        }
        walk.add_root(roots.superblock.device_details_root, Role::Details);
        walk.add_root(roots.superblock.data_mapping_root, Role::Top);
        walk.run();
        let volumes = self.volumes(walk, &roots.superblock, depth);
        (self.facts.volumes, self.facts.mappings) = volumes;
    }

    fn held_superblock(&self, walk: &Walk<'_>) -> Option<Superblock> {
        let block = self.superblock.held_root;
        if block == 0 {
            return None;
        }
        let held = self.read_held(walk, block);
        if let Err(error) = &held {
            let what = format!("of the metadata snapshot: {}", error.context());
            let finding = Finding::fatal(Area::Superblock, what).in_block(block);
            let is_unreadable = error.kind() == ErrorKind::Io;
            self.findings.add(finding.unreadable(is_unreadable));
        }
        held.ok()
    }

    fn read_held(&self, walk: &Walk<'_>, block: u64) -> Result<Superblock> {
        if block >= walk.blocks.len() {
            let what = "lies past the end of the metadata device";
            return Err(thinmap_thin_metadata::MetadataError::corrupt(block, what));
        }
        walk.refer_single(block);
        superblock_at(self.image, block)
    }
}
