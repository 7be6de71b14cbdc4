//! One device in the kernel, from its addition to its deletion.
//!
//! The order is the driver's: add, parameters, fetch all tags of all queues, start; then stop, which lets requests in
//! flight end and gives all commands back; let go of the character device; delete. A failure on the way up goes down
//! the same way from where it stands.

use std::sync::Arc;

use rustix::io::Errno;
use thinmap_units::{DevNo, Sector};
use zerocopy::IntoBytes;

use super::abi::{
    ControlCommand, DeviceInfo, FEATURE_IOCTL_NUMBERS, FEATURE_NO_PARTITION_SCAN, FEATURE_TRY_STOP,
    FEATURE_UPDATE_SIZE, FEATURE_USER_COPY, Params, control,
};
use super::driver::Driver;
use super::lane::Attached;
use super::params::IO_BYTES_MAX;
use super::request::Behind;
use super::server::Server;
use super::{CONTROL, block_path};
use crate::block_node::NodeError;

/// What all devices of a daemon share.
pub(super) struct Core {
    pub driver: Arc<dyn Driver>,
    pub server: Server,
    /// `FEATURE_*` of the driver.
    pub features: u64,
    /// Marks our devices; see [`super::stale`].
    pub mark: u64,
    /// Held while a device is started, so that our own devices do not take each other's numbers.
    pub starting: parking_lot::Mutex<()>,
}

/// A started device, of size 0 at first.
pub(super) struct Running {
    pub id: u32,
    pub number: DevNo,
    pub params: Params,
    queues: Vec<Arc<Attached>>,
}

impl Core {
    /// Makes and starts a device.
    pub(super) fn start(
        &self,
        params: &Params,
        behind: &Arc<Behind>,
    ) -> Result<Running, NodeError> {
        let mut info = DeviceInfo {
            nr_hw_queues: self.server.queues(),
            queue_depth: DEPTH,
            max_io_buf_bytes: IO_BYTES_MAX,
            dev_id: u32::MAX,
            flags: FEATURES_NEEDED | (self.features & FEATURE_NO_PARTITION_SCAN),
            server_flags: self.mark,
            ..DeviceInfo::default()
        };
        let command = ControlCommand::new(u32::MAX, 0);
        self.driver
            .control(control::ADD, command, info.as_mut_bytes())
            .map_err(|errno| NodeError::system(CONTROL.as_ref(), "add a ublk device", errno))?;
        let mut running = Running {
            id: info.dev_id,
            number: DevNo::default(),
            params: *params,
            queues: Vec::new(),
        };
        match self.start_added(&info, &mut running, behind) {
            Ok(()) => Ok(running),
            Err(error) => {
                self.take_down(running);
                Err(error)
            }
        }
    }

    fn start_added(
        &self,
        info: &DeviceInfo,
        running: &mut Running,
        behind: &Arc<Behind>,
    ) -> Result<(), NodeError> {
        let path = block_path(running.id);
        let error = |action| {
            let path = path.clone();
            move |errno| NodeError::system(&path, action, errno)
        };
        if info.flags & FEATURES_NEEDED != FEATURES_NEEDED
            || info.nr_hw_queues > self.server.queues()
            || info.queue_depth != DEPTH
        {
            return Err(error("use a ublk device that is not what was asked for")(
                Errno::NOTSUP,
            ));
        }
        let mut params = running.params;
        self.control(running.id, control::SET_PARAMS, 0, params.as_mut_bytes())
            .map_err(error("set the parameters"))?;
        let numbers = self
            .params(running.id)
            .map_err(error("ask for the numbers"))?
            .numbers;
        let char_number = DevNo::new(numbers.char_major, numbers.char_minor);
        let device = self
            .driver
            .open(running.id, char_number)
            .map_err(error("open the character device"))?;
        let (queues, answer) =
            self.server
                .attach(&device, info.nr_hw_queues, info.queue_depth, behind);
        running.queues = queues;
        drop(device);
        answer.map_err(error("serve the queues"))?;
        let pid = u64::from(std::process::id());
        self.control(running.id, control::START, pid, &mut [])
            .map_err(error("start"))?;
        let numbers = self
            .params(running.id)
            .map_err(error("ask for the numbers"))?
            .numbers;
        running.number = DevNo::new(numbers.disk_major, numbers.disk_minor);
        self.driver
            .show(running.id, running.number)
            .map_err(error("make the node"))
    }

    /// Stops and deletes. Requests in flight end first; openers see I/O errors from then on.
    pub(super) fn take_down(&self, running: Running) {
        let path = block_path(running.id);
        if let Err(errno) = self.control(running.id, control::STOP, 0, &mut []) {
            tracing::error!(device = %path.display(), %errno, "cannot be stopped");
        }
        self.delete(running);
    }

    /// Stops when nobody has it open; [`Errno::BUSY`] otherwise. Older drivers are not asked.
    pub(super) fn stop_unused(&self, running: &Running) -> Result<(), Errno> {
        if self.features & FEATURE_TRY_STOP == 0 {
            return self.control(running.id, control::STOP, 0, &mut []);
        }
        self.control(running.id, control::TRY_STOP, 0, &mut [])
    }

    /// Deletes a stopped device.
    pub(super) fn delete(&self, running: Running) {
        let path = block_path(running.id);
        for queue in &running.queues {
            if !queue.wait_ended() {
                tracing::error!(device = %path.display(), "the driver keeps commands of a stopped device");
            }
        }
        self.driver.hide(running.id);
        // Does not wait for those who still have the block device open: it goes at their last close.
        if let Err(errno) = self.control(running.id, control::DELETE_ASYNC, 0, &mut []) {
            tracing::error!(device = %path.display(), %errno, "cannot be deleted");
        }
    }

    pub(super) fn set_size(&self, id: u32, size: Sector) -> Result<(), Errno> {
        self.control(id, control::UPDATE_SIZE, size.0, &mut [])
    }

    fn params(&self, id: u32) -> Result<Params, Errno> {
        let mut params = Params {
            len: size_of::<Params>() as u32,
            ..Params::default()
        };
        self.control(id, control::PARAMS, 0, params.as_mut_bytes())?;
        Ok(params)
    }

    fn control(&self, id: u32, op: u32, data: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let command = ControlCommand::new(id, data);
        self.driver.control(op, command, buffer).map(drop)
    }
}

/// Without these the kernel's ublk is not used.
pub(super) const FEATURES_NEEDED: u64 =
    FEATURE_IOCTL_NUMBERS | FEATURE_USER_COPY | FEATURE_UPDATE_SIZE;
/// Requests of one queue that the kernel may have given us.
const DEPTH: u16 = 128;
