//! What each volume may contain: now, and after a power cut at this moment.
//!
//! A volume is divided into cells of one to some hundred sectors; requests cover whole cells. For each cell there is a history of what
//! was written and is not yet certainly gone. The rules, by which an entry `e` is dropped or not:
//!
//! - after a cut: `e` is gone when a later write (submitted after `e` ended) that ended well was made durable by a flush, a write
//!   with FUA, or a snapshot's commit;
//! - now: `e` is gone when a later write that ended well had ended before the read was submitted.
//!
//! Requests that overlap in time have no order, and a failed one may have been done in part, at any time until it failed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use smallvec::{SmallVec, smallvec};
use thinmap_sim::{Content, JUNK};

/// Cells of a block; see [`Layout::edge`].
pub const CELLS: u64 = 8;
/// Request numbers are above this many bits of a written word; the sector in the volume is below.
const SECTOR_BITS: u32 = 24;
/// What an external origin holds: this and the sector.
const ORIGIN_WORD: u64 = 0x0071_6e00_0000_0000;

/// Sizes of a pool and its origin.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Sectors of a data block.
    pub block: u64,
    /// Sectors of the external origin.
    pub origin: u64,
    /// Sectors that edges of cells are multiples of.
    pub grain: u64,
    /// Unwritten parts of new blocks hold anything.
    pub skip_zeroing: bool,
}

impl Layout {
    /// First sector of cell `cell` of a volume.
    pub fn edge(&self, cell: u64) -> u64 {
        let inside = match cell % CELLS {
            7 => self.block - self.grain,
            i => self.grain * [0, 1, 8, 15, 24, 64, 100][i as usize],
        };
        cell / CELLS * self.block + inside
    }

    /// What an external origin holds at `sector`.
    pub fn origin_word(&self, sector: u64) -> u64 {
        if sector < self.origin {
            ORIGIN_WORD | sector
        } else {
            0
        }
    }
}

/// What a cell was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// What was there before anything was written: zeroes, or the origin's.
    Hole,
    /// The same after a discard; until that is durable a cut may leave whatever the data device makes of a discard.
    Discarded,
    /// Discarded, and then the power was cut.
    Undefined,
    /// Zeroes by request.
    Zero,
    /// The words of this request.
    Request(u64),
}

impl Value {
    /// The word that request `number` writes to `sector` of its volume.
    pub fn word(number: u64, sector: u64) -> u64 {
        number << SECTOR_BITS | sector
    }
}

const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    value: Value,
    request: u64,
    submitted: u64,
    ended: u64,
    /// It ended well and covered the cell.
    certain: bool,
    durable: bool,
    /// A flush has failed, and the volume was opened anew: no flush after that answers for this.
    doubtful: bool,
    /// No cut can bring it back, but a read that is under way may still find it.
    past: bool,
}

type History = SmallVec<[Entry; 2]>;

/// Whether a volume is in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It must be.
    Yes,
    /// It may be: its creation or deletion is under way, or the pool failed meanwhile.
    Maybe,
}

/// A volume as it should be.
pub struct Volume {
    /// Whether it is there.
    pub presence: Presence,
    /// Unmapped blocks read from the external origin.
    pub on_origin: bool,
    /// Blocks.
    pub blocks: u64,
    cells: Vec<History>,
    /// A snapshot being taken of this volume sees what is written meanwhile, or not.
    snapshot_of: Option<u32>,
}

/// All volumes of a pool. Time is counted in requests submitted and ended.
pub struct Oracle {
    /// Sizes.
    pub layout: Layout,
    /// By id.
    pub volumes: BTreeMap<u32, Volume>,
    /// The pool's creation was answered: it must be there.
    pub formatted: bool,
    /// Whether the metadata may be marked as needing a check.
    pub may_need_check: bool,
    /// Metadata was damaged: volumes may be missing, but what is read must be right.
    pub damaged: bool,
    now: u64,
    /// When the reads under way were submitted.
    reads: BTreeSet<u64>,
}

impl Oracle {
    /// Of a pool that does not exist yet.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            volumes: BTreeMap::new(),
            formatted: false,
            may_need_check: false,
            damaged: false,
            now: 2,
            reads: BTreeSet::new(),
        }
    }

    /// The present moment.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// A read is under way; gives the moment.
    pub fn read_submitted(&mut self) -> u64 {
        let now = self.tick();
        self.reads.insert(now);
        now
    }

    /// The read submitted at this moment has ended.
    pub fn read_ended(&mut self, submitted: u64) {
        self.reads.remove(&submitted);
    }

    /// Before this no read under way was submitted.
    fn first_read(&self) -> u64 {
        self.reads.first().copied().unwrap_or(self.now)
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A new volume is being made, as a snapshot of another's present state or empty.
    pub fn creating(&mut self, id: u32, snapshot_of: Option<u32>, blocks: u64, on_origin: bool) {
        let now = self.tick();
        let origin = snapshot_of.and_then(|origin| self.volumes.get(&origin));
        let (cells, blocks, on_origin) = match origin {
            Some(origin) => {
                let live = |history: &History| {
                    let entries = history.iter();
                    let mut live: History = entries
                        .filter(|e| !e.past && !is_over(history, e, now))
                        .copied()
                        .collect();
                    for entry in &mut live {
                        entry.durable = false;
                    }
                    live
                };
                (
                    origin.cells.iter().map(live).collect(),
                    origin.blocks,
                    origin.on_origin,
                )
            }
            None => (vec![hole(); (blocks * CELLS) as usize], blocks, on_origin),
        };
        let volume = Volume {
            presence: Presence::Maybe,
            on_origin,
            blocks,
            cells,
            snapshot_of,
        };
        self.volumes.insert(id, volume);
    }

    /// The creation was answered: well and durably (`Yes`), or nobody knows (`Maybe`).
    pub fn created(&mut self, id: u32, presence: Presence) {
        let now = self.tick();
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.presence = presence;
            volume.snapshot_of = None;
            volume
                .cells
                .iter_mut()
                .for_each(|history| settle(history, now));
        }
    }

    /// The volume is not there, or no longer.
    pub fn gone(&mut self, id: u32) {
        self.volumes.remove(&id);
    }

    /// The volume is what another was, which is gone.
    pub fn become_other(&mut self, id: u32, other: u32) {
        if let Some(volume) = self.volumes.remove(&other) {
            self.volumes.insert(id, volume);
        }
    }

    /// Whether the volume must be there.
    pub fn set_presence(&mut self, id: u32, presence: Presence) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.presence = presence;
        }
    }

    /// The volume has more blocks now.
    pub fn grown(&mut self, id: u32, blocks: u64) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.blocks = volume.blocks.max(blocks);
            volume
                .cells
                .resize((volume.blocks * CELLS) as usize, hole());
        }
    }

    /// A request that changes `cells` is on its way.
    pub fn submitted(&mut self, id: u32, cells: Range<u64>, value: Value, request: u64) {
        let submitted = self.tick();
        let entry = Entry {
            value,
            request,
            submitted,
            ended: NEVER,
            certain: false,
            durable: false,
            doubtful: false,
            past: false,
        };
        for (of, volume) in &mut self.volumes {
            if *of == id || volume.snapshot_of == Some(id) {
                let end = (cells.end as usize).min(volume.cells.len());
                let start = (cells.start as usize).min(end);
                volume.cells[start..end]
                    .iter_mut()
                    .for_each(|history| history.push(entry));
            }
        }
    }

    /// That request has ended. `certain`: it was done; `durable`: for good.
    pub fn ended(
        &mut self,
        id: u32,
        cells: Range<u64>,
        request: u64,
        certain: bool,
        durable: bool,
    ) {
        let now = self.tick();
        let first_read = self.first_read();
        for_cells(&mut self.volumes, id, cells, |history, own| {
            for entry in history.iter_mut().filter(|e| e.request == request) {
                entry.ended = now;
                // A snapshot under way may be older.
                entry.certain = own && certain;
                entry.durable = own && certain && durable;
            }
            if own {
                prune(history, first_read);
            }
        });
    }

    /// That request was refused and has done nothing.
    pub fn refused(&mut self, id: u32, cells: Range<u64>, request: u64) {
        for_cells(&mut self.volumes, id, cells, |history, _| {
            history.retain(|entry| entry.request != request);
        });
    }

    /// A flush of the volume, submitted at `submitted`, ended well.
    pub fn flushed(&mut self, id: u32, submitted: u64) {
        self.tick();
        let first_read = self.first_read();
        for_cells(&mut self.volumes, id, 0..NEVER, |history, own| {
            if own {
                flush(history, submitted, first_read);
            }
        });
    }

    /// The volume is opened anew after a flush of it has failed: whoever had it open knows that what was not durable may be gone.
    pub fn doubt(&mut self, id: u32) {
        for_cells(&mut self.volumes, id, 0..NEVER, |history, own| {
            for entry in history.iter_mut().filter(|e| own && !e.durable) {
                entry.doubtful = true;
            }
        });
    }

    /// Everything that was acknowledged is durable now: the end in good order.
    pub fn all_flushed(&mut self) {
        let now = self.tick();
        let histories = self.volumes.values_mut().flat_map(|v| &mut v.cells);
        histories.for_each(|history| flush(history, now, now));
    }

    /// Power was cut, and these volumes were found after it.
    pub fn restarted(&mut self, found: &[u32]) {
        let now = self.tick();
        self.volumes.retain(|id, _| found.contains(id));
        for volume in self.volumes.values_mut() {
            volume.presence = Presence::Yes;
            volume.snapshot_of = None;
            volume
                .cells
                .iter_mut()
                .for_each(|history| settle(history, now));
        }
    }

    /// The daemon has died, and what it had submitted is done. Disks keep what they had, durable or not. `keeps`: so is everything that
    /// was answered; otherwise what was not durable may be gone.
    pub fn died(&mut self, keeps: bool) {
        let now = self.tick();
        self.reads.clear();
        for volume in self.volumes.values_mut() {
            volume.presence = Presence::Yes;
            volume.snapshot_of = None;
            for history in &mut volume.cells {
                history.retain(|e| !e.past);
                let one = history.len() == 1;
                for entry in history.iter_mut() {
                    entry.ended = entry.ended.min(now);
                    entry.certain &= keeps || one || entry.durable;
                }
            }
        }
    }

    /// Whether `sector` of a volume may hold `content` after a cut now.
    pub fn may_hold(&self, volume: &Volume, cell: u64, sector: u64, content: &Content) -> bool {
        let Some(history) = volume.cells.get(cell as usize) else {
            return false;
        };
        let mut there = history.iter().filter(|e| !e.past);
        there.any(|e| {
            let left_by_discard =
                e.value == Value::Discarded && !e.durable && is_left_by_discard(content);
            left_by_discard || self.fits(volume, e.value, sector, content)
        })
    }

    /// Whether all of a block may be as if it had never been written to, after a cut now.
    pub fn may_be_hole(&self, volume: &Volume, block: u64) -> bool {
        let hole = |value| match value {
            Value::Hole | Value::Discarded | Value::Undefined => true,
            Value::Zero => !volume.on_origin,
            Value::Request(_) => false,
        };
        let cells = (block * CELLS) as usize..((block + 1) * CELLS) as usize;
        let may_be = |history: &History| history.iter().any(|e| !e.past && hole(e.value));
        volume
            .cells
            .get(cells)
            .is_some_and(|cells| cells.iter().all(may_be))
    }

    /// Whether a read that has ended may have found `content`: one submitted at this moment, or with `None` one after which the pool
    /// may have given a transaction up, so that it finds what a cut could leave.
    pub fn may_read(
        &self,
        id: u32,
        cell: u64,
        sector: u64,
        content: &Content,
        submitted: Option<u64>,
    ) -> bool {
        let Some(volume) = self.volumes.get(&id) else {
            return true;
        };
        let Some(history) = volume.cells.get(cell as usize) else {
            return true;
        };
        let Some(submitted) = submitted else {
            let past = history.iter().filter(|e| e.past);
            let mut past = past.map(|e| self.fits(volume, e.value, sector, content));
            return past.any(|fits| fits) || self.may_hold(volume, cell, sector, content);
        };
        let mut live = history.iter().filter(|e| !is_over(history, e, submitted));
        live.any(|e| self.fits(volume, e.value, sector, content))
    }

    fn fits(&self, volume: &Volume, value: Value, sector: u64, content: &Content) -> bool {
        let wanted = match value {
            Value::Undefined if is_left_by_discard(content) => return true,
            Value::Hole | Value::Discarded | Value::Undefined if self.layout.skip_zeroing => {
                return true;
            }
            Value::Hole | Value::Discarded | Value::Undefined if volume.on_origin => {
                self.layout.origin_word(sector)
            }
            Value::Hole | Value::Discarded | Value::Undefined | Value::Zero => 0,
            Value::Request(number) => Value::word(number, sector),
        };
        is_word(content, wanted)
    }

    /// What a cell may hold, for messages.
    pub fn describe(&self, volume: &Volume, cell: u64) -> String {
        format!("{:?}", volume.cells.get(cell as usize))
    }
}

fn is_left_by_discard(content: &Content) -> bool {
    is_word(content, 0) || is_word(content, JUNK)
}

fn is_word(content: &Content, wanted: u64) -> bool {
    matches!(content, Content::Word(word) if *word == wanted)
}

fn hole() -> History {
    smallvec![Entry {
        value: Value::Hole,
        request: 0,
        submitted: 0,
        ended: 1,
        certain: true,
        durable: true,
        doubtful: false,
        past: false,
    }]
}

fn for_cells(
    volumes: &mut BTreeMap<u32, Volume>,
    id: u32,
    cells: Range<u64>,
    mut change: impl FnMut(&mut History, bool),
) {
    for (of, volume) in volumes {
        if *of == id || volume.snapshot_of == Some(id) {
            let end = (cells.end).min(volume.cells.len() as u64) as usize;
            let start = (cells.start as usize).min(end);
            let own = *of == id;
            volume.cells[start..end]
                .iter_mut()
                .for_each(|history| change(history, own));
        }
    }
}

/// Whether `e` was certainly overwritten before a read that was submitted at `read`.
fn is_over(history: &History, e: &Entry, read: u64) -> bool {
    history
        .iter()
        .any(|later| later.certain && later.ended < read && later.submitted >= e.ended)
}

fn flush(history: &mut History, submitted: u64, first_read: u64) {
    for entry in history.iter_mut() {
        entry.durable |= entry.certain && !entry.doubtful && entry.ended < submitted;
    }
    prune(history, first_read);
}

/// Marks what no cut can bring back, and drops of that what no read can find.
fn prune(history: &mut History, first_read: u64) {
    if history.len() < 2 {
        return;
    }
    let durable = history.iter().filter(|e| e.durable && e.certain);
    if let Some(latest) = durable.map(|e| e.submitted).max() {
        for entry in history.iter_mut() {
            entry.past |= entry.ended <= latest;
        }
        let overwritten = history.iter().filter(|e| e.certain && e.ended < first_read);
        if let Some(latest) = overwritten.map(|e| e.submitted).max() {
            history.retain(|e| !e.past || e.ended > latest);
        }
    }
}

/// What is in the history now is all that there is, and one of it is certain and durable.
fn settle(history: &mut History, now: u64) {
    history.retain(|e| !e.past);
    let one = history.len() == 1;
    for entry in history.iter_mut() {
        if entry.value == Value::Discarded && !entry.durable {
            entry.value = Value::Undefined;
        }
        entry.ended = entry.ended.min(now);
        entry.certain = one;
        entry.durable = true;
        entry.doubtful = false;
    }
}
