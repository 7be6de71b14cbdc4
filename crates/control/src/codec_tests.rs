//! The codec: round trips, and hostile buffers.

use proptest::prelude::*;
use thinmap_units::{DevNo, DmName, DmUuid, Sector};

use crate::ioctl::{Command, HEADER_BYTES};
use crate::{
    DeviceDeps, DeviceInfo, DeviceListEntry, DeviceSelector, DeviceStatus, Request, Response,
    StatusKind, StatusQuery, SuspendOptions, TableInfo, TableLine, TargetVersion,
};

fn name() -> impl Strategy<Value = DmName> {
    "[a-z]{1,20}|x{127}".prop_map(|text| DmName::new(&text).unwrap())
}

fn uuid() -> impl Strategy<Value = DmUuid> {
    "[A-Z]{1,20}|Y{128}".prop_map(|text| DmUuid::new(&text).unwrap())
}

fn dev() -> impl Strategy<Value = DevNo> {
    (1..4096_u32, 0..1_u32 << 20).prop_map(|(major, minor)| DevNo::new(major, minor))
}

fn selector() -> impl Strategy<Value = DeviceSelector> {
    prop_oneof![
        name().prop_map(DeviceSelector::Name),
        uuid().prop_map(DeviceSelector::Uuid),
        dev().prop_map(DeviceSelector::Dev),
    ]
}

fn line() -> impl Strategy<Value = TableLine> {
    (any::<u64>(), any::<u64>(), "[a-z-]{1,15}", "[ -~]{0,40}").prop_map(
        |(start, len, target, params)| TableLine {
            start: Sector(start),
            len: Sector(len),
            target,
            params,
        },
    )
}

fn query() -> impl Strategy<Value = StatusQuery> {
    let kind = prop_oneof![
        Just(StatusKind::Info),
        Just(StatusKind::Table),
        Just(StatusKind::Measurement)
    ];
    (kind, any::<bool>(), any::<bool>()).prop_map(|(kind, inactive, no_flush)| StatusQuery {
        kind,
        inactive,
        no_flush,
    })
}

fn options() -> impl Strategy<Value = SuspendOptions> {
    (any::<bool>(), any::<bool>())
        .prop_map(|(lock_fs, no_flush)| SuspendOptions { lock_fs, no_flush })
}

fn request() -> impl Strategy<Value = Request> {
    let lines = proptest::collection::vec(line(), 1..5);
    let minor = proptest::option::of(0..1_u32 << 20);
    prop_oneof![
        any::<bool>().prop_map(|deferred| Request::RemoveAll { deferred }),
        ("[a-z]{0,9}", "[A-Z]{0,9}", any::<bool>()).prop_map(
            |(name_prefix, uuid_prefix, with_uuids)| {
                Request::ListDevices {
                    name_prefix,
                    uuid_prefix,
                    with_uuids,
                }
            }
        ),
        (name(), proptest::option::of(uuid()), minor)
            .prop_map(|(name, uuid, minor)| Request::Create { name, uuid, minor }),
        (selector(), any::<bool>())
            .prop_map(|(device, deferred)| Request::Remove { device, deferred }),
        (name(), name()).prop_map(|(device, new_name)| Request::Rename { device, new_name }),
        (name(), uuid()).prop_map(|(device, uuid)| Request::SetUuid { device, uuid }),
        (selector(), options()).prop_map(|(device, options)| Request::Suspend { device, options }),
        (selector(), options()).prop_map(|(device, options)| Request::Resume { device, options }),
        (selector(), any::<bool>())
            .prop_map(|(device, inactive)| Request::Status { device, inactive }),
        (selector(), any::<u32>(), query()).prop_map(|(device, event_nr, query)| Request::Wait {
            device,
            event_nr,
            query
        }),
        (selector(), lines, any::<bool>()).prop_map(|(device, lines, read_only)| {
            Request::TableLoad {
                device,
                is_whole: true,
                lines,
                read_only,
            }
        }),
        selector().prop_map(|device| Request::TableClear { device }),
        (selector(), any::<bool>())
            .prop_map(|(device, inactive)| Request::TableDeps { device, inactive }),
        (selector(), query()).prop_map(|(device, query)| Request::TableStatus { device, query }),
        Just(Request::ListVersions),
        Just(Request::ArmPoll),
        (selector(), any::<u64>(), "[ -~]{0,60}").prop_map(|(device, sector, message)| {
            Request::Message {
                device,
                sector: Sector(sector),
                message,
            }
        }),
    ]
}

fn info() -> impl Strategy<Value = DeviceInfo> {
    let table = || {
        proptest::option::of(
            (any::<u32>(), any::<bool>()).prop_map(|(target_count, read_only)| TableInfo {
                target_count,
                read_only,
            }),
        )
    };
    (
        name(),
        proptest::option::of(uuid()),
        dev(),
        any::<(u32, u32)>(),
        any::<(bool, bool, bool, bool)>(),
        table(),
        table(),
    )
        .prop_map(
            |(name, uuid, dev, numbers, states, live, inactive)| DeviceInfo {
                name,
                uuid,
                dev,
                open_count: numbers.0,
                event_nr: numbers.1,
                suspended: states.0,
                internally_suspended: states.1,
                deferred_remove: states.2,
                uevent: states.3,
                live,
                inactive,
            },
        )
}

/// What a client can know of `info` after it asked about one of the tables.
fn seen(mut info: DeviceInfo, inactive: bool) -> DeviceInfo {
    let other = if inactive {
        &mut info.live
    } else {
        &mut info.inactive
    };
    if let Some(table) = other {
        *table = TableInfo {
            target_count: 0,
            read_only: false,
        };
    }
    info
}

/// The client's reading of what the server wrote; `None` when the buffer was too small.
fn round_trip(request: &Request, response: &Response, size: usize) -> Option<Response> {
    let mut buffer = request.encode(size);
    let room = buffer.len();
    response.encode(request, &mut buffer);
    assert!(buffer.len() <= room.max(HEADER_BYTES));
    Response::decode(request, &buffer).unwrap()
}

proptest! {
    #[test]
    fn requests_round_trip(request in request()) {
        for size in [0, 4096] {
            let buffer = request.encode(size);
            prop_assert_eq!(Request::decode(request.command(), &buffer).unwrap(), request.clone());
        }
    }

    #[test]
    fn random_bytes_never_panic(nr in 0..20_u32, mut bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        if let Some(command) = Command::from_nr(nr) {
            let _ = Request::decode(command, &bytes);
            let request = Request::ListVersions;
            let _ = Response::decode(&request, &bytes);
            Response::Versions(vec![]).encode(&request, &mut bytes);
        }
    }

    /// Buffers that are nearly right reach deeper than random ones.
    #[test]
    fn bent_buffers_never_panic(
        request in request(),
        response_to in request(),
        bends in proptest::collection::vec((0..400_usize, any::<u8>()), 1..8),
        info in info(),
        lines in proptest::collection::vec(line(), 0..4),
    ) {
        let mut buffer = request.encode(600);
        for (at, byte) in bends {
            if let Some(slot) = buffer.get_mut(at) {
                *slot = byte;
            }
        }
        let _ = Request::decode(request.command(), &buffer);
        let _ = Response::decode(&response_to, &buffer);
        let sent = buffer.len();
        let answers = [
            Response::Header,
            Response::Devices(Vec::new()),
            Response::Deps(DeviceDeps { info: info.clone(), devices: Some(vec![info.dev]) }),
            Response::Message { info: info.clone(), text: Some("text".into()) },
            Response::Status(DeviceStatus { info, lines: Some(lines) }),
        ];
        for answer in answers {
            let mut buffer = buffer.clone();
            answer.encode(&request, &mut buffer);
            prop_assert!(buffer.len() <= sent);
        }
    }

    #[test]
    fn device_lists_round_trip(
        names in proptest::collection::btree_set("[a-z]{1,30}", 0..20),
        dev in dev(),
        uuid in proptest::option::of(uuid()),
        event_nr in any::<u32>(),
        size in 0..2000_usize,
    ) {
        let entry = |name: &String| DeviceListEntry {
            name: DmName::new(name).unwrap(),
            uuid: uuid.clone(),
            dev,
            event_nr,
        };
        let devices: Vec<_> = names.iter().map(entry).collect();
        let request = Request::ListDevices {
            name_prefix: String::new(),
            uuid_prefix: String::new(),
            with_uuids: true,
        };
        let response = Response::Devices(devices);
        prop_assert_eq!(round_trip(&request, &response, 100_000), Some(response.clone()));
        if let Some(small) = round_trip(&request, &response, size) {
            prop_assert_eq!(small, response);
        }
    }

    #[test]
    fn statuses_round_trip_or_say_that_the_buffer_is_full(
        info in info(),
        lines in proptest::collection::vec(line(), 0..6),
        query in query(),
        size in 0..1500_usize,
    ) {
        let device = DeviceSelector::Name(info.name.clone());
        let request = Request::TableStatus { device, query };
        let mut info = info;
        let table = if query.inactive { &mut info.inactive } else { &mut info.live };
        if let Some(table) = table {
            table.target_count = lines.len() as u32;
        }
        let present = table.is_some() && !lines.is_empty();
        let lines = present.then_some(lines);
        let sent = Response::Status(DeviceStatus { info: info.clone(), lines: lines.clone() });
        let seen = seen(info, query.inactive);
        let read = |response: Option<Response>| match response {
            Some(Response::Status(status)) => Some((status.info, status.lines.unwrap_or_default())),
            _ => None,
        };
        let expected = Some((seen, lines.unwrap_or_default()));
        prop_assert_eq!(read(round_trip(&request, &sent, 100_000)), expected.clone());
        let small = read(round_trip(&request, &sent, size));
        prop_assert!(small.is_none() || small == expected);
    }

    #[test]
    fn dependencies_round_trip(info in info(), devices in proptest::collection::vec(dev(), 0..9)) {
        let device = DeviceSelector::Dev(info.dev);
        let request = Request::TableDeps { device, inactive: false };
        let devices = info.live.is_some().then_some(devices);
        let sent = Response::Deps(DeviceDeps { info: info.clone(), devices: devices.clone() });
        let expected = Response::Deps(DeviceDeps { info: seen(info, false), devices });
        prop_assert_eq!(round_trip(&request, &sent, 4096), Some(expected));
    }

    #[test]
    fn answers_of_messages_round_trip(info in info(), text in proptest::option::of("[ -~]{0,500}"), size in 0..900_usize) {
        let device = DeviceSelector::Name(info.name.clone());
        let request = Request::Message { device, sector: Sector(0), message: "m".into() };
        let sent = Response::Message { info: info.clone(), text: text.clone() };
        let expected = Response::Message { info: seen(info, false), text };
        prop_assert_eq!(round_trip(&request, &sent, 4096), Some(expected.clone()));
        let small = round_trip(&request, &sent, size);
        prop_assert!(small.is_none() || small == Some(expected));
    }
}

#[test]
fn versions_round_trip() {
    let target = |name: &str| TargetVersion {
        name: name.into(),
        version: [1, 22, 0],
    };
    let response = Response::Versions(vec![target("thin-pool"), target("thin"), target("x")]);
    let request = Request::ListVersions;
    assert_eq!(
        round_trip(&request, &response, 4096),
        Some(response.clone())
    );
    assert_eq!(round_trip(&request, &response, 0), None);
}
