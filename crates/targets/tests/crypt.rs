//! crypt: every wrong argument and message, keys, and data at every border.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::Arc;

use support::*;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::Sector;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";

/// Arguments, text of the error, errno. KEY is the key.
const WRONG: &[(&str, &str, i32)] = &[
    ("", "Not enough arguments", 22),
    ("aes-xts-plain64 KEY 0 a", "Not enough arguments", 22),
    ("aes-xts-plain64 :64 0 a 0", "Cannot parse key size", 22),
    (
        "aes-xts-plain64 :x:user:k 0 a 0",
        "Cannot parse key size",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 x",
        "Invalid number of feature args: 'x'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 9",
        "Invalid number of feature args: '9'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 2 allow_discards",
        "Invalid number of feature args: '2'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 fast",
        "Invalid feature arguments: 'fast'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 sector_size:",
        "Invalid feature arguments: 'sector_size:'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 sector_size:513",
        "Invalid feature value for sector_size: 513 is not 512, 1024, 2048 or 4096",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 integrity:0:aead",
        "Invalid integrity arguments",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 integrity:16:x",
        "Unknown integrity profile 'x'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 a 0 1 integrity:16:aead",
        "Integrity profile not supported.",
        22,
    ),
    ("xts(aes)-plain64 KEY 0 a 0", "Bad cipher specification", 22),
    (
        "aes:3-cbc-plain KEY 0 a 0",
        "Bad cipher key count specification",
        22,
    ),
    (
        "aes:64-cbc-lmk KEY 0 a 0",
        "Bad cipher key count specification: 64 keys in one are not supported",
        22,
    ),
    ("aes-xts KEY 0 a 0", "IV mechanism required", 22),
    (
        "aes-cbc-essiv KEY 0 a 0",
        "Digest algorithm missing for ESSIV mode",
        22,
    ),
    (
        "serpent-xts-plain64 KEY 0 a 0",
        "Error allocating crypto tfm: serpent-xts-plain64: there is aes in xts, cbc and ecb",
        2,
    ),
    (
        "aes-cbc-essiv:md5 KEY 0 a 0",
        "Error allocating crypto tfm: aes-cbc-essiv:md5: there is aes in xts, cbc and ecb",
        2,
    ),
    ("aes-xts-what KEY 0 a 0", "Invalid IV mode", 22),
    (
        "aes-xts-random KEY 0 a 0",
        "Invalid IV mode: random is not supported",
        22,
    ),
    (
        "aes-xts-plain64 - 0 a 0",
        "Error decoding and setting key: the key is empty",
        22,
    ),
    (
        "aes-xts-plain64 00g0 0 a 0",
        "Error decoding and setting key: the key is not all hexadecimal digits",
        22,
    ),
    (
        "aes-cbc-plain64 0011 0 a 0",
        "Error decoding and setting key: aes-cbc-plain64 has no keys of 16 bits",
        22,
    ),
    (
        "aes-cbc-plain64 :16:user 0 a 0",
        "Error decoding and setting key: 'user' is not TYPE:DESCRIPTION",
        22,
    ),
    (
        "aes-cbc-plain64 :16:secret:k 0 a 0",
        "Error decoding and setting key: there are no keys of type 'secret'",
        22,
    ),
    (
        "aes-xts-plain64 KEY x a 0",
        "Invalid iv_offset sector 'x'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 1 a 0 1 sector_size:1024",
        "Invalid iv_offset sector '1'",
        22,
    ),
    (
        "aes-xts-plain64 KEY 0 nowhere 0",
        "Device lookup failed: nowhere: no such device",
        19,
    ),
    ("aes-xts-plain64 KEY 0 a x", "Invalid device sector 'x'", 22),
];

#[test]
fn every_wrong_argument_has_its_text_and_errno() {
    let world = World::new();
    world.memory("a", 64);
    for (arguments, text, errno) in WRONG {
        let dev = world.mapped("one");
        let table = format!("0 8 crypt {}", arguments.replace("KEY", KEY));
        let error = load(&dev, &table).unwrap_err();
        assert_eq!(
            (error.to_string(), error.errno()),
            (format!("crypt: {text}"), *errno),
            "{arguments}"
        );
        assert!(dev.info().inactive.is_none());
    }
    let dev = world.mapped("one");
    let odd = format!("0 7 crypt aes-xts-plain64 {KEY} 0 a 0 1 sector_size:1024");
    let error = load(&dev, &odd).unwrap_err();
    assert_eq!(
        error.to_string(),
        "crypt: Device size is not multiple of sector_size feature"
    );
}

fn table(dev: &MappedDevice) -> String {
    let lines = dev
        .table_status(StatusKind::Table, WhichTable::Live, false)
        .unwrap();
    lines[0].text.clone()
}

#[test]
fn a_table_line_constructs_the_same_again() {
    let world = World::new();
    world.memory("7:0", 64);
    let arguments = format!(
        "aes-xts-plain64 {KEY} 8 7:0 16 7 allow_discards same_cpu_crypt submit_from_crypt_cpus \
         no_read_workqueue no_write_workqueue sector_size:4096 iv_large_sectors"
    );
    let dev = world.live("one", &format!("0 32 crypt {arguments}"));
    assert_eq!(table(&dev), arguments);
    load(&dev, &format!("0 32 crypt {}", table(&dev))).unwrap();
    resume(&dev).unwrap();
    assert_eq!(table(&dev), arguments);
    let limits = dev.limits();
    assert_eq!(
        (limits.logical_block_size, limits.physical_block_size),
        (4096, 4096)
    );
    assert!(limits.supports_discard());
    let plain = world.live(
        "two",
        &format!("0 32 crypt aes-xts-plain64 {KEY} 0 7:0 0 0 ignored words"),
    );
    assert_eq!(
        table(&plain),
        format!("aes-xts-plain64 {KEY} 0 7:0 0"),
        "words beyond the count"
    );
    assert!(!plain.limits().supports_discard());
}

fn suspend(dev: &Arc<MappedDevice>) {
    let flags = SuspendFlags {
        noflush: false,
        lockfs: false,
    };
    dev.suspend(flags).unwrap();
}

fn message(dev: &MappedDevice, words: &str) -> Result<Option<String>, String> {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    dev.message(Sector(0), &words)
        .map_err(|error| format!("{error} ({})", error.errno()))
}

#[test]
fn keys_change_on_a_suspended_device_only() {
    let world = World::new();
    world.memory("7:0", 64);
    let dev = world.live("one", &format!("0 64 crypt aes-xts-plain64 {KEY} 0 7:0 0"));
    let other = KEY.replace('0', "f");
    let refused = |words: &str| message(&dev, words).unwrap_err();
    assert_eq!(
        refused("key wipe"),
        "crypt: not suspended during key manipulation. (22)"
    );
    assert_eq!(
        refused("hello world"),
        "crypt: unrecognised message received. (22)"
    );
    suspend(&dev);
    for words in ["key", "key set", "key wipe now", "key forget", "keys wipe"] {
        assert_eq!(refused(words), "crypt: unrecognised message received. (22)");
    }
    assert_eq!(
        refused("key set 00"),
        "crypt: the key's size may not be changed: it is 64 bytes, and 1 were given (22)"
    );
    resume(&dev).unwrap();
    suspend(&dev);
    message(&dev, "KEY Wipe").unwrap();
    assert_eq!(
        table(&dev),
        format!("aes-xts-plain64 {} 0 7:0 0", "0".repeat(128))
    );
    let error = resume(&dev).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.errno()),
        ("crypt: aborting resume - crypt key is not set.", 11)
    );
    message(&dev, &format!("key set {other}")).unwrap();
    resume(&dev).unwrap();
    assert!(table(&dev).contains(&other));
    suspend(&dev);
    let bad = format!("key set {}zz", &KEY[2..]);
    assert!(refused(&bad).contains("not all hexadecimal digits"));
    assert_eq!(resume(&dev).unwrap_err().errno(), 11);
    message(&dev, &format!("key set {KEY}")).unwrap();
    resume(&dev).unwrap();
}

/// Requests of every length about the size from which the workers help, from every place.
#[test]
fn what_is_written_comes_back_and_lies_encrypted_below() {
    let world = World::new();
    let sectors = 4096;
    let below = world.memory("7:0", sectors + 8);
    for features in [
        "",
        " 1 sector_size:4096",
        " 2 no_read_workqueue no_write_workqueue",
    ] {
        let line = format!("0 {sectors} crypt aes-xts-plain64 {KEY} 0 7:0 8{features}");
        let dev = world.live("one", &line);
        for len in [8_u64, 16, 248, 256, 264, 384, 512, 1000, 2048] {
            for start in [0, 8, 24, sectors - len] {
                let data: Vec<u8> = (0..len * 512)
                    .map(|i| (i * 7 + i / 512 + len) as u8)
                    .collect();
                let (_, status) = transfer(&*dev, Op::Write, start, &data);
                assert!(status.is_ok());
                let (back, status) = transfer(&*dev, Op::Read, start, &data);
                assert!(status.is_ok());
                assert!(back == data, "{features} {start}+{len}");
                let (cipher, _) = transfer(&*below, Op::Read, start + 8, &data);
                let same = cipher.iter().zip(&data).filter(|(a, b)| a == b).count();
                assert!(same < data.len() / 64 + 64, "{same} bytes are as they were");
            }
        }
    }
}

fn transfer(
    dev: &dyn BlockDevice,
    op: Op,
    start: u64,
    data: &[u8],
) -> (Vec<u8>, thinmap_units::BlkStatus) {
    let mut buf = thinmap_runtime::IoBuf::alloc(data.len());
    if op == Op::Write {
        buf.as_mut_slice().copy_from_slice(data);
    }
    let (buf, status) = match op {
        Op::Write => thinmap_block::write(dev, Sector(start), buf),
        _ => thinmap_block::read(dev, Sector(start), buf),
    };
    if op == Op::Write {
        assert!(
            buf.as_slice() == data,
            "a write leaves its buffer as it was"
        );
    }
    (buf.as_slice().to_vec(), status)
}
