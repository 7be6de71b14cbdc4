//! The server as its owner sees it: start, exports, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use thinmap_block::{BlockDevice, QueueHandle, spawn_queue};
use thinmap_runtime::Waker;

use super::askers::Askers;
use super::listener::{Door, Listener, Reaper};
use super::queue::{AtWork, Message, Queue, QueueShared};
use super::registry::{Drain, Registry, RenameError};
use super::sockets::{BoundPath, NbdSockets, tcp_door};
use super::tls::TlsConfig;

/// How to start a server.
#[derive(Clone, Debug)]
pub struct NbdConfig {
    /// Path of the Unix socket, made with mode 0600. A dead socket at the path is replaced.
    pub unix: Option<PathBuf>,
    /// A TCP address as well.
    pub tcp: Option<TcpConfig>,
    /// Queue threads; connections are spread over them. At least 1.
    pub queues: usize,
    /// Clients at once, those in the handshake included; more are turned away.
    pub connections_max: usize,
    /// How long a client may take from connecting to the end of its handshake.
    pub handshake_timeout: Duration,
}

impl Default for NbdConfig {
    /// No address; as many queues as processors, at most 4; 256 clients; 10 s.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            unix: None,
            tcp: None,
            queues: processors.min(4),
            connections_max: 256,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// A TCP address to serve.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Where to listen; port 0 picks one, see [`NbdServer::tcp_addr`].
    pub addr: SocketAddr,
    /// Clients must use TLS. Without it only loopback addresses are taken.
    pub tls: Option<TlsConfig>,
}

/// Why a server does not start or an export cannot be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdServerError {
    /// Anybody on the network could read and write the devices.
    #[error(
        "NBD on {0} refused: beyond loopback only with TLS; give a certificate and key, or listen on a loopback address"
    )]
    TlsRequired(SocketAddr),
    /// A file for TLS is missing or wrong.
    #[error("NBD TLS: {path}: {reason}", path = path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another server answers there.
    #[error("NBD socket {path} is in use by a running server", path = .0.display())]
    SocketInUse(PathBuf),
    /// Something that is no socket is in the way; it is left alone.
    #[error("NBD socket {path}: there is a file that is not a socket", path = .0.display())]
    NotASocket(PathBuf),
    /// The address cannot be listened on.
    #[error("NBD: cannot listen on {address}: {source}")]
    Listen {
        /// Path or TCP address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Threads or descriptors are missing.
    #[error("NBD: cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// There is an export of that name.
    #[error("NBD export {0:?} exists already")]
    ExportExists(String),
    /// There is no export of that name.
    #[error("no NBD export {0:?}")]
    NoExport(String),
    /// The protocol allows 4096 bytes.
    #[error("NBD export name of {0} bytes: 4096 at most")]
    NameTooLong(usize),
}

/// A device to be served.
pub struct NbdExport {
    /// As clients ask for it.
    pub name: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Whether writes are refused, whatever the device says.
    pub read_only: bool,
}

/// A running server. Dropping it shuts it down.
pub struct NbdServer {
    registry: Arc<Registry>,
    queues: Vec<(Arc<QueueShared>, QueueHandle)>,
    listener: Option<JoinHandle<()>>,
    listener_waker: Arc<Waker>,
    leaving: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    askers: Arc<Askers>,
    unix: Option<BoundPath>,
    tcp_addr: Option<SocketAddr>,
}

impl NbdServer {
    /// Opens the sockets and starts the threads. There are no exports yet.
    pub fn start(config: NbdConfig) -> Result<Self, NbdServerError> {
        let sockets = NbdSockets::open(&config)?;
        Self::serve(config, sockets, Vec::new())
    }

    /// Starts the threads on sockets that listen already, with these exports from the first client on.
    pub fn serve(
        config: NbdConfig,
        sockets: NbdSockets,
        exports: Vec<NbdExport>,
    ) -> Result<Self, NbdServerError> {
        let NbdSockets { unix, tcp } = sockets;
        let mut doors = Vec::new();
        let mut tcp_addr = None;
        if let (Some(socket), Some(tcp)) = (tcp, &config.tcp) {
            let (door, addr) = tcp_door(tcp, socket)?;
            doors.push(door);
            tcp_addr = Some(addr);
        }
        let unix = match (unix, &config.unix) {
            (Some(socket), Some(path)) => {
                doors.push(Door { socket, tls: None });
                BoundPath::new(path)
            }
            _ => None,
        };
        let listener_waker = Arc::new(Waker::new()?);
        let reaper = Arc::new(Reaper::new(listener_waker.clone()));
        let mut server = Self {
            registry: Arc::default(),
            queues: Vec::new(),
            listener: None,
            listener_waker,
            leaving: Arc::default(),
            stopping: Arc::default(),
            ended: Arc::default(),
            askers: Arc::default(),
            unix,
            tcp_addr,
        };
        for export in exports {
            server.add_export(&export.name, export.device, export.read_only)?;
        }
        // From here on a failure drops `server`, which ends the threads that run.
        let at_work = AtWork::default();
        for index in 0..config.queues.max(1) {
            let waker = Arc::new(Waker::new()?);
            let shared = Arc::new(QueueShared::new(waker.clone()));
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(std::io::Error::from)?;
            let (for_queue, reaper, askers) =
                (shared.clone(), reaper.clone(), server.askers.clone());
            let at_work = at_work.beside();
            let handle = spawn_queue(&format!("nbd-{index}"), waker, move || {
                Queue::new(for_queue, reaper, at_work, epoll, askers)
            })?;
            server.queues.push((shared, handle));
        }
        let listener = Listener {
            doors,
            registry: server.registry.clone(),
            queues: server.queues.iter().map(|(q, _)| q.clone()).collect(),
            waker: server.listener_waker.clone(),
            reaper,
            leaving: server.leaving.clone(),
            stopping: server.stopping.clone(),
            ended: server.ended.clone(),
            handshake_timeout: config.handshake_timeout,
            connections_max: config.connections_max,
        };
        server.listener = Some(
            std::thread::Builder::new()
                .name("nbd-listener".to_owned())
                .spawn(move || listener.run())?,
        );
        Ok(server)
    }

    /// Serves `device` under `name` from now on; each client sees the size that the device has when it connects.
    pub fn add_export(
        &self,
        name: &str,
        device: Arc<dyn BlockDevice>,
        read_only: bool,
    ) -> Result<(), NbdServerError> {
        check_name(name)?;
        if self.registry.add(name, device, read_only) {
            Ok(())
        } else {
            Err(NbdServerError::ExportExists(name.to_owned()))
        }
    }

    /// Gives an export another name; who is connected stays connected.
    pub fn rename_export(&self, from: &str, to: &str) -> Result<(), NbdServerError> {
        check_name(to)?;
        self.registry.rename(from, to).map_err(|error| match error {
            RenameError::Unknown => NbdServerError::NoExport(from.to_owned()),
            RenameError::Taken => NbdServerError::ExportExists(to.to_owned()),
        })
    }

    /// Takes an export away: nobody connects any more, and its clients are asked to leave. What they have in
    /// flight is answered, then they are closed; follow it with the returned [`Drain`]. Does not wait.
    pub fn remove_export(&self, name: &str) -> Result<Drain, NbdServerError> {
        let drain = self
            .registry
            .remove(name)
            .ok_or_else(|| NbdServerError::NoExport(name.to_owned()))?;
        for (queue, _) in &self.queues {
            queue.post(Message::ExportRemoved);
        }
        Ok(drain)
    }

    /// Clients connected to an export now: each is an opener of its device. 0 for unknown names.
    pub fn connections(&self, name: &str) -> usize {
        self.registry.connections(name)
    }

    /// Names of all exports, sorted.
    pub fn exports(&self) -> Vec<String> {
        self.registry.names()
    }

    /// The TCP address in use, with the port that was picked.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp_addr
    }

    /// Makes way for a successor on the same sockets: takes no more clients, so that they wait for it, and gives those in the
    /// handshake up to `patience` to end it. Clients connect again when they lose a connection, but not when they never had one.
    pub fn leave(&self, patience: Duration) {
        self.leaving.store(true, Ordering::Release);
        self.listener_waker.wake();
        let until = Instant::now() + patience;
        let is_over = |listener: &JoinHandle<()>| listener.is_finished();
        while !self.listener.as_ref().is_none_or(is_over) && Instant::now() < until {
            std::thread::sleep(LEAVE_LOOK);
        }
    }

    /// Stops: no new clients, everything in flight answered, connections closed, the socket's path removed.
    /// Waits for the devices to answer; for clients to fetch their replies only a few seconds.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(unix) = self.unix.take() {
            unix.unlink();
        }
        self.stopping.store(true, Ordering::Release);
        self.listener_waker.wake();
        for (queue, _) in &self.queues {
            queue.post(Message::Stop);
        }
        for (_, handle) in self.queues.drain(..) {
            if !handle.join() {
                tracing::error!("an NBD queue thread has panicked");
            }
        }
        self.ended.store(true, Ordering::Release);
        self.listener_waker.wake();
        if let Some(listener) = self.listener.take()
            && listener.join().is_err()
        {
            tracing::error!("the NBD listener has panicked");
        }
        self.askers.end();
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check_name(name: &str) -> Result<(), NbdServerError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(NbdServerError::NameTooLong(name.len()));
    }
    Ok(())
}

const NAME_BYTES_MAX: usize = 4096;
const LEAVE_LOOK: Duration = Duration::from_millis(1);
