//! The queue threads, shared by all devices of a daemon.

use std::sync::Arc;
use std::sync::mpsc;

use parking_lot::Mutex;
use rustix::io::Errno;
use thinmap_block::{QueueHandle, spawn_queue};

use super::driver::{CharDevice, Driver};
use super::lane::{Attach, Attached, Lane};
use super::queue::Queue;
use super::request::Behind;

/// Running queue threads.
pub(super) struct Server {
    lanes: Vec<Arc<Lane>>,
    threads: Mutex<Vec<QueueHandle>>,
}

impl Server {
    /// Starts `queues` threads (at least one).
    pub(super) fn start(driver: &Arc<dyn Driver>, queues: usize) -> std::io::Result<Self> {
        let mut server = Self {
            lanes: Vec::new(),
            threads: Mutex::default(),
        };
        // On failure `Drop` ends those that run.
        for number in 0..queues.clamp(1, QUEUES_MAX) {
            let lane = Arc::new(Lane::new()?);
            let (tell, told) = mpsc::channel();
            let (for_thread, driver) = (lane.clone(), driver.clone());
            let name = format!("thinmap-ublk{number}");
            let thread = spawn_queue(&name, lane.waker(), move || {
                let (commands, answer) = match driver.commands() {
                    Ok(commands) => (Some(commands), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let _ = tell.send(answer);
                Queue::new(for_thread, commands)
            })?;
            server.threads.get_mut().push(thread);
            server.lanes.push(lane);
            let gone = || std::io::Error::other("a queue thread ended");
            told.recv().unwrap_or_else(|_| Err(gone()))?;
        }
        Ok(server)
    }

    pub(super) fn queues(&self) -> u16 {
        u16::try_from(self.lanes.len()).unwrap_or(u16::MAX)
    }

    /// Lets one thread each serve the device's queues. All that were asked are in the answer, also after an error:
    /// they end when the device is stopped.
    pub(super) fn attach(
        &self,
        device: &Arc<dyn CharDevice>,
        queues: u16,
        depth: u16,
        behind: &Arc<Behind>,
    ) -> (Vec<Arc<Attached>>, Result<(), Errno>) {
        let mut asked = Vec::new();
        for (queue, lane) in (0..queues).zip(&self.lanes) {
            let attached = Arc::<Attached>::default();
            asked.push(attached.clone());
            lane.attach(Attach {
                device: device.clone(),
                queue,
                depth,
                behind: behind.clone(),
                attached,
            });
        }
        // All have answered before anybody stops the device: it would take fetches again after that.
        let answers: Vec<_> = asked.iter().map(|queue| queue.wait_serving()).collect();
        (asked, answers.into_iter().collect())
    }

    /// Ends the threads, when the last device is gone.
    pub(super) fn shutdown(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.lanes.iter().for_each(|lane| lane.close());
        for thread in threads {
            if !thread.join() {
                tracing::error!("a ublk queue thread ended by a panic");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The driver's own limit is far above what helps.
const QUEUES_MAX: usize = 64;
