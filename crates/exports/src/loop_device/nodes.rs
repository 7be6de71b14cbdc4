//! The loop devices of one daemon.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thinmap_block::BlockDevice;
use thinmap_units::DevNo;

use super::{
    LOOP_MAJOR, backing_file, ensure_node, ioctl, node_path, open_node, sysfs_dir, sysfs_text,
};
use crate::block_node::{BlockNode, BlockNodes, NodeError, NodeKind, SavedNode};
use crate::fuse::{self, DeviceFile, FuseServer, Geometry};
use crate::{dev_node, openers};

use super::remover::{Remover, wait_until};

/// Makes loop devices over files of one FUSE server.
pub(crate) struct LoopNodes {
    server: Arc<FuseServer>,
    remover: Arc<Remover>,
    live: Mutex<Vec<Weak<LoopNode>>>,
}

impl LoopNodes {
    pub(crate) fn new(server: Arc<FuseServer>) -> Self {
        Self {
            server,
            remover: Arc::default(),
            live: Mutex::default(),
        }
    }
}

impl BlockNodes for LoopNodes {
    fn kind(&self) -> NodeKind {
        NodeKind::Loop
    }

    fn create(&self, minor: Option<u32>) -> Result<Arc<dyn BlockNode>, NodeError> {
        if minor.is_some() {
            // A number that was ours a moment ago may still be on its way out.
            self.remover.wait();
        }
        let file = self.server.add_file();
        match bind(&self.server, &file, minor) {
            Ok((number, made_node)) => {
                let node = Arc::new(LoopNode {
                    server: self.server.clone(),
                    remover: self.remover.clone(),
                    file,
                    number,
                    made_node,
                    state: Mutex::default(),
                });
                let mut live = self.live.lock();
                live.retain(|node| node.strong_count() > 0);
                live.push(Arc::downgrade(&node));
                Ok(node)
            }
            Err(error) => {
                self.server.remove_file(&file);
                Err(error)
            }
        }
    }

    fn adopt(&self, saved: SavedNode) -> Result<Option<Arc<dyn BlockNode>>, NodeError> {
        let file = self.server.restore_file(saved.file);
        let path = self.server.path_of(&file);
        if !is_over(saved.minor, &path) {
            self.server.remove_file(&file);
            return Ok(None);
        }
        let node = Arc::new(LoopNode {
            server: self.server.clone(),
            remover: self.remover.clone(),
            file,
            number: saved.minor,
            made_node: saved.made_node,
            state: Mutex::new(State {
                adopted: true,
                ..State::default()
            }),
        });
        self.live.lock().push(Arc::downgrade(&node));
        Ok(Some(node))
    }

    fn serve(&self) -> std::io::Result<()> {
        self.server.serve()
    }

    fn clean_orphans(&self) {
        let live = self.live.lock();
        let known: Vec<u32> = live
            .iter()
            .filter_map(|node| Some(node.upgrade()?.number))
            .collect();
        drop(live);
        super::stale::clean_orphans(self.server.dir(), &known);
    }

    fn leave(&self, patience: Duration) {
        self.remover.wait();
        self.server.leave(patience);
    }

    fn shutdown(&self) {
        for node in self.live.lock().drain(..).filter_map(|node| node.upgrade()) {
            if let Err(error) = node.remove(true) {
                tracing::error!(%error, "a loop device stays");
            }
        }
        self.remover.wait();
        self.server.shutdown();
    }
}

/// Adds a loop device and binds the file to it. Another program that looks for a free device may take the
/// new one first: then it is theirs, and we add another. A wish for one number is granted or busy.
fn bind(
    server: &FuseServer,
    file: &DeviceFile,
    wish: Option<u32>,
) -> Result<(u32, bool), NodeError> {
    let path = server.path_of(file);
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let backing = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|errno| NodeError::system(&path, "open for a loop device", errno))?;
    let control = open_control()?;
    for _ in 0..ADD_ATTEMPTS {
        let number = match (ioctl::add(&control, wish), wish) {
            // There already; binding tells whether it is free.
            (Err(Errno::EXIST), Some(wish)) => wish,
            (added, _) => added.map_err(|errno| {
                NodeError::system(ioctl::CONTROL.as_ref(), "add a loop device", errno)
            })?,
        };
        let node = node_path(number);
        let made_node = ensure_node(number)
            .map_err(|errno| NodeError::system(&node, "make the node", errno))?;
        let bound = open_node(number, OFlags::RDWR)
            .and_then(|device| ioctl::configure(&device, (&backing, &path), FIRST_BLOCK_SIZE));
        match bound {
            Ok(()) => return Ok((number, made_node)),
            Err(Errno::BUSY | Errno::NXIO) if wish.is_some() => {
                return Err(NodeError::Busy { path: node });
            }
            Err(Errno::BUSY | Errno::NXIO) => {}
            Err(errno) => {
                let _ = ioctl::remove(&control, number);
                return Err(NodeError::system(&node, "bind a loop device", errno));
            }
        }
    }
    Err(NodeError::system(
        ioctl::CONTROL.as_ref(),
        "find a loop device that nobody takes",
        Errno::BUSY,
    ))
}

/// Whether the loop device stands on this file of a mount that may not be served yet.
fn is_over(number: u32, file: &Path) -> bool {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        return false;
    };
    backing_file(number).is_some_and(|backing| {
        // As a file of a mount looks that somebody has detached.
        let detached = Path::new("/").join(name);
        backing == fuse::canonical(dir).join(name) || backing == detached
    })
}

fn open_control() -> Result<OwnedFd, NodeError> {
    ioctl::open_control().map_err(|errno| NodeError::system(ioctl::CONTROL.as_ref(), "open", errno))
}

struct LoopNode {
    server: Arc<FuseServer>,
    file: Arc<DeviceFile>,
    remover: Arc<Remover>,
    number: u32,
    made_node: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    device: Option<Arc<dyn BlockDevice>>,
    /// Asked for at activation, beyond what the device itself says.
    read_only: bool,
    /// What the kernel has been told.
    told: Option<Geometry>,
    removed: bool,
    /// An earlier process had told the kernel something.
    adopted: bool,
}

impl LoopNode {
    fn error(&self, action: &'static str) -> impl Fn(Errno) -> NodeError {
        let path = self.path();
        move |errno| NodeError::system(&path, action, errno)
    }

    /// Brings the kernel's view of size, limits and read-only up to date.
    fn tell(&self, state: &mut State) -> Result<(), NodeError> {
        let Some(device) = &state.device else {
            return Ok(());
        };
        let geometry = Geometry::of(&**device, state.read_only);
        if state.told == Some(geometry) {
            return Ok(());
        }
        self.file.attach(device.clone(), geometry);
        let first = state.told.is_none();
        if first && state.adopted && self.kernel_has(&geometry) {
            state.told = Some(geometry);
            return Ok(());
        }
        let opened = self
            .open(OFlags::RDWR)
            .or_else(|_| self.open(OFlags::RDONLY));
        let Some(fd) = opened? else {
            return Err(NodeError::TakenAway { path: self.path() });
        };
        if state.told.is_none_or(|told| told.limits != geometry.limits) {
            let is_new = !state.adopted || self.kernel_block_size() == Some(FIRST_BLOCK_SIZE);
            self.tell_limits(&fd, &geometry, first && is_new)?;
        }
        dev_node::set_read_only(&fd, geometry.read_only).map_err(self.error("set read-only"))?;
        if state
            .told
            .is_none_or(|told| told.size_bytes != geometry.size_bytes)
        {
            ioctl::set_capacity(&fd).map_err(self.error("set the size"))?;
        }
        state.told = Some(geometry);
        self.check_direct_io(&fd);
        Ok(())
    }

    /// Whether the kernel knows all of it already. Its driver read limits together with the block size.
    fn kernel_has(&self, geometry: &Geometry) -> bool {
        let dir = sysfs_dir(self.number);
        let number = |file: &str| sysfs_text(&dir.join(file)).and_then(|text| text.parse().ok());
        self.kernel_block_size() == Some(geometry.limits.logical_block_size)
            && number("size") == Some(geometry.size_bytes / 512)
            && number("ro") == Some(u64::from(geometry.read_only))
            && number("loop/dio") == Some(1)
    }

    fn kernel_block_size(&self) -> Option<u32> {
        sysfs_text(&sysfs_dir(self.number).join("queue/logical_block_size"))?
            .parse()
            .ok()
    }

    /// The driver reads the file's limits (the discard granularity) only when the block size changes; the first
    /// block size is one that no device has, so the first time one change is enough. Each costs the kernel some
    /// 16 ms. It refuses while somebody holds the device for himself (a mount).
    fn tell_limits(&self, fd: &OwnedFd, geometry: &Geometry, first: bool) -> Result<(), NodeError> {
        let wanted = geometry.limits.logical_block_size;
        if first {
            return ioctl::set_block_size(fd, wanted).map_err(self.error("set the block size"));
        }
        let away = ioctl::set_block_size(fd, FIRST_BLOCK_SIZE);
        if let Err(errno) = away.and_then(|()| ioctl::set_block_size(fd, wanted)) {
            tracing::warn!(device = %self.path().display(), %errno,
                "in use, so its limits (discard granularity) stay as they were");
        }
        Ok(())
    }

    fn check_direct_io(&self, fd: &OwnedFd) {
        let dio = || sysfs_text(&sysfs_dir(self.number).join("loop/dio"));
        if dio().as_deref() == Some("1") {
            return;
        }
        let errno = ioctl::set_direct_io(fd).err();
        if dio().as_deref() != Some("1") {
            tracing::warn!(device = %self.path().display(), ?errno,
                "the loop driver does not use direct I/O: data is cached twice");
        }
    }

    /// Opens the device; `None` when it is not ours any more. The kernel gives a loop device to whoever asks, so somebody may
    /// have detached ours (`losetup -d`), and somebody else may have its number now.
    fn open(&self, flags: OFlags) -> Result<Option<OwnedFd>, NodeError> {
        match open_node(self.number, flags) {
            // Looked at while it is open: detaching waits for the last close.
            Ok(fd) => Ok(self.is_ours().then_some(fd)),
            Err(Errno::NXIO | Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(self.error("open")(errno)),
        }
    }

    fn is_ours(&self) -> bool {
        is_over(self.number, &self.server.path_of(&self.file))
    }

    /// Detaches; `Ok(false)` when somebody has opened the device in between.
    fn detach(&self, force: bool) -> Result<bool, NodeError> {
        let Some(fd) = self.open(OFlags::RDONLY)? else {
            tracing::warn!(device = %self.path().display(), "somebody else has detached the loop device");
            return Ok(true);
        };
        match ioctl::clear(&fd) {
            Ok(()) | Err(Errno::NXIO) => {}
            Err(errno) => return Err(self.error("detach")(errno)),
        }
        drop(fd);
        // Gone at our close, unless somebody else still has it open.
        if wait_until(|| !self.is_ours()) {
            return Ok(true);
        }
        if force {
            return Ok(false);
        }
        // Stays in service, unless it went just now.
        let Some(fd) = self.open(OFlags::RDONLY)? else {
            return Ok(true);
        };
        match ioctl::keep_when_closed(&fd) {
            Ok(()) => Ok(false),
            Err(Errno::NXIO) => Ok(true),
            Err(errno) => Err(self.error("keep")(errno)),
        }
    }
}

impl BlockNode for LoopNode {
    fn dev_no(&self) -> DevNo {
        DevNo::new(LOOP_MAJOR, self.number)
    }

    fn path(&self) -> PathBuf {
        node_path(self.number)
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
        state.read_only = read_only && !dev.limits().read_only;
        state.device = Some(dev);
        state.told = None;
        self.tell(&mut state)
    }

    fn saved(&self) -> SavedNode {
        SavedNode {
            minor: self.number,
            file: self.file.nodeid(),
            made_node: self.made_node,
        }
    }

    fn attach(&self, dev: Arc<dyn BlockDevice>, read_only: bool) {
        let mut state = self.state.lock();
        state.read_only = read_only && !dev.limits().read_only;
        self.file
            .attach(dev.clone(), Geometry::of(&*dev, state.read_only));
        state.device = Some(dev);
    }

    fn refresh(&self) -> Result<(), NodeError> {
        self.tell(&mut self.state.lock())
    }

    fn open_count(&self) -> u32 {
        match self.is_ours() {
            true => openers::count(self.dev_no(), &self.path()),
            false => 0,
        }
    }

    fn is_in_use(&self) -> bool {
        self.is_ours() && openers::is_in_use(self.dev_no(), &self.path())
    }

    fn remove(&self, force: bool) -> Result<(), NodeError> {
        let mut state = self.state.lock();
        if state.removed {
            return Ok(());
        }
        // Who uses it is the kernel's to say: it detaches at the last close.
        let detached = self.detach(force)?;
        if !detached && !force {
            return Err(NodeError::Busy { path: self.path() });
        }
        state.removed = true;
        state.device = None;
        self.server.remove_file(&self.file);
        if detached {
            self.remover.push(self.number, self.made_node);
        } else {
            self.remover.push_open(self.number, self.made_node);
            tracing::warn!(device = %self.path().display(),
                "still open: its users see I/O errors, and it goes when they close it");
        }
        Ok(())
    }
}

impl Drop for LoopNode {
    /// A node that nobody can remove any more must not stay in the kernel.
    fn drop(&mut self) {
        if let Err(error) = self.remove(true) {
            tracing::error!(%error, "a dropped loop device stays");
        }
    }
}

const ADD_ATTEMPTS: usize = 32;
/// Until activation; see [`LoopNode::tell_limits`].
const FIRST_BLOCK_SIZE: u32 = 1024;
