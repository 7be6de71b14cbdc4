//! The daemon's side of the control socket: a listener thread and one thread per connection.
//!
//! - Only the daemon's own user and root are served, whatever the socket's mode says.
//! - A request may block (waiting for an event); its client's death or the server's end cancels it.
//! - A panic in the service fails that request with EIO and nothing else.
//! - One server per socket: a lock beside the socket is held for the server's life, so a socket left by a killed
//!   daemon is replaced without a race.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zeroize::Zeroize;

use crate::dispatch::dispatch;
use crate::frame::{RequestFrame, ResponseFrame};
use crate::ioctl::Command;
use crate::native::{NativeRequest, NativeResponse, NativeService};
use crate::service::{CancelToken, DmError, DmService};

/// The most connections served at once; more are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// How long a peer may take over the rest of a request it has begun, or over reading an answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often who leaves looks whether commands have ended.
const LEAVE_LOOK: Duration = Duration::from_millis(2);
const LISTEN_BACKLOG: i32 = 128;

/// Everything the control socket asks of the daemon.
pub trait ControlService: DmService + NativeService {}

impl<T: DmService + NativeService> ControlService for T {}

/// The control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon has the lock.
    #[error("another daemon serves {path}", path = .0.display())]
    InUse(PathBuf),
    #[error("cannot serve control socket {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A bound control socket that does not listen yet, so that a daemon can claim its run directory before it
/// makes anything else.
pub struct Server {
    socket: OwnedFd,
    path: PathBuf,
    lock: File,
    mode_decides: bool,
}

impl Server {
    /// Claims the socket at `path` (mode 0600), replacing one that a dead daemon left.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |source: io::Error| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        let lock_path = path.with_extension("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(LOCK_MODE.as_raw_mode())
            .open(&lock_path)
            .map_err(failed)?;
        keep_private(&lock);
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(ServerError::InUse(path.to_owned())),
            Err(errno) => return Err(failed(errno.into())),
        }
        // The lock may have been removed under a living daemon.
        if is_answered(path) {
            return Err(ServerError::InUse(path.to_owned()));
        }
        let socket = bind_private(path).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            lock,
            mode_decides: false,
        })
    }

    /// Leaves it to the socket's owner and mode who may connect, instead of admitting none but root and the daemon's own user. For
    /// a socket that is given to a group.
    pub fn admit_whom_the_mode_admits(&mut self, on: bool) {
        self.mode_decides = on;
    }

    /// Goes on with a socket and the lock that [`Server::descriptors`] gave in an earlier process.
    pub fn adopt(path: &Path, socket: OwnedFd, lock: OwnedFd) -> Self {
        let lock = File::from(lock);
        keep_private(&lock);
        Self {
            socket,
            path: path.to_owned(),
            lock,
            mode_decides: false,
        }
    }

    /// The socket and the lock. Whoever holds copies keeps the run directory claimed and, once it listens, clients waiting.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.lock.as_fd()]
    }

    /// Listens and serves until [`RunningServer::stop`].
    pub fn start(self, service: Arc<dyn ControlService>) -> Result<RunningServer, ServerError> {
        let path = self.path;
        let failed = |source: io::Error| ServerError::Io {
            path: path.clone(),
            source,
        };
        rustix::net::listen(&self.socket, LISTEN_BACKLOG).map_err(|errno| failed(errno.into()))?;
        let listener = UnixListener::from(self.socket);
        let (stop_read, stop_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let shared = Arc::new(Shared {
            service,
            mode_decides: self.mode_decides,
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let listener_thread = thread::Builder::new()
            .name("control-listen".into())
            .spawn(move || accept_loop(&listener, &stop_read, &accepting))
            .map_err(failed)?;
        Ok(RunningServer {
            shared,
            listening: Mutex::new(Some(Listening {
                thread: listener_thread,
                stop_write,
            })),
            path,
            _lock: self.lock,
        })
    }
}

/// A serving control socket. Dropping it stops it and lets the next daemon claim the run directory.
pub struct RunningServer {
    shared: Arc<Shared>,
    /// Taken by the first stop.
    listening: Mutex<Option<Listening>>,
    path: PathBuf,
    _lock: File,
}

/// The listener thread and what ends it: closing the pipe.
struct Listening {
    thread: JoinHandle<()>,
    stop_write: OwnedFd,
}

impl RunningServer {
    /// Takes no more requests, cancels blocked ones, lets the others end and be answered, and removes the socket. The run
    /// directory stays claimed until `self` is dropped: a daemon drops it when it has taken everything down, and who
    /// waits for the daemon's end waits for that.
    pub fn stop(&self) {
        // The socket goes first: who comes now starts a new daemon rather than talk to a dying one.
        let threads = self.cancel_all(|| self.remove_socket());
        threads.into_iter().for_each(join);
    }

    /// As [`RunningServer::stop`], but leaves the socket to a successor that holds it, too: who comes now waits for that. Commands that
    /// have not ended after this time are left to their fate; whether there were none.
    pub fn leave(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let is_over = |thread: &JoinHandle<()>| {
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(LEAVE_LOOK);
            }
            thread.is_finished()
        };
        let threads = self.cancel_all(|| {});
        threads.iter().all(is_over)
    }

    /// Removes the socket after [`RunningServer::leave`]: no successor comes.
    pub fn remove_socket(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove control socket");
        }
    }

    fn cancel_all(&self, not_listening: impl FnOnce()) -> Vec<JoinHandle<()>> {
        let listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(listening) = listening else {
            return Vec::new();
        };
        drop(listening.stop_write);
        join(listening.thread);
        not_listening();
        let mut connections = self.shared.lock();
        connections.stopping = true;
        connections
            .open
            .values_mut()
            .filter_map(|connection| {
                // Reading ends; an answer under way still goes out.
                let _ = connection.stream.shutdown(std::net::Shutdown::Read);
                connection.cancel.cancel();
                connection.thread.take()
            })
            .collect()
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    service: Arc<dyn ControlService>,
    /// Whoever could open the socket may speak.
    mode_decides: bool,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    stopping: bool,
    open: HashMap<u64, Connection>,
}

struct Connection {
    stream: UnixStream,
    /// Cancelled when the server stops or the client goes.
    cancel: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(thread: JoinHandle<()>) {
    // A stop request is served by a connection's own thread, which cannot wait for itself.
    if thread.thread().id() != thread::current().id() && thread.join().is_err() {
        tracing::error!("a control thread panicked");
    }
}

/// Whoever may open a lock may hold it, and so keep the daemon from starting and who waits for its end waiting.
const LOCK_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Also one that was made with another mode.
fn keep_private(lock: &File) {
    if let Err(error) = rustix::fs::fchmod(lock, LOCK_MODE) {
        tracing::warn!(%error, "others may hold the run directory's lock");
    }
}

/// Whether somebody listens at a socket: also one who has no room for another client.
fn is_answered(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else {
        return false;
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    socket.is_ok_and(|socket| {
        matches!(
            rustix::net::connect(&socket, &address),
            Ok(()) | Err(Errno::AGAIN)
        )
    })
}

/// A bound stream socket that nobody but its owner can connect to, ever: the mode is set before it listens.
fn bind_private(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    Ok(socket)
}

fn accept_loop(listener: &UnixListener, stop: &OwnedFd, shared: &Arc<Shared>) {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "control socket: poll failed, no more requests are taken");
                return;
            }
        }
        let [ready, stopped] = fds;
        if !stopped.revents().is_empty() {
            return;
        }
        if ready.revents().is_empty() {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => admit(stream, shared),
            Err(error) => {
                tracing::warn!(%error, "control socket: a connection could not be taken");
                // Out of descriptors, most likely: let some close.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn admit(stream: UnixStream, shared: &Arc<Shared>) {
    let allowed = if shared.mode_decides {
        Ok(true)
    } else {
        peer_is_allowed(&stream)
    };
    match allowed {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("control socket: a client of another user was turned away");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "control socket: peer unknown");
            return;
        }
    }
    if let Err(error) = serve_in_thread(stream, shared) {
        tracing::warn!(%error, "control socket: a connection could not be served");
    }
}

fn peer_is_allowed(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn serve_in_thread(stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_write_timeout(Some(PEER_TIMEOUT))?;
    let registered = stream.try_clone()?;
    // The lock is held over the spawn, so the thread finds its own entry when it ends.
    let mut connections = shared.lock();
    if connections.stopping || connections.open.len() >= CONNECTIONS_MAX {
        return Err(io::Error::other("too many connections"));
    }
    let id = connections.next_id;
    connections.next_id += 1;
    let cancel = CancelToken::new();
    let thread = {
        let (shared, cancel) = (Arc::clone(shared), cancel.clone());
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Err(error) = serve(&stream, shared.service.as_ref(), &cancel) {
                    tracing::debug!(%error, "control connection ended");
                }
                shared.lock().open.remove(&id);
            })?
    };
    connections.open.insert(
        id,
        Connection {
            stream: registered,
            cancel,
            thread: Some(thread),
        },
    );
    Ok(())
}

/// Serves requests until the peer closes.
pub(crate) fn serve(
    stream: &UnixStream,
    service: &dyn ControlService,
    cancel: &CancelToken,
) -> io::Result<()> {
    loop {
        // A connection may idle between requests, but not inside one.
        stream.set_read_timeout(None)?;
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        stream.set_read_timeout(Some(PEER_TIMEOUT))?;
        let mut reader = stream;
        let Some(request) = RequestFrame::read(&mut reader)? else {
            return Ok(());
        };
        if asks_for_events(&request) {
            return tell_events(stream, service);
        }
        let mut response = answer(request, stream, service, cancel);
        let mut writer = stream;
        let sent = response.write(&mut writer);
        // Request and answer were in it, maybe with a key.
        response.body.zeroize();
        sent?;
    }
}

fn asks_for_events(request: &RequestFrame) -> bool {
    matches!(request, RequestFrame::Native { json }
        if serde_json::from_slice(json).is_ok_and(|r: NativeRequest| r == NativeRequest::WatchEvents))
}

/// Tells of events until the peer closes. What it sends is read and not looked at.
fn tell_events(stream: &UnixStream, service: &dyn ControlService) -> io::Result<()> {
    let body = serde_json::to_vec(&NativeResponse::Watching)?;
    let response = ResponseFrame {
        body,
        ..ResponseFrame::default()
    };
    let mut writer = stream;
    let watching =
        service.watch_events(stream.try_clone()?, &mut || response.write(&mut writer))?;
    stream.set_read_timeout(None)?;
    let mut reader = stream;
    let ended = io::copy(&mut reader, &mut io::sink()).map(drop);
    drop(watching);
    ended
}

fn answer(
    request: RequestFrame,
    stream: &UnixStream,
    service: &dyn ControlService,
    cancel: &CancelToken,
) -> ResponseFrame {
    let result = catch_unwind(AssertUnwindSafe(|| match request {
        RequestFrame::Ioctl { nr, mut buffer } => {
            let done = if nr == Command::DevWait.nr() {
                with_hangup_watch(stream, cancel, || {
                    dispatch(service, nr, &mut buffer, cancel)
                })
            } else {
                dispatch(service, nr, &mut buffer, cancel)
            };
            (buffer, done)
        }
        RequestFrame::Native { json } => match native(service, &json) {
            Ok(body) => (body, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        },
    }));
    let (body, done) = result.unwrap_or_else(|_| {
        let text = "the daemon failed inside; its log says where";
        (Vec::new(), Err(DmError::new(Errno::IO, text)))
    });
    match done {
        Ok(()) => ResponseFrame {
            errno: 0,
            text: String::new(),
            body,
        },
        Err(error) => ResponseFrame {
            errno: error.errno.unsigned_abs(),
            text: error.text,
            body,
        },
    }
}

/// Runs `work` while another thread watches for the client's end, which cancels.
fn with_hangup_watch<T>(stream: &UnixStream, cancel: &CancelToken, work: impl FnOnce() -> T) -> T {
    let Ok((done_read, done_write)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
    else {
        return work();
    };
    thread::scope(|scope| {
        let watch = move || {
            let mut fds = [
                PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP),
                PollFd::new(&done_read, PollFlags::IN),
            ];
            while let Err(Errno::INTR) = poll(&mut fds, None) {}
            let [peer, done] = fds;
            if done.revents().is_empty() && !peer.revents().is_empty() {
                cancel.cancel();
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("control-watch".into())
            .spawn_scoped(scope, watch)
        {
            tracing::warn!(%error, "a waiting client's end will not be noticed");
        }
        let result = work();
        drop(done_write);
        result
    })
}

fn native(service: &dyn ControlService, json: &[u8]) -> Result<Vec<u8>, DmError> {
    let request: NativeRequest = serde_json::from_slice(json).map_err(|error| {
        DmError::new(
            Errno::INVAL,
            format!("native request not understood: {error}"),
        )
    })?;
    let response = match request {
        NativeRequest::Ping => NativeResponse::Pong(service.daemon_info()),
        NativeRequest::Stop { force } => {
            service.stop(force)?;
            NativeResponse::Stopping
        }
        NativeRequest::Upgrade { binary } => {
            service.upgrade(&binary)?;
            NativeResponse::Upgrading
        }
        NativeRequest::Devices => NativeResponse::Devices {
            devices: service.exports()?,
        },
        NativeRequest::WatchEvents => unreachable!("served where it ends all other requests"),
        NativeRequest::OpenPath { name } => NativeResponse::OpenPath {
            device: service.exports_of(&name)?,
        },
    };
    serde_json::to_vec(&response)
        .map_err(|error| DmError::new(Errno::IO, format!("answer cannot be written: {error}")))
}
