//! The members of an array: their devices, what each may be used for, and how a failure becomes known.
//!
//! INVARIANT: a member that failed or lacks content is never read where its content may be wrong: [`Members::is_readable`] is the only
//! word on that.
//! INVARIANT: a write that a member has missed is answered only when the superblocks say that the member has failed
//! ([`Members::answer`]). Otherwise a crash could bring the member back as if it had the write.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_block::Io;
use thinmap_dm::DeviceUse;
use thinmap_runtime::Clock;
use thinmap_units::{BlkStatus, Sector};

/// "To the end": what is so everywhere.
pub(super) const MAX_SECTOR: Sector = Sector(u64::MAX);

/// What a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MemberState {
    /// The table names no device.
    Missing,
    /// Neither read nor written any more.
    Failed,
    /// Written; read only below its recovery offset.
    Rebuilding,
    /// Written and read.
    InSync,
}

/// When a member may be taken for failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FailRule {
    /// Never: errors go to those who asked (raid0).
    Never,
    /// Not the last one that holds some data (raid1, raid10).
    WhileEnough,
    /// Always; with too few left the level fails its requests (raid4, raid5, raid6).
    Always,
}

/// Whether an array works with those members for which the function says yes.
pub(super) type Enough = Box<dyn Fn(&dyn Fn(usize) -> bool) -> bool + Send + Sync>;

/// Whom members tell that something must be written to the superblocks. Must not block.
pub(super) trait Keeper: Send + Sync {
    /// Superblocks are out of date: call [`Members::recorded`] when they are not any more.
    fn changed(&self);

    /// A member could not be read there (its own sectors), others could: [`Level::heal`](super::level::Level::heal) is to be called.
    fn heal(&self, member: usize, window: Range<Sector>);
}

/// One member.
pub(super) struct Member {
    /// Holds the data; `None` where the table says `-`.
    pub data: Option<DeviceUse>,
    /// Holds superblock and bitmap; `None` where the table says `-`.
    pub meta: Option<DeviceUse>,
    /// Reads go elsewhere if they can.
    pub write_mostly: bool,
    state: AtomicU8,
    /// Sectors of it that are good while it is rebuilt.
    recovered: AtomicU64,
    incomplete: AtomicBool,
    /// Sectors before its data.
    data_offset: AtomicU64,
    corrected: Mutex<CorrectedReads>,
}

impl Member {
    /// A member in a state, without data offset.
    pub fn new(data: Option<DeviceUse>, meta: Option<DeviceUse>, write_mostly: bool) -> Self {
        let state = if data.is_some() {
            MemberState::InSync
        } else {
            MemberState::Missing
        };
        Self {
            data,
            meta,
            write_mostly,
            state: AtomicU8::new(state.pack()),
            recovered: AtomicU64::new(MAX_SECTOR.raw()),
            incomplete: AtomicBool::new(false),
            data_offset: AtomicU64::new(0),
            corrected: Mutex::default(),
        }
    }

    /// What it is now.
    pub fn state(&self) -> MemberState {
        MemberState::unpack(self.state.load(SeqCst))
    }

    /// How much of a member that is being rebuilt is good; everything, of one that is in sync.
    pub fn recovered(&self) -> Sector {
        Sector(self.recovered.load(SeqCst))
    }

    /// Where its data begin.
    pub fn data_offset(&self) -> Sector {
        Sector(self.data_offset.load(SeqCst))
    }

    /// Says where its data begin. Before it is used only.
    pub fn set_data_offset(&self, offset: Sector) {
        self.data_offset.store(offset.raw(), SeqCst);
    }

    /// Makes it one that is rebuilt from a sector on; `by_bitmap`: what it lacks is in the bitmap.
    pub fn set_rebuilding(&self, from: Sector, by_bitmap: bool) {
        self.incomplete.store(!by_bitmap, SeqCst);
        self.recovered.store(from.raw(), SeqCst);
        self.state.store(MemberState::Rebuilding.pack(), SeqCst);
    }

    /// It has everything now, if it has not failed meanwhile.
    pub fn end_rebuild(&self) {
        if self.change(MemberState::Rebuilding, MemberState::InSync) {
            self.recovered.store(MAX_SECTOR.raw(), SeqCst);
            self.incomplete.store(false, SeqCst);
        }
    }

    /// Whether it was one and is the other now.
    fn change(&self, from: MemberState, to: MemberState) -> bool {
        let swapped = self
            .state
            .compare_exchange(from.pack(), to.pack(), SeqCst, SeqCst);
        swapped.is_ok()
    }

    /// Whether it was never rebuilt to its end: the bitmap does not know what it lacks.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(SeqCst)
    }

    /// Makes it one that is not used, without a word to anybody.
    pub fn set_failed(&self) {
        self.state.store(MemberState::Failed.pack(), SeqCst);
    }

    /// Good up to here now, while it is rebuilt.
    pub fn advance(&self, to: Sector) {
        self.recovered.store(to.raw(), SeqCst);
    }
}

/// All members, and who must be told of changes.
pub(super) struct Members {
    list: Vec<Member>,
    rule: FailRule,
    enough: Enough,
    /// The members agree up to here (in the level's sync space); beyond, copies or parity may be anything.
    consistent: AtomicU64,
    /// Failures so far, and how many of them the superblocks tell of.
    failures: AtomicU64,
    noted: AtomicU64,
    waiting: Mutex<Vec<(u64, Io, BlkStatus)>>,
    clock: Arc<dyn Clock>,
    /// One failure at a time: of two members that fail at once one may have to stay.
    failing: Mutex<()>,
    keeper: OnceLock<Arc<dyn Keeper>>,
}

impl Members {
    /// The members of one array.
    pub fn new(
        list: Vec<Member>,
        rule: FailRule,
        enough: Enough,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            list,
            rule,
            enough,
            consistent: AtomicU64::new(MAX_SECTOR.raw()),
            failures: AtomicU64::new(0),
            noted: AtomicU64::new(0),
            waiting: Mutex::default(),
            clock,
            failing: Mutex::default(),
            keeper: OnceLock::new(),
        })
    }

    /// Says who writes superblocks, once. Without one nobody waits for them.
    pub fn set_keeper(&self, keeper: Arc<dyn Keeper>) {
        let _ = self.keeper.set(keeper);
    }

    /// How many there are, missing ones too.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// One of them.
    pub fn member(&self, index: usize) -> &Member {
        &self.list[index]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.list.iter()
    }

    /// What one of them is.
    pub fn state(&self, index: usize) -> MemberState {
        self.list[index].state()
    }

    /// Whether sectors `begin..end` of a member's data hold what they should.
    pub fn is_readable(&self, index: usize, _begin: Sector, end: Sector) -> bool {
        let member = &self.list[index];
        match member.state() {
            MemberState::InSync => true,
            MemberState::Rebuilding => end <= member.recovered(),
            MemberState::Failed | MemberState::Missing => false,
        }
    }

    /// Whether a member gets what is written: also one that is being rebuilt.
    pub fn is_writable(&self, index: usize) -> bool {
        matches!(
            self.state(index),
            MemberState::InSync | MemberState::Rebuilding
        )
    }

    /// Whether not even the members being rebuilt would make an array of what is left.
    pub fn has_lost_too_much(&self) -> bool {
        !(self.enough)(&|index| self.is_writable(index))
    }

    /// Whether some member gets nothing of what is written.
    pub fn is_degraded(&self) -> bool {
        (0..self.len()).any(|index| !self.is_writable(index))
    }

    /// Whether some member is being rebuilt.
    pub fn is_rebuilding(&self) -> bool {
        (0..self.len()).any(|index| self.state(index) == MemberState::Rebuilding)
    }

    /// Whether members agree (copies are equal, parity fits) below this sector of the level's sync space.
    pub fn consistent_to(&self) -> Sector {
        Sector(self.consistent.load(SeqCst))
    }

    /// They agree up to here.
    pub fn set_consistent_to(&self, to: Sector) {
        self.consistent.store(to.raw(), SeqCst);
    }

    /// Sends a request to a member; its sector is counted from the begin of the member's data. One without a device fails it.
    pub fn submit(&self, index: usize, mut io: Io) {
        let member = &self.list[index];
        let Some(data) = &member.data else {
            io.complete(BlkStatus::IoErr);
            return;
        };
        if io.op != thinmap_block::Op::Flush {
            // One that wraps is out of the device's range as well.
            io.sector = Sector(io.sector.raw().wrapping_add(member.data_offset().raw()));
        }
        data.dev.submit(io);
    }

    /// A member failed to write, or could not be cured of a failed read: it is used no more. `false` when it stays in use because
    /// the array cannot do without it (see [`FailRule`]): the error is then the requester's.
    pub fn fail(&self, index: usize) -> bool {
        let member = &self.list[index];
        let failing = self.failing.lock();
        loop {
            let was = member.state();
            match was {
                MemberState::Failed | MemberState::Missing => return true,
                MemberState::InSync if !self.may_fail(index) => return false,
                MemberState::InSync | MemberState::Rebuilding => {}
            }
            // First the count: whoever sees that the member is not written waits for the superblocks.
            self.failures.fetch_add(1, SeqCst);
            if member.change(was, MemberState::Failed) {
                break;
            }
            // Recovered in between.
        }
        drop(failing);
        tracing::error!(member = index, "raid: a member has failed");
        if let Some(keeper) = self.keeper.get() {
            keeper.changed();
        }
        true
    }

    fn may_fail(&self, index: usize) -> bool {
        let left = |i: usize| i != index && self.state(i) == MemberState::InSync;
        match self.rule {
            FailRule::Never => false,
            FailRule::WhileEnough => (self.enough)(&left),
            FailRule::Always => true,
        }
    }

    /// Leaves it to the sync thread to write a part of a member anew that could not be read.
    pub fn ask_to_heal(&self, index: usize, window: Range<Sector>) {
        if let Some(keeper) = self.keeper.get() {
            keeper.heal(index, window);
        }
    }

    /// A read error of a member was cured by writing what should be there. So many of them and the member fails, as in the kernel.
    pub fn corrected_read(&self, index: usize) {
        let too_many = self.list[index].corrected.lock().add(self.clock.now());
        if too_many {
            self.fail(index);
        }
    }

    /// Ends a write: at once, or when the superblocks tell of every failure so far.
    pub fn answer(&self, io: Io, status: BlkStatus) {
        if self.noted.load(SeqCst) >= self.failures.load(SeqCst) {
            return io.complete(status);
        }
        {
            let mut waiting = self.waiting.lock();
            let failures = self.failures.load(SeqCst);
            if self.keeper.get().is_some() && self.noted.load(SeqCst) < failures {
                waiting.push((failures, io, status));
                return;
            }
        }
        io.complete(status);
    }

    /// Failures so far: what the superblocks being written now will tell of.
    pub fn failures(&self) -> u64 {
        self.failures.load(SeqCst)
    }

    /// Whether the superblocks are behind.
    pub fn has_news(&self) -> bool {
        self.noted.load(SeqCst) < self.failures.load(SeqCst)
    }

    /// The superblocks tell of that many failures now.
    pub fn recorded(&self, failures: u64) {
        let ready: Vec<_> = {
            let mut waiting = self.waiting.lock();
            self.noted.fetch_max(failures, SeqCst);
            waiting
                .extract_if(.., |(needs, ..)| *needs <= failures)
                .collect()
        };
        for (_, io, status) in ready {
            io.complete(status);
        }
    }
}

impl MemberState {
    const fn pack(self) -> u8 {
        match self {
            Self::Missing => 0,
            Self::Failed => 1,
            Self::Rebuilding => 2,
            Self::InSync => 3,
        }
    }

    const fn unpack(raw: u8) -> Self {
        match raw {
            0 => Self::Missing,
            1 => Self::Failed,
            2 => Self::Rebuilding,
            _ => Self::InSync,
        }
    }
}

/// Read errors of a member that were cured by writing. COMPAT: with each hour without one, half of them are forgotten.
#[derive(Default)]
struct CorrectedReads {
    count: u32,
    last: Duration,
}

impl CorrectedReads {
    /// One more, and whether those are too many.
    fn add(&mut self, now: Duration) -> bool {
        let hours = now.saturating_sub(self.last).as_secs() / 3600;
        let hours = u32::try_from(hours).unwrap_or(u32::MAX);
        self.count = self.count.checked_shr(hours).unwrap_or(0) + 1;
        self.last = now;
        self.count > CORRECTED_READS_MAX
    }
}

/// The kernel's max_corr_read_errors.
const CORRECTED_READS_MAX: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cured_reads_are_forgotten_by_the_hour() {
        let mut reads = CorrectedReads::default();
        let hour = Duration::from_secs(3600);
        for _ in 0..CORRECTED_READS_MAX {
            assert!(!reads.add(hour));
        }
        // Half of them, and one more.
        assert!(!reads.add(2 * hour));
        assert_eq!(reads.count, CORRECTED_READS_MAX / 2 + 1);
        assert!(!reads.add(1000 * hour));
        assert_eq!(reads.count, 1);
        for _ in 1..CORRECTED_READS_MAX {
            assert!(!reads.add(1000 * hour));
        }
        assert!(reads.add(1000 * hour));
    }
}
