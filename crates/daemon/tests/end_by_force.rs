//! An end by force, as by a signal: whatever state the devices are in, it ends and leaves none.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{EndIo, Io, Op};
use thinmap_control::{DeviceSelector, DmService, SuspendOptions, TableLine};
use thinmap_daemon::Daemon;
use thinmap_dm::{
    DeviceId, DeviceName, DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError, SharedState,
};
use thinmap_runtime::{IoBuf, ThreadSpawner};
use thinmap_units::{BlkStatus, DevNo, DmName, Sector};

const BLOCK: u64 = 128;
/// A hang is a hang: only a broken daemon takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
const NO_FLUSH: SuspendOptions = SuspendOptions {
    lock_fs: false,
    no_flush: true,
};

/// Disks `7:n`.
struct Shelf([Arc<MemoryDevice>; 2]);

impl DeviceOpener for Shelf {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let unknown = || OpenDeviceError {
            reason: format!("{}: no such disk", request.spec),
            errno: 19,
        };
        let dev_no: DevNo = request.spec.parse().map_err(|_| unknown())?;
        let disk = (0..)
            .zip(&self.0)
            .find(|(n, _)| DevNo::new(7, *n) == dev_no);
        let (_, disk) = disk.ok_or_else(unknown)?;
        Ok(DeviceUse {
            dev: disk.clone(),
            id: DeviceId::Block(dev_no),
            name: DeviceName::Number(dev_no),
            read_only: request.read_only,
            claim: Arc::new(()),
        })
    }
}

struct Tell(mpsc::Sender<BlkStatus>);

impl EndIo for Tell {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, status: BlkStatus) {
        let _ = self.0.send(status);
    }
}

fn by_name(name: &str) -> DeviceSelector {
    DeviceSelector::Name(DmName::new(name).unwrap())
}

fn live(daemon: &Daemon, name: &str, len: u64, target: &str, params: &str) {
    daemon
        .create(&DmName::new(name).unwrap(), None, None)
        .unwrap();
    let line = TableLine {
        start: Sector::ZERO,
        len: Sector(len),
        target: target.to_owned(),
        params: params.to_owned(),
    };
    daemon
        .table_load(&by_name(name), vec![line], false)
        .unwrap();
    daemon.resume(&by_name(name), NO_FLUSH).unwrap();
}

/// The volume was to be removed first, which waited for its requests, which waited for the pool: it was resumed only after that.
#[test]
fn a_suspended_pool_that_holds_requests_of_its_volumes_goes() {
    let disks = [8192, 16 * BLOCK].map(|n| Arc::new(MemoryDevice::new(Sector(n))));
    let spawner = Arc::new(ThreadSpawner::new());
    let daemon =
        Daemon::without_host(spawner, Arc::new(Shelf(disks)), SharedState::default()).unwrap();
    live(&daemon, "pool", 16 * BLOCK, "thin-pool", "7:0 7:1 128 0");
    let words = ["create_thin", "0"].map(str::to_owned);
    daemon
        .message(&by_name("pool"), Sector::ZERO, &words)
        .unwrap();
    live(&daemon, "t", 4 * BLOCK, "thin", "/dev/mapper/pool 0");
    daemon.suspend(&by_name("pool"), NO_FLUSH).unwrap();
    let (tx, ended) = mpsc::channel();
    let volume = daemon.block_device(&DmName::new("t").unwrap()).unwrap();
    let buf = IoBuf::alloc(8 * 512);
    volume.submit(Io::new(
        Op::Write,
        Sector(0),
        Sector(8),
        buf,
        Arc::new(Tell(tx)),
        0,
    ));
    drop(volume);
    let (tx, stopped) = mpsc::channel();
    std::thread::spawn(move || tx.send(daemon.stop_by_force()));
    assert_eq!(
        stopped.recv_timeout(PATIENCE),
        Ok(0),
        "it hangs, or devices are left"
    );
    ended
        .recv_timeout(PATIENCE)
        .expect("the write ends, well or not");
}
