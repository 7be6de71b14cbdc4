//! Every option and command of the protocol, byte by byte, right and wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

mod nbd_support;

use nbd_support::{Fixture, HandDevice, MIB, context_data, counted, info_data, request};
use thinmap_block::{Extent, Op};
use thinmap_units::{BlkStatus, Sector};

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;

#[test]
fn list_info_and_unknown_options() {
    let fixture = Fixture::with_disk(1);
    let device = HandDevice::new(MIB);
    fixture
        .server()
        .add_export("another", device, true)
        .unwrap();
    let mut client = fixture.connect();
    client.hello();
    let replies = client.ask(3, &[]);
    assert_eq!(replies[0], (2, counted(b"another")));
    assert_eq!(replies[1], (2, counted(b"disk")));
    assert_eq!(replies[2].0, ACK);
    assert_eq!(client.ask(3, b"x")[0].0, INVALID);

    let replies = client.ask(6, &info_data("disk", &[1, 3, 99]));
    let mut export = vec![0, 0];
    export.extend(MIB.to_be_bytes());
    export.extend([0b1001, 0b0110_1101]);
    assert_eq!(replies[0], (3, export));
    assert_eq!(replies[1], (3, b"\0\x01disk".to_vec()));
    let block = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0].to_vec();
    assert_eq!(replies[2], (3, block));
    assert_eq!(replies[3].0, ACK);
    // Read-only: no trim, no zeroes.
    let replies = client.ask(6, &info_data("another", &[]));
    assert_eq!(replies[0].1[10..], [0b1, 0b0000_1111]);

    assert_eq!(client.ask(6, &info_data("nobody", &[]))[0].0, UNKNOWN);
    // The empty name is clear only when there is one export.
    assert_eq!(client.ask(7, &info_data("", &[]))[0].0, UNKNOWN);
    for option in [4, 11, 12, 0xffff_ffff] {
        assert_eq!(client.ask(option, b"any")[0].0, UNSUP);
    }
    assert_eq!(client.ask(5, &[])[0].0, UNSUP, "STARTTLS without TLS");
    for broken in [
        &b""[..],
        &[0, 0],
        &[0, 0, 0, 9, 1],
        &[0, 0, 0, 0, 0, 5],
        &[255; 8],
    ] {
        for option in [6, 7, 9, 10] {
            assert_eq!(
                client.ask(option, broken)[0].0,
                INVALID,
                "{option} {broken:?}"
            );
        }
    }
    assert_eq!(client.ask(2, &[])[0].0, ACK);
    assert_eq!(client.rest(), b"");
}

#[test]
fn export_name_with_and_without_zeroes() {
    let fixture = Fixture::with_disk(1);
    for (flags, zeroes) in [(3u32, 0), (1, 124)] {
        let mut client = fixture.connect();
        client.bytes(18);
        client.put(&flags.to_be_bytes());
        client.option(1, b"");
        assert_eq!(client.u64(), MIB);
        assert_eq!(client.u16() & 1, 1);
        assert!(client.bytes(zeroes).iter().all(|byte| *byte == 0));
        assert_eq!(client.status_of(3, 0, 0, 0), 0);
        // Simple replies: data follows the header at once.
        client.request(0, 0, 1, 512, 512);
        assert_eq!(client.simple(), (1, 0));
        assert_eq!(client.bytes(512), [0; 512]);
        // DF was not offered.
        assert_eq!(client.status_of(0, 4, 0, 512), 22);
    }
    let mut client = fixture.connect();
    client.hello();
    client.option(1, b"nobody");
    assert_eq!(client.rest(), b"");
}

#[test]
fn violations_in_the_handshake_end_it() {
    let fixture = Fixture::with_disk(1);
    let mut long = b"IHAVEOPT\0\0\0\x03".to_vec();
    long.extend(u32::MAX.to_be_bytes());
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\0\0\x03IHAVEOPX\0\0\0\x03\0\0\0\0",
        &{
            let mut bytes = vec![0, 0, 0, 3];
            bytes.extend(&long);
            bytes
        },
    ] {
        let mut client = fixture.connect();
        client.bytes(18);
        client.put(bytes);
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(fixture.open("disk").read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn meta_contexts() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    *device.extents.lock() = vec![
        Extent {
            sectors: Sector(8),
            allocated: true,
            zeroes: false,
        },
        Extent {
            sectors: Sector(4096),
            allocated: false,
            zeroes: true,
        },
    ];
    fixture.server().add_export("disk", device, false).unwrap();
    let mut client = fixture.connect();
    client.hello();
    let base = context_data("disk", &["base:allocation"]);
    assert_eq!(
        client.ask(10, &base)[0].0,
        INVALID,
        "needs structured replies"
    );
    assert_eq!(client.ask(8, &[])[0].0, ACK);
    assert_eq!(client.ask(9, &context_data("nobody", &[]))[0].0, UNKNOWN);
    let listed = (4, b"\0\0\0\0base:allocation".to_vec());
    for queries in [&[][..], &["base:"], &["base:allocation", "x:y"]] {
        assert_eq!(client.ask(9, &context_data("disk", queries))[0], listed);
    }
    assert_eq!(client.ask(9, &context_data("disk", &["x:"]))[0].0, ACK);
    assert_eq!(
        client.ask(10, &base)[0],
        (4, b"\0\0\0\x01base:allocation".to_vec())
    );
    assert_eq!(client.go("disk", &[]), ACK);
    client.request(7, 0, 3, 0, 1 << 20);
    let (flags, kind, cookie, payload) = client.chunk();
    assert_eq!((flags, kind, cookie), (1, 5, 3));
    assert_eq!(
        payload,
        [
            0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 15, 240, 0, 0, 0, 0, 3
        ]
    );
    client.request(7, 8, 4, 0, 1 << 20);
    assert_eq!(client.chunk().3, [0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0]);
    client.request(7, 0, 5, MIB, 512);
    assert_eq!(client.chunk().1, 0x8001);

    // Not chosen, so not allowed.
    let mut client = fixture.open("disk");
    client.request(7, 0, 3, 0, 512);
    assert_eq!(client.chunk().1, 0x8001);
}

#[test]
fn options_with_large_answers_are_all_answered_however_many_come_at_once() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    for n in 0..300 {
        let name = format!("{n:0100}");
        let added = fixture.server().add_export(&name, device.clone(), false);
        added.unwrap();
    }
    let mut client = fixture.connect();
    client.hello();
    let mut lists = Vec::new();
    for _ in 0..256 {
        lists.extend(b"IHAVEOPT");
        lists.extend(3u32.to_be_bytes());
        lists.extend(0u32.to_be_bytes());
    }
    client.put(&lists);
    let mut ends = 0;
    while ends < 256 {
        ends += u32::from(client.option_reply().1 == ACK);
    }
    assert_eq!(client.go(&"0".repeat(100), &[]), ACK);
}

#[test]
fn a_discard_in_many_pieces_is_a_few_at_a_time() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    device.limits.lock().max_discard = Sector(1);
    let add = |name| fixture.server().add_export(name, device.clone(), false);
    add("disk").unwrap();
    let mut client = fixture.open("disk");
    *device.hold.lock() = true;
    let most = u32::try_from(MIB).unwrap();
    for cookie in 0..8 {
        client.request(4, 0, cookie, 0, most);
    }
    // What comes after them is with the device when they are.
    client.request(3, 0, 8, 0, 0);
    let flush_is_there = || device.held.lock().iter().any(|io| io.op == Op::Flush);
    nbd_support::eventually("all are at the device", flush_is_there);
    let held = device.held();
    assert!(held <= 8 * 4 + 1, "{held} at once");
    device.release_backwards();
    let mut answers: Vec<_> = (0..9).map(|_| client.simple()).collect();
    answers.sort_unstable();
    let all_well: Vec<_> = (0..9).map(|cookie| (cookie, 0)).collect();
    assert_eq!(answers, all_well);
    let mut discarded: Vec<u64> = device.seen.lock().iter().map(|seen| seen.1).collect();
    discarded.sort_unstable();
    discarded.dedup();
    assert_eq!(discarded, (0..MIB / 512).collect::<Vec<_>>());
    // One that fails goes no further.
    device.seen.lock().clear();
    *device.fail.lock() = Some(BlkStatus::IoErr);
    assert_eq!(client.status_of(4, 0, 0, most), 5);
    assert!(device.seen.lock().len() <= 2 * 4);
}

#[test]
fn commands_reach_the_device_as_they_were_meant() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    device.limits.lock().max_discard = Sector(16);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    let mut client = fixture.open("disk");
    assert_eq!(client.write(4096, &[7; 1024], 1), 0);
    assert_eq!(client.read(3584, 1024).unwrap()[511..513], [0, 7]);
    client.request(0, 4, 9, 0, 512);
    assert_eq!(client.chunk().1, 1, "DF");
    assert_eq!(client.status_of(3, 0, 0, 0), 0);
    assert_eq!(client.status_of(4, 1, 0, 40 * 512), 0);
    assert_eq!(client.status_of(6, 3, 4096, 512), 0);
    assert_eq!(client.status_of(6, 16, 4096, 512), 0);
    assert_eq!(
        *device.seen.lock(),
        [
            (Op::Write, 8, 2, true, false),
            (Op::Read, 7, 2, false, false),
            (Op::Read, 0, 1, false, false),
            (Op::Flush, 0, 0, false, false),
            // In pieces that the device takes, and made durable behind them.
            (Op::Discard, 0, 16, false, false),
            (Op::Discard, 16, 16, false, false),
            (Op::Discard, 32, 8, false, false),
            (Op::Flush, 0, 0, false, false),
            (Op::WriteZeroes, 8, 1, true, true),
            (Op::WriteZeroes, 8, 1, false, false),
        ]
    );
    client.request(2, 0, 0, 0, 0);
    assert_eq!(client.rest(), b"");
    nbd_support::eventually("the client is gone", || {
        fixture.server().connections("disk") == 0
    });
}

#[test]
fn wrong_requests_are_refused_and_the_stream_stays_in_step() {
    let fixture = Fixture::with_disk(1);
    let mut client = fixture.open("disk");
    let end = MIB;
    // Reads: beyond the end, unaligned, empty, too long, unknown flags.
    for (offset, len) in [
        (end, 512),
        (end - 512, 1024),
        (u64::MAX - 511, 512),
        (1, 512),
        (0, 511),
    ] {
        assert_eq!(client.read(offset, len), Err(22), "read {offset}+{len}");
    }
    assert_eq!(client.read(0, 0), Err(22));
    assert_eq!(client.read(0, (32 << 20) + 512), Err(22));
    client.request(0, 0x80, 9, 0, 512);
    assert_eq!(client.chunk().1, 0x8001);
    // Writes: the payload is skipped.
    assert_eq!(client.write(end, &[1; 512], 0), 28);
    assert_eq!(client.write(end - 512, &[1; 100_352], 0), 28);
    assert_eq!(client.write(100, &[1; 512], 0), 22);
    assert_eq!(client.write(0, &[1; 100], 0), 22);
    assert_eq!(client.write(0, &[1; 512], 2), 22);
    assert_eq!(client.write(0, &[], 0), 22);
    assert_eq!(client.status_of(4, 0, end, 512), 28);
    assert_eq!(client.status_of(6, 0, end, 512), 28);
    assert_eq!(client.status_of(3, 0, 512, 0), 22);
    for command in [5, 8, 9, 0xffff] {
        assert_eq!(client.status_of(command, 0, 0, 512), 22);
    }
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn what_cannot_be_understood_ends_the_connection_after_its_replies() {
    let fixture = Fixture::with_disk(1);
    let mut oversize = request(1, 0, 1, 0, (32 << 20) + 512);
    oversize.extend([0; 64]);
    for bytes in [oversize, vec![0x55; 28]] {
        let mut client = fixture.open("disk");
        client.request(3, 0, 6, 0, 0);
        client.put(&bytes);
        assert_eq!(client.simple(), (6, 0));
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn read_only_exports_and_large_blocks() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB + 512);
    device.limits.lock().logical_block_size = 4096;
    device.limits.lock().io_opt = 8192;
    device.limits.lock().max_write_zeroes = Sector(8);
    let server = fixture.server();
    server.add_export("ro", device.clone(), true).unwrap();
    server.add_export("rw", device.clone(), false).unwrap();
    let mut client = fixture.connect();
    client.hello();
    assert_eq!(
        client.go("rw", &[]),
        0x8000_0008,
        "block size must be asked for"
    );
    let replies = client.ask(7, &info_data("rw", &[3]));
    assert_eq!(replies[0].1[2..10], MIB.to_be_bytes(), "no partial block");
    assert_eq!(replies[1].1, [0, 3, 0, 0, 16, 0, 0, 0, 32, 0, 2, 0, 0, 0]);
    client.request(0, 0, 1, 512, 4096);
    assert_eq!(client.simple(), (1, 22));
    assert_eq!(client.status_of(6, 16, 0, 8192), 95, "not fast");
    assert_eq!(client.status_of(6, 0, 0, 8192), 0);

    let mut client = fixture.connect();
    client.hello();
    assert_eq!(client.go("ro", &[3]), 1);
    assert_eq!(client.write(0, &[1; 4096], 0), 1);
    assert_eq!(client.status_of(4, 0, 0, 4096), 1);
    assert_eq!(client.status_of(6, 0, 0, 4096), 1);
    assert_eq!(client.status_of(3, 0, 0, 0), 0);
}

#[test]
fn device_errors_keep_their_names() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    let mut client = fixture.open("disk");
    for (status, error) in [
        (BlkStatus::IoErr, 5),
        (BlkStatus::NoSpc, 28),
        (BlkStatus::NotSupp, 95),
        (BlkStatus::Inval, 22),
        (BlkStatus::Requeue, 5),
    ] {
        *device.fail.lock() = Some(status);
        assert_eq!(client.read(0, 4096), Err(error));
        assert_eq!(client.write(0, &[1; 4096], 0), error);
        assert_eq!(client.status_of(3, 0, 0, 0), error);
        assert_eq!(client.status_of(4, 1, 0, 4096), error);
    }
    *device.fail.lock() = None;
    assert_eq!(client.read(0, 4096).unwrap(), [0; 4096]);
    // The trait promises extents; a device that gives none has failed.
    drop(client);
    let mut client = fixture.connect();
    client.hello();
    client.ask(8, &[]);
    client.ask(10, &context_data("", &["base:allocation"]));
    assert_eq!(client.go("", &[]), 1);
    client.request(7, 0, 3, 0, 512);
    assert_eq!(client.chunk().3[..4], 5u32.to_be_bytes());
}

#[test]
fn many_requests_in_one_packet_and_one_request_in_many() {
    let fixture = Fixture::with_disk(1);
    let mut client = fixture.open("disk");
    let mut bytes = Vec::new();
    for i in 0..100u64 {
        bytes.extend(request(1, 0, i, i * 512, 512));
        bytes.extend([i as u8; 512]);
    }
    client.put(&bytes);
    let mut cookies: Vec<u64> = (0..100).map(|_| client.simple().0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..100).collect::<Vec<_>>());
    let mut bytes = request(1, 0, 1, 0, 512);
    bytes.extend([0xaa; 512]);
    for byte in bytes {
        client.put(&[byte]);
    }
    assert_eq!(client.simple(), (1, 0));
    let data = client.read(0, 51_200).unwrap();
    assert_eq!(
        (data[0], data[511], data[512], data[51_199]),
        (0xaa, 0xaa, 1, 99)
    );
}
