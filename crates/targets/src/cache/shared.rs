//! What lines, requests under way, control threads and the worker share.
//!
//! INVARIANT: a mapping that has come or gone is in `changes` from then until a commit that holds it is durable; a block of the cache
//! is used again only after that (`docs/internals/cache.md` has all of them).

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};
use thinmap_block::{BlockDevice, Io};
use thinmap_dm::TableEvent;
use thinmap_dm::kit::Copier;
use thinmap_runtime::ActorHandle;
use thinmap_units::Sector;

use super::args::IoMode;
use super::bits::Bits;
use super::metadata::Metadata;
use super::policy::{Smq, Work};
use super::traffic::Traffic;

/// Copy buffers: 2 MiB, in pieces of at most 128 KiB.
const PIECE_SECTORS_MAX: u64 = 256;
const BUFFERS: usize = 16;

/// Sizes, in sectors and blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Sectors.
    pub block: u64,
    /// Whole ones.
    pub origin_blocks: u64,
    pub cache_blocks: u32,
    /// Sectors, a multiple of `block`.
    pub discard_block: u64,
    pub discard_blocks: u64,
}

/// How far the metadata can be changed, worse each time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Health {
    Write,
    ReadOnly,
    Fail,
}

/// What the status counts.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counts {
    pub read_hits: u32,
    pub read_misses: u32,
    pub write_hits: u32,
    pub write_misses: u32,
    pub demotions: u32,
    pub promotions: u32,
}

impl Counts {
    /// Those that the metadata keep: read hits and misses, write hits and misses.
    pub fn kept(&self) -> [u32; 4] {
        [
            self.read_hits,
            self.read_misses,
            self.write_hits,
            self.write_misses,
        ]
    }

    pub fn from_kept([read_hits, read_misses, write_hits, write_misses]: [u32; 4]) -> Self {
        Self {
            read_hits,
            read_misses,
            write_hits,
            write_misses,
            ..Self::default()
        }
    }

    pub fn count(&mut self, write: bool, hit: bool) {
        let count = match (write, hit) {
            (false, true) => &mut self.read_hits,
            (false, false) => &mut self.read_misses,
            (true, true) => &mut self.write_hits,
            (true, false) => &mut self.write_misses,
        };
        *count = count.wrapping_add(1);
    }
}

/// A mapping that has come or gone.
pub(super) struct Change {
    pub cblock: u32,
    pub oblock: Option<u64>,
    pub then: Then,
}

/// What follows when a change is durable.
pub(super) enum Then {
    Nothing,
    /// A demotion has ended.
    Left(Work),
    /// A block is cached no more: this write to it goes to the origin.
    Send(u64, Io),
}

impl Then {
    /// Whether somebody waits for it.
    pub fn is_urgent(&self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

/// See the module.
pub(super) struct State {
    pub policy: Smq,
    /// One for each block of the cache.
    pub dirty: Bits,
    pub discards: Bits,
    pub traffic: Traffic,
    pub changes: Vec<Change>,
    /// Blocks of the origin that have come and that no commit holds, where a next daemon may have to find them.
    pub fresh: HashSet<u64>,
    /// Changes are being committed.
    pub committing: bool,
    /// Changes can never be committed: what depends on them is not durable.
    pub lost: bool,
    /// Wait for a commit.
    pub flushes: Vec<Io>,
    /// Writes that end after a commit: FUA ones, whose data are durable, and those to fresh blocks.
    pub completions: Vec<Io>,
    /// Copies in the background, and what follows them.
    pub migrations: u64,
    /// Requests of the guest's under way, and all that there were.
    pub in_flight: u64,
    pub requests: u64,
    /// A request under way ends the policy's round.
    pub in_round: bool,
    /// No request was under way for a second, and `requests` has not changed since.
    pub idle_at: Option<u64>,
    pub counts: Counts,
    pub health: Health,
    /// Between a resume and a suspend: migrations may begin.
    pub running: bool,
    /// The worker has panicked.
    pub dead: bool,
    /// Sectors.
    pub migration_threshold: u64,
    pub discard_passdown: bool,
}

impl State {
    /// As before the first resume: a cache that holds nothing.
    pub fn new(shape: &Shape, now: std::time::Duration) -> Option<Self> {
        Some(Self {
            policy: Smq::new(shape.cache_blocks, shape.origin_blocks, now)?,
            dirty: Bits::new(u64::from(shape.cache_blocks))?,
            discards: Bits::new(shape.discard_blocks)?,
            traffic: Traffic::default(),
            changes: Vec::new(),
            fresh: HashSet::new(),
            committing: false,
            lost: false,
            flushes: Vec::new(),
            completions: Vec::new(),
            migrations: 0,
            in_flight: 0,
            requests: 0,
            in_round: false,
            idle_at: None,
            counts: Counts::default(),
            health: Health::Write,
            running: false,
            dead: false,
            migration_threshold: 0,
            discard_passdown: true,
        })
    }

    /// Whether mappings changed that no commit holds yet.
    pub fn has_uncommitted(&self) -> bool {
        !self.changes.is_empty() || self.committing || self.lost
    }

    /// Whether a commit can still come.
    pub fn can_commit(&self) -> bool {
        !self.lost && !self.dead && self.health == Health::Write
    }

    /// Whether a commit should be made now.
    pub fn is_urgent(&self) -> bool {
        let waits = !self.flushes.is_empty() || !self.completions.is_empty();
        waits || self.changes.iter().any(|change| change.then.is_urgent())
    }
}

/// See the module.
pub(super) struct Shared {
    pub origin: Arc<dyn BlockDevice>,
    pub cache: Arc<dyn BlockDevice>,
    pub event: Arc<TableEvent>,
    pub shape: Shape,
    pub mode: IoMode,
    /// The policy lets blocks in and out.
    pub migrates: bool,
    /// What was answered outlives this process: those above rely on it, flushed or not.
    pub kept: bool,
    pub state: Mutex<State>,
    pub metadata: Mutex<Metadata>,
    /// Told when migrations end.
    pub idle: Condvar,
    pub copier: Copier,
    pub stop: AtomicBool,
    pub handle: OnceLock<ActorHandle>,
}

/// What [`Shared`] is made of.
pub(super) struct Parts {
    pub origin: Arc<dyn BlockDevice>,
    pub cache: Arc<dyn BlockDevice>,
    pub event: Arc<TableEvent>,
    pub shape: Shape,
    pub mode: IoMode,
    pub migrates: bool,
    pub kept: bool,
    pub state: State,
    pub metadata: Metadata,
}

impl Shared {
    pub fn new(parts: Parts) -> Self {
        Self {
            origin: parts.origin,
            cache: parts.cache,
            event: parts.event,
            shape: parts.shape,
            mode: parts.mode,
            migrates: parts.migrates && parts.mode != IoMode::Passthrough,
            kept: parts.kept,
            state: Mutex::new(parts.state),
            metadata: Mutex::new(parts.metadata),
            idle: Condvar::new(),
            copier: Copier::new(Sector(parts.shape.block.min(PIECE_SECTORS_MAX)), BUFFERS),
            stop: AtomicBool::new(false),
            handle: OnceLock::new(),
        }
    }

    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// Where a sector of the origin lies in a block of the cache.
    pub fn in_cache(&self, cblock: u32, sector: Sector) -> Sector {
        let block = self.shape.block;
        Sector(u64::from(cblock) * block + sector.raw() % block)
    }

    /// The block of discards that has a block of the origin.
    pub fn discard_of(&self, oblock: u64) -> u64 {
        oblock / (self.shape.discard_block / self.shape.block)
    }
}
