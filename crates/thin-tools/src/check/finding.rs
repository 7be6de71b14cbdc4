//! What a check can find, and how bad it is.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Findings kept; more are only counted.
const FINDINGS_MAX: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Of no consequence: a total that is wrong by itself.
    Note,
    /// Space is lost: a block is counted higher than it is used. Nothing of the content is in doubt.
    Leak,
    /// Content is lost, or a block in use may be given to somebody else.
    Fatal,
}

/// The part of the metadata that a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The superblock, or a metadata snapshot's copy of one.
    Superblock,
    /// The tree of what is known of each volume.
    Details,
    /// The volumes' mappings.
    Mappings,
    /// The space maps.
    SpaceMaps,
}

/// Something wrong with an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Where.
    pub area: Area,
    /// The metadata block at fault, when one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_block: Option<u64>,
    /// The volume that suffers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<u64>,
    /// Blocks of the volume: first, and one past the last (`null`: all that follow).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<(u64, Option<u64>)>,
    /// The device gave an error: what the block holds may be whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unreadable: bool,
    /// What is wrong, to follow the names above.
    pub what: String,
}

impl Finding {
    pub(crate) fn new(severity: Severity, area: Area, what: impl Into<String>) -> Self {
        Self {
            severity,
            area,
            metadata_block: None,
            volume: None,
            blocks: None,
            unreadable: false,
            what: what.into(),
        }
    }

    pub(crate) fn fatal(area: Area, what: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, area, what)
    }

    pub(crate) fn in_block(mut self, block: u64) -> Self {
        self.metadata_block = Some(block);
        self
    }

    pub(crate) fn unreadable(mut self, is_unreadable: bool) -> Self {
        self.unreadable = is_unreadable;
        self
    }

    pub(crate) fn of_volume(mut self, id: u64) -> Self {
        self.volume = Some(id);
        self
    }

    pub(crate) fn at_blocks(mut self, first: u64, end: Option<u64>) -> Self {
        self.blocks = Some((first, end));
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(volume) = self.volume {
            write!(f, "volume {volume}")?;
            match self.blocks {
                Some((first, Some(end))) if end == first + 1 => write!(f, ", block {first}")?,
                Some((first, Some(end))) => write!(f, ", blocks {first} to {}", end - 1)?,
                Some((0, None)) => write!(f, ", all blocks")?,
                Some((first, None)) => write!(f, ", blocks from {first} on")?,
                None => {}
            }
            write!(f, ": ")?;
        }
        if let Some(block) = self.metadata_block {
            write!(f, "metadata block {block} ")?;
        }
        f.write_str(&self.what)
    }
}

/// Findings as they come in from many threads.
#[derive(Debug, Default)]
pub struct Findings {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: Vec<Finding>,
    more: u64,
    unreadable: u64,
    fatal: u64,
    leaks: u64,
}

impl Findings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, finding: Finding) {
        let mut inner = self.lock();
        match finding.severity {
            Severity::Fatal => inner.fatal += 1,
            Severity::Leak => inner.leaks += 1,
            Severity::Note => {}
        }
        inner.unreadable += u64::from(finding.unreadable);
        if inner.kept.len() < FINDINGS_MAX {
            inner.kept.push(finding);
        } else {
            inner.more += 1;
        }
    }

    pub(crate) fn fatal(&self) -> u64 {
        self.lock().fatal
    }

    pub(crate) fn into_report(self) -> Report {
        let inner = self
            .inner
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let mut findings = inner.kept;
        findings.sort_by_key(|f| (std::cmp::Reverse(f.severity), f.volume, f.metadata_block));
        Report {
            fatal: inner.fatal,
            leaks: inner.leaks,
            not_listed: inner.more,
            unreadable: inner.unreadable,
            findings,
            ..Report::default()
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Findings by which content is lost or in danger.
    pub fatal: u64,
    /// Blocks whose space is lost.
    pub leaks: u64,
    /// Findings that are counted but not listed.
    pub not_listed: u64,
    /// Blocks that the device gives an error for.
    pub unreadable: u64,
    /// The first block was read and is no superblock: this may never have been thin metadata.
    #[serde(skip)]
    pub is_foreign: bool,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// The transaction id of the pool, or of its metadata snapshot if that was checked; `None` when the superblock
    /// cannot be read.
    pub transaction_id: Option<u64>,
    /// Whether the superblock asks for a check.
    pub needs_check: bool,
    /// Volumes.
    pub volumes: u64,
    /// Mappings of all volumes, shared ones counted for each.
    pub mappings: u64,
    /// Data blocks of the pool.
    pub data_blocks: u64,
    /// Metadata blocks in use.
    pub metadata_blocks_used: u64,
    /// Metadata blocks there are.
    pub metadata_blocks: u64,
}
