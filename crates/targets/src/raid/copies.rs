//! raid1 and raid10: everything is there several times.
//!
//! A read goes to one copy, the nearest to what was read there last or else the least busy; when it fails it goes to another, and the sync
//! thread writes the first one anew. A write goes to all copies.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use smallvec::SmallVec;
use thinmap_block::{EndIo, Io, Op};
use thinmap_units::{BlkStatus, Sector};

use super::copies_sync::CopiesSync;
use super::copies_write::WritesUnderWay;
use super::level::{Level, Shape, SyncKind, SyncRanges, Synced};
use super::members::Members;
use super::raid10::{Geometry, Place};

/// Copies of one stretch of the array.
pub(super) type Places = SmallVec<[Place; 4]>;

/// Where copies are.
#[derive(Clone, Debug)]
pub(super) enum Placement {
    /// raid1: at the same sector of every member.
    Everywhere { members: usize, len: Sector },
    /// raid10.
    Dealt(Geometry),
}

impl Placement {
    /// All copies of a sector of the array.
    pub fn places(&self, sector: Sector) -> Places {
        match self {
            Self::Everywhere { members, .. } => (0..*members).map(|i| (i, sector)).collect(),
            Self::Dealt(geometry) => geometry.places(sector),
        }
    }

    /// The first sector behind `sector` from where on the copies lie elsewhere.
    pub fn chunk_end(&self, sector: Sector) -> Sector {
        match self {
            Self::Everywhere { len, .. } => *len,
            Self::Dealt(geometry) => {
                let chunk = geometry.chunk().raw();
                Sector((sector.raw() / chunk + 1) * chunk)
            }
        }
    }

    /// What a member's sector is a copy of.
    pub fn at(&self, member: usize, sector: Sector) -> Option<Sector> {
        match self {
            Self::Everywhere { len, .. } => (sector < *len).then_some(sector),
            Self::Dealt(geometry) => geometry.at(member, sector),
        }
    }

    fn len(&self) -> Sector {
        match self {
            Self::Everywhere { len, .. } => *len,
            Self::Dealt(geometry) => geometry.len(),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Copies {
    shared: Arc<Shared>,
}

/// What requests under way hold on to.
pub(super) struct Shared {
    pub members: Arc<Members>,
    pub placement: Placement,
    member_len: Sector,
    reads: Vec<Reads>,
    pub writes: WritesUnderWay,
}

/// What a member is busy with.
#[derive(Default)]
struct Reads {
    under_way: AtomicUsize,
    /// The end of the last read.
    last: AtomicU64,
}

impl Copies {
    /// `None` for a layout that cannot be.
    pub fn new(shape: &Shape) -> Option<Self> {
        let members = shape.members.len();
        let placement = if shape.level == 1 {
            Placement::Everywhere {
                members,
                len: shape.member_len,
            }
        } else {
            Placement::Dealt(Geometry::new(
                shape.layout,
                members,
                shape.chunk,
                shape.member_len,
            )?)
        };
        Some(Self {
            shared: Arc::new(Shared {
                members: shape.members.clone(),
                placement,
                member_len: shape.member_len,
                reads: (0..members).map(|_| Reads::default()).collect(),
                writes: WritesUnderWay::default(),
            }),
        })
    }
}

impl Shared {
    /// The copy to read, of those that hold `sectors` from their places on and are not in `tried`.
    fn choose(
        &self,
        end: Sector,
        places: &Places,
        sectors: Sector,
        tried: &[usize],
    ) -> Option<Place> {
        let mut best: Option<(Place, (bool, bool, usize))> = None;
        let first_only = end > self.members.consistent_to();
        for &(member, sector) in places {
            if tried.contains(&member)
                || !self.members.is_readable(member, sector, sector + sectors)
            {
                continue;
            }
            let reads = &self.reads[member];
            let elsewhere = reads.last.load(Relaxed) != sector.raw();
            let busy = reads.under_way.load(Relaxed);
            let mostly_written = self.members.member(member).write_mostly;
            let cost = if first_only {
                (mostly_written, false, 0)
            } else {
                (mostly_written, elsewhere, busy)
            };
            if best.as_ref().is_none_or(|(_, least)| cost < *least) {
                best = Some(((member, sector), cost));
            }
        }
        best.map(|(place, _)| place)
    }

    fn read(self: &Arc<Self>, mut io: Io, at: Sector, tried: SmallVec<[usize; 4]>) {
        let places = self.placement.places(at);
        let Some((member, sector)) = self.choose(at + io.sectors, &places, io.sectors, &tried)
        else {
            io.complete(BlkStatus::IoErr);
            return;
        };
        let reads = &self.reads[member];
        reads.under_way.fetch_add(1, Relaxed);
        reads.last.store((sector + io.sectors).raw(), Relaxed);
        io.sector = sector;
        if tried.is_empty() {
            // Sectors are below 2^55, members below 2^8.
            io.push_end_io(self.clone(), at.raw() << 8 | member as u64);
        } else {
            let again = Again {
                shared: self.clone(),
                at,
                tried,
            };
            io.push_end_io(Arc::new(again), member as u64);
        }
        self.members.submit(member, io);
    }

    fn ended(self: &Arc<Self>, io: Io, at: Sector, mut tried: SmallVec<[usize; 4]>, end: ReadEnd) {
        self.reads[end.member].under_way.fetch_sub(1, Relaxed);
        if end.status.is_ok() {
            for (member, sector) in self.placement.places(at) {
                if tried.contains(&member) {
                    let range = sector..sector + io.sectors;
                    self.members.ask_to_heal(member, range);
                }
            }
            io.complete(end.status);
        } else if end.status == BlkStatus::IoErr {
            tried.push(end.member);
            self.read(io, at, tried);
        } else {
            io.complete(end.status);
        }
    }
}

struct ReadEnd {
    member: usize,
    status: BlkStatus,
}

/// The end of a first read.
impl EndIo for Shared {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let member = (tag & 0xff) as usize;
        let end = ReadEnd { member, status };
        self.ended(io, Sector(tag >> 8), SmallVec::new(), end);
    }
}

/// A read that failed at some copies before.
struct Again {
    shared: Arc<Shared>,
    at: Sector,
    tried: SmallVec<[usize; 4]>,
}

impl EndIo for Again {
    fn end_io(self: Arc<Self>, io: Io, tag: u64, status: BlkStatus) {
        let member = (tag & 0xff) as usize;
        let end = ReadEnd { member, status };
        self.shared.ended(io, self.at, self.tried.clone(), end);
    }
}

impl Level for Copies {
    fn submit(&self, io: Io) {
        let shared = &self.shared;
        match io.op {
            Op::Read => {
                let at = io.sector;
                shared.read(io, at, SmallVec::new());
            }
            _ => shared.write(io),
        }
    }

    fn split_at(&self, _: Op) -> Option<Sector> {
        match &self.shared.placement {
            Placement::Everywhere { .. } => None,
            Placement::Dealt(geometry) => Some(geometry.chunk()),
        }
    }

    fn sync_range(&self, begin: Sector, end: Sector) -> Range<Sector> {
        begin..end
    }

    fn sync_len(&self) -> Sector {
        self.shared.placement.len()
    }

    fn recover_len(&self) -> Sector {
        self.shared.member_len
    }

    fn window_ranges(&self, kind: SyncKind, window: Range<Sector>) -> SyncRanges {
        self.sync_of(kind).ranges(window)
    }

    fn sync(&self, kind: SyncKind, window: Range<Sector>) -> Result<Synced, BlkStatus> {
        self.sync_of(kind).run(window)
    }

    fn heal(&self, member: usize, window: Range<Sector>) {
        self.sync_of(SyncKind::Recover).heal(member, window);
    }

    fn data_members(&self) -> u32 {
        u32::try_from(self.shared.members.len()).unwrap_or(u32::MAX)
    }
}

impl Copies {
    fn sync_of(&self, kind: SyncKind) -> CopiesSync<'_> {
        CopiesSync {
            members: &self.shared.members,
            placement: &self.shared.placement,
            kind,
        }
    }
}
