//! The codec against the kernel's rules, each found by the probe (`tests/probe`).

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, Sector};
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32, U64};

use crate::ioctl::{
    Command, HEADER_BYTES, HEADER_BYTES_MIN, Header, NAME_FIELD_BYTES, TARGET_SPEC_BYTES,
    TARGETS_MAX, flag, nul_padded,
};
use crate::{
    DeviceInfo, DeviceSelector, DeviceStatus, Geometry, Removal, Request, Response, StatusKind,
    StatusQuery, TableInfo, TableLine, TargetVersion,
};

fn errno_of(command: Command, header: &Header, tail: &[u8]) -> Errno {
    let mut buffer = header.as_bytes().to_vec();
    buffer.resize(HEADER_BYTES, 0);
    buffer.extend_from_slice(tail);
    match Request::decode(command, &buffer) {
        Ok(request) => panic!("{request:?} should have been refused"),
        Err(error) => Errno::from_raw_os_error(error.errno),
    }
}

#[test]
fn wrong_buffers_get_the_kernels_errno() {
    let header = |change: fn(&mut Header)| {
        let mut header = Header::new(HEADER_BYTES + 64);
        header.data_start = U32::new(HEADER_BYTES as u32);
        header.name = nul_padded("a");
        change(&mut header);
        header
    };
    let tail = [0; 64];
    type Case = (Command, fn(&mut Header), Errno);
    let cases: [Case; 10] = [
        (
            Command::DevStatus,
            |h| h.data_size = U32::new(HEADER_BYTES_MIN as u32 - 1),
            Errno::INVAL,
        ),
        (
            Command::TableStatus,
            |h| h.data_size = U32::new(1 << 20),
            Errno::FAULT,
        ),
        (Command::DevCreate, |h| h.name = [0; 128], Errno::INVAL),
        (
            Command::DevCreate,
            |h| h.name = nul_padded("a/b"),
            Errno::INVAL,
        ),
        (
            Command::DevStatus,
            |h| h.uuid = nul_padded("u"),
            Errno::INVAL,
        ),
        (Command::DevStatus, |h| h.dev = U64::new(1), Errno::NXIO),
        (Command::DevStatus, |h| h.name = [0; 128], Errno::NXIO),
        (
            Command::TableLoad,
            |h| h.target_count = U32::new(0),
            Errno::INVAL,
        ),
        (
            Command::DevRename,
            |h| h.data_start = U32::new(8),
            Errno::INVAL,
        ),
        (
            Command::TargetMsg,
            |h| h.data_start = U32::new(u32::MAX),
            Errno::INVAL,
        ),
    ];
    for (command, change, expected) in cases {
        let header = header(change);
        assert_eq!(errno_of(command, &header, &tail), expected, "{command:?}");
    }
}

/// A chain of records that points at itself must end with an error, not for ever.
#[test]
fn a_looping_table_is_refused() {
    let device = DeviceSelector::Name(DmName::new("a").unwrap());
    let line = TableLine {
        start: Sector(0),
        len: Sector(8),
        target: "zero".into(),
        params: String::new(),
    };
    let request = Request::TableLoad {
        device,
        is_whole: true,
        lines: vec![line.clone(), line],
        read_only: false,
    };
    let mut buffer = request.encode(0);
    let next_at = HEADER_BYTES + 20;
    buffer[next_at..next_at + 4].fill(0);
    let (mut header, _) = Header::read_from_prefix(&buffer).unwrap();
    header.target_count = U32::new(TARGETS_MAX);
    buffer[..HEADER_BYTES_MIN].copy_from_slice(header.as_bytes());
    let decoded = Request::decode(Command::TableLoad, &buffer).unwrap();
    let is_cut =
        matches!(&decoded, Request::TableLoad { lines, is_whole: false, .. } if lines.len() == 1);
    assert!(is_cut, "{decoded:?}");
    header.target_count = U32::new(TARGETS_MAX + 1);
    buffer[..HEADER_BYTES_MIN].copy_from_slice(header.as_bytes());
    let error = Request::decode(Command::TableLoad, &buffer).unwrap_err();
    assert_eq!(error.errno, Errno::OVERFLOW.raw_os_error());
}

#[test]
fn flags_are_cleared_on_the_way_in() {
    let device = DeviceSelector::Name(DmName::new("a").unwrap());
    let request = Request::Remove {
        device,
        deferred: false,
    };
    let mut buffer = request.encode(0);
    let (mut header, _) = Header::read_from_prefix(&buffer).unwrap();
    header.flags |= U32::new(flag::BUFFER_FULL | flag::UEVENT_GENERATED | flag::SECURE_DATA);
    buffer[..HEADER_BYTES_MIN].copy_from_slice(header.as_bytes());
    let removal = Removal {
        name: DmName::new("a").unwrap(),
        uuid: None,
        inactive: false,
        waits: false,
        uevent: true,
    };
    Response::Removed(removal).encode(&request, &mut buffer);
    let (header, _) = Header::read_from_prefix(&buffer).unwrap();
    assert_eq!(header.flags.get(), flag::UEVENT_GENERATED);
}

#[test]
fn of_no_devices_nothing_but_the_header_is_copied_out() {
    let request = Request::ListDevices {
        name_prefix: String::new(),
        uuid_prefix: String::new(),
        with_uuids: false,
    };
    let none = Response::Devices(Vec::new());
    let mut buffer = request.encode(16384);
    none.encode(&request, &mut buffer);
    let (header, _) = Header::read_from_prefix(&buffer).unwrap();
    assert_eq!(
        (header.data_start.get(), header.data_size.get()),
        (312, 312)
    );
    assert!(!header.has(flag::BUFFER_FULL));
    assert_eq!(Response::decode(&request, &buffer).unwrap(), Some(none));
}

/// A buffer that asks for `request` over bytes of garbage, and a name with a tail behind its NUL.
fn over_garbage(request: &Request, size: usize) -> Vec<u8> {
    let mut buffer = request.encode(size);
    buffer[HEADER_BYTES_MIN..].fill(b'Z');
    buffer[HEADER_NAME_AT + 2..HEADER_NAME_AT + NAME_FIELD_BYTES].fill(b'n');
    buffer
}

const HEADER_NAME_AT: usize = 48;

#[test]
fn what_is_not_written_comes_back_as_it_was_sent() {
    let name = DmName::new("a").unwrap();
    let device = DeviceSelector::Name(name.clone());
    let query = StatusQuery {
        kind: StatusKind::Info,
        inactive: false,
        no_flush: false,
    };
    let request = Request::TableStatus { device, query };
    let table = TableInfo {
        target_count: 1,
        read_only: false,
    };
    let info = DeviceInfo {
        name,
        uuid: None,
        dev: DevNo::new(7, 1),
        open_count: 0,
        event_nr: 0,
        suspended: false,
        internally_suspended: false,
        deferred_remove: false,
        uevent: false,
        live: Some(table),
        inactive: None,
    };
    let line = TableLine {
        start: Sector(0),
        len: Sector(8),
        target: "zero".into(),
        params: String::new(),
    };
    let lines = Some(vec![line]);
    let mut buffer = over_garbage(&request, 400);
    Response::Status(DeviceStatus { info, lines }).encode(&request, &mut buffer);
    // The kernel closes a name's field and fills in the name, no more.
    assert_eq!(&buffer[HEADER_NAME_AT..HEADER_NAME_AT + 4], b"a\0nn");
    assert_eq!(buffer[HEADER_NAME_AT + NAME_FIELD_BYTES - 1], 0);
    // Behind the type's 15 bytes one is left, and the rest of the last record is not copied out at all.
    let record = &buffer[HEADER_BYTES..];
    assert_eq!(&record[24..40], b"zero\0\0\0\0\0\0\0\0\0\0\0Z");
    assert_eq!(record.len(), TARGET_SPEC_BYTES + 1);
}

#[test]
fn a_record_that_would_end_beyond_the_buffer_is_told_but_the_buffer_is_full() {
    let target = TargetVersion {
        name: "zero".into(),
        version: [1, 1, 0],
    };
    // The kernel asks for seven bytes more than it writes for each.
    for (room, fits) in [(27, false), (28, true)] {
        let request = Request::ListVersions;
        let mut buffer = over_garbage(&request, HEADER_BYTES + room);
        Response::Versions(vec![target.clone()]).encode(&request, &mut buffer);
        let (header, _) = Header::read_from_prefix(&buffer).unwrap();
        assert_eq!(!header.has(flag::BUFFER_FULL), fits);
        assert_eq!(
            buffer.len(),
            if fits {
                HEADER_BYTES + 28
            } else {
                HEADER_BYTES_MIN
            }
        );
    }
}

#[test]
fn geometry_is_read_as_sscanf_does() {
    let read = |text: &[u8]| {
        let device = DeviceSelector::Name(DmName::new("a").unwrap());
        let mut buffer = Request::SetGeometry {
            device,
            geometry: Geometry {
                cylinders: 0,
                heads: 0,
                sectors_per_track: 0,
                start: Sector(0),
            },
        }
        .encode(HEADER_BYTES + 64);
        buffer[HEADER_BYTES..].fill(0);
        buffer[HEADER_BYTES..HEADER_BYTES + text.len()].copy_from_slice(text);
        match Request::decode(Command::DevSetGeometry, &buffer) {
            Ok(Request::SetGeometry { geometry, .. }) => Some((
                geometry.cylinders,
                geometry.heads,
                geometry.sectors_per_track,
                geometry.start.raw(),
            )),
            _ => None,
        }
    };
    assert_eq!(read(b" 1  2\t3\n4"), Some((1, 2, 3, 4)));
    assert_eq!(read(b"1 2 3 18446744073709551617"), Some((1, 2, 3, 1)));
    for wrong in [
        &b"1 2 3 4 "[..],
        b"1 2 3",
        b"",
        b"+1 2 3 4",
        b"-1 2 3 4",
        b"0x1 2 3 4",
        b"1,2,3,4",
        b"65536 1 1 0",
        b"1 256 1 0",
        b"1 1 256 0",
        b"\xff 1 1 0",
    ] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[test]
fn a_table_is_read_up_to_the_record_that_cannot_be() {
    let device = DeviceSelector::Name(DmName::new("a").unwrap());
    let line = |start| TableLine {
        start: Sector(start),
        len: Sector(8),
        target: "zero".into(),
        params: String::new(),
    };
    let good = Request::TableLoad {
        device: device.clone(),
        lines: vec![line(0), line(8)],
        is_whole: true,
        read_only: false,
    };
    let next_at = HEADER_BYTES + 20;
    for next in [0_u32, 39, 4096, u32::MAX] {
        let mut buffer = good.encode(0);
        buffer[next_at..next_at + 4].copy_from_slice(U32::<NativeEndian>::new(next).as_bytes());
        let expected = Request::TableLoad {
            device: device.clone(),
            lines: vec![line(0)],
            is_whole: false,
            read_only: false,
        };
        assert_eq!(
            Request::decode(Command::TableLoad, &buffer).unwrap(),
            expected
        );
    }
}
