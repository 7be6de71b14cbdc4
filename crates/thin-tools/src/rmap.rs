//! `rmap`: which volumes' blocks are on given blocks of the data device.
//!
//! A node below which nothing lies in the regions is remembered, so that what volumes share is searched
//! once. Memory goes with what is found, and a bit for each metadata block.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thinmap_persistent_data::{METADATA_BLOCKS_MAX, MetadataError};

use crate::parallel::ordered;
use crate::source::{Source, Volume};
use crate::{Progress, Run, Times, ToolError};

/// Leaves in one piece of work.
const PIECE_LEAVES: usize = 256;

/// Blocks of a volume on the data device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The volume.
    pub dev: u64,
    /// Its blocks, and where they are.
    pub run: Run,
}

/// The blocks of the data device that `text` means: `BEGIN..END`, the end not included.
///
/// # Errors
/// What is wrong with it.
pub fn parse_region(text: &str) -> Result<Range<u64>, String> {
    let wrong = |what: &str| format!("region '{text}' {what}: it is BEGIN..END, END not included");
    let (begin, end) = text.split_once("..").ok_or_else(|| wrong("has no '..'"))?;
    let number = |word: &str| {
        word.trim()
            .parse::<u64>()
            .map_err(|_| wrong("is not made of numbers"))
    };
    let (begin, end) = (number(begin)?, number(end)?);
    if end <= begin {
        return Err(wrong("is empty"));
    }
    Ok(begin..end)
}

/// Everything on the blocks in `regions`, by data block, then volume, then block of the volume.
///
/// # Errors
/// `Metadata`: damage.
pub fn rmap(source: &Source, regions: &[Range<u64>], quiet: bool) -> Result<Vec<Found>, ToolError> {
    let regions = merged(regions);
    let volumes = source.volumes()?;
    let mapped = volumes.iter().map(|v| v.details.mapped_blocks).sum();
    let progress = Progress::new("searching", mapped, quiet);
    let barren = Barren::new();
    let mut found: Vec<Found> = Vec::new();
    let jobs = Jobs {
        source,
        barren: &barren,
        volumes: volumes.into_iter(),
        at: None,
    };
    let work = |job| search(source, &barren, &regions, job);
    ordered(jobs, work, |(piece, blocks)| {
        progress.add(blocks);
        for next in piece {
            match found.last_mut() {
                Some(last) if last.dev == next.dev && Times::Ignored.join(&last.run, &next.run) => {
                    last.run.len += next.run.len;
                }
                _ => found.push(next),
            }
        }
        Ok(())
    })?;
    found.sort_by_key(|found| found.run.data);
    Ok(found)
}

/// thin_rmap's lines.
///
/// # Errors
/// `Output`.
pub fn print(found: &[Found], out: &mut dyn Write) -> Result<(), ToolError> {
    for Found { dev, run } in found {
        let (data_end, end) = (run.data + run.len, run.end());
        writeln!(
            out,
            "data {}..{data_end} -> thin({dev}) {}..{end}",
            run.data, run.thin
        )?;
    }
    out.flush()?;
    Ok(())
}

/// A list of objects.
pub fn json(found: &[Found]) -> serde_json::Value {
    let object = |Found { dev, run }: &Found| {
        serde_json::json!({
            "data_begin": run.data,
            "dev": dev,
            "thin_begin": run.thin,
            "length": run.len,
        })
    };
    found.iter().map(object).collect()
}

/// The regions in order, none touching another.
fn merged(regions: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = regions.to_vec();
    sorted.sort_by_key(|region| region.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for region in sorted {
        match merged.last_mut() {
            Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
            _ => merged.push(region),
        }
    }
    merged
}

/// Leaves in which nothing was found.
struct Barren(Vec<AtomicU64>);

impl Barren {
    fn new() -> Self {
        Self(
            (0..METADATA_BLOCKS_MAX.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    fn mark(&self, block: u64) {
        if let Some(word) = self.0.get((block / 64) as usize) {
            word.fetch_or(1 << (block % 64), Relaxed);
        }
    }

    fn has(&self, block: u64) -> bool {
        let word = self.0.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Relaxed) >> (block % 64) & 1 != 0)
    }
}

/// Leaves of a volume to search.
struct Job {
    dev: u64,
    leaves: Vec<u64>,
}

struct Jobs<'a> {
    source: &'a Source,
    barren: &'a Barren,
    volumes: std::vec::IntoIter<Volume>,
    /// The volume at hand, and what is left of it.
    at: Option<(u64, crate::nodes::Leaves<'a>)>,
}

impl Jobs<'_> {
    fn step(&mut self) -> Result<Option<Job>, ToolError> {
        loop {
            let Some((dev, leaves)) = &mut self.at else {
                let Some(volume) = self.volumes.next() else {
                    return Ok(None);
                };
                let leaves = self.source.nodes().leaves(volume.root);
                self.at = Some((volume.id, leaves));
                continue;
            };
            let mut wanted = Vec::new();
            let mut seen = 0_u64;
            for leaf in leaves.by_ref() {
                let leaf = leaf?;
                seen += 1;
                if !self.barren.has(leaf) {
                    wanted.push(leaf);
                }
                // A damaged tree must not make this run on without a look at its keys.
                if wanted.len() == PIECE_LEAVES || seen > METADATA_BLOCKS_MAX {
                    break;
                }
            }
            if seen > METADATA_BLOCKS_MAX {
                let what = "btree has more leaves than the device has blocks";
                return Err(MetadataError::corrupt(0, what).into());
            }
            let dev = *dev;
            if seen == 0 {
                self.at = None;
                continue;
            }
            if !wanted.is_empty() {
                return Ok(Some(Job {
                    dev,
                    leaves: wanted,
                }));
            }
        }
    }
}

impl Iterator for Jobs<'_> {
    type Item = Result<Job, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// What is in the regions, and how many mappings were looked at.
fn search(
    source: &Source,
    barren: &Barren,
    regions: &[Range<u64>],
    job: Job,
) -> Result<(Vec<Found>, u64), ToolError> {
    source.nodes().read_ahead(&job.leaves);
    let mut found: Vec<Found> = Vec::new();
    let mut blocks = 0;
    for leaf in &job.leaves {
        let before = found.len();
        for run in source
            .nodes()
            .runs(std::slice::from_ref(leaf), Times::Ignored)?
        {
            blocks += run.len;
            for part in parts(&run, regions) {
                found.push(Found {
                    dev: job.dev,
                    run: part,
                });
            }
        }
        if found.len() == before {
            barren.mark(*leaf);
        }
    }
    Ok((found, blocks))
}

/// The parts of `run` in the regions, by block.
fn parts<'a>(run: &'a Run, regions: &'a [Range<u64>]) -> impl Iterator<Item = Run> + 'a {
    let end = run.data + run.len;
    let first = regions.partition_point(|region| region.end <= run.data);
    let inside = regions[first..]
        .iter()
        .take_while(move |region| region.start < end);
    inside.map(move |region| {
        let (from, to) = (region.start.max(run.data), region.end.min(end));
        Run {
            thin: run.thin + (from - run.data),
            data: from,
            len: to - from,
            time: run.time,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_as_thin_rmap_reads_them() {
        assert_eq!(parse_region("5..45"), Ok(5..45));
        for bad in [
            "", "5", "5.45", "5..", "..5", "5..5", "6..5", "a..b", "5...9",
        ] {
            let error = parse_region(bad).expect_err(bad);
            assert!(error.contains(&format!("'{bad}'")), "{error}");
        }
    }

    #[test]
    fn touching_regions_are_one() {
        assert_eq!(merged(&[12..22, 11..13, 30..31, 31..40]), [11..22, 30..40]);
        let run = Run {
            thin: 100,
            data: 10,
            len: 25,
            time: 0,
        };
        let found: Vec<_> = parts(&run, &[0..11, 11..12, 20..21, 34..99, 200..201])
            .map(|part| (part.thin, part.data, part.len))
            .collect();
        assert_eq!(
            found,
            [(100, 10, 1), (101, 11, 1), (110, 20, 1), (124, 34, 1)]
        );
    }
}
