//! The whole ublk path on a driver of our own: `fake` plays the kernel and the programs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, IoFlags, Op, QueueLimits, SECTORS_UNLIMITED};
use thinmap_units::{BlkStatus, DevNo, Sector};

use super::abi::{FEATURE_TRY_STOP, FEATURE_UPDATE_SIZE, FEATURE_USER_COPY, control, op};
use super::fake::{BLOCK_MAJOR, Fake, Request, Step};
use super::nodes::UblkNodes;
use super::{Missing, open_on, stale};
use crate::block_node::{BlockNode, BlockNodes, NodeError, NodeKind};

mod data;
mod lifecycle;

/// A daemon's nodes on a driver of their own. At the end nothing may be left in the driver.
struct Stack {
    fake: Arc<Fake>,
    nodes: UblkNodes,
}

impl Stack {
    fn start(queues: usize) -> Self {
        let fake = Fake::new();
        let nodes = nodes_on(&fake, "/run/one", queues);
        Self { fake, nodes }
    }

    fn active(&self, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockNode> {
        let node = self.nodes.create(None).expect("create");
        node.activate(device, "test", false).expect("activate");
        node
    }

    fn begin(
        &self,
        node: &Arc<dyn BlockNode>,
        queue: usize,
        op: u32,
        start: u64,
        sectors: u32,
        data: &[u8],
    ) -> Arc<Request> {
        self.fake
            .begin(id_of(node), queue, op, start, sectors, data)
    }

    fn read(&self, node: &Arc<dyn BlockNode>, start: u64, sectors: u32) -> Result<Vec<u8>, i32> {
        self.begin(node, 0, op::READ, start, sectors, &[]).wait()
    }

    fn write(&self, node: &Arc<dyn BlockNode>, start: u64, data: &[u8]) -> Result<(), i32> {
        let sectors = data.len() as u32 / 512;
        let request = self.begin(node, 0, op::WRITE, start, sectors, data);
        request.wait().map(drop)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.nodes.shutdown();
        if std::thread::panicking() {
            return;
        }
        self.fake.await_ids(&[]);
        let state = self.fake.state();
        assert!(state.minors.is_empty(), "{:?}", state.minors);
        assert!(state.wrong.is_empty(), "{:?}", state.wrong);
    }
}

fn nodes_on(fake: &Arc<Fake>, run_dir: &str, queues: usize) -> UblkNodes {
    open_on(Arc::new(fake.clone()), Path::new(run_dir), queues).expect("all features")
}

fn id_of(node: &Arc<dyn BlockNode>) -> u32 {
    let path = node.path();
    let name = path.to_str().expect("ASCII");
    let id = name.strip_prefix("/dev/ublkb").expect("ublk name");
    id.parse().expect("number")
}

/// A device that keeps what it is sent until the test says how it ends.
struct Held {
    requests: Mutex<Vec<Io>>,
    came: Condvar,
    limits: QueueLimits,
    size: Mutex<Sector>,
}

impl Held {
    fn new() -> Arc<Self> {
        Self::with_limits(QueueLimits::STACKING)
    }

    fn with_limits(limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            requests: Mutex::default(),
            came: Condvar::new(),
            limits,
            size: Mutex::new(Sector(1 << 20)),
        })
    }

    /// Waits for `count` requests and takes them.
    fn take(&self, count: usize) -> Vec<Io> {
        let mut requests = self.requests.lock();
        while requests.len() < count {
            let waited = self.came.wait_for(&mut requests, Duration::from_secs(20));
            assert!(!waited.timed_out(), "{} of {count} came", requests.len());
        }
        requests.drain(..count).collect()
    }
}

impl BlockDevice for Held {
    fn limits(&self) -> QueueLimits {
        self.limits
    }

    fn size(&self) -> Sector {
        *self.size.lock()
    }

    fn submit(&self, io: Io) {
        self.requests.lock().push(io);
        self.came.notify_all();
    }
}

/// The limits of a thin volume with 64 KiB blocks.
fn thin_limits() -> QueueLimits {
    QueueLimits {
        io_min: 65_536,
        io_opt: 65_536,
        discard_granularity: 65_536,
        max_discard: SECTORS_UNLIMITED,
        max_write_zeroes: SECTORS_UNLIMITED,
        write_cache: true,
        ..QueueLimits::STACKING
    }
}

#[test]
fn this_machine_says_why_not_or_serves() {
    let control = Path::new(super::CONTROL);
    match super::why_not() {
        Some(Missing::NoDriver) => assert!(!control.exists()),
        Some(missing) => assert!(control.exists(), "{missing}"),
        None => assert!(control.exists()),
    }
}
