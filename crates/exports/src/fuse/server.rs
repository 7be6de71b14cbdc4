//! A mounted file system and the queue threads that serve it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thinmap_block::{QueueHandle, spawn_queue};

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::InHeader;
use super::channel::Channel;
use super::file::{DeviceFile, Files};
use super::mount::{self, MountError};
use super::queue::Queue;
use super::ringing::Ringing;
use super::uring;
use crate::block_node::Continuity;

/// A running FUSE file system.
pub(crate) struct FuseServer {
    dir: PathBuf,
    files: Arc<Files>,
    running: Mutex<Vec<(Arc<Channel>, QueueHandle)>>,
    /// Taken over and not served yet.
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    channels: Vec<Arc<Channel>>,
    /// Descriptors beyond the number of queues: requests may have been read from them.
    more: Vec<OwnedFd>,
    /// An earlier process has served the mount.
    is_old: bool,
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
        let server = Arc::new(Self::new(dir, Files::default()));
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
        server.start_queues(channels, ringing)?;
        Ok(server)
    }

    fn new(dir: &Path, files: Files) -> Self {
        Self {
            dir: dir.to_owned(),
            files: Arc::new(files),
            running: Mutex::default(),
            taken: Mutex::default(),
        }
    }

    fn start_queues(
        &self,
        channels: Vec<Arc<Channel>>,
        ringing: &Arc<Ringing>,
    ) -> std::io::Result<()> {
        let count = channels.len();
        for (number, channel) in channels.into_iter().enumerate() {
            let (for_queue, files) = (channel.clone(), self.files.clone());
            let ringing = ringing.clone();
            let name = format!("thinmap-fuse{number}");
            let handle = spawn_queue(&name, channel.waker(), move || {
                Queue::new(for_queue, files, ringing, (number, count))
            })?;
            self.running.lock().push((channel, handle));
        }
        Ok(())
    }

    /// Mounts on `dir`, or takes over the mount that `continuity` holds descriptors of; each descriptor is kept before anything is
    /// read from it. Call [`FuseServer::serve`] when all files are there.
    ///
    /// Never over io_uring: requests in a ring die with their task.
    pub(crate) fn start_kept(
        dir: &Path,
        queues: usize,
        continuity: Continuity,
    ) -> Result<Arc<Self>, MountError> {
        let files = Files::of_generation(continuity.generation);
        let mut descriptors = continuity.held;
        let is_new = descriptors.is_empty();
        if is_new {
            descriptors.push(mount::mount(dir)?);
        }
        let keep = |number: usize, fd: &OwnedFd| {
            let name = format!("{DESCRIPTOR_NAME}{number}");
            continuity.keeper.keep(&name, fd.as_fd())
        };
        if is_new {
            keep(0, &descriptors[0])?;
        }
        for number in descriptors.len()..queues.max(1) {
            let fd = mount::clone_connection(&descriptors[0])?;
            keep(number, &fd)?;
            descriptors.push(fd);
        }
        let more = descriptors.split_off(queues.max(1));
        let channels = descriptors
            .into_iter()
            .map(|fd| Channel::new(fd).map(Arc::new));
        let mut server = Self::new(dir, files);
        *server.taken.get_mut() = Taken {
            channels: channels.collect::<std::io::Result<_>>()?,
            more,
            is_old: !is_new,
        };
        Ok(Arc::new(server))
    }

    /// Has the kernel hand out again what was read and not answered by an earlier process, and starts the queue threads.
    pub(crate) fn serve(&self) -> std::io::Result<()> {
        let taken = std::mem::take(&mut *self.taken.lock());
        let Taken {
            channels,
            more,
            is_old,
        } = taken;
        if is_old && let Some(first) = channels.first() {
            first.resend_all()?;
        }
        // Nothing was read from those any more.
        drop(more);
        self.start_queues(channels, &Ringing::new(None))
    }

    /// A file that an earlier process had.
    pub(crate) fn restore_file(&self, nodeid: u64) -> Arc<DeviceFile> {
        self.files.restore(nodeid)
    }

    /// Descriptors of other processes on a file, looked for: what an earlier process had counted is not known.
    pub(super) fn descriptors_on(&self, file: &DeviceFile) -> u32 {
        let devs = mount::mounts_at(&canonical(&self.dir));
        let counts = crate::openers::count_files(&devs);
        counts.get(&file.nodeid()).copied().unwrap_or(0)
    }

    /// Takes no more requests and waits a moment for those in flight: the process is about to leave the mount to its
    /// successor, which gets what is left.
    pub(crate) fn leave(&self, patience: Duration) {
        let running = self.running.lock();
        for (channel, _) in &*running {
            channel.close();
        }
        let until = Instant::now() + patience;
        while running.iter().any(|(channel, _)| !channel.is_idle()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
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

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path_of(&self, file: &DeviceFile) -> PathBuf {
        self.dir.join(file.name())
    }

    /// Unmounts and stops. What still has a file open sees I/O errors.
    pub(crate) fn shutdown(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        let taken = std::mem::take(&mut *self.taken.lock());
        if running.is_empty() && taken.channels.is_empty() {
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

/// See [`crate::block_node::answer_for_dead`]. What is read here and not answered is handed out again by the successor's
/// [`FuseServer::serve`].
pub(crate) fn answer_for_dead(fuse: &OwnedFd, threads: &[u32]) -> std::io::Result<()> {
    let channel = Channel::new(fuse.try_clone()?)?;
    channel.resend_all()?;
    let mut request = vec![0; REQUEST_BYTES_MAX + 4096];
    loop {
        let received = match rustix::io::read(channel.fd(), &mut request) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if let Ok((header, _)) = InHeader::read_from_prefix(&request[..received])
            && threads.contains(&header.pid)
        {
            channel.reply(header.unique, Errno::INTR.raw_os_error());
        }
    }
}

/// The mount's directory without symbolic links, asking the mount itself for nothing: it may not be served yet.
pub(crate) fn canonical(dir: &Path) -> PathBuf {
    let parent = dir.parent().and_then(|dir| dir.canonicalize().ok());
    match (parent, dir.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => dir.to_owned(),
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        if self.taken.get_mut().is_old {
            // Not ours yet: the next process tries again.
        } else if self.running.get_mut().is_empty() {
            let _ = mount::unmount_lazily(&self.dir);
        } else {
            self.shutdown();
        }
    }
}

/// Descriptors of the connection are kept under this name and a number.
pub const DESCRIPTOR_NAME: &str = "fuse-";
/// Data of one request, in bytes. A successor must take as much: see [`crate::block_node::SESSION_VERSION`].
pub(super) const REQUEST_BYTES_MAX: usize = 256 << 10;
