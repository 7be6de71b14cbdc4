//! The seam between an array and its level: the array (this folder) knows superblocks, bitmap, sync windows and tables; a
//! level knows where data, copies and parity lie.
//!
//! Two address spaces: the *array's* sectors, which requests name, and the *sync space*, in which the bitmap and sync windows
//! are counted: members' sectors for raid1, raid4, raid5, raid6, the array's sectors for raid10.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;
use thinmap_block::{Io, Op};
use thinmap_units::{BlkStatus, Sector};

use super::members::Members;

/// Stretches of the sync space.
pub(super) type SyncRanges = SmallVec<[Range<Sector>; 2]>;

/// Why a window is gone through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SyncKind {
    /// Makes the members agree that are in sync but may differ (a new array, a crash): copies of the first one, parity of the data.
    Resync,
    /// Gives the members that are being rebuilt their content.
    Recover,
    /// Counts where members do not agree.
    Check,
    /// Counts that, and makes them agree as a resync does.
    Repair,
}

/// What came of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Synced {
    /// Sectors of it that did not agree, in md's units (raid1, raid10: each piece of 128 sectors that differs somewhere counts whole;
    /// parity: 8 for each stripe of 4 KiB).
    pub mismatches: u64,
}

/// What a level is made for.
pub(super) struct Shape {
    /// md's level: 0, 1, 5 (also for raid4), 6 or 10.
    pub level: u32,
    /// md's layout word: the parity algorithm's number, or raid10's copies and flags.
    pub layout: u32,
    /// A power of two, at least 8; zero for raid1.
    pub chunk: Sector,
    /// What the array uses of each member, from the member's data offset on. Need not be a multiple of the chunk: what is behind the last
    /// whole chunk is not used.
    pub member_len: Sector,
    /// Stripes of 4 KiB of each member that a parity level may keep in memory.
    pub stripe_cache: u32,
    /// Who does the work.
    pub members: Arc<Members>,
}

/// Where data lie. Shared by all threads; called with requests of many at once.
pub(super) trait Level: Send + Sync {
    /// Takes a read, write, discard or write-zeroes; its sector is counted from the array's begin, and it lies within one
    /// [`Level::split_at`] piece of the array. Ends it itself: reads with [`Io::complete`], everything else with
    /// [`Members::answer`](super::members::Members::answer). Never blocks.
    ///
    /// The array has seen to it that the bitmap says "dirty" on disk for [`Level::sync_range`] of a write, and that no
    /// [`Level::sync`] of a window that it touches runs meanwhile. Two writes may overlap in time and place.
    ///
    /// When the write is answered everything it means is on its way down no more: nothing is left to be written later.
    fn submit(&self, io: Io);

    /// Requests are cut at multiples of so many sectors of the array.
    fn split_at(&self, op: Op) -> Option<Sector>;

    /// The part of the sync space that a write of `begin..end` of the array changes.
    fn sync_range(&self, begin: Sector, end: Sector) -> Range<Sector>;

    /// Length of the sync space (md's resync_max_sectors).
    fn sync_len(&self) -> Sector;

    /// Length of what windows of [`SyncKind::Recover`] are counted in: a member's data.
    fn recover_len(&self) -> Sector;

    /// The parts of the sync space that a window concerns: no write to them is under way during [`Level::sync`].
    fn window_ranges(&self, kind: SyncKind, window: Range<Sector>) -> SyncRanges {
        let _ = kind;
        SyncRanges::from_iter([window])
    }

    /// Goes through `window`: of the sync space, or of the members' sectors for [`SyncKind::Recover`]. Begins and ends at a multiple of
    /// 8 sectors or at the end of the space, is at most [`WINDOW_SECTORS_MAX`] long, and may begin and end inside a chunk. Runs on the array's sync thread and
    /// may wait for the members.
    ///
    /// Members in state `Rebuilding` are written (all of them), the array moves their recovered mark afterwards. A member that fails
    /// to be written is failed ([`Members::fail`](super::members::Members::fail)) and the window goes on without it. An error means that
    /// content could not be had from anywhere: nothing of the window counts as done.
    fn sync(&self, kind: SyncKind, window: Range<Sector>) -> Result<Synced, BlkStatus>;

    /// A member could not be read at `window` (of its own sectors) though the request was served from elsewhere: read it there again, and
    /// write it. As [`Level::sync`] in all else; the window's ranges are those of [`SyncKind::Recover`]. Levels that cure such reads
    /// at once leave this alone.
    fn heal(&self, member: usize, window: Range<Sector>) {
        let _ = (member, window);
    }

    /// How many members' worth of data a row of chunks holds: for the optimal I/O size.
    fn data_members(&self) -> u32;
}

/// The longest window that is gone through at once: 1 MiB of each member.
pub(super) const WINDOW_SECTORS_MAX: Sector = Sector(2048);
