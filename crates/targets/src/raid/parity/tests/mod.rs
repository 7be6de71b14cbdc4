//! The levels over disks in memory, beside a flat array of bytes.

mod behaviour;
mod faults;
mod lives;
mod threads;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Io, Op, QueueLimits, read, write};
use thinmap_dm::{DeviceId, DeviceName, DeviceUse};
use thinmap_runtime::{IoBuf, RealClock};
use thinmap_units::{BlkStatus, DevNo, Sector};

use super::super::level::{Level, Shape, SyncKind};
use super::super::members::{FailRule, MAX_SECTOR, Member, MemberState, Members};

/// A disk in memory whose requests fail as told.
pub(super) struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// Sectors that cannot be read until they are written.
    bad: Mutex<Vec<u64>>,
    /// Requests until one fails; negative: none does.
    fail_in: AtomicI64,
    /// All of them from then on.
    for_good: AtomicBool,
    has_failed: AtomicBool,
    writes: Mutex<Vec<Range<u64>>>,
    reads: AtomicI64,
}

impl Disk {
    fn new(sectors: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; sectors as usize * 512]),
            bad: Mutex::default(),
            fail_in: AtomicI64::new(-1),
            for_good: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            writes: Mutex::default(),
            reads: AtomicI64::new(0),
        })
    }

    fn scribble(&self, rng: &mut SmallRng) {
        rng.fill(&mut self.bytes.lock()[..]);
    }

    fn fails(&self) -> bool {
        let left = self.fail_in.load(SeqCst);
        if left < 0 {
            return false;
        }
        let fails = left == 0;
        if !(fails && self.for_good.load(SeqCst)) {
            self.fail_in.fetch_sub(1, SeqCst);
        }
        self.has_failed.fetch_or(fails, SeqCst);
        fails
    }
}

impl BlockDevice for Disk {
    fn limits(&self) -> QueueLimits {
        QueueLimits::STACKING
    }

    fn size(&self) -> Sector {
        Sector::from_bytes(self.bytes.lock().len() as u64)
    }

    fn submit(&self, mut io: Io) {
        let sectors = io.sector.raw()..io.end().raw();
        let mut status = BlkStatus::Ok;
        {
            let mut bytes = self.bytes.lock();
            let place = sectors.start as usize * 512..sectors.end as usize * 512;
            let mut bad = self.bad.lock();
            let is_bad = bad.iter().any(|sector| sectors.contains(sector));
            if place.end > bytes.len() || self.fails() || io.op == Op::Read && is_bad {
                status = BlkStatus::IoErr;
            } else if io.op == Op::Read {
                self.reads.fetch_add(1, SeqCst);
                io.buf.as_mut_slice().copy_from_slice(&bytes[place]);
            } else {
                bytes[place].copy_from_slice(io.buf.as_slice());
                bad.retain(|sector| !sectors.contains(sector));
                self.writes.lock().push(sectors);
            }
        }
        io.complete(status);
    }
}

/// Takes requests for a level as a device does.
struct Front(Arc<dyn Level>);

impl BlockDevice for Front {
    fn limits(&self) -> QueueLimits {
        QueueLimits::STACKING
    }

    fn size(&self) -> Sector {
        Sector::ZERO
    }

    fn submit(&self, io: Io) {
        self.0.submit(io);
    }
}

/// An array over disks.
struct Lab {
    disks: Vec<Arc<Disk>>,
    members: Arc<Members>,
    front: Front,
    /// Sectors of the array.
    size: u64,
    parities: usize,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    level: u32,
    layout: u32,
    members: usize,
    chunk: u64,
    cache: u32,
}

const ROWS: u64 = 6;

impl Lab {
    fn new(kind: Kind) -> Self {
        Self::over(kind, ROWS, |disk| disk)
    }

    /// With something before each disk.
    fn over(
        kind: Kind,
        rows: u64,
        wrap: impl Fn(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>,
    ) -> Self {
        let member_len = kind.chunk * rows;
        let disks: Vec<_> = (0..kind.members)
            .map(|_| Disk::new(member_len + OFFSET))
            .collect();
        let member = |disk: &Arc<Disk>| {
            let number = DevNo::new(7, 0);
            let data = DeviceUse {
                dev: wrap(disk.clone()),
                id: DeviceId::Block(number),
                name: DeviceName::Number(number),
                read_only: false,
                claim: Arc::new(()),
            };
            let member = Member::new(Some(data), None, false);
            member.set_data_offset(Sector(OFFSET));
            member
        };
        let list = disks.iter().map(member).collect();
        let members = Members::new(
            list,
            FailRule::Always,
            Box::new(|_| true),
            Arc::new(RealClock::new()),
        );
        let shape = Shape {
            level: kind.level,
            layout: kind.layout,
            chunk: Sector(kind.chunk),
            // Half a chunk that is not used.
            member_len: Sector(member_len + kind.chunk / 2),
            stripe_cache: kind.cache,
            members: members.clone(),
        };
        let front = Front(super::new(&shape).expect("possible"));
        let size = kind.chunk * rows * u64::from(front.0.data_members());
        Self {
            disks,
            members,
            front,
            size,
            parities: kind.members - (size / kind.chunk / rows) as usize,
        }
    }

    /// The pieces in which a device would bring a request.
    fn pieces(&self, op: Op, sectors: Range<u64>) -> Vec<Range<u64>> {
        let unit = self.front.0.split_at(op).expect("is cut").raw();
        let mut pieces = Vec::new();
        let mut at = sectors.start;
        while at < sectors.end {
            let next = ((at / unit + 1) * unit).min(sectors.end);
            pieces.push(at..next);
            at = next;
        }
        pieces
    }

    fn write(&self, sector: u64, bytes: &[u8]) -> BlkStatus {
        let mut all = BlkStatus::Ok;
        for piece in self.pieces(Op::Write, sector..sector + bytes.len() as u64 / 512) {
            let from = (piece.start - sector) as usize * 512;
            let mut buf = IoBuf::alloc((piece.end - piece.start) as usize * 512);
            let len = buf.len();
            buf.as_mut_slice().copy_from_slice(&bytes[from..from + len]);
            let (back, status) = write(&self.front, Sector(piece.start), buf);
            assert!(
                back.as_slice() == &bytes[from..from + len],
                "comes back as it was"
            );
            all = all.and(status);
        }
        all
    }

    fn read(&self, sectors: Range<u64>) -> Result<Vec<u8>, BlkStatus> {
        let mut bytes = Vec::new();
        for piece in self.pieces(Op::Read, sectors) {
            let buf = IoBuf::alloc((piece.end - piece.start) as usize * 512);
            let (buf, status) = read(&self.front, Sector(piece.start), buf);
            if !status.is_ok() {
                return Err(status);
            }
            bytes.extend_from_slice(buf.as_slice());
        }
        Ok(bytes)
    }

    fn len(&self) -> u64 {
        self.front.0.sync_len().raw()
    }

    fn sync(&self, kind: SyncKind, window: Range<u64>) -> Result<u64, BlkStatus> {
        let window = Sector(window.start)..Sector(window.end);
        self.front.0.sync(kind, window).map(|done| done.mismatches)
    }

    fn whole(&self, kind: SyncKind) -> u64 {
        self.sync(kind, 0..self.len()).expect("can be gone through")
    }

    fn lost(&self) -> usize {
        let lost = |member: &&Member| member.state() != MemberState::InSync;
        self.members.iter().filter(lost).count()
    }

    /// Members with sectors that cannot be read.
    fn bad(&self) -> usize {
        let bad = |disk: &&Arc<Disk>| !disk.bad.lock().is_empty();
        self.disks.iter().filter(bad).count()
    }

    /// Puts an empty disk in a failed member's place.
    fn replace(&self, member: usize, rng: &mut SmallRng) {
        self.disks[member].fail_in.store(-1, SeqCst);
        self.disks[member].scribble(rng);
        self.disks[member].bad.lock().clear();
        self.members
            .member(member)
            .set_rebuilding(Sector::ZERO, false);
    }

    /// One window further with all rebuilding members; whether they are in sync.
    fn recover_some(&self, rng: &mut SmallRng) -> bool {
        let rebuilding = |member: &&Member| member.state() == MemberState::Rebuilding;
        let marks = self
            .members
            .iter()
            .filter(rebuilding)
            .map(Member::recovered);
        let Some(from) = marks.min() else {
            return true;
        };
        let to = (from.raw() + 8 * rng.random_range(1..40)).min(self.len());
        self.sync(SyncKind::Recover, from.raw()..to)
            .expect("enough is left");
        for member in self.members.iter().filter(rebuilding) {
            if to == self.len() {
                member.end_rebuild();
            } else if member.recovered() < Sector(to) {
                member.advance(Sector(to));
            }
        }
        to == self.len()
    }

    fn recover(&self, rng: &mut SmallRng) {
        while !self.recover_some(rng) {}
    }
}

/// Where members' data begin on the disks.
const OFFSET: u64 = 24;

const LEVELS: [(u32, u32); 19] = [
    (5, 0),
    (5, 1),
    (5, 2),
    (5, 3),
    (5, 4),
    (5, 5),
    (6, 0),
    (6, 1),
    (6, 2),
    (6, 3),
    (6, 4),
    (6, 5),
    (6, 8),
    (6, 9),
    (6, 10),
    (6, 16),
    (6, 17),
    (6, 18),
    (6, 19),
];

/// Every layout with some number of members, chunk and cache.
fn kinds(seed: u64) -> impl Iterator<Item = Kind> {
    let mut rng = SmallRng::seed_from_u64(seed);
    LEVELS.into_iter().map(move |(level, layout)| Kind {
        level,
        layout,
        members: rng.random_range(if level == 5 { 3 } else { 4 }..9),
        chunk: [8, 16, 64, 128, 256][rng.random_range(0..5)],
        cache: [1, 32, 256][rng.random_range(0..3)],
    })
}

/// A device and what it must hold.
struct Twin {
    kind: Kind,
    seed: u64,
    lab: Lab,
    bytes: Vec<u8>,
}

impl Twin {
    /// Disks full of chance: the array's data is what it is, its parity fits nowhere yet.
    fn new(kind: Kind, rng: &mut SmallRng) -> Self {
        let lab = Lab::new(kind);
        lab.disks.iter().for_each(|disk| disk.scribble(rng));
        lab.members.set_consistent_to(Sector::ZERO);
        let bytes = lab.read(0..lab.size).expect("all are well");
        Self {
            kind,
            seed: 0,
            lab,
            bytes,
        }
    }

    /// One whose parity fits.
    fn synced(kind: Kind, rng: &mut SmallRng) -> Self {
        let twin = Self::new(kind, rng);
        twin.lab.whole(SyncKind::Resync);
        twin.lab.members.set_consistent_to(MAX_SECTOR);
        twin
    }

    fn somewhere(&self, rng: &mut SmallRng) -> Range<u64> {
        let at = rng.random_range(0..self.lab.size);
        let longest = [1, 8, 60, 2000][rng.random_range(0..4)];
        at..(at + rng.random_range(1..=longest)).min(self.lab.size)
    }

    fn write(&mut self, rng: &mut SmallRng) {
        let place = self.somewhere(rng);
        let bytes = &mut self.bytes[place.start as usize * 512..place.end as usize * 512];
        rng.fill(bytes);
        let status = self.lab.write(place.start, bytes);
        assert!(status.is_ok(), "{place:?}");
    }

    fn check(&self, place: Range<u64>) {
        let (kind, seed) = (self.kind, self.seed);
        let expected = &self.bytes[place.start as usize * 512..place.end as usize * 512];
        let found = self.lab.read(place.clone());
        assert!(
            found.as_deref() == Ok(expected),
            "{kind:?} seed {seed}: {place:?} {:?}",
            found.err()
        );
    }

    fn check_all(&self) {
        self.check(0..self.lab.size);
    }
}
