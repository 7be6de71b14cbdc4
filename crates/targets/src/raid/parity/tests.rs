//! The levels over disks in memory, beside a flat array of bytes: random lives, faults at every request, many threads.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::{BlockDevice, Io, Op, QueueLimits, read, write};
use thinmap_dm::{DeviceId, DeviceName, DeviceUse};
use thinmap_runtime::IoBuf;
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
        let members = Members::new(list, FailRule::Always, Box::new(|_| true));
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
        self.members.member(member).set_rebuilding(Sector::ZERO);
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
                member.set_in_sync();
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

fn seeds() -> u64 {
    std::env::var("THINMAP_SEEDS").map_or(4, |n| n.parse().expect("THINMAP_SEEDS is a number"))
}

#[test]
fn random_lives_agree_with_a_flat_array() {
    for seed in 0..seeds() {
        for kind in kinds(seed) {
            random_life(kind, seed);
        }
    }
}

fn random_life(kind: Kind, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut twin = Twin::new(kind, &mut rng);
    twin.seed = seed;
    let mut consistent = 0;
    // Some things happen often in one life and never in another.
    let weights: Vec<u32> = (0..6).map(|_| rng.random_range(0..10)).collect();
    for _ in 0..120 {
        let members = kind.members;
        let is_synced = consistent == twin.lab.len();
        match rng.random_range(0..weights.iter().sum::<u32>() + 12) {
            0..6 => twin.write(&mut rng),
            6..12 => {
                let place = twin.somewhere(&mut rng);
                twin.check(place);
            }
            n if n < 12 + weights[0] => {
                if !is_synced {
                    let to = (consistent + 8 * rng.random_range(1..30)).min(twin.lab.len());
                    twin.lab
                        .sync(SyncKind::Resync, consistent..to)
                        .expect("in sync");
                    twin.lab.members.set_consistent_to(Sector(to));
                    consistent = to;
                }
            }
            n if n < 12 + weights[0] + weights[1] => {
                if is_synced && twin.lab.lost() + twin.lab.bad() < twin.lab.parities {
                    twin.lab.members.fail(rng.random_range(0..members));
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] => {
                let failed =
                    (0..members).find(|m| twin.lab.members.state(*m) == MemberState::Failed);
                if let Some(member) = failed {
                    twin.lab.replace(member, &mut rng);
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] + weights[3] => {
                if is_synced {
                    twin.lab.recover_some(&mut rng);
                }
            }
            n if n < 12 + weights[0] + weights[1] + weights[2] + weights[3] + weights[4] => {
                if is_synced && twin.lab.lost() + twin.lab.bad() < twin.lab.parities {
                    let member = rng.random_range(0..members);
                    let sector = OFFSET + rng.random_range(0..twin.lab.len());
                    twin.lab.disks[member].bad.lock().push(sector);
                }
            }
            _ => {
                if is_synced && twin.lab.lost() == 0 {
                    assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{kind:?} seed {seed}");
                }
            }
        }
    }
    twin.check_all();
    if consistent < twin.lab.len() {
        twin.lab.whole(SyncKind::Resync);
        twin.lab.members.set_consistent_to(MAX_SECTOR);
    }
    let failed = (0..kind.members).filter(|m| twin.lab.members.state(*m) == MemberState::Failed);
    failed.for_each(|member| twin.lab.replace(member, &mut rng));
    twin.lab.recover(&mut rng);
    twin.check_all();
    assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{kind:?} seed {seed}");
}

/// What Linux 6.1 left on five members: see `tests/conformance/cases/raid_parity.sh`, which wrote the same there.
#[test]
fn members_hold_what_the_kernels_do() {
    use sha2::{Digest, Sha256};
    for line in include_str!("kernel_members.txt").lines() {
        let mut words = line.split(' ');
        let mut number = || {
            words
                .next()
                .and_then(|word| word.parse().ok())
                .expect("a number")
        };
        let kind = Kind {
            level: number(),
            layout: number(),
            members: 5,
            chunk: 16,
            cache: 256,
        };
        let lab = Lab::over(kind, 64, |disk| disk);
        let lines = (1..=lab.size * 16).map(|nr| format!("seed red line {nr:020}\n"));
        let mut bytes: Vec<u8> = lines.flat_map(String::into_bytes).collect();
        bytes.truncate(lab.size as usize * 512);
        assert!(lab.write(0, &bytes).is_ok());
        for (disk, expected) in lab.disks.iter().zip(words) {
            let found = Sha256::digest(&disk.bytes.lock()[OFFSET as usize * 512..]);
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, expected, "{kind:?}");
        }
    }
}

#[test]
fn whole_rows_are_written_without_a_read() {
    for kind in kinds(7) {
        let mut rng = SmallRng::seed_from_u64(7);
        let kind = Kind { cache: 256, ..kind };
        let twin = Twin::synced(kind, &mut rng);
        let reads = |lab: &Lab| -> i64 { lab.disks.iter().map(|d| d.reads.load(SeqCst)).sum() };
        let before = reads(&twin.lab);
        assert!(
            twin.lab
                .write(0, &vec![1; twin.lab.size as usize * 512])
                .is_ok()
        );
        assert_eq!(reads(&twin.lab), before, "{kind:?}");
        assert_eq!(twin.lab.whole(SyncKind::Check), 0);
    }
}

#[test]
fn small_writes_touch_what_they_change_and_the_parity() {
    let kind = Kind {
        level: 6,
        layout: 2,
        members: 8,
        chunk: 64,
        cache: 256,
    };
    let twin = Twin::synced(kind, &mut SmallRng::seed_from_u64(8));
    for disk in &twin.lab.disks {
        disk.writes.lock().clear();
        disk.reads.store(0, SeqCst);
    }
    assert!(twin.lab.write(8, &[7; 4096]).is_ok());
    let touched = |f: &dyn Fn(&Disk) -> bool| twin.lab.disks.iter().filter(|d| f(d)).count();
    assert_eq!(
        touched(&|disk| *disk.writes.lock() == [OFFSET + 8..OFFSET + 16]),
        3
    );
    assert_eq!(touched(&|disk| disk.writes.lock().is_empty()), 5);
    assert_eq!(touched(&|disk| disk.reads.load(SeqCst) == 1), 3);
}

#[test]
fn a_check_counts_in_units_and_a_repair_ends_it() {
    for kind in kinds(9) {
        let mut rng = SmallRng::seed_from_u64(9);
        let twin = Twin::synced(kind, &mut rng);
        // Two sectors of one unit on one member, one of another unit on another: parity or data, it does not fit.
        for (member, sector) in [(0, 1), (0, 6), (1, 8 * (twin.lab.len() / 8 - 1))] {
            let at = (OFFSET + sector) as usize * 512;
            twin.lab.disks[member].bytes.lock()[at] ^= 1;
        }
        assert_eq!(twin.lab.whole(SyncKind::Check), 16, "{kind:?}");
        assert_eq!(twin.lab.whole(SyncKind::Repair), 16);
        assert_eq!(twin.lab.whole(SyncKind::Check), 0);
    }
}

#[test]
fn a_sector_that_cannot_be_read_is_written_anew() {
    for kind in kinds(10) {
        let mut rng = SmallRng::seed_from_u64(10);
        let twin = Twin::synced(kind, &mut rng);
        // By a reader, in every member though in no unit twice: each of them is found.
        let last_unit = twin.lab.len() / 8 - 1;
        for (member, disk) in twin.lab.disks.iter().enumerate() {
            disk.bad
                .lock()
                .push(OFFSET + 8 * (member as u64).min(last_unit) + 3);
        }
        let units = last_unit + 1 >= kind.members as u64;
        if units {
            twin.check_all();
            assert_eq!(twin.lab.lost(), 0, "{kind:?}");
            // Parity is nobody's to read: a check finds it.
            assert_eq!(twin.lab.whole(SyncKind::Check), 0);
            assert!(twin.lab.disks.iter().all(|disk| disk.bad.lock().is_empty()));
            twin.check_all();
        }
    }
}

#[test]
fn more_than_the_parity_can_mend_fails_and_nothing_else() {
    for kind in kinds(11) {
        let mut rng = SmallRng::seed_from_u64(11);
        let mut twin = Twin::synced(kind, &mut rng);
        for member in 0..=twin.lab.parities {
            twin.lab.members.fail(member);
        }
        let chunk = kind.chunk as usize * 512;
        let mut lost = 0;
        for (nr, expected) in twin.bytes.chunks(chunk).enumerate() {
            let begin = nr as u64 * kind.chunk;
            match twin.lab.read(begin..begin + kind.chunk) {
                Ok(found) => assert!(found == expected, "{kind:?}"),
                Err(_) => lost += 1,
            }
            assert_eq!(twin.lab.write(begin, &[5; 512]), BlkStatus::IoErr);
        }
        assert!(lost > 0 && lost < twin.bytes.len() / chunk);
        twin.bytes.clear();
    }
}

/// The requests of one member, or two, fail from the n-th on or once: what the guest was told holds.
#[test]
fn faults_at_every_request_lose_nothing_that_was_promised() {
    let kinds = [
        Kind {
            level: 5,
            layout: 2,
            members: 4,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 8,
            members: 5,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 18,
            members: 6,
            chunk: 256,
            cache: 1,
        },
    ];
    for kind in kinds {
        for (bad, for_good) in [(1, false), (1, true), (2, false), (2, true)] {
            for n in 0.. {
                if !faulty_life(kind, bad, for_good, n) {
                    break;
                }
            }
        }
    }
}

/// Whether a fault struck.
fn faulty_life(kind: Kind, bad: usize, for_good: bool, n: i64) -> bool {
    let what = format!("{kind:?}: {bad} members, for good {for_good}, request {n}");
    let mut rng = SmallRng::seed_from_u64(n as u64);
    let mut twin = Twin::synced(kind, &mut rng);
    let first = rng.random_range(0..kind.members);
    let faulty = [first, (first + 1) % kind.members];
    for member in &faulty[..bad] {
        let disk = &twin.lab.disks[*member];
        disk.for_good.store(for_good, SeqCst);
        disk.fail_in.store(n, SeqCst);
    }
    // `None` where a write was refused.
    let mut sure = vec![true; twin.lab.size as usize];
    for _ in 0..14 {
        let place = twin.somewhere(&mut rng);
        let range = place.start as usize * 512..place.end as usize * 512;
        rng.fill(&mut twin.bytes[range.clone()]);
        let status = twin.lab.write(place.start, &twin.bytes[range]);
        let told = &mut sure[place.start as usize..place.end as usize];
        told.fill(status.is_ok());
        assert!(status.is_ok() || bad > twin.lab.parities, "{what}");
        let place = twin.somewhere(&mut rng);
        let found = twin.lab.read(place.clone());
        assert!(found.is_ok() || bad > twin.lab.parities, "{what}");
        for (sector, found) in place.zip(found.iter().flat_map(|bytes| bytes.chunks(512))) {
            let expected = &twin.bytes[sector as usize * 512..][..512];
            assert!(
                !sure[sector as usize] || found == expected,
                "{what} sector {sector}"
            );
        }
    }
    let struck = faulty[..bad]
        .iter()
        .any(|m| twin.lab.disks[*m].has_failed.load(SeqCst));
    if bad <= twin.lab.parities {
        for member in 0..kind.members {
            if twin.lab.members.state(member) == MemberState::Failed {
                twin.lab.replace(member, &mut rng);
            }
            twin.lab.disks[member].fail_in.store(-1, SeqCst);
        }
        twin.lab.recover(&mut rng);
        twin.check_all();
        assert_eq!(twin.lab.whole(SyncKind::Check), 0, "{what}");
    }
    struck
}

/// Each thread owns every fourth cell, over disks that answer in any order, while members fail and are rebuilt.
#[test]
fn threads_that_write_at_once_see_their_own_writes() {
    for (seed, kind) in [
        Kind {
            level: 5,
            layout: 2,
            members: 4,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 2,
            members: 6,
            chunk: 64,
            cache: 1,
        },
        Kind {
            level: 6,
            layout: 9,
            members: 5,
            chunk: 8,
            cache: 16,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let lab = Lab::over(kind, ROWS, |disk| Delayed::new(disk, seed as u64));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|thread| {
                    let lab = &lab;
                    scope.spawn(move || owner(lab, thread))
                })
                .collect();
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(99);
                while !done.load(SeqCst) {
                    let member = rng.random_range(0..kind.members);
                    lab.members.fail(member);
                    // It keeps what it had: reads that began before may still be under way.
                    lab.members.member(member).set_rebuilding(Sector::ZERO);
                    lab.recover(&mut rng);
                }
            });
            let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, SeqCst);
            assert!(ends.iter().all(Result::is_ok));
        });
        assert_eq!(lab.whole(SyncKind::Check), 0);
    }
}

fn owner(lab: &Lab, thread: u64) {
    const CELL: u64 = 3;
    let cells = lab.size / CELL;
    let mut rng = SmallRng::seed_from_u64(thread);
    let mut versions = vec![0_u8; cells as usize];
    for step in 0..400_u32 {
        let cell = rng.random_range(0..cells / 4) * 4 + thread;
        let at = cell * CELL;
        if rng.random() {
            let version = (step % 255 + 1) as u8;
            assert!(lab.write(at, &[version; CELL as usize * 512]).is_ok());
            versions[cell as usize] = version;
        }
        let found = lab.read(at..at + CELL).expect("enough is left");
        assert!(
            found.iter().all(|byte| *byte == versions[cell as usize]),
            "cell {cell}"
        );
    }
}

/// Answers on a thread of its own, in a shuffled order.
struct Delayed {
    below: Arc<dyn BlockDevice>,
    state: Arc<(Mutex<(Vec<Io>, bool)>, parking_lot::Condvar)>,
}

impl Delayed {
    fn new(below: Arc<dyn BlockDevice>, seed: u64) -> Arc<dyn BlockDevice> {
        let delayed = Self {
            below,
            state: Arc::default(),
        };
        let (below, state) = (delayed.below.clone(), delayed.state.clone());
        let mut rng = SmallRng::seed_from_u64(seed);
        std::thread::spawn(move || {
            loop {
                let io = {
                    let mut held = state.0.lock();
                    while held.0.is_empty() {
                        if held.1 {
                            return;
                        }
                        state.1.wait(&mut held);
                    }
                    let pick = rng.random_range(0..held.0.len());
                    held.0.swap_remove(pick)
                };
                below.submit(io);
            }
        });
        Arc::new(delayed)
    }
}

impl BlockDevice for Delayed {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.state.0.lock().0.push(io);
        self.state.1.notify_one();
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.state.0.lock().1 = true;
        self.state.1.notify_one();
    }
}
