//! STARTTLS, with and without client certificates, and what is refused before it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod nbd_support;

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_support::{Client, MIB, info_data};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use thinmap_block::backing::MemoryDevice;
use thinmap_exports::nbd::{NbdConfig, NbdServer, TcpConfig, TlsConfig};
use thinmap_units::Sector;

struct Party {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn server(dir: &Path, ca: &CertifiedIssuer<'static, KeyPair>) -> NbdServer {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    let server = NbdServer::start(NbdConfig {
        tcp: Some(TcpConfig {
            addr: "127.0.0.1:0".parse().unwrap(),
            tls: Some(TlsConfig {
                certificate: dir.join("cert.pem"),
                key: dir.join("key.pem"),
                client_authorities: Some(dir.join("ca.pem")),
            }),
        }),
        ..NbdConfig::default()
    })
    .unwrap();
    let device = Arc::new(MemoryDevice::new(Sector::from_bytes(40 * MIB)));
    server.add_export("disk", device, false).unwrap();
    server
}

fn client_party(ca: &CertifiedIssuer<'static, KeyPair>) -> Party {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    Party {
        chain: vec![params.signed_by(&key, ca).unwrap().der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

fn connect(server: &NbdServer) -> Client<TcpStream> {
    let stream = TcpStream::connect(server.tcp_addr().unwrap()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    Client { stream }
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

fn start_tls(
    mut client: Client<TcpStream>,
    ca: &CertifiedIssuer<'static, KeyPair>,
    party: Option<Party>,
) -> Client<Tls> {
    client.hello();
    assert_eq!(client.ask(5, &[])[0].0, 1);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match party {
        Some(party) => builder
            .with_client_auth_cert(party.chain, party.key)
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    Client {
        stream: rustls::StreamOwned::new(session, client.stream),
    }
}

#[test]
fn data_survives_the_round_trip() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), authority());
    let server = server(dir.path(), &ca);
    let mut client = start_tls(connect(&server), &ca, Some(client_party(&ca)));
    assert_eq!(client.ask(5, &[])[0].0, 0x8000_0003, "twice");
    assert_eq!(client.ask(8, &[])[0].0, 1);
    assert_eq!(client.go("disk", &[3]), 1);
    let data: Vec<u8> = (0..8 * MIB).map(|i| (i % 251) as u8).collect();
    assert_eq!(client.write(4096, &data, 0), 0);
    assert!(client.read(4096, 8 << 20).unwrap() == data);
    for i in 0..200u64 {
        client.request(3, 0, i, 0, 0);
    }
    for _ in 0..200 {
        assert_eq!(client.simple().1, 0);
    }
}

#[test]
fn nothing_is_said_before_tls() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), authority());
    let server = server(dir.path(), &ca);
    let mut client = connect(&server);
    client.hello();
    for (option, data) in [
        (3, Vec::new()),
        (8, Vec::new()),
        (7, info_data("disk", &[])),
    ] {
        assert_eq!(client.ask(option, &data)[0].0, 0x8000_0005);
    }
    client.option(1, b"disk");
    assert_eq!(client.rest(), b"");
    // Words slipped in behind STARTTLS.
    let mut client = connect(&server);
    client.hello();
    client.put(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x08\0\0\0\0");
    assert!(client.rest().len() <= 20);
}

#[test]
fn strangers_are_refused() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), authority());
    let server = server(dir.path(), &ca);
    for party in [None, Some(client_party(&authority()))] {
        let mut client = start_tls(connect(&server), &ca, party);
        let mut byte = [0];
        let refused = std::io::Write::write_all(&mut client.stream, b"IHAVEOPT\0\0\0\x03\0\0\0\0")
            .and_then(|()| client.stream.read_exact(&mut byte));
        assert!(refused.is_err());
    }
    assert_eq!(server.connections("disk"), 0);
}
