//! verity: reads give the right bytes or an error, whatever is wrong with the data, the tree or the disks below.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, QueueLimits};
use thinmap_dm::{DeviceError, MappedDevice, StatusKind, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

/// A format of verity, and how this test makes its trees: by recursion over levels, not as the target walks them.
#[derive(Clone, Debug)]
struct Format {
    version: u32,
    data_block: usize,
    hash_block: usize,
    algorithm: &'static str,
    salt: Vec<u8>,
    hash_start: usize,
}

impl Format {
    fn random(rng: &mut SmallRng) -> Self {
        let salt = rng.random_range(0..40);
        Self {
            version: rng.random_range(0..2),
            data_block: 512 << rng.random_range(0..4),
            hash_block: 512 << rng.random_range(0..6),
            algorithm: ["sha1", "sha256", "sha512"][rng.random_range(0..3)],
            salt: (0..salt).map(|_| rng.random()).collect(),
            hash_start: rng.random_range(0..5),
        }
    }

    fn hash(&self, block: &[u8]) -> Vec<u8> {
        let message = match self.version {
            0 => [block, &self.salt].concat(),
            _ => [&self.salt, block].concat(),
        };
        match self.algorithm {
            "sha1" => Sha1::digest(message).to_vec(),
            "sha256" => Sha256::digest(message).to_vec(),
            _ => Sha512::digest(message).to_vec(),
        }
    }

    /// The hash device's content and the root.
    fn tree(&self, data: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut digests: Vec<Vec<u8>> =
            data.chunks(self.data_block).map(|b| self.hash(b)).collect();
        let size = digests[0].len();
        let fan_out = 1 << (self.hash_block / size).ilog2();
        let stride = match self.version {
            0 => size,
            _ => self.hash_block / fan_out,
        };
        let mut levels = Vec::new();
        while digests.len() > 1 {
            let mut level = Vec::new();
            for group in digests.chunks(fan_out) {
                let mut block = vec![0; self.hash_block];
                for (index, digest) in group.iter().enumerate() {
                    block[index * stride..][..size].copy_from_slice(digest);
                }
                level.push(block);
            }
            digests = level.iter().map(|block| self.hash(block)).collect();
            levels.push(level.concat());
        }
        levels.push(vec![0; self.hash_start * self.hash_block]);
        levels.reverse();
        (levels.concat(), digests.remove(0))
    }

    fn table(&self, data_bytes: usize, root: &[u8], features: &str) -> String {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let salt = match self.salt.as_slice() {
            [] => "-".to_owned(),
            salt => hex(salt),
        };
        format!(
            "0 {} verity {} data hash {} {} {} {} {} {} {salt}{features}",
            data_bytes / 512,
            self.version,
            self.data_block,
            self.hash_block,
            data_bytes / self.data_block,
            self.hash_start,
            self.algorithm,
            hex(root)
        )
    }
}

/// A line over two disks.
struct Setup {
    format: Format,
    data: Vec<u8>,
    tree: Vec<u8>,
    data_disk: Arc<MemoryDevice>,
    hash_disk: Arc<MemoryDevice>,
    dev: Arc<MappedDevice>,
}

type Wrap<'a> = &'a dyn Fn(Arc<MemoryDevice>) -> Arc<dyn BlockDevice>;

impl Setup {
    fn new(
        format: Format,
        blocks: usize,
        features: &str,
        rng: &mut SmallRng,
        wrap: Wrap<'_>,
    ) -> Self {
        let mut data: Vec<u8> = (0..blocks * format.data_block)
            .map(|_| rng.random())
            .collect();
        // Some blocks are zero.
        for block in data.chunks_mut(format.data_block) {
            if rng.random_range(0..4) == 0 {
                block.fill(0);
            }
        }
        let (tree, root) = format.tree(&data);
        let world = World::new();
        let disk = |bytes: &[u8]| {
            let disk = Arc::new(MemoryDevice::new(Sector(bytes.len() as u64 / 512 + 8)));
            write_at(&disk, 0, bytes);
            disk
        };
        let (data_disk, hash_disk) = (disk(&data), disk(&tree));
        world.add("data", wrap(data_disk.clone()));
        world.add("hash", wrap(hash_disk.clone()));
        let dev = world.mapped("v");
        dev.load(&lines(&format.table(data.len(), &root, features)), true)
            .unwrap();
        resume(&dev).unwrap();
        Self {
            format,
            data,
            tree,
            data_disk,
            hash_disk,
            dev,
        }
    }

    /// Reads so many data blocks: what is read must be right.
    fn read(&self, first: usize, blocks: usize) -> BlkStatus {
        let size = self.format.data_block;
        let (bytes, status) = read_bytes(
            &*self.dev,
            (first * size / 512) as u64,
            (blocks * size / 512) as u64,
        );
        if status.is_ok() {
            let want = &self.data[first * size..(first + blocks) * size];
            assert!(
                bytes == want,
                "{:?}: wrong bytes at {first}+{blocks}",
                self.format
            );
        }
        status
    }

    fn blocks(&self) -> usize {
        self.data.len() / self.format.data_block
    }

    fn status(&self) -> String {
        let lines = self
            .dev
            .table_status(StatusKind::Info, WhichTable::Live, false);
        lines.unwrap()[0].text.clone()
    }
}

fn write_at(disk: &MemoryDevice, sector: u64, bytes: &[u8]) {
    let mut buf = IoBuf::alloc(bytes.len().next_multiple_of(512));
    buf.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    if !bytes.is_empty() {
        assert!(thinmap_block::write(disk, Sector(sector), buf).1.is_ok());
    }
}

/// Flips bits of the byte at `at`, and back.
fn flip(disk: &MemoryDevice, at: usize, bits: u8) {
    let sector = (at / 512) as u64;
    let (mut bytes, _) = read_bytes(disk, sector, 1);
    bytes[at % 512] ^= bits;
    write_at(disk, sector, &bytes);
}

fn plain(disk: Arc<MemoryDevice>) -> Arc<dyn BlockDevice> {
    disk
}

fn shuffled(disk: Arc<MemoryDevice>) -> Arc<dyn BlockDevice> {
    Delayed::new(disk, 7)
}

#[test]
fn every_format_reads_back() {
    let mut rng = SmallRng::seed_from_u64(1);
    let features = [
        "",
        " 1 check_at_most_once",
        " 2 check_at_most_once ignore_zero_blocks",
    ];
    for round in 0..60 {
        let format = Format::random(&mut rng);
        let blocks = [1, 2, 17, rng.random_range(1..3000)][round % 4];
        let wrap: Wrap<'_> = if round % 3 == 0 { &shuffled } else { &plain };
        let setup = Setup::new(
            format,
            blocks,
            features[round % features.len()],
            &mut rng,
            wrap,
        );
        assert!(setup.read(0, blocks).is_ok(), "{:?}", setup.format);
        for _ in 0..50 {
            let first = rng.random_range(0..blocks);
            let count = rng.random_range(1..=(blocks - first).min(200));
            assert!(setup.read(first, count).is_ok(), "{:?}", setup.format);
        }
        assert_eq!(setup.status(), "V");
    }
}

#[test]
fn many_threads_read_at_once() {
    let mut rng = SmallRng::seed_from_u64(2);
    let format = Format {
        version: 1,
        data_block: 512,
        hash_block: 512,
        algorithm: "sha256",
        salt: vec![1, 2, 3],
        hash_start: 1,
    };
    let setup = Setup::new(format, 20_000, "", &mut rng, &shuffled);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let setup = &setup;
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                for _ in 0..200 {
                    let first = rng.random_range(0..setup.blocks());
                    let count = rng.random_range(1..=(setup.blocks() - first).min(2000));
                    assert!(setup.read(first, count).is_ok());
                }
            });
        }
    });
}

#[test]
fn rotten_bits_give_errors_and_never_wrong_bytes() {
    let mut rng = SmallRng::seed_from_u64(3);
    for round in 0..80 {
        let format = Format::random(&mut rng);
        let blocks = rng.random_range(1..600);
        let setup = Setup::new(format, blocks, "", &mut rng, &plain);
        let size = setup.format.data_block;
        // Before anything is in memory, or after.
        if round % 2 == 0 {
            assert!(setup.read(0, blocks).is_ok());
        }
        let bits = 1 << rng.random_range(0..8);
        let at = rng.random_range(0..setup.data.len());
        flip(&setup.data_disk, at, bits);
        let rotten = at / size;
        for block in 0..blocks {
            assert_eq!(
                setup.read(block, 1).is_ok(),
                block != rotten,
                "{:?}",
                setup.format
            );
        }
        assert!(!setup.read(0, blocks).is_ok());
        assert_eq!(setup.status(), "C");
        flip(&setup.data_disk, at, bits);
        assert!(
            setup.read(0, blocks).is_ok(),
            "what has been repaired is read again"
        );
        assert_eq!(setup.status(), "C", "until the table is loaded again");
    }
}

#[test]
fn a_rotten_tree_gives_errors_for_what_is_below() {
    let mut rng = SmallRng::seed_from_u64(4);
    for round in 0..80 {
        let format = Format::random(&mut rng);
        let blocks = rng.random_range(2..600);
        let features = ["", " 1 ignore_zero_blocks"][round % 2];
        let setup = Setup::new(format, blocks, features, &mut rng, &plain);
        let start = setup.format.hash_start * setup.format.hash_block;
        let at = rng.random_range(start..setup.tree.len());
        flip(&setup.hash_disk, at, 0x10);
        let failed = (0..blocks)
            .filter(|block| !setup.read(*block, 1).is_ok())
            .count();
        assert!(failed > 0, "{:?}: nothing was below", setup.format);
        if at < start + setup.format.hash_block {
            assert_eq!(failed, blocks, "{:?}: all is below the top", setup.format);
        }
        assert_eq!(setup.status(), "C");
        flip(&setup.hash_disk, at, 0x10);
        assert!(
            setup.read(0, blocks).is_ok(),
            "what has been repaired is read again"
        );
    }
}

#[test]
fn ignored_corruption_is_told_and_read() {
    let mut rng = SmallRng::seed_from_u64(5);
    let format = Format::random(&mut rng);
    let setup = Setup::new(format, 100, " 1 ignore_corruption", &mut rng, &plain);
    let top = setup.format.hash_start * setup.format.hash_block;
    flip(&setup.hash_disk, top, 1);
    assert!(setup.read(0, 100).is_ok());
    assert_eq!(setup.status(), "C");
}

#[test]
fn a_line_that_should_restart_the_machine_stops() {
    let mut rng = SmallRng::seed_from_u64(6);
    for features in [" 1 restart_on_corruption", " 1 panic_on_corruption"] {
        let format = Format::random(&mut rng);
        let setup = Setup::new(format, 100, features, &mut rng, &plain);
        let size = setup.format.data_block;
        flip(&setup.data_disk, 50 * size, 1);
        assert!(setup.read(0, 50).is_ok());
        assert!(!setup.read(50, 1).is_ok());
        flip(&setup.data_disk, 50 * size, 1);
        assert!(!setup.read(0, 1).is_ok(), "nothing is read any more");
        let table = setup
            .dev
            .table_status(StatusKind::Table, WhichTable::Live, false)
            .unwrap();
        let line = format!("0 {} verity {}", 100 * size / 512, table[0].text);
        let line = line.replace("7:0", "data").replace("7:1", "hash");
        setup.dev.load(&lines(&line), true).unwrap();
        resume(&setup.dev).unwrap();
        assert!(setup.read(0, 100).is_ok(), "another table begins anew");
        assert_eq!(setup.status(), "V");
    }
}

/// Every request of either disk fails once, in turn, until none is left to fail.
#[test]
fn a_request_that_fails_below_fails_what_needs_it() {
    for which in 0..2 {
        for nth in 0.. {
            let mut rng = SmallRng::seed_from_u64(8);
            let doubles = parking_lot::Mutex::new(Vec::new());
            let double = |disk: Arc<MemoryDevice>| -> Arc<dyn BlockDevice> {
                let double = Double::new(disk);
                doubles.lock().push(double.clone());
                double
            };
            let format = Format {
                version: 1,
                data_block: 1024,
                hash_block: 512,
                algorithm: "sha1",
                salt: Vec::new(),
                hash_start: 0,
            };
            let setup = Setup::new(format, 300, "", &mut rng, &double);
            let faulty = doubles.lock()[which].clone();
            faulty.fail_in.store(nth, SeqCst);
            let statuses: Vec<bool> = (0..300)
                .step_by(30)
                .map(|at| setup.read(at, 30).is_ok())
                .collect();
            let struck = faulty.fail_in.swap(-1, SeqCst) < 0;
            // A block of the tree that was asked for ahead of the data is asked for once more.
            let may_pass = !struck || which == 1;
            assert!(
                statuses.iter().all(|ok| *ok) == may_pass,
                "disk {which}, request {nth}"
            );
            assert!(setup.read(0, 300).is_ok(), "the disk is well again");
            assert_eq!(setup.status(), "V", "a disk's error is no corruption");
            if !struck {
                assert!(nth > 5, "the plan never came to strike");
                break;
            }
        }
    }
}

/// A disk that fails everything while it is dead.
struct Mortal {
    below: Arc<MemoryDevice>,
    dead: AtomicBool,
}

impl BlockDevice for Mortal {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        match self.dead.load(SeqCst) {
            true => io.complete(BlkStatus::Medium),
            false => self.below.submit(io),
        }
    }
}

#[test]
fn a_hash_disk_that_has_died_fails_what_is_not_in_memory() {
    let mut rng = SmallRng::seed_from_u64(11);
    let disks = parking_lot::Mutex::new(Vec::new());
    let mortal = |below: Arc<MemoryDevice>| -> Arc<dyn BlockDevice> {
        let dead = AtomicBool::new(false);
        let disk = Arc::new(Mortal { below, dead });
        disks.lock().push(disk.clone());
        disk
    };
    let format = Format {
        version: 1,
        data_block: 512,
        hash_block: 512,
        algorithm: "sha256",
        salt: Vec::new(),
        hash_start: 0,
    };
    let setup = Setup::new(format, 2000, "", &mut rng, &mortal);
    // Sixteen blocks to a leaf.
    assert!(setup.read(160, 16).is_ok());
    let hash = disks.lock()[1].clone();
    hash.dead.store(true, SeqCst);
    assert!(setup.read(160, 16).is_ok(), "in memory");
    assert_eq!(setup.read(0, 1), BlkStatus::Medium);
    assert_eq!(setup.read(150, 20), BlkStatus::Medium, "in part");
    hash.dead.store(false, SeqCst);
    assert!(setup.read(0, 2000).is_ok());
    assert_eq!(setup.status(), "V", "a disk's error is no corruption");
}

#[test]
fn what_was_checked_once_is_not_checked_again() {
    let mut rng = SmallRng::seed_from_u64(9);
    let format = Format::random(&mut rng);
    let setup = Setup::new(format, 64, " 1 check_at_most_once", &mut rng, &plain);
    assert!(setup.read(0, 32).is_ok());
    let size = setup.format.data_block as u64 / 512;
    write_at(&setup.data_disk, 3 * size, &[9; 512]);
    write_at(&setup.data_disk, 40 * size, &[9; 512]);
    let (bytes, status) = read_bytes(&*setup.dev, 3 * size, 1.max(size));
    assert!(status.is_ok() && bytes[..512] == [9; 512]);
    assert!(!setup.read(40, 1).is_ok());
}

#[test]
fn zeroes_are_not_looked_at_where_asked() {
    let mut rng = SmallRng::seed_from_u64(10);
    let format = Format::random(&mut rng);
    let setup = Setup::new(format, 200, " 1 ignore_zero_blocks", &mut rng, &plain);
    let size = setup.format.data_block;
    let block = setup
        .data
        .chunks(size)
        .position(|b| b.iter().all(|b| *b == 0));
    let block = block.expect("a block of zeroes");
    flip(&setup.data_disk, block * size + 5, 0xff);
    assert!(setup.read(0, 200).is_ok(), "zeroes are told in its place");
    assert_eq!(setup.status(), "V");
}

/// A line that takes much memory is refused or bounded; a writeable table is refused.
#[test]
fn what_is_wrong_with_a_table_is_named() {
    let world = World::new();
    world.memory("7:0", 64);
    world.memory("7:1", 4096);
    let root = "00".repeat(32);
    let told = |read_only: bool, words: &str| -> (String, i32) {
        let dev = world.mapped("wrong");
        let table = lines(&format!("0 64 verity {words}"));
        match dev.load(&table, read_only) {
            Err(DeviceError::Table(error)) => (error.to_string(), error.errno),
            other => panic!("{words}: {other:?}"),
        }
    };
    let good = format!("1 7:0 7:1 4096 4096 8 1 sha256 {root} -");
    assert_eq!(
        told(false, &good),
        ("verity: Device must be readonly".to_owned(), 22)
    );
    let wrong: &[(&str, &str, &str, i32)] = &[
        ("1 7:0", "2 7:0", "verity: Invalid version: '2'", 22),
        (
            "7:1",
            "nowhere",
            "verity: Hash device lookup failed: nowhere: no such device",
            19,
        ),
        (
            "4096 4096",
            "8192 4096",
            "verity: Invalid data device block size: '8192' is no power of two from 512 to 4096",
            22,
        ),
        (
            "4096 4096",
            "4096 2097152",
            "verity: Invalid hash device block size: '2097152' is no power of two from 512 to 1048576",
            22,
        ),
        (
            " 8 1 ",
            " 7 1 ",
            "verity: Data device is too small: 7 blocks are less than 64 sectors",
            22,
        ),
        (
            " 8 1 ",
            " 8 512 ",
            "verity: Hash device is too small: 7:1 has 512 blocks, the tree ends at 513",
            7,
        ),
        (
            "sha256",
            "whirlpool",
            "verity: Cannot initialize hash function: there is no 'whirlpool' here",
            2,
        ),
        (" -", " abc", "verity: Invalid salt: 'abc'", 22),
        (
            " -",
            " - 5",
            "verity: Invalid number of feature args: '5'",
            22,
        ),
        (
            " -",
            " - 1 x",
            "verity: Unrecognized verity feature request: 'x'",
            22,
        ),
    ];
    for (from, to, reason, errno) in wrong {
        let words = good.replacen(from, to, 1);
        assert_eq!(
            told(true, &words),
            ((*reason).to_owned(), *errno),
            "{words}"
        );
    }
}
