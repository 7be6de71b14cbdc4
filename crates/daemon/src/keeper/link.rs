//! The daemon's end of the socket to its keeper.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use thinmap_dm::MemoryKeeper;
use thinmap_exports::block_node::{DESCRIPTOR_NAME, DescriptorKeeper};
use thinmap_exports::freeze::FreezeHolder;
use thinmap_runtime::SharedMemory;
use thinmap_units::DevNo;

use super::message::{self, Beginning, Number, ToDaemon, ToKeeper};

/// See the module.
pub struct KeeperLink {
    socket: OwnedFd,
    beginning: Beginning,
    /// What the keeper held when this process began and nobody has taken yet. Memory that was opened stays until the process serves: a
    /// table that cannot be loaded at first is tried again.
    held: Mutex<BTreeMap<String, Held>>,
    /// Who waits for a freeze or a thaw; one at a time for each device.
    waiting: Mutex<HashMap<Number, SyncSender<i32>>>,
    /// Frozen by this process, as the keeper is gone.
    frozen: Mutex<HashMap<DevNo, OwnedFd>>,
    gone: AtomicBool,
    /// Nobody waits for a freeze any more: what it waits for may wait for this daemon's end.
    leaving: AtomicBool,
}

/// See [`KeeperLink::held`].
struct Held {
    fd: OwnedFd,
    /// Memory that somebody has opened.
    is_used: bool,
}

impl KeeperLink {
    /// The link of a process that a keeper has started: its standard input. Nothing else may have read from that.
    pub fn from_stdin() -> io::Result<Arc<Self>> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        let mut held = BTreeMap::new();
        let beginning = loop {
            match message::receive(&socket)? {
                Some((ToDaemon::Held(name), Some(fd))) => {
                    let is_used = false;
                    held.insert(name, Held { fd, is_used });
                }
                Some((ToDaemon::Begin(beginning), _)) => break beginning,
                _ => return Err(io::Error::other("standard input is not a keeper's socket")),
            }
        };
        let link = Arc::new(Self {
            socket,
            beginning,
            held: Mutex::new(held),
            waiting: Mutex::default(),
            frozen: Mutex::default(),
            gone: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        });
        let reader = link.clone();
        std::thread::Builder::new()
            .name("keeper-link".to_owned())
            .spawn(move || reader.read())?;
        Ok(link)
    }

    /// Tells this keeper from every other one.
    pub fn keeper(&self) -> &str {
        &self.beginning.keeper
    }

    /// The keeper's process.
    pub fn keeper_pid(&self) -> u32 {
        self.beginning.pid
    }

    /// Daemons before this one.
    pub fn generation(&self) -> u32 {
        self.beginning.generation
    }

    /// Whether there was a daemon before this one, whose devices are in use.
    pub fn is_successor(&self) -> bool {
        self.generation() > 0
    }

    /// Takes what an earlier daemon had kept under a name.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.held.lock().remove(name).map(|held| held.fd)
    }

    /// The descriptors of the FUSE connection that earlier daemons had kept, in their order.
    pub fn take_fuse(&self) -> Vec<OwnedFd> {
        let mut held = self.held.lock();
        let all = std::mem::take(&mut *held);
        let (of_fuse, others): (BTreeMap<_, _>, _) = all
            .into_iter()
            .partition(|(name, _)| name.starts_with(DESCRIPTOR_NAME));
        *held = others;
        of_fuse.into_values().map(|held| held.fd).collect()
    }

    /// The daemon serves; file systems of these devices are frozen. `all_are_back`: what nobody has taken is of devices that are no more;
    /// otherwise it stays for those that may come back.
    pub fn ready(&self, frozen: Vec<Number>, all_are_back: bool) {
        if all_are_back {
            self.all_are_back();
        }
        self.tell(&ToKeeper::Ready(frozen), None);
    }

    /// The daemon does not serve yet, and has brought something back.
    pub fn progress(&self) {
        if self.beginning.hears_progress {
            self.tell(&ToKeeper::Progress, None);
        }
    }

    /// No device is missing any more: nobody will take what nobody has taken.
    pub fn all_are_back(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        for (name, _) in held.into_iter().filter(|(_, held)| !held.is_used) {
            self.tell(&ToKeeper::Forget(name), None);
        }
    }

    /// The daemon ends or makes way: freezes that are not done are given up.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// The end begins.
    pub fn stopping(&self) {
        self.tell(&ToKeeper::Stopping, None);
    }

    /// The keeper is no more: no other daemon follows this one.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Asks for a successor of this binary; the daemon must then end with [`super::message::UPGRADE_EXIT`].
    pub fn upgrade(&self, path: &Path, binary: BorrowedFd<'_>) -> io::Result<()> {
        let message = ToKeeper::Upgrade(path.to_owned());
        message::send(&self.socket, &message, Some(binary))
    }

    /// Memory as the last process left it.
    fn open_held(&self, name: &str) -> Option<io::Result<SharedMemory>> {
        let mut all = self.held.lock();
        let held = all.get_mut(name)?;
        held.is_used = true;
        Some(held.fd.try_clone().and_then(SharedMemory::map))
    }

    fn keep_memory(&self, name: &str, memory: SharedMemory) -> io::Result<SharedMemory> {
        match self.keep(name, memory.fd()) {
            // The keeper is gone, and no next daemon comes: this one goes on.
            Err(error)
                if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset]
                    .contains(&error.kind()) =>
            {
                Ok(memory)
            }
            kept => kept.map(|()| memory),
        }
    }

    fn tell(&self, message: &ToKeeper, fd: Option<BorrowedFd<'_>>) {
        if let Err(error) = message::send(&self.socket, message, fd) {
            tracing::debug!(%error, ?message, "the keeper was not told");
        }
    }

    fn read(&self) {
        loop {
            match message::receive(&self.socket) {
                Ok(Some((ToDaemon::Frozen(number, errno), _))) => self.answered(number, errno),
                Ok(Some((ToDaemon::Thawed(number), _))) => self.answered(number, 0),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the keeper says what is not understood");
                    break;
                }
            }
        }
        tracing::error!(
            "the keeper is gone: the daemon goes on, but nothing is held any more when it dies"
        );
        self.gone.store(true, Ordering::Relaxed);
        self.waiting.lock().clear();
    }

    fn answered(&self, number: Number, errno: i32) {
        if let Some(waiting) = self.waiting.lock().remove(&number) {
            let _ = waiting.send(errno);
        }
    }

    /// `None`: the keeper is gone.
    fn ask(&self, number: Number, message: &ToKeeper, fd: Option<BorrowedFd<'_>>) -> Option<i32> {
        let (sender, answer) = sync_channel(1);
        self.waiting.lock().insert(number, sender);
        if message::send(&self.socket, message, fd).is_err() {
            self.waiting.lock().remove(&number);
            return None;
        }
        loop {
            match answer.recv_timeout(LEAVE_LOOK) {
                Ok(errno) => return Some(errno),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.leaving.load(Ordering::Relaxed) => {
                    return Some(EINTR);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl DescriptorKeeper for KeeperLink {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        message::send(&self.socket, &ToKeeper::Keep(name.to_owned()), Some(fd))
    }
}

impl MemoryKeeper for KeeperLink {
    fn open(&self, name: &str, words: usize) -> io::Result<SharedMemory> {
        if let Some(held) = self.open_held(name) {
            return held;
        }
        self.keep_memory(name, SharedMemory::new(name, words)?)
    }

    fn open_secret(&self, name: &str, words: usize) -> io::Result<SharedMemory> {
        if let Some(held) = self.open_held(name) {
            return held;
        }
        self.keep_memory(name, SharedMemory::secret(words)?)
    }

    fn forget(&self, name: &str) {
        self.held.lock().remove(name);
        self.tell(&ToKeeper::Forget(name.to_owned()), None);
    }

    fn put_back(&self, name: &str) {
        if let Some(held) = self.held.lock().get_mut(name) {
            held.is_used = false;
            return;
        }
        self.forget(name);
    }
}

impl FreezeHolder for KeeperLink {
    fn freeze(&self, dev: DevNo, fd: OwnedFd) -> Result<(), i32> {
        let number = (dev.major, dev.minor);
        match self.ask(number, &ToKeeper::Freeze(number), Some(fd.as_fd())) {
            Some(0) => Ok(()),
            Some(errno) => Err(errno),
            None => {
                thinmap_exports::freeze::freeze_mounted(&fd)?;
                self.frozen.lock().insert(dev, fd);
                Ok(())
            }
        }
    }

    fn thaw(&self, dev: DevNo) {
        if let Some(fd) = self.frozen.lock().remove(&dev) {
            let _ = thinmap_exports::freeze::thaw_mounted(&fd);
            return;
        }
        let number = (dev.major, dev.minor);
        self.ask(number, &ToKeeper::Thaw(number), None);
    }
}

/// How often who waits for a freeze looks whether the daemon ends.
const LEAVE_LOOK: Duration = Duration::from_millis(100);
const EINTR: i32 = 4;
