//! `dump`: a pool's metadata as text, as much of it as is asked for, in one pass and bounded memory.
//!
//! Leaves are read, decoded and formatted on all cores; pieces are joined in order, with the run at each
//! seam made one where it goes on.

mod format;

use std::io::Write;

use thinmap_persistent_data::{ErrorKind, MetadataError};
use thinmap_thin_metadata::Superblock;

use crate::parallel::ordered;
use crate::source::{Source, Volume};
use crate::{Progress, Run, Times, ToolError};

pub use format::{Format, Human, Json, Xml};

/// Leaves in one piece of work.
const PIECE_LEAVES: usize = 64;

/// What to dump.
#[derive(Clone, Debug, Default)]
pub struct DumpOptions {
    /// Only these volumes; all when empty.
    pub dev_ids: Vec<u64>,
    /// Volumes without their mappings.
    pub skip_mappings: bool,
    /// No progress bar.
    pub quiet: bool,
    /// Put these into the superblock's place.
    pub overrides: Overrides,
}

/// Facts of the superblock to replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The pool's transaction id.
    pub transaction_id: Option<u64>,
    /// Sectors in a data block.
    pub data_block_size: Option<u32>,
    /// Blocks of the data device.
    pub nr_data_blocks: Option<u64>,
}

/// What the text says of the pool as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// Snapshots taken.
    pub time: u32,
    /// User space's counter.
    pub transaction: u64,
    /// Bit 0: to be checked.
    pub flags: u32,
    /// The format's version.
    pub version: u32,
    /// Sectors in a data block.
    pub data_block_size: u32,
    /// Blocks of the data device.
    pub nr_data_blocks: u64,
    /// Block of the metadata snapshot.
    pub metadata_snap: Option<u64>,
}

impl PoolFacts {
    /// The facts in a superblock. That of a metadata snapshot knows neither the data device's size nor of
    /// itself; the output is the same as of thin_dump.
    pub fn of(superblock: &Superblock, overrides: &Overrides) -> Self {
        let held = superblock.held_root;
        Self {
            time: superblock.time,
            transaction: overrides
                .transaction_id
                .unwrap_or(superblock.transaction_id),
            flags: superblock.flags,
            version: superblock.version,
            data_block_size: overrides
                .data_block_size
                .unwrap_or(superblock.data_block_size),
            nr_data_blocks: overrides
                .nr_data_blocks
                .unwrap_or(superblock.data_space_map.nr_blocks),
            metadata_snap: (held != 0).then_some(held),
        }
    }
}

/// Writes the metadata of `source` to `out`.
///
/// # Errors
/// `Metadata`: damage; what was written by then is not complete. `Output`.
pub fn dump<F: Format>(
    source: &Source,
    options: &DumpOptions,
    format: &F,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let mut volumes = source.volumes()?;
    if !options.dev_ids.is_empty() {
        volumes.retain(|volume| options.dev_ids.contains(&volume.id));
    }
    let progress = Progress::new(
        "dumping",
        volumes.iter().map(|v| v.details.mapped_blocks).sum(),
        options.quiet,
    );
    let mut text = Vec::new();
    format.begin(
        &PoolFacts::of(source.superblock(), &options.overrides),
        &mut text,
    );
    let jobs = Jobs {
        source,
        skip_mappings: options.skip_mappings,
        volumes: volumes.into_iter(),
        leaves: None,
    };
    let mut seams = Seams::new(format);
    let work = |job| piece(source, format, job);
    ordered(jobs, work, |piece| {
        let Some(piece) = piece else { return Ok(()) };
        if let Piece::Runs(runs) = &piece {
            progress.add(runs.blocks);
        }
        seams.add(piece, &mut text)?;
        if text.len() >= 1 << 16 {
            out.write_all(&text)?;
            text.clear();
        }
        Ok(())
    })?;
    format.end(&mut text);
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

/// A piece of work.
enum Job {
    Begin(Volume),
    Leaves(Vec<u64>),
    End,
}

/// The pieces of work, volume by volume.
struct Jobs<'a> {
    source: &'a Source,
    skip_mappings: bool,
    volumes: std::vec::IntoIter<Volume>,
    /// What is left of the volume at hand.
    leaves: Option<crate::nodes::Leaves<'a>>,
}

impl Jobs<'_> {
    fn step(&mut self) -> Result<Option<Job>, ToolError> {
        let Some(leaves) = &mut self.leaves else {
            let Some(volume) = self.volumes.next() else {
                return Ok(None);
            };
            let root = (!self.skip_mappings).then_some(volume.root);
            self.leaves = Some(self.source.nodes().leaves_of(root));
            return Ok(Some(Job::Begin(volume)));
        };
        let piece: Vec<u64> = leaves.take(PIECE_LEAVES).collect::<Result<_, _>>()?;
        if piece.is_empty() {
            self.leaves = None;
            return Ok(Some(Job::End));
        }
        Ok(Some(Job::Leaves(piece)))
    }
}

impl Iterator for Jobs<'_> {
    type Item = Result<Job, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// What became of a piece of work.
enum Piece {
    Begin(Volume),
    Runs(TextRuns),
    End,
}

/// The runs of some leaves. Those at the ends may go on in the pieces before and behind.
struct TextRuns {
    first: Run,
    /// The runs between as text.
    middle: Vec<u8>,
    last: Option<Run>,
    /// Blocks mapped in all.
    blocks: u64,
}

fn piece<F: Format>(source: &Source, format: &F, job: Job) -> Result<Option<Piece>, ToolError> {
    let leaves = match job {
        Job::Begin(volume) => return Ok(Some(Piece::Begin(volume))),
        Job::End => return Ok(Some(Piece::End)),
        Job::Leaves(leaves) => leaves,
    };
    let runs = source.nodes().runs(&leaves, Times::Kept)?;
    let Some((first, rest)) = runs.split_first() else {
        return Ok(None);
    };
    let mut middle = Vec::new();
    if let Some((_, inner)) = rest.split_last() {
        for run in inner {
            middle.extend_from_slice(format.between());
            format.run(run, &mut middle);
        }
    }
    Ok(Some(Piece::Runs(TextRuns {
        first: *first,
        middle,
        last: rest.last().copied(),
        blocks: runs.iter().map(|run| run.len).sum(),
    })))
}

/// Joins pieces.
struct Seams<'a, F> {
    format: &'a F,
    /// The run that the next piece may go on with.
    open: Option<Run>,
    /// Runs of this volume were written.
    any_run: bool,
    any_volume: bool,
}

impl<'a, F: Format> Seams<'a, F> {
    fn new(format: &'a F) -> Self {
        Self {
            format,
            open: None,
            any_run: false,
            any_volume: false,
        }
    }

    fn add(&mut self, piece: Piece, text: &mut Vec<u8>) -> Result<(), ToolError> {
        match piece {
            Piece::Begin(volume) => {
                self.format.begin_device(&volume, self.any_volume, text);
                self.any_volume = true;
                self.any_run = false;
            }
            Piece::Runs(runs) => self.runs(runs, text)?,
            Piece::End => {
                self.close(text);
                self.format.end_device(text);
            }
        }
        Ok(())
    }

    fn runs(&mut self, runs: TextRuns, text: &mut Vec<u8>) -> Result<(), ToolError> {
        match &mut self.open {
            Some(open) if runs.first.thin < open.end() => {
                let what = format!("the mappings do not ascend at block {}", runs.first.thin);
                let error = MetadataError::new(ErrorKind::Corrupt, what);
                return Err(error.into());
            }
            Some(open) if Times::Kept.join(open, &runs.first) => open.len += runs.first.len,
            _ => {
                self.close(text);
                self.open = Some(runs.first);
            }
        }
        if let Some(last) = runs.last {
            self.close(text);
            text.extend_from_slice(&runs.middle);
            self.open = Some(last);
        }
        Ok(())
    }

    /// Writes the open run.
    fn close(&mut self, text: &mut Vec<u8>) {
        if let Some(run) = self.open.take() {
            if self.any_run {
                text.extend_from_slice(self.format.between());
            }
            self.any_run = true;
            self.format.run(&run, text);
        }
    }
}
