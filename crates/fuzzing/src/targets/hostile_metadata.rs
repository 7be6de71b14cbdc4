//! The metadata of every target but the thin ones, damaged: whatever a snapshot's store, a dirty log, an array's superblocks or a
//! cache's tables say, nothing panics and every request ends. A snapshot's store may name chunks that do not exist, as in a kernel:
//! the devices refuse such requests here as everywhere.
//!
//! Input: a scenario, how many changed words (each a device, a block in use, a word and a value), then requests, messages and
//! questions. Checksums are made good again after a change.

use std::sync::{Arc, OnceLock};

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_persistent_data::{BlockBytes, BlockKind, META_BLOCK_SIZE, seal, verify};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use super::Target;
use super::traffic::{KINDS, live, request};
use crate::Input;
use crate::world::World;

pub const TARGET: Target = Target {
    name: "hostile_metadata",
    run,
    seeds,
};

const OPERATIONS_MAX: usize = 24;
const DAMAGES_MAX: usize = 16;

struct Scenario {
    /// Target and arguments.
    table: &'static str,
    /// What makes the good image, when not the same.
    made_by: Option<&'static str>,
    sectors: u64,
    messages: &'static [&'static str],
}

/// Sectors of the devices that tables name: one letter says what a device is for, and so its size.
const fn size_of(kind: u8) -> u64 {
    match kind {
        // Metadata, logs, stores.
        b'm' => 2048,
        // Data with room for tags and journals between it.
        b'i' => 4096,
        _ => 1024,
    }
}

const fn scenario(
    sectors: u64,
    table: &'static str,
    messages: &'static [&'static str],
) -> Scenario {
    Scenario {
        table,
        made_by: None,
        sectors,
        messages,
    }
}

const SYNC: &[&str] = &["check", "repair", "resync", "idle", "frozen"];
const WRITECACHE: &[&str] = &["flush", "flush_on_suspend", "cleaner", "clear_stats"];
const CACHE: &[&str] = &[
    "migration_threshold 0",
    "migration_threshold 8192",
    "invalidate_cblocks 0-3",
    "invalidate_cblocks 7",
];
const ERA: &[&str] = &["checkpoint", "take_metadata_snap", "drop_metadata_snap"];
const CLONE: &[&str] = &[
    "enable_hydration",
    "disable_hydration",
    "hydration_threshold 8",
    "hydration_batch_size 8",
];

static SCENARIOS: &[Scenario] = &[
    scenario(512, "snapshot a m P 8", &[]),
    scenario(512, "snapshot a m PO 16", &[]),
    Scenario {
        made_by: Some("snapshot a m P 8"),
        ..scenario(512, "snapshot-merge a m P 8", &[])
    },
    scenario(512, "mirror disk 2 m 8 2 a 0 b 0 1 handle_errors", &[]),
    scenario(512, "raid raid1 3 0 region_size 64 2 m1 a m2 b", SYNC),
    scenario(512, "raid raid10 3 64 region_size 64 2 m1 a m2 b", SYNC),
    scenario(
        1024,
        "raid raid5_ls 3 64 region_size 64 3 m1 a m2 b m3 c",
        SYNC,
    ),
    scenario(
        1024,
        "raid raid6_zr 3 64 region_size 64 4 m1 a m2 b m3 c m4 d",
        SYNC,
    ),
    scenario(512, "era m a 8", ERA),
    scenario(
        512,
        "clone m a b 8 0 4 hydration_threshold 4 hydration_batch_size 4",
        CLONE,
    ),
    scenario(
        512,
        "cache m a b 64 1 writeback smq 2 migration_threshold 4096",
        CACHE,
    ),
    scenario(512, "cache m a b 64 2 metadata2 writethrough smq 0", CACHE),
    scenario(512, "cache m a b 64 2 metadata2 writeback cleaner 0", CACHE),
    scenario(512, "writecache s a m 4096 0", WRITECACHE),
    scenario(
        512,
        "writecache s a m 512 4 high_watermark 10 low_watermark 5",
        WRITECACHE,
    ),
    scenario(
        512,
        "integrity i 0 - J 2 internal_hash:crc32c journal_sectors:88",
        &[],
    ),
    scenario(
        512,
        "integrity i 0 - B 2 internal_hash:crc32c sectors_per_bit:32",
        &[],
    ),
    scenario(
        512,
        "integrity a 0 - J 3 internal_hash:crc32c meta_device:m block_size:4096",
        &[],
    ),
    scenario(
        512,
        "integrity i 0 - D 2 internal_hash:crc32c recalculate",
        &[],
    ),
];

/// A device of the good image.
struct Good {
    name: String,
    bytes: Vec<u8>,
    /// Blocks in use, and what they are by their checksum.
    blocks: Vec<(usize, Option<BlockKind>)>,
}

impl Scenario {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let is_device = |word: &&str| {
            let mut bytes = word.bytes();
            matches!(bytes.next(), Some(b'a'..=b'd' | b'i' | b'm'))
                && bytes.all(|byte| byte.is_ascii_digit())
        };
        let words = self.table.split([' ', ':']);
        words.filter(is_device)
    }

    fn good(&self) -> Vec<Good> {
        let world = World::new();
        let devices: Vec<_> = (self.names())
            .map(|name| {
                (
                    name,
                    Arc::new(MemoryDevice::new(Sector(size_of(name.as_bytes()[0])))),
                )
            })
            .collect();
        for (name, device) in &devices {
            world.add(name, device.clone());
        }
        let env = world.environment();
        let device = world.device(&env, "good");
        let made_by = self.made_by.unwrap_or(self.table);
        assert!(live(&device, self.sectors, made_by), "{made_by}: refused");
        for at in 0..24_u64 {
            let mut buf = IoBuf::alloc(4096);
            buf.as_mut_slice().fill(at as u8 + 1);
            let sector = Sector(at * at * 8 % (self.sectors - 8) / 8 * 8);
            let flags = IoFlags::default();
            let (_, status) = submit_and_wait(&*device, (Op::Write, flags, sector, Sector(8), buf));
            assert!(status.is_ok(), "{made_by}: write at {sector}: {status:?}");
        }
        assert!(thinmap_block::flush(&*device).is_ok(), "{made_by}: flush");
        device.suspend(SuspendFlags::default()).expect("suspended");
        device.destroy();
        world.end();
        devices
            .into_iter()
            .map(|(name, device)| Good::of(name, &*device))
            .collect()
    }
}

impl Good {
    fn of(name: &str, device: &dyn BlockDevice) -> Self {
        let bytes = usize::try_from(device.size().bytes()).expect("small");
        let (buf, status) = thinmap_block::read(device, Sector::ZERO, IoBuf::alloc(bytes));
        assert!(status.is_ok(), "memory");
        let bytes = buf.as_slice().to_vec();
        let blocks = bytes.chunks_exact(META_BLOCK_SIZE).enumerate();
        let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
        let blocks = used.map(|(at, block)| (at, kind_of(at, block))).collect();
        Self {
            name: name.to_owned(),
            bytes,
            blocks,
        }
    }

    /// Whether a target's own words are in it, and not only the user's data.
    fn has_metadata(&self) -> bool {
        self.name.starts_with(['m', 'i']) && !self.blocks.is_empty()
    }
}

fn kind_of(at: usize, block: &[u8]) -> Option<BlockKind> {
    let block: &BlockBytes = block.try_into().expect("a block");
    let kinds = [
        BlockKind::Node,
        BlockKind::Bitmap,
        BlockKind::Index,
        BlockKind::Array,
        BlockKind::EraSuperblock,
        BlockKind::CloneSuperblock,
        BlockKind::CacheSuperblock,
    ];
    (kinds.into_iter()).find(|kind| verify(*kind, at as u64, block).is_ok())
}

fn good(scenario: usize) -> &'static [Good] {
    static ALL: [OnceLock<Vec<Good>>; 32] = [const { OnceLock::new() }; 32];
    ALL[scenario].get_or_init(|| SCENARIOS[scenario].good())
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let at = input.below(SCENARIOS.len());
    let scenario = &SCENARIOS[at];
    let good = good(at);
    let mut content: Vec<Vec<u8>> = good.iter().map(|device| device.bytes.clone()).collect();
    damage(good, &mut content, &mut input);
    let world = World::new();
    for (device, bytes) in good.iter().zip(&content) {
        let memory = MemoryDevice::new(Sector::from_bytes(bytes.len() as u64));
        let mut buf = IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(bytes);
        thinmap_block::write(&memory, Sector::ZERO, buf);
        world.add(&device.name, Arc::new(memory));
    }
    let env = world.environment();
    let device = world.device(&env, "hostile");
    if live(&device, scenario.sectors, scenario.table) {
        for _ in 0..OPERATIONS_MAX {
            if input.is_empty() || !operate(&device, scenario, &mut input) {
                break;
            }
        }
    }
    let _ = device.suspend(SuspendFlags::default());
    device.destroy();
    world.end();
}

fn damage(good: &[Good], content: &mut [Vec<u8>], input: &mut Input<'_>) {
    let damaged: Vec<usize> = (0..good.len())
        .filter(|at| good[*at].has_metadata())
        .collect();
    if damaged.is_empty() {
        return;
    }
    for _ in 0..input.below(DAMAGES_MAX) {
        let at = damaged[input.below(damaged.len())];
        let blocks = &good[at].blocks;
        let (block, kind) = blocks[input.below(blocks.len())];
        let in_header = input.flag();
        let word = input.below(if in_header { 48 } else { META_BLOCK_SIZE / 8 });
        let value = match input.below(6) {
            0 => input.u64(),
            1 => u64::from(input.u8()),
            2 => u64::from(input.u16()),
            3 => u64::MAX,
            4 => 1 << input.below(64),
            _ => u64::from(input.u16()) << 24 | u64::from(input.u8()),
        }
        .to_le_bytes();
        let (skip, len) = [(0, 8), (0, 4), (4, 4), (2, 2)][input.below(4)];
        let start = block * META_BLOCK_SIZE;
        let bytes: &mut BlockBytes = (&mut content[at][start..start + META_BLOCK_SIZE])
            .try_into()
            .expect("a block");
        bytes[word * 8 + skip..][..len].copy_from_slice(&value[..len]);
        if let Some(kind) = kind {
            seal(kind, block as u64, bytes);
        }
    }
}

/// Whether the device takes requests afterwards: one that stays suspended keeps them.
fn operate(device: &Arc<MappedDevice>, scenario: &Scenario, input: &mut Input<'_>) -> bool {
    let kind = input.below(KINDS + 3);
    match kind {
        _ if kind < KINDS => request(device, kind, input),
        _ if kind == KINDS && !scenario.messages.is_empty() => {
            let text = scenario.messages[input.below(scenario.messages.len())];
            let argv: Vec<String> = text.split(' ').map(str::to_owned).collect();
            let _ = device.message(Sector::ZERO, &argv);
        }
        _ if kind == KINDS + 1 => {
            let _ = device.suspend(SuspendFlags::default());
            return device.resume(SuspendFlags::default()).is_ok();
        }
        _ => {
            let _ = device.table_status(StatusKind::Info, WhichTable::Live, input.flag());
        }
    }
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for scenario in 0..SCENARIOS.len() as u8 {
        // Every kind of operation on the good image, and a change to each of the first blocks.
        seeds.push(vec![
            scenario, 0, 0, 0, 0, 9, 1, 3, 0, 4, 2, 0, 0, 1, 3, 8, 0, 2, 6, 0, 7, 8,
        ]);
        seeds.extend((0..4).map(|block| {
            vec![
                scenario,
                1,
                0,
                block,
                1,
                block + 1,
                3,
                0,
                0,
                0,
                0,
                20,
                1,
                1,
                0,
                9,
                7,
                8,
                4,
            ]
        }));
    }
    seeds
}
