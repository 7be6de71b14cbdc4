//! The listening thread: accepts clients, walks them through the handshake, hands them to a queue.
//!
//! A client that has not finished its handshake in time is dropped; so nobody holds a place by silence.
//! The thread also watches over connections that drain: who does not fetch its last replies is cut off.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, accept_with, getsockname, sockopt};
use thinmap_runtime::Waker;

use super::negotiation::{Agreement, Negotiation, OUTPUT_BYTES_MAX, Step, TlsState};
use super::queue::{DRAIN_GRACE, Message, NewClient, QueueShared};
use super::registry::Registry;
use super::transport::{Received, Transport};

/// Reminds the listening thread to look after connections that drain.
pub struct Reaper {
    waker: Arc<Waker>,
    due: Mutex<Option<Instant>>,
}

impl Reaper {
    /// `waker` is the listening thread's.
    pub fn new(waker: Arc<Waker>) -> Self {
        Self {
            waker,
            due: Mutex::new(None),
        }
    }

    /// A connection drains and is not done at once.
    pub fn note_draining(&self) {
        let mut due = self.due.lock();
        if due.is_none() {
            *due = Some(Instant::now() + DRAIN_GRACE);
            self.waker.wake();
        }
    }

    fn take_due(&self, now: Instant) -> bool {
        let mut due = self.due.lock();
        let is_due = due.is_some_and(|due| due <= now);
        if is_due {
            *due = None;
        }
        is_due
    }
}

/// A socket that clients connect to.
pub struct Door {
    /// Listening, non-blocking.
    pub socket: OwnedFd,
    /// When set, clients must turn to TLS before anything else.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// The listening thread's state.
pub struct Listener {
    pub doors: Vec<Door>,
    pub registry: Arc<Registry>,
    pub queues: Vec<Arc<QueueShared>>,
    pub waker: Arc<Waker>,
    pub reaper: Arc<Reaper>,
    /// No new clients; the listener ends with the last handshake.
    pub leaving: Arc<AtomicBool>,
    /// The listener may go: no new clients, those in the handshake are dropped. Draining is still watched
    /// until `ended`.
    pub stopping: Arc<AtomicBool>,
    /// The queues have ended.
    pub ended: Arc<AtomicBool>,
    pub handshake_timeout: Duration,
    pub connections_max: usize,
}

impl Listener {
    /// Runs until `ended`, or is `leaving` and done.
    pub fn run(mut self) {
        let mut clients: Vec<Client> = Vec::new();
        let mut accept_after = None;
        while !self.ended.load(Ordering::Acquire) {
            self.waker.clear();
            if self.stopping.load(Ordering::Acquire) {
                clients.clear();
                self.doors.clear();
            }
            if self.leaving.load(Ordering::Acquire) {
                self.doors.clear();
                if clients.is_empty() {
                    return;
                }
            }
            let ready = self.wait(&clients, accept_after);
            let now = Instant::now();
            self.cut_draining(now);
            let (at_doors, at_clients) = ready.split_at(self.doors.len());
            // Clients first: accepting adds to their list.
            let before = std::mem::take(&mut clients);
            for (client, ready) in before.into_iter().zip(at_clients) {
                if client.deadline <= now {
                    tracing::debug!("NBD client dropped: its handshake took too long");
                } else if *ready {
                    clients.extend(client.turn(&self.registry, &self.queues));
                } else {
                    clients.push(client);
                }
            }
            if accept_after.is_some_and(|after| after <= now) {
                accept_after = None;
            }
            for (door, _) in self.doors.iter().zip(at_doors).filter(|(_, ready)| **ready) {
                if !self.accept(door, &mut clients, now) {
                    accept_after = Some(now + ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Sleeps until something happens; which doors, then which clients, are ready.
    fn wait(&self, clients: &[Client], accept_after: Option<Instant>) -> Vec<bool> {
        let doors = if accept_after.is_some() {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        let mut fds = vec![PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN)];
        fds.extend(
            self.doors
                .iter()
                .map(|door| PollFd::from_borrowed_fd(door.socket.as_fd(), doors)),
        );
        fds.extend(clients.iter().map(Client::poll_fd));
        let deadlines = clients.iter().map(|client| client.deadline);
        let due = *self.reaper.due.lock();
        let first = deadlines.chain(accept_after).chain(due).min();
        let hurry = clients.iter().any(|client| client.more);
        let timeout = if hurry {
            Some(Duration::ZERO)
        } else {
            first.map(|first| first.saturating_duration_since(Instant::now()))
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "NBD listener: poll");
        }
        let mut ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        for (ready, client) in ready.iter_mut().skip(self.doors.len()).zip(clients) {
            *ready |= client.more;
        }
        ready
    }

    fn cut_draining(&self, now: Instant) {
        if !self.reaper.take_due(now) {
            return;
        }
        let Some(since) = now.checked_sub(DRAIN_GRACE) else {
            return;
        };
        for queue in &self.queues {
            queue.post(Message::CutDraining { since });
        }
    }

    /// Takes in who waits at a door; `false` when the system is out of descriptors and a pause is due.
    fn accept(&self, door: &Door, clients: &mut Vec<Client>, now: Instant) -> bool {
        loop {
            match accept_with(&door.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    let attached: usize = self.queues.iter().map(|q| q.connections()).sum();
                    if attached + clients.len() >= self.connections_max {
                        tracing::warn!(max = self.connections_max, "NBD client refused: too many");
                        continue;
                    }
                    tune(socket.as_fd());
                    let client =
                        Client::new(socket, door.tls.clone(), now + self.handshake_timeout);
                    clients.push(client);
                }
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::error!(%error, "NBD listener: accept");
                    return false;
                }
            }
        }
    }
}

fn tune(socket: BorrowedFd<'_>) {
    let family = getsockname(socket).map(|address| address.address_family());
    if matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6)) {
        // Replies are batched by us; a machine that vanishes must not stay an opener for ever.
        let _ = sockopt::set_tcp_nodelay(socket, true);
        let _ = sockopt::set_socket_keepalive(socket, true);
        let _ = sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE);
        return;
    }
    // Of a Unix socket only the sender's buffer counts, and the default holds a fifth of a large reply: then server
    // and client would wait for each other. Beyond the system's limit only root may go.
    if sockopt::set_socket_send_buffer_size_force(socket, UNIX_SEND_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, UNIX_SEND_BUFFER_BYTES);
    }
}

/// A client in the handshake.
struct Client {
    transport: Transport,
    negotiation: Negotiation,
    tls: Option<Arc<rustls::ServerConfig>>,
    input: Vec<u8>,
    output: Vec<u8>,
    after: After,
    deadline: Instant,
    /// Another turn would find something to do, whatever the socket says.
    more: bool,
    /// The input may hold whole options, which wait for room in the output.
    unparsed: bool,
}

/// What comes when the output is out.
enum After {
    Talk,
    StartTls,
    Bye,
    Attach(Box<Agreement>),
}

impl Client {
    fn new(socket: OwnedFd, tls: Option<Arc<rustls::ServerConfig>>, deadline: Instant) -> Self {
        let mut output = Vec::new();
        let state = match tls {
            Some(_) => TlsState::Required,
            None => TlsState::Off,
        };
        Self {
            negotiation: Negotiation::new(state, &mut output),
            transport: Transport::new(socket),
            tls,
            input: Vec::new(),
            output,
            after: After::Talk,
            deadline,
            more: true,
            unparsed: false,
        }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let mut events = PollFlags::empty();
        if matches!(self.after, After::Talk) && self.output.len() < OUTPUT_BYTES_MAX {
            events |= PollFlags::IN;
        }
        if !self.output.is_empty() || self.transport.has_unsent() {
            events |= PollFlags::OUT;
        }
        PollFd::from_borrowed_fd(self.transport.socket(), events)
    }

    /// Goes on with the handshake; `None` when the client is through or gone.
    fn turn(mut self, registry: &Registry, queues: &[Arc<QueueShared>]) -> Option<Self> {
        if let Err(error) = self.talk(registry) {
            tracing::debug!(%error, "NBD client lost in the handshake");
            return None;
        }
        if !self.output.is_empty() {
            return Some(self);
        }
        match std::mem::replace(&mut self.after, After::Talk) {
            After::Talk => Some(self),
            After::Bye => None,
            After::StartTls => self.start_tls(),
            After::Attach(agreement) => {
                let queue = queues.iter().min_by_key(|queue| queue.connections())?;
                queue.attach(NewClient {
                    transport: self.transport,
                    agreement: *agreement,
                    input: self.input,
                });
                None
            }
        }
    }

    /// Sends what waits, then takes in and answers what the client says, for a while.
    fn talk(&mut self, registry: &Registry) -> std::io::Result<()> {
        self.more = false;
        self.send()?;
        self.take_in(registry)?;
        // No readiness of the socket would tell of what is here already.
        self.more |= self.unparsed && self.output.len() < OUTPUT_BYTES_MAX;
        Ok(())
    }

    fn take_in(&mut self, registry: &Registry) -> std::io::Result<()> {
        for _ in 0..RECEIVES_PER_TURN {
            if !matches!(self.after, After::Talk) || self.output.len() >= OUTPUT_BYTES_MAX {
                return self.send();
            }
            if !std::mem::take(&mut self.unparsed) {
                let mut chunk = [0; RECEIVE_BYTES];
                match self.transport.receive(&mut [IoSliceMut::new(&mut chunk)])? {
                    Received::WouldBlock => return self.send(),
                    Received::End => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    Received::Bytes { count, .. } => self.input.extend_from_slice(&chunk[..count]),
                }
            }
            let step = self
                .negotiation
                .step(&mut self.input, &mut self.output, registry);
            self.after = match step {
                Ok(Step::More) => After::Talk,
                Ok(Step::Full) => {
                    self.unparsed = true;
                    After::Talk
                }
                Ok(Step::Bye) => After::Bye,
                Ok(Step::StartTls) => After::StartTls,
                Ok(Step::Done(agreement)) => After::Attach(agreement),
                Err(violation) => {
                    tracing::warn!(%violation, "NBD client cut off in the handshake");
                    // What was answered before may still help whoever debugs the client.
                    let _ = self.send();
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            };
        }
        self.more = true;
        self.send()
    }

    fn send(&mut self) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.transport.send(&[IoSlice::new(&self.output)]) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.transport.flush().map(drop)
    }

    fn start_tls(mut self) -> Option<Self> {
        let config = self.tls.take()?;
        match rustls::ServerConnection::new(config) {
            Ok(tls) => self.transport.start_tls(tls),
            Err(error) => {
                tracing::error!(%error, "NBD: TLS session");
                return None;
            }
        }
        self.negotiation.tls_started();
        Some(self)
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;
const RECEIVE_BYTES: usize = 4096;
const RECEIVES_PER_TURN: usize = 16;
