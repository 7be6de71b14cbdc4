//! The ublk devices of one daemon.
//!
//! A device's number exists from its start on, and its limits cannot be changed after. A node needs its number at
//! creation and learns its limits at activation. So creation starts a device of size 0 with plain limits; activation
//! starts it anew with the right ones and sees to it that it gets the same number again.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use thinmap_block::{BlockDevice, QueueLimits};
use thinmap_units::{DevNo, Sector};

use super::abi::Params;
use super::block_path;
use super::device::{Core, Running};
use super::request::Behind;
use crate::block_node::{BlockNode, BlockNodes, NodeError, NodeKind};
use crate::fuse::Geometry;

/// Makes ublk devices.
pub(crate) struct UblkNodes {
    core: Arc<Core>,
    live: Mutex<Vec<Weak<UblkNode>>>,
}

impl UblkNodes {
    pub(super) fn new(core: Core) -> Self {
        Self {
            core: Arc::new(core),
            live: Mutex::default(),
        }
    }
}

impl BlockNodes for UblkNodes {
    fn kind(&self) -> NodeKind {
        NodeKind::Ublk
    }

    fn create(&self, _minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError> {
        let behind = Arc::<Behind>::default();
        let running = {
            let _alone = self.core.starting.lock();
            self.core
                .start(&Params::of(&QueueLimits::STACKING), &behind)?
        };
        let node = Arc::new(UblkNode {
            core: self.core.clone(),
            number: running.number,
            last_id: running.id.into(),
            behind,
            state: Mutex::new(State {
                running: Some(running),
                ..State::default()
            }),
        });
        let mut live = self.live.lock();
        live.retain(|node| node.strong_count() > 0);
        live.push(Arc::downgrade(&node));
        Ok(node)
    }

    fn shutdown(&self) {
        let live: Vec<_> = self.live.lock().drain(..).collect();
        for node in live.iter().filter_map(Weak::upgrade) {
            if let Err(error) = node.remove(true) {
                tracing::error!(%error, "a ublk device stays");
            }
        }
        self.core.server.shutdown();
    }
}

struct UblkNode {
    core: Arc<Core>,
    number: DevNo,
    /// Part of the path; not behind the lock, which is held while a device is stopped.
    last_id: std::sync::atomic::AtomicU32,
    behind: Arc<Behind>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` after a failed activation and after the removal.
    running: Option<Running>,
    device: Option<Arc<dyn BlockDevice>>,
    /// Asked for at activation, beyond what the device itself says.
    read_only: bool,
    /// What the kernel has been told.
    told: Option<Geometry>,
    removed: bool,
}

impl UblkNode {
    fn id(&self) -> u32 {
        self.last_id.load(std::sync::atomic::Ordering::Acquire)
    }

    fn error(&self, action: &'static str) -> impl Fn(Errno) -> NodeError {
        let path = self.path();
        move |errno| NodeError::system(&path, action, errno)
    }

    /// Sees to it that a device with `params` runs under our number.
    fn run_with(&self, state: &mut State, params: &Params) -> Result<(), NodeError> {
        if state.running.as_ref().is_some_and(|r| r.params == *params) {
            return Ok(());
        }
        let _alone = self.core.starting.lock();
        if let Some(running) = state.running.take() {
            self.core.take_down(running);
        }
        let mut fillers = Vec::new();
        let outcome = self.start_with_our_number(params, &mut fillers);
        for filler in fillers {
            self.core.take_down(filler);
        }
        let running = outcome?;
        self.last_id
            .store(running.id, std::sync::atomic::Ordering::Release);
        state.running = Some(running);
        Ok(())
    }

    /// The kernel gives the lowest free number. Lower ones are held by `fillers` until ours is the lowest; ours comes
    /// free some milliseconds after the device that had it is gone.
    fn start_with_our_number(
        &self,
        params: &Params,
        fillers: &mut Vec<Running>,
    ) -> Result<Running, NodeError> {
        for attempt in 0..START_ATTEMPTS {
            let running = self.core.start(params, &self.behind)?;
            if running.number == self.number {
                return Ok(running);
            }
            if running.number < self.number {
                fillers.push(running);
                continue;
            }
            self.core.take_down(running);
            if attempt + 1 < START_ATTEMPTS {
                std::thread::sleep(START_WAIT);
            }
        }
        Err(NodeError::system(
            self.number.to_string().as_ref(),
            "get this device number back (another program holds it)",
            Errno::BUSY,
        ))
    }

    /// Brings the kernel's view of size and read-only up to date.
    fn tell(&self, state: &mut State) -> Result<(), NodeError> {
        let (Some(device), Some(running)) = (&state.device, &state.running) else {
            return Ok(());
        };
        let geometry = Geometry::of(&**device, state.read_only);
        if state.told == Some(geometry) {
            return Ok(());
        }
        if Params::of(&geometry.limits) != running.params {
            tracing::warn!(device = %self.path().display(),
                "the driver cannot change the limits (block sizes, discards) of a device: they stay as they were");
        }
        self.behind.set(device.clone(), geometry.read_only);
        let told = state.told.as_ref();
        if told.map(|told| told.read_only).unwrap_or(false) != geometry.read_only {
            self.core
                .driver
                .set_read_only(running.id, geometry.read_only)
                .map_err(self.error("set read-only"))?;
        }
        if told.map(|told| told.size_bytes).unwrap_or(0) != geometry.size_bytes {
            self.core
                .set_size(running.id, Sector::from_bytes(geometry.size_bytes))
                .map_err(self.error("set the size"))?;
        }
        state.told = Some(geometry);
        Ok(())
    }
}

impl BlockNode for UblkNode {
    fn dev_no(&self) -> DevNo {
        self.number
    }

    fn path(&self) -> PathBuf {
        block_path(self.id())
    }

    fn activate(
        &self,
        dev: Arc<dyn BlockDevice>,
        _name: &str,
        read_only: bool,
    ) -> Result<(), NodeError> {
        let mut state = self.state.lock();
        if state.removed {
            return Err(NodeError::Gone { path: self.path() });
        }
        let limits = dev.limits();
        self.run_with(&mut state, &Params::of(&limits))?;
        state.read_only = read_only && !limits.read_only;
        state.device = Some(dev);
        state.told = None;
        self.tell(&mut state)
    }

    fn refresh(&self) -> Result<(), NodeError> {
        self.tell(&mut self.state.lock())
    }

    fn open_count(&self) -> u32 {
        self.core.driver.users(self.id(), self.number, false)
    }

    fn is_in_use(&self) -> bool {
        self.core.driver.users(self.id(), self.number, true) > 0
    }

    fn remove(&self, force: bool) -> Result<(), NodeError> {
        let mut state = self.state.lock();
        if state.removed {
            return Ok(());
        }
        let busy = || NodeError::Busy { path: self.path() };
        if !force && self.is_in_use() {
            return Err(busy());
        }
        if let Some(running) = state.running.take() {
            if force {
                self.core.take_down(running);
            } else {
                match self.core.stop_unused(&running) {
                    Ok(()) => self.core.delete(running),
                    Err(errno) => {
                        state.running = Some(running);
                        return Err(match errno {
                            Errno::BUSY => busy(),
                            errno => self.error("stop")(errno),
                        });
                    }
                }
            }
        }
        state.removed = true;
        state.device = None;
        self.behind.clear();
        Ok(())
    }
}

impl Drop for UblkNode {
    /// A node that nobody can remove any more must not stay in the kernel.
    fn drop(&mut self) {
        if let Err(error) = self.remove(true) {
            tracing::error!(%error, "a dropped ublk device stays");
        }
    }
}

/// Numbers of ours that are free and lower cost one attempt each, waiting for ours a few.
const START_ATTEMPTS: usize = 512;
/// The kernel frees a number after a grace period.
const START_WAIT: Duration = Duration::from_millis(5);
