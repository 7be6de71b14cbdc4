//! What one run of a target by itself is like: its lines, disks, faults and clients, all drawn from the seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_sim::{Content, DiskManners, FaultPlan, Image, mix};

use crate::oracle::{CELLS, Layout};

/// Which target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// raid1.
    Raid1,
    /// raid10, near, far and offset.
    Raid10,
    /// raid4 and raid5.
    Raid5,
    /// raid6.
    Raid6,
    /// mirror with a log on a disk.
    Mirror,
    /// snapshot and snapshot-origin.
    Snapshot,
    /// The same, and in the end snapshot-merge.
    Merge,
    /// clone.
    Clone,
    /// era.
    Era,
    /// crypt.
    Crypt,
    /// cache.
    Cache,
    /// writecache.
    Writecache,
    /// integrity, in modes J, B and D.
    Integrity,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Raid1,
        Self::Raid10,
        Self::Raid5,
        Self::Raid6,
        Self::Mirror,
        Self::Snapshot,
        Self::Merge,
        Self::Clone,
        Self::Era,
        Self::Crypt,
        Self::Cache,
        Self::Writecache,
        Self::Integrity,
    ];
}

/// The volume of most targets, and the origin of a snapshot.
pub const MAIN: u32 = 0;
/// A snapshot.
pub const SNAP: u32 = 1;

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The target.
    pub kind: Kind,
    /// Cells.
    pub layout: Layout,
    /// Of the volume.
    pub blocks: u64,
    /// Sectors of each disk.
    pub disks: Vec<u64>,
    /// The line's target and arguments; of a snapshot's, those behind the devices.
    pub line: (&'static str, String),
    /// Arguments that may stand in that line's place.
    pub others: Vec<String>,
    /// The disk that holds something before the first life.
    pub origin_on: Option<usize>,
    /// Blocks may have the wrong tag after a fault.
    pub may_lack_tags: bool,
    /// And after a power cut.
    pub is_direct: bool,
    /// A disk that fails, and in which of the lives how.
    pub victim: usize,
    /// By life.
    pub faults: Vec<Option<FaultPlan>>,
    /// Nobody above sees the fault.
    pub is_redundant: bool,
    /// A power cut while a member is missing may cost what was flushed (the write hole).
    pub has_write_hole: bool,
    /// Requests in a life.
    pub requests: u32,
    /// In flight, at most.
    pub depth: usize,
    /// Write, read, flush, discard, write zeroes.
    pub weights: [u32; 5],
    /// One write of so many has FUA.
    pub fua_one_in: u32,
    /// Rather long requests.
    pub long_requests: bool,
    /// Clients' pauses.
    pub pause: Duration,
    /// One step of so many is a command.
    pub command_one_in: u32,
    /// How disks behave.
    pub manners: DiskManners,
    /// A merge begins in the last life but one.
    pub merge_in: usize,
    /// Lives that the daemon's death ends instead of a power cut.
    pub deaths: Vec<bool>,
    /// A keeper holds what the next daemon must know.
    pub keeper: bool,
}

const META: u64 = 512;
pub(super) const BLOCK: u64 = 128;

pub(super) fn pick<T: Copy>(rng: &mut SmallRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn members(count: usize) -> String {
    let pairs = (0..count).map(|n| format!(" 7:{} 7:{}", 2 * n, 2 * n + 1));
    format!("{count}{}", pairs.collect::<String>())
}

impl Plan {
    /// Draws one.
    pub fn draw(kind: Kind, rng: &mut SmallRng) -> Self {
        let rows = rng.random_range(2..10);
        let mut plan = Self {
            kind,
            layout: Layout {
                block: BLOCK,
                grain: 1,
                origin: 0,
                skip_zeroing: kind == Kind::Crypt,
            },
            blocks: rows,
            disks: Vec::new(),
            line: ("", String::new()),
            others: Vec::new(),
            origin_on: None,
            may_lack_tags: false,
            is_direct: false,
            victim: 0,
            faults: Vec::new(),
            is_redundant: false,
            has_write_hole: false,
            requests: rng.random_range(10..120),
            depth: rng.random_range(1..12),
            weights: [
                rng.random_range(4..30),
                rng.random_range(0..10),
                rng.random_range(1..8),
                0,
                pick(rng, &[0, 0, 3]),
            ],
            fua_one_in: rng.random_range(2..30),
            long_requests: rng.random_range(0..4) == 0,
            pause: Duration::from_millis(pick(rng, &[0, 1, 20, 300, 2000])),
            command_one_in: pick(rng, &[20, 100, 1000]),
            manners: DiskManners {
                usual: Duration::from_micros(pick(rng, &[0, 50, 1000])),
                slow_one_in: pick(rng, &[0, 5, 50]),
                slow: Duration::from_millis(pick(rng, &[20, 1500])),
                at_once_one_in: pick(rng, &[0, 0, 1, 4]),
                discards: false,
            },
            merge_in: 0,
            deaths: Vec::new(),
            keeper: false,
        };
        let lives = rng.random_range(2..6);
        match kind {
            Kind::Raid1 | Kind::Raid10 | Kind::Raid5 | Kind::Raid6 => plan.raid(rows, rng),
            Kind::Mirror => plan.mirror(rng),
            Kind::Snapshot | Kind::Merge => plan.snapshot(rng),
            Kind::Clone => plan.clone_target(rng),
            Kind::Era => {
                plan.disks = vec![2048, plan.len()];
                plan.line = ("era", format!("7:0 7:1 {}", pick(rng, &[8, 16, 64])));
            }
            Kind::Crypt => {
                plan.disks = vec![plan.len()];
                let cipher = pick(rng, &["aes-xts-plain64", "aes-cbc-essiv:sha256"]);
                let line = format!("{cipher} {} 0 7:0 0", "0123456789abcdef".repeat(4));
                plan.line = ("crypt", line);
            }
            Kind::Cache => plan.cache(rng),
            Kind::Writecache => plan.writecache(rng),
            Kind::Integrity => plan.integrity(rng),
        }
        plan.merge_in = lives / 2;
        plan.draw_faults(lives, rng);
        plan
    }

    /// Of some seeds lives end in the daemon's death. Drawn by itself, so that others are what they were without.
    pub fn draw_deaths(&mut self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(mix(seed));
        let some = seed % 4 == 1;
        self.deaths = (self.faults.iter())
            .map(|_| some && rng.random_range(0..3) > 0)
            .collect();
        self.keeper = some && rng.random();
    }

    /// Sectors of the volume.
    pub fn len(&self) -> u64 {
        self.blocks * self.layout.block
    }

    /// What disks hold before the first life.
    pub fn images(&self) -> Vec<Image> {
        let mut images: Vec<Image> = self.disks.iter().map(|len| Image::new(*len)).collect();
        let Some(source) = self.origin_on else {
            return images;
        };
        for sector in 0..self.layout.origin {
            let word = Content::Word(self.layout.origin_word(sector));
            images[source].set(sector, word);
        }
        images
    }

    fn raid(&mut self, rows: u64, rng: &mut SmallRng) {
        let sleep = pick(rng, &[10, 100, 5000]);
        let chunk = pick(rng, &[8, 16, 64, 128]);
        let least = if self.kind == Kind::Raid1 { 8 } else { chunk };
        let region = pick(rng, &[8, 16, 64, 256]).max(least);
        let member = rows * BLOCK;
        let common = format!("daemon_sleep {sleep} region_size {region}");
        let (name, options, count, data) = match self.kind {
            Kind::Raid1 => {
                let count = rng.random_range(2..4);
                let mostly = pick(rng, &["", "", "write_mostly 0 "]);
                ("raid1", format!("0 {mostly}{common}"), count, (1, 1))
            }
            Kind::Raid10 => {
                let format = pick(rng, &["near", "far", "offset"]);
                let count = rng.random_range(3..6);
                let options = format!("{chunk} raid10_format {format} {common}");
                ("raid10", options, count, (count as u64, 2))
            }
            Kind::Raid5 => {
                let name = pick(rng, &["raid4", "raid5_ls", "raid5_ra", "raid5_n"]);
                let count = rng.random_range(3..6);
                (
                    name,
                    format!("{chunk} {common}"),
                    count,
                    (count as u64 - 1, 1),
                )
            }
            _ => {
                let name = pick(rng, &["raid6_zr", "raid6_nc", "raid6_n_6"]);
                let count = rng.random_range(4..7);
                (
                    name,
                    format!("{chunk} {common}"),
                    count,
                    (count as u64 - 2, 1),
                )
            }
        };
        // Twice as long, so that halves are whole.
        let member = if data.1 == 2 { 2 * member } else { member };
        let len = member * data.0 / data.1;
        self.blocks = len / BLOCK;
        self.layout.block = BLOCK;
        self.disks = (0..count).flat_map(|_| [META, member]).collect();
        let words = options.split(' ').count();
        let sync = pick(rng, &["", "", " nosync"]);
        // raid6 refuses nosync for a new array.
        let sync = if self.kind == Kind::Raid6 { "" } else { sync };
        let words = words + usize::from(!sync.is_empty());
        let line = format!("{name} {words} {options}{sync} {}", members(count));
        self.line = ("raid", line);
        self.is_redundant = true;
        self.has_write_hole = matches!(self.kind, Kind::Raid5 | Kind::Raid6);
        self.victim = rng.random_range(0..2 * count);
    }

    fn mirror(&mut self, rng: &mut SmallRng) {
        let legs = rng.random_range(2..4);
        let region = pick(rng, &[2, 16, 64, 128]);
        let len = self.len();
        self.disks = std::iter::once(16).chain((0..legs).map(|_| len)).collect();
        let list: String = (1..=legs).map(|n| format!(" 7:{n} 0")).collect();
        let line = format!("disk 2 7:0 {region} {legs}{list} 2 handle_errors keep_log");
        self.line = ("mirror", line);
        self.is_redundant = true;
        // After a power cut the first leg is right, whatever had failed before.
        self.victim = rng.random_range(2..=legs);
    }

    fn snapshot(&mut self, rng: &mut SmallRng) {
        self.origin_on = Some(0);
        let chunk = pick(rng, &[8, 16, 32, 64]);
        self.layout.origin = self.len();
        let room = pick(
            rng,
            &[
                self.len() * 4 + 4096,
                self.len() * 4 + 4096,
                self.len() / 2 + 64,
            ],
        );
        self.disks = vec![self.len(), room];
        self.line = ("snapshot", format!("{} {chunk}", pick(rng, &["P", "PO"])));
        self.victim = rng.random_range(0..2);
    }

    fn clone_target(&mut self, rng: &mut SmallRng) {
        self.origin_on = Some(2);
        self.layout.origin = self.len();
        self.disks = vec![2048, self.len(), self.len()];
        let region = pick(rng, &[8, 16, 64]);
        let feature = pick(rng, &["0", "0", "1 no_hydration"]);
        let threshold = rng.random_range(1..5);
        let batch = rng.random_range(1..5);
        let line = format!(
            "7:0 7:1 7:2 {region} {feature} 4 hydration_threshold {threshold} hydration_batch_size {batch}"
        );
        self.line = ("clone", line);
        self.victim = rng.random_range(0..3);
    }

    fn draw_faults(&mut self, lives: usize, rng: &mut SmallRng) {
        if matches!(self.kind, Kind::Era | Kind::Crypt) {
            self.victim = rng.random_range(0..self.disks.len());
        }
        let faulty = rng.random_range(0..2) == 0;
        for _ in 0..lives {
            let soon = pick(rng, &[4, 30, 150]);
            let at = rng.random_range(0..soon);
            let plan = match rng.random_range(0..7) {
                0 | 1 => FaultPlan::From(at),
                2 => FaultPlan::ChangesFrom(at),
                3 => FaultPlan::FlushOnce(at),
                4 => FaultPlan::ReadOnce(at),
                _ => FaultPlan::Once(at),
            };
            let plan = match (self.kind, self.victim, plan) {
                // Nobody can tell then that a snapshot is no longer valid.
                (
                    Kind::Snapshot | Kind::Merge,
                    1,
                    FaultPlan::From(_) | FaultPlan::ChangesFrom(_),
                ) => FaultPlan::Once(at),
                _ => plan,
            };
            // As in the kernel an array is not made of members that fail meanwhile.
            let is_made = !self.faults.is_empty() || !self.is_redundant;
            let strikes = faulty && rng.random_range(0..2) == 0 && is_made;
            self.faults.push(strikes.then_some(plan));
        }
    }

    /// Whether any life has a fault.
    pub fn has_faults(&self) -> bool {
        self.faults.iter().any(Option::is_some)
    }

    /// Cells of the volume.
    pub fn cells(&self) -> u64 {
        self.blocks * CELLS
    }
}
