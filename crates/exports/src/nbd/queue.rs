//! A queue thread: connections, their sockets' readiness, and the way back for completions from any thread.
//!
//! INVARIANT: a connection's index is not given to another while something of it is in flight, so a completion
//! always finds the connection it belongs to.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use thinmap_block::{EndIo, Io, QueueHandler, Turn, leave_large_copies};
use thinmap_runtime::{IoBuf, Waker};
use thinmap_units::BlkStatus;

use super::askers::Askers;
use super::buffers::Buffers;
use super::connection::{Connection, Resources};
use super::listener::Reaper;
use super::negotiation::Agreement;
use super::transport::Transport;

/// What other threads tell a queue.
pub enum Message {
    /// A client whose handshake is over.
    Attach(Box<NewClient>),
    /// A part of a request has come back.
    Finished {
        connection: usize,
        slot: u64,
        status: BlkStatus,
        buf: IoBuf,
    },
    /// An export was removed: drain its connections.
    ExportRemoved,
    /// Cut off whoever drains since before then.
    CutDraining { since: Instant },
    /// Drain everything, then end.
    Stop,
}

/// A client whose handshake is over.
pub struct NewClient {
    /// Its socket.
    pub transport: Transport,
    /// What was agreed.
    pub agreement: Agreement,
    /// What it sent behind the handshake.
    pub input: Vec<u8>,
}

/// The outside of a queue.
pub struct QueueShared {
    inbox: Mutex<Vec<Message>>,
    waker: Arc<Waker>,
    connections: AtomicUsize,
}

impl QueueShared {
    /// A queue without a thread so far.
    pub fn new(waker: Arc<Waker>) -> Self {
        Self {
            inbox: Mutex::default(),
            waker,
            connections: AtomicUsize::new(0),
        }
    }

    /// Connections it has, or will have when it looks into its inbox.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Hands over a client.
    pub fn attach(&self, client: NewClient) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.post(Message::Attach(Box::new(client)));
    }

    /// Tells the queue thread something.
    pub fn post(&self, message: Message) {
        self.inbox.lock().push(message);
        // The thread itself looks once more before it sleeps: completions on it cost no system call.
        if CURRENT.get() != std::ptr::from_ref(self) {
            self.waker.wake();
        }
    }
}

thread_local! {
    /// The queue whose thread this is; only compared, never followed.
    static CURRENT: Cell<*const QueueShared> = const { Cell::new(std::ptr::null()) };
}

/// Where a connection's requests end.
pub struct ConnectionSink {
    queue: Arc<QueueShared>,
    connection: usize,
}

impl ConnectionSink {
    /// A part of the request in `slot` has come back.
    pub fn finished(&self, slot: u64, status: BlkStatus, buf: IoBuf) {
        self.queue.post(Message::Finished {
            connection: self.connection,
            slot,
            status,
            buf,
        });
    }
}

impl EndIo for ConnectionSink {
    fn end_io(self: Arc<Self>, mut io: Io, tag: u64, status: BlkStatus) {
        let buf = std::mem::replace(&mut io.buf, IoBuf::empty());
        self.finished(tag, status, buf);
    }
}

/// How many of a server's queues have work, counted by each as it finds some.
#[derive(Default)]
pub struct AtWork {
    queues: Arc<AtomicUsize>,
    counted: bool,
}

impl AtWork {
    /// The same count for another queue.
    pub fn beside(&self) -> Self {
        Self {
            queues: self.queues.clone(),
            counted: false,
        }
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            self.queues.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.queues.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether no other queue has work.
    fn alone(&self) -> bool {
        self.queues.load(Ordering::Relaxed) == usize::from(self.counted)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.end();
    }
}

/// The inside of a queue, on its thread.
pub struct Queue {
    shared: Arc<QueueShared>,
    reaper: Arc<Reaper>,
    at_work: AtWork,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections to be looked at in this turn, each once.
    active: Vec<usize>,
    is_active: Vec<bool>,
    buffers: Buffers,
    askers: Arc<Askers>,
    stopping: bool,
    // Kept for their memory.
    messages: Vec<Message>,
    events: Vec<epoll::Event>,
}

impl Queue {
    /// Called on the queue's thread. `epoll` is empty.
    pub fn new(
        shared: Arc<QueueShared>,
        reaper: Arc<Reaper>,
        at_work: AtWork,
        epoll: OwnedFd,
        askers: Arc<Askers>,
    ) -> Self {
        CURRENT.set(Arc::as_ptr(&shared));
        Self {
            shared,
            reaper,
            at_work,
            epoll,
            connections: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            is_active: Vec::new(),
            buffers: Buffers::new(),
            askers,
            stopping: false,
            messages: Vec::new(),
            events: Vec::with_capacity(EVENTS_PER_TURN),
        }
    }

    /// Ready when one of its sockets is.
    #[cfg(feature = "fuzzing")]
    pub fn epoll(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.epoll)
    }

    fn take_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        std::mem::swap(&mut messages, &mut *self.shared.inbox.lock());
        for message in messages.drain(..) {
            match message {
                Message::Finished {
                    connection,
                    slot,
                    status,
                    buf,
                } => self.finished(connection, slot, status, buf),
                Message::Attach(client) => self.attach(*client),
                Message::ExportRemoved => self.drain_where(Connection::export_is_removed),
                Message::CutDraining { since } => self.cut_draining(since),
                Message::Stop => {
                    self.stopping = true;
                    self.drain_where(|_| true);
                }
            }
        }
        self.messages = messages;
    }

    fn finished(&mut self, connection: usize, slot: u64, status: BlkStatus, buf: IoBuf) {
        let Some(Some(found)) = self.connections.get_mut(connection) else {
            debug_assert!(false, "a completion for a connection that is gone");
            return;
        };
        found.finished(
            usize::try_from(slot).expect("slots are indices"),
            status,
            buf,
        );
        self.activate(connection);
    }

    fn attach(&mut self, client: NewClient) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.is_active.push(false);
            self.connections.len() - 1
        });
        let sink = Arc::new(ConnectionSink {
            queue: self.shared.clone(),
            connection: index,
        });
        let mut connection =
            Connection::new(client.transport, client.agreement, &client.input, sink);
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(index as u64);
        if let Err(error) = epoll::add(&self.epoll, connection.socket(), data, events) {
            tracing::error!(%error, "NBD: a client cannot be watched; closing it");
            connection.cut();
        }
        // The removal or stop may have passed while the client was on its way.
        if self.stopping || connection.export_is_removed() {
            connection.drain();
        }
        self.connections[index] = Some(connection);
        self.activate(index);
    }

    fn drain_where(&mut self, which: impl Fn(&Connection) -> bool) {
        for index in 0..self.connections.len() {
            if let Some(Some(connection)) = self.connections.get_mut(index)
                && which(connection)
            {
                connection.drain();
                self.activate(index);
            }
        }
    }

    fn cut_draining(&mut self, since: Instant) {
        for index in 0..self.connections.len() {
            if let Some(Some(connection)) = self.connections.get_mut(index)
                && let Some(started) = connection.draining_since()
            {
                if started <= since {
                    connection.cut();
                }
                self.activate(index);
            }
        }
    }

    fn activate(&mut self, index: usize) {
        if !std::mem::replace(&mut self.is_active[index], true) {
            self.active.push(index);
        }
    }

    fn take_events(&mut self) {
        self.events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        if let Err(error) = epoll::wait(&self.epoll, buffer, Some(&NOW)) {
            if error != rustix::io::Errno::INTR {
                tracing::error!(%error, "NBD: epoll_wait");
            }
            return;
        }
        for i in 0..self.events.len() {
            // Copied out: the kernel's structure is packed.
            let epoll::Event { flags, data } = self.events[i];
            let index = usize::try_from(data.u64()).expect("indices");
            let Some(Some(connection)) = self.connections.get_mut(index) else {
                continue;
            };
            let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
            connection.ready(
                flags.contains(EventFlags::IN),
                flags.contains(EventFlags::OUT),
                ended,
            );
            self.activate(index);
        }
    }

    fn receive(&mut self) {
        let resources = Resources {
            buffers: &self.buffers,
            askers: &self.askers,
        };
        for &index in &self.active {
            if let Some(connection) = &mut self.connections[index] {
                connection.receive(&resources);
            }
        }
    }

    /// Sends replies; keeps only those active that can go on at once.
    fn send(&mut self) {
        for index in std::mem::take(&mut self.active) {
            self.is_active[index] = false;
            let Some(connection) = &mut self.connections[index] else {
                continue;
            };
            connection.send();
            if connection.is_finished() {
                self.connections[index] = None;
                self.free.push(index);
                self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            } else if connection.wants_turn() {
                self.activate(index);
            } else if connection.draining_since().is_some() {
                self.reaper.note_draining();
            }
        }
    }
}

impl QueueHandler for Queue {
    fn turn(&mut self) -> Turn {
        self.take_messages();
        self.take_events();
        let found = !self.active.is_empty();
        if found {
            self.at_work.begin();
        }
        leave_large_copies(self.at_work.alone());
        self.receive();
        // Devices that complete at once have answered by now: their replies go out in this turn.
        self.take_messages();
        self.send();
        if !self.active.is_empty() || !self.shared.inbox.lock().is_empty() {
            return Turn::Again;
        }
        if self.stopping && self.connections.iter().all(Option::is_none) {
            return Turn::Stop;
        }
        // Only for what clients send next: what is with a device ends on other threads or in the kernel, which may need
        // this processor for it.
        if self.connections.iter().flatten().any(Connection::is_busy) {
            return Turn::Idle;
        }
        self.at_work.end();
        Turn::Watch { found }
    }

    fn poll(&self, out: &mut Vec<(RawFd, i16)>) {
        out.push((self.epoll.as_raw_fd(), libc::POLLIN));
    }
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
const EVENTS_PER_TURN: usize = 64;

/// How long a client may take to fetch its last replies once its connection drains.
pub const DRAIN_GRACE: Duration = Duration::from_secs(5);
