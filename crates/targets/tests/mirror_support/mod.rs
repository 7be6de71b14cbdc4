//! Mirrors of two legs as mapped devices, whose worker's time the test moves.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use thinmap_block::{BlockDevice, EndIo, Io};
use thinmap_dm::MappedDevice;
use thinmap_units::{BlkStatus, Sector};

use crate::snapshot_support::{cell_bytes, info};
use crate::thin_support::Lab;
use crate::thin_support::manual::{ManualSpawner, ManualTime};

/// Sectors of a region: two cells.
pub const REGION: u64 = 16;

/// A lab, and the time of its workers.
pub fn lab() -> (Lab, Arc<ManualTime>) {
    let time = Arc::new(ManualTime::default());
    let spawner = Arc::new(ManualSpawner(time.clone()));
    (Lab::with(spawner, time.clone()), time)
}

/// Time in which idle regions become clean.
pub fn pass_rounds(time: &ManualTime) {
    for _ in 0..3 {
        time.advance(Duration::from_millis(600));
        std::thread::sleep(Duration::from_millis(8));
    }
}

/// Waits until `is` holds of the status.
pub fn wait_status(dev: &MappedDevice, is: impl Fn(&str) -> bool) -> String {
    for _ in 0..20_000 {
        let info = info(dev);
        if is(&info) {
            return info;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the status stays {}", info(dev));
}

/// Waits until every region is in sync.
pub fn wait_synced(dev: &MappedDevice) {
    wait_status(dev, |info| {
        let done = info.split(' ').find_map(|word| word.split_once('/'));
        done.is_some_and(|(done, all)| done == all)
    });
}

struct Tell(parking_lot::Mutex<std::sync::mpsc::Sender<BlkStatus>>);

impl EndIo for Tell {
    fn end_io(self: Arc<Self>, _: Io, _: u64, status: BlkStatus) {
        let _ = self.0.lock().send(status);
    }
}

/// Submits the write of a cell without waiting for its end.
pub fn begin_write(dev: &dyn BlockDevice, cell: u64, version: u32) -> Receiver<BlkStatus> {
    let (sender, receiver) = channel();
    let sink = Arc::new(Tell(parking_lot::Mutex::new(sender)));
    let sector = Sector(cell * crate::snapshot_support::CELL);
    dev.submit(Io::write(sector, cell_bytes(version), sink, 0));
    receiver
}

/// How it ended; at most 20 s from now.
pub fn ended(write: &Receiver<BlkStatus>) -> BlkStatus {
    write
        .recv_timeout(Duration::from_secs(20))
        .expect("the write ends")
}

/// Tries for a while whether something comes true.
pub fn wait_for(what: &str, is: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what}");
}
