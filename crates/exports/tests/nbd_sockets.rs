//! Sockets that a server takes over from a predecessor, while a keeper has them open too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use thinmap_exports::nbd::{NbdConfig, NbdServer, NbdServerError, NbdSockets, TcpConfig};

fn config(unix: Option<PathBuf>, tcp: Option<SocketAddr>) -> NbdConfig {
    NbdConfig {
        unix,
        tcp: tcp.map(|addr| TcpConfig { addr, tls: None }),
        queues: 1,
        ..NbdConfig::default()
    }
}

/// A predecessor's TCP socket, as the keeper holds it and as it hands it over.
fn predecessors(addr: &str) -> (OwnedFd, SocketAddr, NbdSockets) {
    let listener = TcpListener::bind(addr).unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let kept: OwnedFd = listener.into();
    let sockets = NbdSockets {
        tcp: Some(kept.try_clone().unwrap()),
        unix: None,
    };
    (kept, at, sockets)
}

fn is_served(mut stream: impl Read) -> bool {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).is_ok() && greeting.starts_with(b"NBDMAGIC")
}

#[test]
fn a_socket_that_listens_elsewhere_is_closed_and_made_anew() {
    let (_kept, everywhere, mut sockets) = predecessors("0.0.0.0:0");
    let loopback = SocketAddr::from(([127, 0, 0, 1], everywhere.port()));
    let config = config(None, Some(loopback));
    sockets.open_missing(&config).unwrap();
    let server = NbdServer::serve(config, sockets, Vec::new()).unwrap();
    assert_eq!(server.tcp_addr(), Some(loopback));
    assert!(is_served(TcpStream::connect(loopback).unwrap()));
    // An address of this host that 0.0.0.0 has and 127.0.0.1 has not.
    let other = SocketAddr::from(([127, 0, 0, 2], everywhere.port()));
    assert!(TcpStream::connect(other).is_err());
}

#[test]
fn a_socket_where_the_configuration_wants_it_is_taken_over() {
    let (kept, at, mut sockets) = predecessors("127.0.0.1:0");
    let waiting = TcpStream::connect(at).unwrap();
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = config(None, Some(any_port));
    sockets.open_missing(&config).unwrap();
    drop(kept);
    let server = NbdServer::serve(config, sockets, Vec::new()).unwrap();
    assert_eq!(server.tcp_addr(), Some(at));
    assert!(is_served(waiting), "who came before it served is served");
}

#[test]
fn a_socket_that_is_not_configured_any_more_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let mut unix = NbdSockets::open(&config(Some(path.clone()), None)).unwrap();
    let _kept = unix.unix.as_ref().unwrap().try_clone().unwrap();
    let (_kept_too, at, mut sockets) = predecessors("127.0.0.1:0");
    sockets.unix = unix.unix.take();
    sockets.open_missing(&config(None, None)).unwrap();
    assert!(sockets.tcp.is_none() && sockets.unix.is_none());
    assert!(TcpStream::connect(at).is_err());
    assert!(!path.exists());
}

#[test]
fn a_taken_over_socket_beyond_loopback_needs_tls_too() {
    let (_kept, everywhere, mut sockets) = predecessors("0.0.0.0:0");
    let is_refused = |error| matches!(error, NbdServerError::TlsRequired(_));
    let wanted = config(None, Some(everywhere));
    assert!(is_refused(sockets.open_missing(&wanted).err().unwrap()));
    let (_kept, everywhere, sockets) = predecessors("0.0.0.0:0");
    let loopback = SocketAddr::from(([127, 0, 0, 1], everywhere.port()));
    let wanted = config(None, Some(loopback));
    let served = NbdServer::serve(wanted, sockets, Vec::new());
    assert!(is_refused(served.err().unwrap()));
}

#[test]
fn a_socket_whose_path_has_gone_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let config = config(Some(path.clone()), None);
    let mut sockets = NbdSockets::open(&config).unwrap();
    let _kept = sockets.unix.as_ref().unwrap().try_clone().unwrap();
    std::fs::remove_file(&path).unwrap();
    sockets.open_missing(&config).unwrap();
    let _server = NbdServer::serve(config.clone(), sockets, Vec::new()).unwrap();
    assert!(is_served(UnixStream::connect(&path).unwrap()));
}

#[test]
fn a_path_that_goes_after_it_was_opened_costs_the_other_ways_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let config = config(
        Some(path.clone()),
        Some(SocketAddr::from(([127, 0, 0, 1], 0))),
    );
    let sockets = NbdSockets::open(&config).unwrap();
    std::fs::remove_file(&path).unwrap();
    let server = NbdServer::serve(config, sockets, Vec::new()).unwrap();
    let stream = TcpStream::connect(server.tcp_addr().unwrap()).unwrap();
    assert!(is_served(stream));
}
