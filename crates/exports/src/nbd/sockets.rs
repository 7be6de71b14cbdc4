//! The sockets on which a server listens: made for a configuration, or taken over from a predecessor.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::listener::Door;
use super::server::{NbdConfig, NbdServerError, TcpConfig};
use super::tls;

/// The sockets on which a server listens. Clients that connect before one serves them wait.
#[derive(Default)]
pub struct NbdSockets {
    /// The Unix socket.
    pub unix: Option<OwnedFd>,
    /// The TCP socket.
    pub tcp: Option<OwnedFd>,
}

impl NbdSockets {
    /// Opens what a configuration asks for.
    pub fn open(config: &NbdConfig) -> Result<Self, NbdServerError> {
        let mut sockets = Self::default();
        sockets.open_missing(config)?;
        Ok(sockets)
    }

    /// Closes what a configuration does not ask for, in whatever process it is open; then opens what it asks for and is not here.
    pub fn open_missing(&mut self, config: &NbdConfig) -> Result<(), NbdServerError> {
        let (tcp, unix) = (config.tcp.as_ref(), config.unix.as_ref());
        if let Some(socket) = self.tcp.take_if(|socket| !listens_at(socket, tcp)) {
            stop_listening(&socket);
        }
        if let Some(socket) = self
            .unix
            .take_if(|_| !unix.is_some_and(|path| is_socket(path)))
        {
            stop_listening(&socket);
            remove_path_of(&socket);
        }
        if let Some(tcp) = tcp {
            check_reach(&tcp.addr, tcp)?;
            if self.tcp.is_none() {
                self.tcp = Some(tcp_socket(tcp)?);
            }
        }
        if let (Some(path), None) = (unix, &self.unix) {
            self.unix = Some(unix_socket(path)?);
        }
        Ok(())
    }
}

/// Whether a socket listens where this configuration wants it; port 0 is any.
fn listens_at(socket: &OwnedFd, config: Option<&TcpConfig>) -> bool {
    let (Some(config), Ok(addr)) = (config, local_addr(socket)) else {
        return false;
    };
    addr == config.addr || (config.addr.port() == 0 && addr.ip() == config.addr.ip())
}

fn local_addr(socket: &OwnedFd) -> std::io::Result<SocketAddr> {
    Ok(rustix::net::getsockname(socket)?.try_into()?)
}

/// A keeper has the same socket open: closing ours would leave clients waiting there, and the port taken.
fn stop_listening(socket: &OwnedFd) {
    if let Err(error) = rustix::net::shutdown(socket, Shutdown::Both) {
        tracing::warn!(%error, "NBD: a socket that the configuration does not name any more is still open");
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Removes the path of a socket that does not listen any more, unless another one does there.
fn remove_path_of(socket: &OwnedFd) {
    let address = rustix::net::getsockname(socket).and_then(SocketAddrUnix::try_from);
    if let Ok(address) = address
        && let Some(path) = address.path_bytes()
    {
        let _ = clear_path(Path::new(std::ffi::OsStr::from_bytes(path)));
    }
}

/// Nobody but this host's programs may reach the devices in clear.
fn check_reach(addr: &SocketAddr, config: &TcpConfig) -> Result<(), NbdServerError> {
    if config.tls.is_none() && !addr.ip().is_loopback() {
        return Err(NbdServerError::TlsRequired(*addr));
    }
    Ok(())
}

fn tcp_socket(config: &TcpConfig) -> Result<OwnedFd, NbdServerError> {
    let failed = |source| NbdServerError::Listen {
        address: config.addr.to_string(),
        source,
    };
    if let Some(tls) = &config.tls {
        // What is wrong with the files is told before anybody can connect.
        tls::load(tls)?;
    }
    let socket = TcpListener::bind(config.addr).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

/// A TCP socket to be served, which need not be one that was opened for this configuration.
pub(super) fn tcp_door(
    config: &TcpConfig,
    socket: OwnedFd,
) -> Result<(Door, SocketAddr), NbdServerError> {
    let tls = config.tls.as_ref().map(tls::load).transpose()?;
    let socket = TcpListener::from(socket);
    let addr = socket
        .local_addr()
        .map_err(|source| NbdServerError::Listen {
            address: config.addr.to_string(),
            source,
        })?;
    check_reach(&addr, config)?;
    let anybody = config
        .tls
        .as_ref()
        .is_some_and(|tls| tls.client_authorities.is_none());
    if anybody && !addr.ip().is_loopback() {
        tracing::warn!(%addr, "NBD: without client authorities whoever reaches this address may write");
    }
    let socket = socket.into();
    Ok((Door { socket, tls }, addr))
}

fn listen_error(path: &Path, source: std::io::Error) -> NbdServerError {
    NbdServerError::Listen {
        address: path.display().to_string(),
        source,
    }
}

fn unix_socket(path: &Path) -> Result<OwnedFd, NbdServerError> {
    let failed = |source: std::io::Error| listen_error(path, source);
    clear_path(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed(error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| failed(error.into()))?;
    // Nobody can connect before `listen`, so there is no moment at which the socket is open to others.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(socket)
}

/// Removes the socket of a server that is gone.
fn clear_path(path: &Path) -> Result<(), NbdServerError> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(NbdServerError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        _ => Err(NbdServerError::SocketInUse(path.to_owned())),
    }
}

/// A path we have bound, with what tells it from a successor's.
pub(super) struct BoundPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl BoundPath {
    /// `None` when it is gone: nobody can connect there, but others have other ways.
    pub fn new(path: &Path) -> Option<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) => Some(Self {
                path: path.to_owned(),
                identity: (found.dev(), found.ino()),
            }),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "nobody can connect to the NBD socket");
                None
            }
        }
    }

    /// Removes it, if it is still what was bound.
    pub fn unlink(self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "NBD socket not removed");
        }
    }
}

const BACKLOG: i32 = 128;
