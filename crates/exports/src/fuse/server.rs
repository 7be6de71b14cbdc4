//! A mounted file system and the queue threads that serve it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{QueueHandle, spawn_queue};

use super::channel::Channel;
use super::file::{DeviceFile, Files};
use super::mount::{self, MountError};
use super::queue::Queue;
use super::ringing::Ringing;
use super::uring;

/// A running FUSE file system.
pub(crate) struct FuseServer {
    dir: PathBuf,
    files: Arc<Files>,
    running: Mutex<Vec<(Arc<Channel>, QueueHandle)>>,
}

impl FuseServer {
    /// Mounts on `dir` and starts `queues` threads (at least one); over io_uring where the kernel is allowed to.
    pub(crate) fn start(dir: &Path, queues: usize) -> Result<Arc<Self>, MountError> {
        if uring::is_allowed()
            && let Some(kernel_queues) = uring::kernel_queues()
        {
            let ringing = Ringing::new(Some(kernel_queues));
            let server = Self::start_with(dir, queues, &ringing)?;
            match ringing.wait() {
                Ok(true) => {
                    tracing::debug!("FUSE requests come over io_uring");
                    return Ok(server);
                }
                Ok(false) => return Ok(server),
                Err(error) => {
                    tracing::warn!(%error, "FUSE over io_uring does not work here: done without");
                    server.shutdown();
                }
            }
        }
        Self::start_with(dir, queues, &Ringing::new(None))
    }

    fn start_with(
        dir: &Path,
        queues: usize,
        ringing: &Arc<Ringing>,
    ) -> Result<Arc<Self>, MountError> {
        let first = mount::mount(dir)?;
        let server = Arc::new(Self {
            dir: dir.to_owned(),
            files: Arc::default(),
            running: Mutex::default(),
        });
        // From here on `Drop` unmounts.
        let mut descriptors = Vec::new();
        for _ in 1..queues {
            descriptors.push(mount::clone_connection(&first)?);
        }
        descriptors.push(first);
        let mut channels = Vec::new();
        for fd in descriptors {
            let channel = Arc::new(Channel::new(fd)?);
            ringing.add_channel(&channel);
            channels.push(channel);
        }
        let count = channels.len();
        for (number, channel) in channels.into_iter().enumerate() {
            let (for_queue, files) = (channel.clone(), server.files.clone());
            let ringing = ringing.clone();
            let name = format!("thinmap-fuse{number}");
            let handle = spawn_queue(&name, channel.waker(), move || {
                Queue::new(for_queue, files, ringing, (number, count))
            })?;
            server.running.lock().push((channel, handle));
        }
        Ok(server)
    }

    /// A new, empty file.
    pub(crate) fn add_file(&self) -> Arc<DeviceFile> {
        self.files.add()
    }

    /// Ends a file: drained, device let go, out of the directory.
    pub(crate) fn remove_file(&self, file: &DeviceFile) {
        file.retire();
        self.files.remove(file);
    }

    pub(crate) fn path_of(&self, file: &DeviceFile) -> PathBuf {
        self.dir.join(file.name())
    }

    /// Unmounts and stops. What still has a file open sees I/O errors.
    pub(crate) fn shutdown(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        if running.is_empty() {
            return;
        }
        for file in self.files.all() {
            self.remove_file(&file);
        }
        if let Err(error) = mount::unmount_lazily(&self.dir) {
            tracing::error!(dir = %self.dir.display(), %error, "the FUSE mount stays");
        }
        for (channel, _) in &running {
            channel.close();
        }
        for (channel, handle) in running {
            if !handle.join() {
                tracing::error!("a FUSE queue thread ended by a panic");
            }
            // The last descriptor closed ends the connection, whoever still has files open.
            drop(channel);
        }
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %error, "the mount directory stays");
        }
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        if self.running.get_mut().is_empty() {
            let _ = mount::unmount_lazily(&self.dir);
        } else {
            self.shutdown();
        }
    }
}

/// Data of one request, in bytes.
pub(super) const REQUEST_BYTES_MAX: usize = 256 << 10;
