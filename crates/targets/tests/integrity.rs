//! integrity: data and tags, the journal's ways, recalculation, discards, devices that fail.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod clocked;
mod snapshot_support;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use snapshot_support::{info, table, wait_info};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{MappedDevice, SuspendFlags};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

const SIZE: u64 = 2048;

fn line(mode: &str, options: &str) -> String {
    let count = options.split_whitespace().count();
    format!("0 {SIZE} integrity a 0 - {mode} {count} {options}")
}

fn suspend(dev: &MappedDevice) {
    dev.suspend(SuspendFlags::default()).unwrap();
}

/// Changes a byte of each sector of the device that holds nothing but `byte`.
fn damage(below: &MemoryDevice, byte: u8) -> usize {
    let (bytes, _) = read_bytes(below, 0, below.size().raw());
    let mut found = 0;
    for (sector, content) in bytes.chunks(512).enumerate() {
        if content.iter().all(|b| *b == byte) {
            let mut buf = IoBuf::alloc(512);
            buf.as_mut_slice().fill(byte);
            buf.as_mut_slice()[77] ^= 4;
            assert!(
                thinmap_block::write(below, Sector(sector as u64), buf)
                    .1
                    .is_ok()
            );
            found += 1;
        }
    }
    found
}

fn fills(dev: &dyn BlockDevice, sector: u64, sectors: u64, byte: u8) -> bool {
    let (bytes, status) = read_bytes(dev, sector, sectors);
    assert!(status.is_ok(), "{sector}+{sectors}: {status:?}");
    bytes.iter().all(|b| *b == byte)
}

#[test]
fn a_block_that_changed_is_not_read_until_it_is_written() {
    let world = World::new();
    let below = world.memory("a", 8192);
    let dev = world.live("i", &line("D", "internal_hash:crc32c"));
    assert!(write_fill(&*dev, 0, 64, 0xaa).is_ok());
    assert!(write_fill(&*dev, 20, 1, 0xbb).is_ok());
    assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
    assert_eq!(damage(&below, 0xbb), 1);
    let (_, status) = read_bytes(&*dev, 20, 1);
    assert_eq!(status, BlkStatus::Protection);
    let (_, status) = read_bytes(&*dev, 0, 64);
    assert_eq!(status, BlkStatus::Protection);
    assert!(fills(&*dev, 0, 20, 0xaa) && fills(&*dev, 21, 43, 0xaa));
    assert!(info(&dev).starts_with("2 "), "{}", info(&dev));
    assert!(write_fill(&*dev, 20, 1, 0xcc).is_ok());
    assert!(fills(&*dev, 20, 1, 0xcc));
    // What was never written has no tag.
    assert_eq!(read_bytes(&*dev, 64, 1).1, BlkStatus::Protection);
    dev.destroy();
}

/// Random requests beside each other, in every mode, over devices that end them in any order; then the same through mode D.
#[test]
fn what_was_written_is_read_in_every_mode() {
    for (mode, options) in [
        ("D", "internal_hash:crc32c"),
        ("D", "internal_hash:sha1 block_size:1024 buffer_sectors:1"),
        ("J", "internal_hash:sha256 journal_sectors:88"),
        (
            "J",
            "internal_hash:crc32c journal_sectors:700 journal_watermark:90",
        ),
        (
            "J",
            "internal_hash:crc32c block_size:4096 meta_device:m journal_watermark:100",
        ),
        (
            "J",
            "internal_hash:xxhash64 interleave_sectors:64 buffer_sectors:8 fix_padding",
        ),
        (
            "B",
            "internal_hash:crc32 sectors_per_bit:32 bitmap_flush_interval:2",
        ),
    ] {
        let world = World::new();
        for (name, sectors) in [("a", 16384), ("m", 4096)] {
            let below = Arc::new(MemoryDevice::new(Sector(sectors)));
            world.add(name, Delayed::new(below, 5));
        }
        let dev = world.live("i", &line(mode, options));
        assert!(write_fill(&*dev, 0, SIZE, 1).is_ok(), "{mode} {options}");
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let dev = dev.clone();
                std::thread::spawn(move || work(&dev, thread))
            })
            .collect();
        let parts: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let compare = |dev: &MappedDevice| {
            for (thread, part) in parts.iter().enumerate() {
                let (bytes, status) = read_bytes(dev, thread as u64 * PART, PART);
                assert!(
                    status.is_ok() && bytes == *part,
                    "{mode} {options}: {status:?}"
                );
            }
        };
        compare(&dev);
        suspend(&dev);
        resume(&dev).unwrap();
        compare(&dev);
        assert!(
            info(&dev).starts_with("0 "),
            "{mode} {options}: {}",
            info(&dev)
        );
        load(&dev, &line("D", options)).unwrap();
        suspend(&dev);
        resume(&dev).unwrap();
        compare(&dev);
        dev.destroy();
    }
}

const PART: u64 = SIZE / 4;

/// Requests to one part of the line, and short looks at all of it; what the part holds then.
fn work(dev: &MappedDevice, thread: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(thread);
    let mut part = vec![1; (PART * 512) as usize];
    for _ in 0..150 {
        let blocks = rng.random_range(1..20);
        let block = rng.random_range(0..PART / 8 - blocks);
        let (sector, sectors) = (thread * PART + block * 8, blocks * 8);
        let bytes = (block * 4096) as usize..((block + blocks) * 4096) as usize;
        match rng.random_range(0..10) {
            0 => assert!(request(dev, Op::Flush, 0, 0).is_ok()),
            1..4 => {
                let (found, status) = read_bytes(dev, sector, sectors);
                assert!(status.is_ok() && found == part[bytes], "{sector}+{sectors}");
            }
            4 => {
                let elsewhere = rng.random_range(0..SIZE / 8) * 8;
                assert!(read_bytes(dev, elsewhere, 8).1.is_ok());
            }
            kind => {
                let byte = rng.random();
                let mut buf = IoBuf::alloc(bytes.len());
                buf.as_mut_slice().fill(byte);
                let flags = IoFlags {
                    fua: kind == 9,
                    ..IoFlags::default()
                };
                let request = (Op::Write, flags, Sector(sector), Sector(sectors), buf);
                assert!(submit_and_wait(dev, request).1.is_ok());
                part[bytes].fill(byte);
            }
        }
    }
    part
}

#[test]
fn recalculation_makes_tags_of_what_is_there() {
    for mode in ["D", "J", "B"] {
        let world = World::new();
        world.memory("a", 8192);
        let dev = world.live("i", &line(mode, "recalculate internal_hash:crc32c"));
        let provided = info(&dev).split(' ').nth(1).unwrap().to_owned();
        // Read and written meanwhile, too.
        assert!(fills(&*dev, 0, 16, 0));
        assert!(write_fill(&*dev, 100, 8, 5).is_ok());
        wait_info(&dev, &format!("0 {provided} {provided}"));
        assert!(
            fills(&*dev, 100, 8, 5) && fills(&*dev, 108, SIZE - 108, 0),
            "{mode}"
        );
        assert!(table(&dev).contains(" recalculate "), "{}", table(&dev));
        dev.destroy();
        // It is done, and that is known.
        let dev = world.live("i", &line("D", "internal_hash:crc32c"));
        assert_eq!(info(&dev), format!("0 {provided} {provided}"));
        assert!(fills(&*dev, 100, 8, 5) && fills(&*dev, 0, 100, 0), "{mode}");
        dev.destroy();
    }
}

#[test]
fn discarded_blocks_read_without_an_error() {
    for mode in ["D", "J", "B"] {
        let world = World::new();
        let below = world.memory("a", 8192);
        let options = "allow_discards internal_hash:sha256 sectors_per_bit:64";
        let dev = world.live("i", &line(mode, options));
        assert!(write_fill(&*dev, 0, SIZE, 3).is_ok());
        assert!(request(&*dev, Op::Discard, 100, 1000).is_ok());
        assert!(read_bytes(&*dev, 0, SIZE).1.is_ok(), "{mode}");
        assert!(fills(&*dev, 0, 100, 3) && fills(&*dev, 1100, SIZE - 1100, 3));
        assert!(write_fill(&*dev, 200, 8, 4).is_ok());
        assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        suspend(&dev);
        damage(&below, 4);
        resume(&dev).unwrap();
        assert_eq!(read_bytes(&*dev, 200, 8).1, BlkStatus::Protection, "{mode}");
        dev.destroy();
        // Without the option a discarded block's tag is wrong like any other.
        let dev = world.live("i", &line("D", "internal_hash:sha256"));
        assert_eq!(read_bytes(&*dev, 300, 8).1, BlkStatus::Protection, "{mode}");
        assert!(
            request(&*dev, Op::Discard, 0, 8) == BlkStatus::NotSupp
                || !dev.limits().supports_discard()
        );
        dev.destroy();
    }
}

#[test]
fn mode_r_reads_what_others_would_not_and_writes_nothing() {
    let world = World::new();
    let below = world.memory("a", 8192);
    let dev = world.live("i", &line("J", "internal_hash:sha256"));
    assert!(write_fill(&*dev, 0, 64, 9).is_ok());
    dev.destroy();
    damage(&below, 9);
    let (before, _) = read_bytes(&*below, 0, 8192);
    let dev = world.live("i", &line("R", "internal_hash:sha256"));
    assert!(read_bytes(&*dev, 0, SIZE).1.is_ok());
    assert_eq!(write_fill(&*dev, 0, 8, 1), BlkStatus::IoErr);
    dev.destroy();
    assert!(read_bytes(&*below, 0, 8192).0 == before);
}

/// An error of its own ends the line, not its neighbours, until a table is loaded.
#[test]
fn a_device_that_fails_under_the_journal_fails_every_request() {
    for after in 0..12 {
        let world = World::new();
        let double = Double::new(world.memory("below", 8192));
        world.add("a", double.clone());
        let dev = world.live("i", &line("J", "internal_hash:sha256 journal_sectors:88"));
        assert!(write_fill(&*dev, 0, 64, 7).is_ok());
        assert!(request(&*dev, Op::Flush, 0, 0).is_ok());
        double.fail_in.store(after, Ordering::SeqCst);
        let mut failed = false;
        for round in 0..40 {
            let ended = [
                write_fill(&*dev, round * 16, 16, 8),
                request(&*dev, Op::Flush, 0, 0),
                read_bytes(&*dev, round * 16, 16).1,
            ];
            let well = ended.iter().all(|status| status.is_ok());
            assert!(
                well || ended
                    .iter()
                    .all(|s| matches!(s, BlkStatus::IoErr | BlkStatus::Ok))
            );
            failed |= !well;
        }
        assert!(failed, "request {after} was not noticed");
        dev.destroy();
        let dev = world.live("i", &line("J", "internal_hash:sha256 journal_sectors:88"));
        assert!(write_fill(&*dev, 0, SIZE, 6).is_ok());
        assert!(fills(&*dev, 0, SIZE, 6), "{after}");
        dev.destroy();
    }
}

#[test]
fn requests_must_fit_the_blocks_and_the_line() {
    let world = World::new();
    world.memory("a", 8192);
    let dev = world.live("i", &line("D", "internal_hash:crc32c block_size:4096"));
    assert_eq!(dev.limits().logical_block_size, 4096);
    assert!(!write_fill(&*dev, 1, 8, 1).is_ok());
    assert!(!write_fill(&*dev, 0, 4, 1).is_ok());
    assert!(!write_fill(&*dev, SIZE, 8, 1).is_ok());
    assert!(write_fill(&*dev, 8, 8, 1).is_ok());
    dev.destroy();
}

#[test]
fn the_table_line_makes_the_same_line_again() {
    let world = World::new();
    world.memory("a", 8192);
    world.memory("m", 8192);
    for (mode, options) in [
        ("D", "internal_hash:crc32c"),
        (
            "J",
            "journal_watermark:33 commit_time:77 journal_crypt:cbc(aes):00112233445566778899aabbccddeeff block_size:2048 internal_hash:hmac(sha256):0a0b journal_mac:hmac(sha1):ff fix_hmac fix_padding",
        ),
        (
            "B",
            "meta_device:m sectors_per_bit:100 bitmap_flush_interval:1234 recalculate internal_hash:sha1 legacy_recalculate allow_discards",
        ),
    ] {
        for name in ["a", "m"] {
            let blank = world.live("blank", &format!("0 8192 linear {name} 0"));
            assert!(write_fill(&*blank, 0, 8, 0).is_ok());
            blank.destroy();
        }
        let dev = world.live("i", &line(mode, options));
        let first = table(&dev);
        let again = first.replace("7:0", "a").replace("7:1", "m");
        load(&dev, &format!("0 {SIZE} integrity {again}")).unwrap();
        suspend(&dev);
        resume(&dev).unwrap();
        assert_eq!(table(&dev), first);
        dev.destroy();
    }
}

/// Words after `integrity`, text of the error, errno. `a` has 8192 sectors and is blank, `used` has tags of 4 bytes and a line of 8-sector
/// blocks, `junk` holds neither, `small` has 64 sectors.
const WRONG: &[(&str, &str, i32)] = &[
    ("", "Invalid argument count", 22),
    ("a 0 4 D", "Invalid argument count", 22),
    (
        "nowhere 0 4 D 0",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    ("a x 4 D 0", "Invalid starting offset: 'x'", 22),
    ("a -1 4 D 0", "Invalid starting offset: '-1'", 22),
    ("a 0 x D 0", "Invalid tag size: 'x'", 22),
    ("a 0 0 D 0", "Invalid tag size: '0'", 22),
    ("a 0 - D 0", "Unknown tag size", 22),
    ("a 0 425 D 0", "Too big tag size: 425, at most 424", 22),
    ("a 0 4 X 0", "Invalid mode (expecting J, B, D, R): 'X'", 22),
    ("a 0 4 D x", "Invalid number of feature args: 'x'", 22),
    ("a 0 4 D 19", "Invalid number of feature args: '19'", 22),
    (
        "a 0 4 D 2 recalculate",
        "Invalid number of feature args: '2'",
        22,
    ),
    ("a 0 4 D 1 nothing", "Invalid argument: 'nothing'", 22),
    ("a 0 4 D 1 nothing:5", "Invalid argument: 'nothing:5'", 22),
    (
        "a 0 4 D 1 journal_sectors:x",
        "Invalid argument: 'journal_sectors:x'",
        22,
    ),
    (
        "a 0 4 D 1 interleave_sectors:",
        "Invalid argument: 'interleave_sectors:'",
        22,
    ),
    (
        "a 0 4 D 1 buffer_sectors:-1",
        "Invalid argument: 'buffer_sectors:-1'",
        22,
    ),
    (
        "a 0 4 J 1 journal_watermark:101",
        "Invalid argument: 'journal_watermark:101'",
        22,
    ),
    (
        "a 0 4 J 1 commit_time:1s",
        "Invalid argument: 'commit_time:1s'",
        22,
    ),
    (
        "a 0 4 B 1 sectors_per_bit:x",
        "Invalid argument: 'sectors_per_bit:x'",
        22,
    ),
    (
        "a 0 4 B 1 bitmap_flush_interval:4294967296",
        "Invalid argument: 'bitmap_flush_interval:4294967296'",
        22,
    ),
    (
        "a 0 4 D 1 block_size:256",
        "Invalid block_size argument: '256'",
        22,
    ),
    (
        "a 0 4 D 1 block_size:8192",
        "Invalid block_size argument: '8192'",
        22,
    ),
    (
        "a 0 4 D 1 block_size:1536",
        "Invalid block_size argument: '1536'",
        22,
    ),
    (
        "a 0 4 D 1 meta_device:nowhere",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    (
        "a 0 4 D 1 meta_device:a",
        "meta_device 7:0 is the data device",
        22,
    ),
    (
        "a 0 4 D 1 internal_hash:md99",
        "Invalid internal hash: 'md99': there is no such hash",
        2,
    ),
    (
        "a 0 4 D 1 internal_hash:hmac(sha256):0g",
        "Invalid internal_hash argument: its key",
        22,
    ),
    (
        "a 0 4 D 1 internal_hash:hmac(sha256)",
        "Error setting internal hash key: 'hmac(sha256)': it needs a key",
        126,
    ),
    (
        "a 0 4 D 1 internal_hash:sha256:00",
        "Error setting internal hash key: 'sha256': it takes no key",
        38,
    ),
    (
        "a 0 4 D 1 journal_mac:crc32c:00",
        "Error setting journal mac key: 'crc32c': its key has 4 bytes",
        22,
    ),
    (
        "a 0 4 J 1 journal_crypt:ctr(aes):00",
        "Error setting encryption key: 'ctr(aes)': its key has 16, 24 or 32 bytes",
        22,
    ),
    (
        "a 0 4 J 1 journal_crypt:cbc(aes)",
        "Error setting encryption key: 'cbc(aes)': it needs a key",
        126,
    ),
    (
        "a 0 4 J 1 journal_crypt:xts(aes):00112233",
        "Invalid journal cipher: 'xts(aes)': there is no such cipher",
        2,
    ),
    (
        "a 0 - B 2 internal_hash:crc32c journal_crypt:cbc(aes):00112233445566778899aabbccddeeff",
        "journal_crypt cannot be used in bitmap mode",
        22,
    ),
    (
        "a 0 4 B 0",
        "Bitmap mode can be only used with internal hash",
        22,
    ),
    (
        "a 0 4 D 1 allow_discards",
        "Discard can be only used with internal hash",
        22,
    ),
    (
        "a 0 4 D 1 recalculate",
        "Recalculate can only be specified with internal_hash",
        22,
    ),
    (
        "a 0 - D 2 recalculate internal_hash:hmac(sha1):00",
        "Recalculating with HMAC is disabled for security reasons - if you really need it, use the argument \"legacy_recalculate\"",
        95,
    ),
    ("a 8192 4 D 0", "Error reading superblock", 5),
    (
        "big 0 4 D 1 interleave_sectors:64",
        "buffer_sectors 128 is more than interleave_sectors 64: data and tags would share buffers",
        22,
    ),
    (
        "small 0 4 D 0",
        "Could not initialize superblock: the device is too small",
        22,
    ),
    (
        "junk 0 4 D 0",
        "The device is not initialized: 7:2 has neither a superblock nor zeroes at sector 0",
        22,
    ),
    (
        "used 0 8 D 1 block_size:4096",
        "Tag size doesn't match the information in superblock: 8 and 4",
        22,
    ),
    (
        "used 0 4 D 0",
        "Block size doesn't match the information in superblock: 512 and 2^12",
        22,
    ),
    (
        "used 0 4 D 2 block_size:4096 journal_mac:crc32c",
        "Journal mac mismatch",
        22,
    ),
    (
        "big 0 4 D 2 block_size:4096 meta_device:used",
        "Invalid interleave_sectors in the superblock: 2^15",
        22,
    ),
];

#[test]
fn every_argument_wrong_in_turn() {
    let world = World::new();
    for (name, sectors) in [
        ("a", 8192),
        ("used", 8192),
        ("junk", 8192),
        ("small", 64),
        ("big", 16384),
    ] {
        world.memory(name, sectors);
    }
    let words = "0 2048 integrity used 0 - D 2 block_size:4096 internal_hash:crc32c";
    world.live("i", words).destroy();
    let junk = world.live("junk_itself", "0 8192 linear junk 0");
    assert!(write_fill(&*junk, 7, 1, 1).is_ok());
    junk.destroy();
    for (words, text, errno) in WRONG {
        let dev = world.mapped("i");
        let error = load(&dev, &format!("0 2048 integrity {words}")).unwrap_err();
        assert_eq!(
            (error.to_string(), error.errno()),
            (format!("integrity: {text}"), *errno),
            "{words}"
        );
        // A device is formatted at the end, when everything else is right.
        let blank = world.live("blank", "0 8192 linear a 0");
        assert!(fills(&*blank, 0, 8192, 0), "{words}");
        blank.destroy();
    }
    let dev = world.mapped("i");
    let too_long = "0 8192 integrity used 0 4 D 2 block_size:4096 internal_hash:crc32c";
    let error = load(&dev, too_long).unwrap_err().to_string();
    let text = "integrity: Not enough provided sectors for requested mapping size: ";
    assert!(
        error.starts_with(text) && error.ends_with(" for 8192"),
        "{error}"
    );
    let error = load(&dev, "0 8 zero\n8 8 integrity a 0 4 D 0").unwrap_err();
    assert!(error.to_string().contains("must appear alone"), "{error}");
}

/// A section or a bit of the bitmap that is on the device and not durable: data must not be written because of it before it is.
#[test]
fn what_a_resume_reads_is_made_durable_first() {
    for (mode, options) in [
        ("J", "internal_hash:crc32c journal_sectors:88"),
        ("B", "internal_hash:crc32c journal_sectors:88"),
    ] {
        let world = World::new();
        let disk = Double::new(world.memory("x", 8192));
        world.add("a", disk.clone());
        drop(world.live("one", &line(mode, options)));
        let dev = world.mapped("two");
        load(&dev, &line(mode, options)).unwrap();
        disk.seen.lock().clear();
        resume(&dev).unwrap();
        let seen = std::mem::take(&mut *disk.seen.lock());
        let flush = seen.iter().position(|(op, ..)| *op == Op::Flush);
        // The superblock tells where the rest is.
        let before = &seen[..flush.expect("a flush")];
        let is_superblock = |(op, sector, _): &(Op, u64, u64)| *op == Op::Read && *sector == 0;
        assert!(before.iter().all(is_superblock), "{mode}: {before:?}");
    }
}
