//! verity with error correction: blocks that rot are computed anew from veritysetup's codes, or fail.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{DeviceError, MappedDevice, StatusKind, WhichTable};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

const BLOCK: usize = 4096;

/// An image with its tree and its codes, on disks whose requests can be made to fail.
struct Image {
    data: Vec<u8>,
    disks: [Arc<MemoryDevice>; 3],
    faulty: Arc<Double>,
    dev: Arc<MappedDevice>,
    table: String,
    world: Arc<World>,
}

impl Image {
    /// `None` where veritysetup is missing.
    fn new(test: &str, blocks: usize, roots: u8, features: &str) -> Option<Self> {
        if !Path::new("/usr/sbin/veritysetup").exists() {
            println!("SKIP {test}: needs /usr/sbin/veritysetup");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut rng = SmallRng::seed_from_u64(blocks as u64);
        let data: Vec<u8> = (0..blocks * BLOCK).map(|_| rng.random()).collect();
        std::fs::write(dir.path().join("data"), &data).unwrap();
        let output = Command::new("/usr/sbin/veritysetup")
            .args(["format", "data", "hash", "--no-superblock", "--salt=-"])
            .args(["--fec-device=codes", &format!("--fec-roots={roots}")])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let root = said.lines().find_map(|l| l.strip_prefix("Root hash:"));
        let root = root.expect("a root hash").trim().to_owned();
        let world = World::new();
        let disks = ["data", "hash", "codes"].map(|name| {
            let bytes = std::fs::read(dir.path().join(name)).unwrap();
            let disk = Arc::new(MemoryDevice::new(Sector(bytes.len() as u64 / 512)));
            write_at(&disk, 0, &bytes);
            disk
        });
        let faulty = Double::new(disks[0].clone());
        world.add("data", faulty.clone());
        world.add("hash", disks[1].clone());
        world.add("codes", disks[2].clone());
        let covered = blocks as u64 + disks[1].size().raw() / 8;
        let count = 8 + features.split_whitespace().count();
        let table = format!(
            "0 {} verity 1 data hash {BLOCK} {BLOCK} {blocks} 0 sha256 {root} - {count}{features} \
             use_fec_from_device codes fec_roots {roots} fec_blocks {covered} fec_start 0",
            blocks * 8,
        );
        let dev = world.mapped("v");
        dev.load(&lines(&table), true).unwrap();
        resume(&dev).unwrap();
        Some(Self {
            data,
            disks,
            faulty,
            dev,
            table,
            world,
        })
    }

    /// Reads so many blocks: what is read must be right.
    fn read(&self, first: usize, blocks: usize) -> BlkStatus {
        let (bytes, status) = read_bytes(&*self.dev, first as u64 * 8, blocks as u64 * 8);
        if status.is_ok() {
            let want = &self.data[first * BLOCK..(first + blocks) * BLOCK];
            assert!(bytes == want, "wrong bytes at {first}+{blocks}");
        }
        status
    }

    fn read_all(&self) -> BlkStatus {
        self.read(0, self.data.len() / BLOCK)
    }

    /// Makes noise of a block on a disk.
    fn rot(&self, disk: usize, block: usize) {
        let mut rng = SmallRng::seed_from_u64(block as u64 + 99);
        let noise: Vec<u8> = (0..BLOCK).map(|_| rng.random()).collect();
        write_at(&self.disks[disk], block as u64 * 8, &noise);
    }

    fn text(&self, kind: StatusKind) -> String {
        let lines = self.dev.table_status(kind, WhichTable::Live, false);
        lines.unwrap()[0].text.clone()
    }
}

fn write_at(disk: &MemoryDevice, sector: u64, bytes: &[u8]) {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.as_mut_slice().copy_from_slice(bytes);
    assert!(thinmap_block::write(disk, Sector(sector), buf).1.is_ok());
}

#[test]
fn rotten_blocks_are_corrected() {
    let test = "rotten_blocks_are_corrected";
    // Two roots: one wrong byte to a codeword, or two whose place is known. 1,000 blocks: 4 to a column.
    let Some(image) = Image::new(test, 1000, 2, "") else {
        return;
    };
    image.rot(0, 17);
    image.rot(0, 500);
    assert!(image.read_all().is_ok());
    // In the same codewords.
    image.rot(0, 17 + 4 * 100);
    assert!(image.read_all().is_ok());
    assert_eq!(
        image.text(StatusKind::Info),
        "V",
        "corrected is not corrupted"
    );
    // One more, and nothing there can be corrected.
    image.rot(0, 17 + 4 * 200);
    for block in [17, 417, 817] {
        assert!(!image.read(block, 1).is_ok());
    }
    assert!(image.read(500, 1).is_ok());
    assert!(
        image.read(18, 399).is_ok(),
        "500 is not there, 18 to 416 are sound"
    );
    assert_eq!(image.text(StatusKind::Info), "C");
}

#[test]
fn a_rotten_tree_is_corrected() {
    let Some(image) = Image::new("a_rotten_tree_is_corrected", 1000, 8, " check_at_most_once")
    else {
        return;
    };
    for block in [0, 3, 8] {
        image.rot(1, block);
    }
    image.rot(0, 0);
    image.rot(0, 999);
    assert!(image.read_all().is_ok());
    assert_eq!(image.text(StatusKind::Info), "V");
}

#[test]
fn what_cannot_be_read_is_computed() {
    let test = "what_cannot_be_read_is_computed";
    let Some(image) = Image::new(test, 300, 2, " ignore_zero_blocks") else {
        return;
    };
    for (first, blocks) in [(7, 1), (100, 3)] {
        // The guest's read; those of the repair work.
        image.faulty.fail_in.store(0, SeqCst);
        assert!(image.read(first, blocks).is_ok());
    }
    assert_eq!(image.text(StatusKind::Info), "V");
    // Codes that cannot be right either: the disk's own error is told.
    for block in 0..image.disks[2].size().raw() / 8 {
        image.rot(2, usize::try_from(block).unwrap());
    }
    image.faulty.fail_in.store(0, SeqCst);
    *image.faulty.fail_with.lock() = BlkStatus::Medium;
    assert_eq!(image.read(7, 1), BlkStatus::Medium);
    assert_eq!(image.text(StatusKind::Info), "V");
}

/// Bits rot anywhere on the three disks, more and more: right bytes or an error.
#[test]
fn whatever_rots_no_wrong_bytes_are_read() {
    let test = "whatever_rots_no_wrong_bytes_are_read";
    let Some(image) = Image::new(test, 600, 4, "") else {
        return;
    };
    let mut rng = SmallRng::seed_from_u64(5);
    let mut failed = 0;
    for _ in 0..40 {
        let disk = rng.random_range(0..3);
        let blocks = image.disks[disk].size().raw() / 8;
        image.rot(disk, usize::try_from(rng.random_range(0..blocks)).unwrap());
        for first in (0..600).step_by(50) {
            failed += u32::from(!image.read(first, 50).is_ok());
        }
    }
    assert!(failed > 0, "never too much");
}

#[test]
fn the_table_line_tells_it_and_what_is_wrong_is_named() {
    let test = "the_table_line_tells_it_and_what_is_wrong_is_named";
    let Some(image) = Image::new(test, 300, 2, " ignore_corruption") else {
        return;
    };
    let told = image.text(StatusKind::Table);
    let tail =
        " - 9 ignore_corruption use_fec_from_device 7:2 fec_blocks 304 fec_start 0 fec_roots 2";
    assert!(told.ends_with(tail), "{told}");
    assert!(request(&*image.dev, Op::Read, 0, 8).is_ok());
    let wrong = [
        (
            "fec_roots 2",
            "fec_roots 1",
            "Invalid fec_roots: '1' is not 2 to 24",
            22,
        ),
        (
            "fec_roots 2",
            "fec_roots 25",
            "Invalid fec_roots: '25' is not 2 to 24",
            22,
        ),
        ("fec_start 0", "fec_start x", "Invalid fec_start: 'x'", 22),
        (
            "fec_start 0",
            "fec_start 1",
            "FEC device is too small: 7:2 has 4 blocks",
            7,
        ),
        (
            "fec_blocks 304",
            "fec_blocks -1",
            "Invalid fec_blocks: '-1'",
            22,
        ),
        (
            "fec_blocks 304",
            "fec_blocks 303",
            "Invalid fec_blocks: 303 are less than the 300 of data and the 4 of the tree",
            22,
        ),
        (
            "device codes",
            "device nowhere",
            "FEC device lookup failed: nowhere: no such device",
            19,
        ),
        (" 9 ", " 13 ", "Invalid number of feature args: '13'", 22),
        (
            " 9 ",
            " 8 ",
            "FEC feature arguments require a value: 'fec_start'",
            22,
        ),
        (
            "fec_roots 2 ",
            "ignore_zero_blocks check_at_most_once ",
            "Missing fec_roots",
            22,
        ),
    ];
    let dev = image.world.mapped("wrong");
    for (from, to, reason, errno) in wrong {
        let table = image.table.replace(from, to);
        assert_ne!(table, image.table, "{from}");
        match dev.load(&lines(&table), true) {
            Err(DeviceError::Table(error)) => {
                assert_eq!(
                    (error.reason.as_str(), error.errno),
                    (reason, errno),
                    "{table}"
                );
            }
            other => panic!("{table}: {other:?}"),
        }
    }
}
