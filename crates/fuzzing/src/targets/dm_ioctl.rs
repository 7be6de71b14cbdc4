//! Device mapper's ioctls on a daemon: buffers as libdevmapper makes them with bytes changed, and buffers of any bytes.
//!
//! Input: a sequence of requests to one daemon whose devices are memory. After it every device must go.

use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use thinmap_control::{
    CancelToken, DeviceSelector, Request, StatusKind, StatusQuery, SuspendOptions, TableLine,
    dispatch,
};
use thinmap_daemon::fuzzing::{Daemon, contained_daemon, remove_everything};
use thinmap_units::{DevNo, DmName, DmUuid, Sector};

use super::Target;
use crate::Input;
use crate::world::{Fenced, World};

pub const TARGET: Target = Target {
    name: "dm_ioctl",
    run,
    seeds,
};

const REQUESTS_MAX: usize = 48;
const NAMES: [&str; 4] = ["pool", "vol", "top", "a b"];

/// The one daemon of this process, and what its tables find.
pub struct Contained {
    pub daemon: Arc<Daemon>,
    world: Arc<World>,
    /// Tests run side by side; an input has the daemon for itself.
    turn: Mutex<()>,
    _dir: tempfile::TempDir,
}

pub fn contained() -> &'static Contained {
    static ONE: OnceLock<Contained> = OnceLock::new();
    ONE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let world = World::new();
        let daemon = contained_daemon(dir.path(), world.clone()).expect("a daemon");
        Contained {
            daemon,
            world,
            turn: Mutex::default(),
            _dir: dir,
        }
    })
}

impl Contained {
    /// Fresh plain devices: `/m` (7:0) and `/d` (7:1). The daemon is the caller's until the guard is dropped.
    pub fn begin(&self) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock();
        self.world.clear();
        self.world.add("/m", Fenced::new(Sector(2048)));
        self.world.add("/d", Fenced::new(Sector(4096)));
        turn
    }

    /// Nothing of it is left.
    pub fn end(&self) {
        assert!(remove_everything(&self.daemon), "a device does not go");
    }
}

fn run(bytes: &[u8]) {
    let contained = contained();
    let _turn = contained.begin();
    let cancel = CancelToken::new();
    cancel.cancel();
    let mut input = Input::new(bytes);
    for _ in 0..REQUESTS_MAX {
        if input.is_empty() {
            break;
        }
        let (nr, mut buffer) = request(&mut input);
        let asked = buffer.len();
        let done = dispatch(&*contained.daemon, nr, &mut buffer, &cancel);
        assert!(
            buffer.len() <= asked,
            "an answer beyond the caller's buffer"
        );
        if let Err(error) = done {
            assert!((1..4096).contains(&error.errno), "{error:?}");
        }
    }
    contained.end();
}

/// A command and its buffer.
fn request(input: &mut Input<'_>) -> (u32, Vec<u8>) {
    let kind = input.u8();
    if kind == 255 {
        let nr = u32::from(input.u8());
        let len = usize::from(input.u16());
        return (nr, input.bytes(len).to_vec());
    }
    let request = typed(kind, input);
    let mut buffer = request.encode(usize::from(input.u8()) * 16);
    for _ in 0..input.below(4) {
        let at = input.below(buffer.len().min(65_535));
        buffer[at] = input.u8();
    }
    if input.flag() {
        buffer.truncate(usize::from(input.u16()));
    }
    (request.command().nr(), buffer)
}

fn device(input: &mut Input<'_>) -> DeviceSelector {
    match input.below(8) {
        6 => DeviceSelector::Uuid(DmUuid::new("uuid").expect("one")),
        7 => DeviceSelector::Dev(DevNo::new(253, u32::from(input.u8() % 4))),
        name => DeviceSelector::Name(DmName::new(NAMES[name % 4]).expect("one")),
    }
}

fn name(input: &mut Input<'_>) -> DmName {
    DmName::new(NAMES[input.below(4)]).expect("one")
}

fn typed(kind: u8, input: &mut Input<'_>) -> Request {
    let options = |input: &mut Input<'_>| SuspendOptions {
        lock_fs: input.flag(),
        no_flush: input.flag(),
    };
    let query = |input: &mut Input<'_>| StatusQuery {
        kind: [StatusKind::Info, StatusKind::Table, StatusKind::Measurement][input.below(3)],
        inactive: input.flag(),
        no_flush: input.flag(),
    };
    match kind % 18 {
        0 => Request::ListDevices {
            name_prefix: input.text(8),
            uuid_prefix: input.text(8),
            with_uuids: input.flag(),
        },
        1 => Request::Create {
            name: name(input),
            uuid: input.flag().then(|| DmUuid::new("uuid").expect("one")),
            minor: input.flag().then(|| input.u32()),
        },
        2 => Request::Remove {
            device: device(input),
            deferred: input.flag(),
        },
        3 => Request::Rename {
            device: name(input),
            new_name: name(input),
        },
        4 => Request::SetUuid {
            device: name(input),
            uuid: DmUuid::new("uuid").expect("one"),
        },
        5 => Request::Suspend {
            device: device(input),
            options: options(input),
        },
        6 | 7 => Request::Resume {
            device: device(input),
            options: options(input),
        },
        8 => Request::Status {
            device: device(input),
            inactive: input.flag(),
        },
        9 => Request::Wait {
            device: device(input),
            event_nr: input.u32(),
            query: query(input),
        },
        10 | 11 => Request::TableLoad {
            device: device(input),
            lines: lines(input),
            is_whole: true,
            read_only: input.flag(),
        },
        12 => Request::TableClear {
            device: device(input),
        },
        13 => Request::TableDeps {
            device: device(input),
            inactive: input.flag(),
        },
        14 => Request::TableStatus {
            device: device(input),
            query: query(input),
        },
        15 => Request::RemoveAll {
            deferred: input.flag(),
        },
        16 => Request::TargetVersion {
            target: input.text(20),
        },
        _ => Request::Message {
            device: device(input),
            sector: Sector(u64::from(input.u8())),
            message: message(input),
        },
    }
}

fn message(input: &mut Input<'_>) -> String {
    let id = input.u8() % 4;
    match input.below(8) {
        0 => format!("create_thin {id}"),
        1 => format!("create_snap {id} {}", input.u8() % 4),
        2 => format!("delete {id}"),
        3 => format!("set_transaction_id {} {id}", input.u8() % 4),
        4 => "reserve_metadata_snap".to_owned(),
        5 => "release_metadata_snap".to_owned(),
        6 => "@cancel_deferred_remove".to_owned(),
        _ => input.text(64),
    }
}

fn lines(input: &mut Input<'_>) -> Vec<TableLine> {
    let mut start = 0;
    (0..input.below(4))
        .map(|_| {
            let len = u64::from(input.u8()) * 16;
            let (target, params) = match input.below(8) {
                0 => ("zero", String::new()),
                1 => ("error", String::new()),
                2 => ("linear", format!("7:1 {}", input.u8())),
                3 => ("linear", format!("/dev/mapper/{} 0", NAMES[input.below(3)])),
                4 => ("thin-pool", "7:0 7:1 128 0".to_owned()),
                5 => ("thin", format!("/dev/mapper/pool {}", input.u8() % 4)),
                6 => ("striped", format!("2 8 7:0 0 7:1 {}", input.u8())),
                _ => ("", input.text(96)),
            };
            let (target, params) = match target {
                "" => params.split_once(' ').unwrap_or((&params, "")),
                target => (target, &params[..]),
            };
            let line = TableLine {
                start: Sector(start),
                len: Sector(len),
                target: target.to_owned(),
                params: params.to_owned(),
            };
            start += len;
            line
        })
        .collect()
}

fn seeds() -> Vec<Vec<u8>> {
    // Every command on nothing, every command on a device with a table, and a pool with a volume.
    let tail = [0, 0, 0, 0];
    let mut seeds: Vec<Vec<u8>> = (0..18).map(|kind| vec![kind, 0, 1, 0, 0, 0]).collect();
    let create = |name: u8| [&[1, name, 0, 0][..], &tail[..3]].concat();
    let load = |name: u8, line: &[u8]| [&[10, name, 1][..], line, &[0, 0, 0, 0]].concat();
    let resume = |name: u8| [6, name, 0, 0, 0, 0, 0].to_vec();
    let pool = [create(0), load(0, &[255, 4]), resume(0)].concat();
    let volume = [
        pool.clone(),
        vec![17, 0, 0, 1, 0, 0, 0, 0],
        create(1),
        load(1, &[16, 5, 1]),
        resume(1),
    ]
    .concat();
    for kind in 0..18 {
        seeds.push([&volume[..], &[kind, 1, 1, 0, 0, 0, 0, 0]].concat());
    }
    seeds.push([&[255, 3, 0x38, 1][..], &Request::ListVersions.encode(0)].concat());
    seeds
}
