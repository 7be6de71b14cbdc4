//! A ublk driver for tests: takes the same bytes as the kernel's, keeps the same rules, and lets a test play the
//! programs that use its block devices. Rules taken from the behaviour of the driver in Linux 6.16.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use thinmap_runtime::Waker;
use thinmap_units::DevNo;
use zerocopy::{FromBytes, IntoBytes};

use super::abi::*;
use super::driver::{CharDevice, Commands, Descriptors, Driver};

/// The whole driver.
#[derive(Default)]
pub(super) struct Fake {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub devices: BTreeMap<u32, Device>,
    /// Minor numbers in use.
    pub minors: BTreeSet<u32>,
    /// Minor numbers that come free after so many more starts.
    late_minors: Vec<(u32, u32)>,
    pub features: u64,
    /// Steps to refuse: after how many times, and how. One step is refused once.
    pub refuse: HashMap<Step, (u32, Errno)>,
    /// How many starts a freed minor number stays taken.
    pub free_delay: u32,
    /// Control commands that came.
    pub log: Vec<u32>,
    /// Broken rules: must stay empty.
    pub wrong: Vec<String>,
}

/// What can be refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Step {
    Control(u32),
    Open,
    Descriptors,
    Fetch,
    Show,
    TakeData,
    GiveData,
}

pub(super) struct Device {
    pub info: DeviceInfo,
    pub params: Params,
    pub size: u64,
    pub read_only: bool,
    /// Openers of the block device.
    pub users: u32,
    minor: Option<u32>,
    started: bool,
    deleted: bool,
    char_opens: u32,
    queues: Vec<DeviceQueue>,
}

#[derive(Default)]
struct DeviceQueue {
    thread: Option<ThreadId>,
    tags: Vec<Tag>,
    descriptors: Vec<Descriptor>,
    /// Requests that found no free tag.
    backlog: VecDeque<Arc<Request>>,
}

#[derive(Default)]
enum Tag {
    /// Never fetched.
    #[default]
    New,
    /// The driver has its command.
    Active(Arc<Line>, u64),
    /// The server has its request.
    Owned(Arc<Request>),
    /// Given back for good.
    Aborted,
}

/// A request of a program.
pub(super) struct Request {
    descriptor: Descriptor,
    data: Mutex<Vec<u8>>,
    result: Mutex<Option<i32>>,
    done: Condvar,
}

impl Request {
    /// Bytes done and the data, or the errno.
    pub(super) fn wait(&self) -> Result<Vec<u8>, i32> {
        let mut result = self.result.lock();
        while result.is_none() {
            let waited = self.done.wait_for(&mut result, PATIENCE);
            assert!(!waited.timed_out(), "no answer to {:?}", self.descriptor);
        }
        match result.expect("just seen") {
            errno if errno < 0 => Err(-errno),
            bytes => {
                let wanted = match self.descriptor.op_flags & op::MASK {
                    op::READ | op::WRITE => self.descriptor.sectors as i32 * 512,
                    _ => 0,
                };
                assert_eq!(bytes, wanted, "{:?}", self.descriptor);
                Ok(std::mem::take(&mut *self.data.lock()))
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.result.lock().is_some()
    }

    fn end(&self, result: i32) {
        *self.result.lock() = Some(result);
        self.done.notify_all();
    }
}

/// Where results for one queue thread go.
struct Line {
    results: Mutex<Vec<(u64, i32)>>,
    waker: Waker,
}

impl Line {
    fn send(&self, user_data: u64, result: i32) {
        self.results.lock().push((user_data, result));
        self.waker.wake();
    }
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        let fake = Self::default();
        fake.state().features = u64::MAX;
        Arc::new(fake)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A program's request: `data` is what a write brings.
    pub(super) fn begin(
        &self,
        id: u32,
        queue: usize,
        op_flags: u32,
        start: u64,
        sectors: u32,
        data: &[u8],
    ) -> Arc<Request> {
        let mut content = data.to_vec();
        if op_flags & op::MASK == op::READ {
            content = vec![0xee; sectors as usize * 512];
        }
        let request = Arc::new(Request {
            descriptor: Descriptor {
                op_flags,
                sectors,
                start_sector: start,
                addr: 0,
            },
            data: Mutex::new(content),
            result: Mutex::default(),
            done: Condvar::new(),
        });
        let mut state = self.state();
        match state.devices.get_mut(&id) {
            Some(device) if device.started => {
                device.queues[queue].backlog.push_back(request.clone());
                device.queues[queue].dispatch();
            }
            _ => request.end(-libc::EIO),
        }
        drop(state);
        request
    }

    /// Opens or closes a block device as a program would.
    pub(super) fn set_users(&self, id: u32, users: u32) {
        let mut state = self.state();
        if let Some(device) = state.devices.get_mut(&id) {
            device.users = users;
        }
        state.reap(id);
    }

    /// Waits until exactly the devices `ids` are left. The last holder of a character device may be the thread that
    /// has just ended a request.
    pub(super) fn await_ids(&self, ids: &[u32]) {
        let mut state = self.state();
        while !state.devices.keys().eq(ids) {
            let waited = self.changed.wait_for(&mut state, PATIENCE);
            assert!(
                !waited.timed_out(),
                "{:?} are there",
                state.devices.keys().collect::<Vec<_>>()
            );
        }
    }

    /// Frees the numbers whose delay has not passed.
    pub(super) fn give_numbers_back(&self) {
        self.state().late_minors.clear();
    }

    /// Stops a device as the kernel does when its server has died.
    pub(super) fn die(&self, id: u32) {
        self.stop(self.state(), id).expect("there");
    }

    fn stop(&self, mut state: MutexGuard<'_, State>, id: u32) -> Result<i32, Errno> {
        if let Some(device) = state.devices.get_mut(&id) {
            device.started = false;
        }
        loop {
            let Some(device) = state.devices.get_mut(&id) else {
                return Err(Errno::NODEV);
            };
            if !device.queues.iter().any(DeviceQueue::is_busy) {
                break;
            }
            let waited = self.changed.wait_for(&mut state, PATIENCE);
            assert!(!waited.timed_out(), "requests in flight never ended");
        }
        let device = state.devices.get_mut(&id).expect("just seen");
        device.info.state = STATE_DEAD;
        for tag in device.queues.iter_mut().flat_map(|queue| &mut queue.tags) {
            if let Tag::Active(line, user_data) = tag {
                line.send(*user_data, -libc::ENODEV);
                *tag = Tag::Aborted;
            }
        }
        state.reap(id);
        Ok(0)
    }

    fn start(&self, mut state: MutexGuard<'_, State>, id: u32, pid: u64) -> Result<i32, Errno> {
        loop {
            let device = state.devices.get(&id).ok_or(Errno::NODEV)?;
            if device.started || device.params.types & PARAMS_BASIC == 0 || pid == 0 {
                return Err(Errno::INVAL);
            }
            if device.queues.iter().all(DeviceQueue::is_fetched) {
                break;
            }
            if self.changed.wait_for(&mut state, PATIENCE).timed_out() {
                return Err(Errno::INTR);
            }
        }
        state.late_minors.retain_mut(|(left, _)| {
            *left = left.saturating_sub(1);
            *left > 0
        });
        let late: Vec<_> = state.late_minors.iter().map(|(_, minor)| *minor).collect();
        let free = (0..).find(|minor| !state.minors.contains(minor) && !late.contains(minor));
        let minor = free.ok_or(Errno::NOSPC)?;
        state.minors.insert(minor);
        let device = state.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        device.minor = Some(minor);
        device.started = true;
        device.info.state = 1;
        Ok(0)
    }
}

impl State {
    fn refused(&mut self, step: Step) -> Result<(), Errno> {
        match self.refuse.get_mut(&step) {
            Some((0, errno)) => {
                let errno = *errno;
                self.refuse.remove(&step);
                Err(errno)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Lets go of what nobody holds any more.
    fn reap(&mut self, id: u32) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        if device.started || device.users > 0 {
            return;
        }
        if let Some(minor) = device.minor.take() {
            self.minors.remove(&minor);
            self.late_minors.push((self.free_delay + 1, minor));
        }
        if device.deleted && device.char_opens == 0 {
            self.devices.remove(&id);
        }
    }
}

impl DeviceQueue {
    fn is_fetched(&self) -> bool {
        self.tags.iter().all(|tag| matches!(tag, Tag::Active(..)))
    }

    fn is_busy(&self) -> bool {
        let owned = |tag: &Tag| matches!(tag, Tag::Owned(..));
        !self.backlog.is_empty() || self.tags.iter().any(owned)
    }

    /// Gives requests to free tags, the last tag first: nobody may rely on an order.
    fn dispatch(&mut self) {
        for (tag, descriptor) in self.tags.iter_mut().zip(&mut self.descriptors).rev() {
            if self.backlog.is_empty() {
                return;
            }
            if let Tag::Active(line, user_data) = tag {
                let request = self.backlog.pop_front().expect("not empty");
                *descriptor = request.descriptor;
                let (line, user_data) = (line.clone(), *user_data);
                *tag = Tag::Owned(request);
                line.send(user_data, 0);
            }
        }
    }
}

impl Driver for Arc<Fake> {
    fn control(&self, op: u32, command: ControlCommand, buffer: &mut [u8]) -> Result<i32, Errno> {
        let mut state = self.state();
        state.log.push(op);
        state.refused(Step::Control(op))?;
        let id = command.dev_id;
        if command.queue_id != u16::MAX {
            return Err(Errno::INVAL);
        }
        match op {
            control::FEATURES => {
                buffer.copy_from_slice(state.features.as_bytes());
                return Ok(0);
            }
            control::ADD => {
                let info = DeviceInfo::mut_from_bytes(buffer).map_err(|_| Errno::INVAL)?;
                return state.add(id, info);
            }
            control::STOP => return self.stop(state, id),
            control::START => return self.start(state, id, command.data),
            _ => {}
        }
        let device = state.devices.get_mut(&id).ok_or(Errno::NODEV)?;
        match op {
            control::TRY_STOP if device.users > 0 => return Err(Errno::BUSY),
            control::TRY_STOP => return self.stop(state, id),
            control::SET_PARAMS => {
                let params = Params::read_from_bytes(buffer).map_err(|_| Errno::INVAL)?;
                device.set_params(&params)?;
            }
            control::PARAMS => {
                let params = Params::mut_from_bytes(buffer).map_err(|_| Errno::INVAL)?;
                *params = device.params;
                let (char_major, char_minor) = (CHAR_MAJOR, id);
                let (disk_major, disk_minor) = device.minor.map_or((0, 0), |m| (BLOCK_MAJOR, m));
                params.numbers = Numbers {
                    char_major,
                    char_minor,
                    disk_major,
                    disk_minor,
                };
            }
            control::INFO => buffer.copy_from_slice(device.info.as_bytes()),
            control::UPDATE_SIZE => device.size = command.data,
            control::DELETE_ASYNC => {
                device.deleted = true;
                self.stop(state, id)?;
            }
            _ => return Err(Errno::NOTSUP),
        }
        Ok(0)
    }

    fn open(&self, id: u32, number: DevNo) -> Result<Arc<dyn CharDevice>, Errno> {
        let mut state = self.state();
        state.refused(Step::Open)?;
        if number != DevNo::new(CHAR_MAJOR, id) {
            return Err(Errno::NXIO);
        }
        let device = state.devices.get_mut(&id).ok_or(Errno::NOENT)?;
        if device.char_opens > 0 {
            return Err(Errno::BUSY);
        }
        device.char_opens += 1;
        Ok(Arc::new(FakeChar {
            id,
            driver: self.clone(),
        }))
    }

    fn commands(&self) -> std::io::Result<Box<dyn Commands>> {
        Ok(Box::new(FakeCommands {
            driver: self.clone(),
            queued: Vec::new(),
            line: Arc::new(Line {
                results: Mutex::default(),
                waker: Waker::new()?,
            }),
        }))
    }

    fn show(&self, _: u32, _: DevNo) -> Result<(), Errno> {
        self.state().refused(Step::Show)
    }

    fn hide(&self, _: u32) {}

    fn set_read_only(&self, id: u32, read_only: bool) -> Result<(), Errno> {
        let mut state = self.state();
        let device = state.devices.get_mut(&id).ok_or(Errno::NOENT)?;
        device.read_only = read_only;
        Ok(())
    }

    fn users(&self, id: u32, _: DevNo, _: bool) -> u32 {
        self.state().devices.get(&id).map_or(0, |d| d.users)
    }

    fn ids(&self) -> Vec<u32> {
        self.state().devices.keys().copied().collect()
    }
}

impl State {
    fn add(&mut self, id: u32, info: &mut DeviceInfo) -> Result<i32, Errno> {
        let free = (0..).find(|id| !self.devices.contains_key(id));
        if id != u32::MAX || info.dev_id != id {
            return Err(Errno::INVAL);
        }
        info.dev_id = free.ok_or(Errno::NOSPC)?;
        info.flags &= self.features;
        info.max_io_buf_bytes &= !4095;
        let queue = || DeviceQueue {
            tags: (0..info.queue_depth).map(|_| Tag::New).collect(),
            descriptors: vec![Descriptor::default(); info.queue_depth.into()],
            ..DeviceQueue::default()
        };
        let device = Device {
            info: *info,
            params: Params::default(),
            size: 0,
            read_only: false,
            users: 0,
            minor: None,
            started: false,
            deleted: false,
            char_opens: 0,
            queues: (0..info.nr_hw_queues).map(|_| queue()).collect(),
        };
        self.devices.insert(info.dev_id, device);
        Ok(0)
    }
}

impl Device {
    fn set_params(&mut self, params: &Params) -> Result<(), Errno> {
        if self.started {
            return Err(Errno::ACCESS);
        }
        let (basic, discard) = (params.basic, params.discard);
        let right = params.len as usize == size_of::<Params>()
            && params.types == PARAMS_BASIC | PARAMS_DISCARD
            && (9..=12).contains(&basic.logical_block_shift)
            && basic.physical_block_shift >= basic.logical_block_shift
            && basic.max_sectors <= self.info.max_io_buf_bytes >> 9
            && (discard.max_discard_sectors == 0 || discard.max_discard_segments == 1)
            && discard.granularity > 0;
        if !right {
            return Err(Errno::INVAL);
        }
        self.params = *params;
        self.size = basic.dev_sectors;
        Ok(())
    }
}

struct FakeChar {
    id: u32,
    driver: Arc<Fake>,
}

impl FakeChar {
    fn request(&self, queue: u16, tag: u16, op: u32) -> Result<Arc<Request>, Errno> {
        let state = self.driver.state();
        let device = state.devices.get(&self.id).ok_or(Errno::NODEV)?;
        let queue = device.queues.get(usize::from(queue)).ok_or(Errno::INVAL)?;
        match queue.tags.get(usize::from(tag)) {
            Some(Tag::Owned(request)) if request.descriptor.op_flags & op::MASK == op => {
                Ok(request.clone())
            }
            _ => Err(Errno::INVAL),
        }
    }
}

impl CharDevice for FakeChar {
    fn raw_fd(&self) -> RawFd {
        self.id as RawFd
    }

    fn descriptors(&self, queue: u16, _depth: u16) -> Result<Box<dyn Descriptors>, Errno> {
        self.driver.state().refused(Step::Descriptors)?;
        Ok(Box::new(FakeDescriptors {
            id: self.id,
            queue,
            driver: self.driver.clone(),
        }))
    }

    fn take_data(&self, queue: u16, tag: u16, buf: &mut [u8]) -> Result<(), Errno> {
        self.driver.state().refused(Step::TakeData)?;
        let request = self.request(queue, tag, op::WRITE)?;
        buf.copy_from_slice(&request.data.lock());
        Ok(())
    }

    fn give_data(&self, queue: u16, tag: u16, buf: &[u8]) -> Result<(), Errno> {
        self.driver.state().refused(Step::GiveData)?;
        let request = self.request(queue, tag, op::READ)?;
        request.data.lock().copy_from_slice(buf);
        Ok(())
    }
}

impl Drop for FakeChar {
    fn drop(&mut self) {
        let mut state = self.driver.state();
        if let Some(device) = state.devices.get_mut(&self.id) {
            device.char_opens -= 1;
        }
        state.reap(self.id);
        drop(state);
        self.driver.changed.notify_all();
    }
}

struct FakeDescriptors {
    id: u32,
    queue: u16,
    driver: Arc<Fake>,
}

impl Descriptors for FakeDescriptors {
    fn read(&self, tag: u16) -> Descriptor {
        self.driver.state().devices[&self.id].queues[usize::from(self.queue)].descriptors
            [usize::from(tag)]
    }
}

struct FakeCommands {
    driver: Arc<Fake>,
    queued: Vec<(u32, u32, QueueCommand, u64)>,
    line: Arc<Line>,
}

impl FakeCommands {
    fn take(&self, state: &mut State, id: u32, op: u32, command: QueueCommand, user_data: u64) {
        let refused = state.refused(Step::Fetch);
        let result = match state.devices.get_mut(&id) {
            _ if op == queue::FETCH && refused.is_err() => refused,
            Some(device) => self.take_for(device, op, command, user_data),
            None => Err(Errno::NODEV),
        };
        if let Err(errno) = result {
            self.line.send(user_data, -errno.raw_os_error());
            if op != queue::FETCH {
                state
                    .wrong
                    .push(format!("{command:?} to device {id}: {errno}"));
            }
        }
    }

    fn take_for(
        &self,
        device: &mut Device,
        op: u32,
        command: QueueCommand,
        user_data: u64,
    ) -> Result<(), Errno> {
        let queue = device
            .queues
            .get_mut(usize::from(command.queue))
            .ok_or(Errno::INVAL)?;
        let thread = std::thread::current().id();
        if command.addr != 0 || *queue.thread.get_or_insert(thread) != thread {
            return Err(Errno::INVAL);
        }
        let tag = queue
            .tags
            .get_mut(usize::from(command.tag))
            .ok_or(Errno::INVAL)?;
        match (op, std::mem::take(tag)) {
            (queue::FETCH, Tag::New) => {
                *tag = Tag::Active(self.line.clone(), user_data);
            }
            (queue::COMMIT_AND_FETCH, Tag::Owned(request)) => {
                *tag = Tag::Active(self.line.clone(), user_data);
                request.end(command.result);
                queue.dispatch();
            }
            (_, before) => {
                *tag = before;
                return Err(Errno::BUSY);
            }
        }
        Ok(())
    }
}

impl Commands for FakeCommands {
    fn push(&mut self, device: &dyn CharDevice, op: u32, command: QueueCommand, user_data: u64) {
        let id = device.raw_fd() as u32;
        self.queued.push((id, op, command, user_data));
    }

    fn submit(&mut self) {
        let mut state = self.driver.state();
        for (id, op, command, user_data) in std::mem::take(&mut self.queued) {
            self.take(&mut state, id, op, command, user_data);
        }
        self.driver.changed.notify_all();
    }

    fn reap(&mut self, out: &mut Vec<(u64, i32)>) {
        self.line.waker.clear();
        out.append(&mut self.line.results.lock());
    }

    fn raw_fd(&self) -> RawFd {
        self.line.waker.raw_fd()
    }
}

pub(super) const BLOCK_MAJOR: u32 = 259;
const CHAR_MAJOR: u32 = 240;
/// Longer than anything takes: only reached when something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
