//! Clients that come, go, die, stall and lie; exports that appear, grow and vanish under them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod nbd_support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbd_support::{Client, Fixture, HandDevice, MIB, eventually, request};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::{FileDevice, MemoryDevice, OpenMode};
use thinmap_block::{BlockDevice, Io, QueueLimits};
use thinmap_exports::nbd::{
    NbdConfig, NbdExport, NbdServer, NbdServerError, NbdSockets, TcpConfig,
};
use thinmap_units::Sector;

#[test]
fn requests_completed_out_of_order_from_another_thread() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    device.memory.grow(Sector(4096));
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    let mut client = fixture.open("disk");
    *device.hold.lock() = true;
    for i in 0..50u64 {
        let mut bytes = request(1, 0, i, i * 4096, 4096);
        bytes.extend([i as u8; 4096]);
        client.put(&bytes);
    }
    eventually("all are at the device", || device.held() == 50);
    device.release_backwards();
    let mut cookies: Vec<u64> = (0..50).map(|_| client.simple().0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..50).collect::<Vec<_>>());
    for i in 0..50u64 {
        assert_eq!(client.read(i * 4096, 4096).unwrap(), [i as u8; 4096]);
    }
}

#[test]
fn a_removed_export_answers_what_is_in_flight_and_closes() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    let other = HandDevice::new(MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    fixture.server().add_export("other", other, false).unwrap();
    let mut client = fixture.open("disk");
    let mut bystander = fixture.open("other");
    assert_eq!(fixture.server().connections("disk"), 1);
    *device.hold.lock() = true;
    client.request(3, 0, 1, 0, 0);
    client.request(0, 0, 2, 0, 4096);
    eventually("both are at the device", || device.held() == 2);
    let drain = fixture.server().remove_export("disk").unwrap();
    assert!(matches!(
        fixture.server().remove_export("disk"),
        Err(NbdServerError::NoExport(_))
    ));
    assert!(!drain.is_drained());
    // Not in flight when the end came: no answer is due.
    client.request(3, 0, 3, 0, 0);
    device.release_backwards();
    assert_eq!(client.chunk().2, 2);
    assert_eq!(client.simple(), (1, 0));
    assert_eq!(client.rest(), b"");
    eventually("drained", || drain.is_drained());
    drop(drain);
    eventually("the device is let go", || Arc::strong_count(&device) == 1);
    assert_eq!(bystander.read(0, 512).unwrap(), [0; 512]);
    // The name is free again.
    fixture.server().add_export("disk", device, false).unwrap();
    fixture.open("disk");
}

#[test]
fn removal_under_load_from_many_clients() {
    let fixture = Fixture::with_disk(4);
    let ends: Vec<_> = (0..16)
        .map(|n| {
            let mut client = fixture.open("disk");
            std::thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(n);
                let mut sent = 0u64;
                loop {
                    let offset = rng.random_range(0..1000) * 4096;
                    let mut bytes = request(rng.random_range(0..2), 0, sent, offset, 4096);
                    if bytes[7] == 1 {
                        bytes.extend([n as u8; 4096]);
                    }
                    let mut sink = [0; 16 << 10];
                    if client.stream.write_all(&bytes).is_err()
                        || !matches!(client.stream.read(&mut sink), Ok(1..))
                    {
                        return sent;
                    }
                    sent += 1;
                }
            })
        })
        .collect();
    eventually("all are connected", || {
        fixture.server().connections("disk") == 16
    });
    let drain = fixture.server().remove_export("disk").unwrap();
    eventually("drained", || drain.is_drained());
    for end in ends {
        end.join().unwrap();
    }
}

#[test]
fn names_sizes_and_openers() {
    let fixture = Fixture::new(|_| {});
    let server = fixture.server();
    let device = Arc::new(MemoryDevice::new(Sector(8)));
    server.add_export("a", device.clone(), false).unwrap();
    let taken = server.add_export("a", device.clone(), false);
    assert!(matches!(taken, Err(NbdServerError::ExportExists(_))));
    assert!(
        server
            .add_export(&"x".repeat(5000), device.clone(), false)
            .is_err()
    );
    let mut old = fixture.open("a");
    server.rename_export("a", "b").unwrap();
    assert!(matches!(
        server.rename_export("a", "c"),
        Err(NbdServerError::NoExport(_))
    ));
    assert_eq!((server.connections("a"), server.connections("b")), (0, 1));
    assert_eq!(server.exports(), ["b"]);
    device.grow(Sector(16));
    assert_eq!(old.read(4096, 512), Err(22), "told 4096 bytes when it came");
    let mut new = fixture.open("b");
    assert_eq!(new.read(4096, 512).unwrap(), [0; 512]);
    drop((old, new));
    eventually("both have gone", || server.connections("b") == 0);
}

#[test]
fn a_client_that_dies_mid_write_changes_nothing() {
    let fixture = Fixture::with_disk(1);
    let mut client = fixture.open("disk");
    client.put(&request(1, 0, 1, 0, 8192));
    client.put(&[9; 5000]);
    drop(client);
    eventually("it is gone", || fixture.server().connections("disk") == 0);
    assert_eq!(fixture.open("disk").read(0, 8192).unwrap(), [0; 8192]);
}

#[test]
fn a_client_that_dies_with_requests_at_the_device_is_kept_until_they_return() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    *device.hold.lock() = true;
    let mut client = fixture.open("disk");
    client.request(0, 0, 2, 0, 65536);
    eventually("at the device", || device.held() == 1);
    drop(client);
    // A second client's round trip shows that the queues have turned meanwhile.
    let mut other = fixture.open("disk");
    other.request(5, 0, 1, 0, 0);
    assert_eq!(other.simple(), (1, 22));
    assert_eq!(fixture.server().connections("disk"), 2);
    device.release_backwards();
    eventually("gone", || fixture.server().connections("disk") == 1);
}

#[test]
fn a_client_that_takes_no_replies_is_not_read_for_ever() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(4 * MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    let mut client = fixture.open("disk");
    *device.hold.lock() = true;
    // In one write each: many small ones would fill the socket, and the test would wait for itself.
    let reads: Vec<u8> = (0..300)
        .flat_map(|i| request(0, 0, i, 0, 1 << 20))
        .collect();
    client.put(&reads);
    // 32 MiB in flight, and not one request more.
    eventually("the limit is reached", || device.held() == 32);
    let mut small = fixture.open("disk");
    let flushes: Vec<u8> = (0..1000).flat_map(|i| request(3, 0, i, 0, 0)).collect();
    small.put(&flushes);
    eventually("the limit is reached", || device.held() == 32 + 256);
    device.release_backwards();
    for _ in 0..300 {
        assert_eq!(client.chunk().3.len(), 8 + (1 << 20));
    }
    for _ in 0..1000 {
        small.simple();
    }
}

#[test]
fn a_client_that_never_takes_its_replies_does_not_stop_a_removal() {
    let fixture = Fixture::new(|_| {});
    let device = HandDevice::new(4 * MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    let mut client = fixture.open("disk");
    for i in 0..32 {
        client.request(0, 0, i, 0, 1 << 20);
    }
    // Far more than the socket holds: most replies wait in the server.
    eventually("all are answered by the device", || {
        device.seen.lock().len() == 32
    });
    let drain = fixture.server().remove_export("disk").unwrap();
    eventually("cut off after the grace", || drain.is_drained());
}

#[test]
fn largest_requests_pass() {
    let fixture = Fixture::with_disk(40);
    let mut client = fixture.open("disk");
    let mut data = vec![0; 32 << 20];
    SmallRng::seed_from_u64(1).fill(&mut data[..]);
    assert_eq!(client.write(512, &data, 0), 0);
    assert!(client.read(512, 32 << 20).unwrap() == data);
}

#[test]
fn silence_and_crowds_are_turned_away() {
    let fixture = Fixture::new(|config| {
        config.connections_max = 3;
        config.handshake_timeout = Duration::from_millis(300);
    });
    let device = Arc::new(MemoryDevice::new(Sector(8)));
    fixture.server().add_export("disk", device, false).unwrap();
    let mut silent = fixture.connect();
    assert_eq!(silent.rest().len(), 18, "the greeting, then the end");
    let mut clients: Vec<_> = (0..3).map(|_| fixture.open("disk")).collect();
    assert_eq!(fixture.connect().rest(), b"", "one too many");
    assert_eq!(clients[2].read(0, 512).unwrap(), [0; 512]);
    clients.pop();
    eventually("a place is free", || {
        fixture.server().connections("disk") == 2
    });
    assert_eq!(fixture.open("disk").read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn random_bytes_at_every_stage_hurt_only_their_sender() {
    let fixture = Fixture::with_disk(1);
    let mut honest = fixture.open("disk");
    for seed in 0..300u64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut stream = match seed % 3 {
            0 => fixture.connect().stream,
            1 => {
                let mut client = fixture.connect();
                client.hello();
                for _ in 0..8 {
                    let mut data = vec![0; rng.random_range(0..40)];
                    rng.fill(&mut data[..]);
                    // Never ABORT, GO or EXPORT_NAME by chance: the stage would be left.
                    client.option(rng.random_range(8..14), &data);
                }
                client.stream
            }
            _ => {
                let mut client = fixture.open("disk");
                for _ in 0..20 {
                    let mut bytes = request(
                        rng.random_range(0..9),
                        rng.random_range(0..32),
                        rng.random(),
                        rng.random::<u64>() >> rng.random_range(0..64),
                        rng.random::<u32>() >> rng.random_range(0..32),
                    );
                    // Not a write of random length: most of it would be payload.
                    bytes[7] &= !1;
                    let _ = client.stream.write_all(&bytes);
                }
                client.stream
            }
        };
        let mut noise = vec![0; rng.random_range(1..4096)];
        rng.fill(&mut noise[..]);
        let _ = stream.write_all(&noise);
        drop(stream);
        assert!(honest.read(0, 512).is_ok(), "seed {seed}");
    }
    eventually("only the honest one is left", || {
        fixture.server().connections("disk") == 1
    });
}

struct Panicking;

impl BlockDevice for Panicking {
    fn limits(&self) -> QueueLimits {
        QueueLimits::STACKING
    }

    fn size(&self) -> Sector {
        Sector(8)
    }

    fn submit(&self, _io: Io) {
        panic!("a bug in a device");
    }
}

#[test]
fn a_device_that_panics_fails_its_request_only() {
    let fixture = Fixture::with_disk(1);
    fixture
        .server()
        .add_export("bad", Arc::new(Panicking), false)
        .unwrap();
    let mut clients: Vec<_> = (0..4).map(|_| fixture.open("disk")).collect();
    assert_eq!(fixture.open("bad").read(0, 512), Err(5));
    for client in &mut clients {
        assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
    }
}

#[test]
fn a_file_serves_many_clients_at_once() {
    let file = tempfile::NamedTempFile::new_in(".").unwrap();
    file.as_file().set_len(16 * MIB).unwrap();
    let mode = OpenMode {
        read_only: false,
        exclusive: false,
    };
    let device = FileDevice::open(file.path(), mode).unwrap();
    let fixture = Fixture::new(|_| {});
    fixture
        .server()
        .add_export("file", Arc::new(device), false)
        .unwrap();
    std::thread::scope(|scope| {
        for n in 0..32u64 {
            let mut client = fixture.open("file");
            scope.spawn(move || {
                for round in 0..20u64 {
                    let at = n * 256 * 1024 + round * 8192;
                    assert_eq!(
                        client.write(at, &[(n + round) as u8; 8192], (round % 2) as u16),
                        0
                    );
                    assert_eq!(client.read(at, 8192).unwrap(), [(n + round) as u8; 8192]);
                }
                assert_eq!(client.status_of(3, 0, 0, 0), 0);
            });
        }
    });
}

#[test]
fn the_socket_is_private_replaced_when_dead_and_removed_at_the_end() {
    let mut fixture = Fixture::with_disk(1);
    let path = fixture.socket.clone();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = || NbdConfig {
        unix: Some(path.clone()),
        ..NbdConfig::default()
    };
    assert!(matches!(
        NbdServer::start(config()),
        Err(NbdServerError::SocketInUse(_))
    ));
    let mut client = fixture.open("disk");
    client.request(3, 0, 1, 0, 0);
    assert_eq!(client.simple(), (1, 0));
    fixture.server.take().unwrap().shutdown();
    assert_eq!(client.rest(), b"");
    assert!(!path.exists());
    // What a killed server leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(NbdServer::start(config()).unwrap());
    std::fs::write(&path, "not a socket").unwrap();
    assert!(matches!(
        NbdServer::start(config()),
        Err(NbdServerError::NotASocket(_))
    ));
}

#[test]
fn shutdown_waits_for_the_device() {
    let mut fixture = Fixture::new(|_| {});
    let device = HandDevice::new(MIB);
    fixture
        .server()
        .add_export("disk", device.clone(), false)
        .unwrap();
    *device.hold.lock() = true;
    let mut client = fixture.open("disk");
    client.request(0, 0, 2, 0, 512);
    eventually("at the device", || device.held() == 1);
    let server = fixture.server.take().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let done = done.clone();
        move || {
            server.shutdown();
            done.store(true, Ordering::Release);
        }
    });
    eventually("new clients are refused", || {
        UnixStream::connect(&fixture.socket).is_err()
    });
    assert!(!done.load(Ordering::Acquire));
    device.release_backwards();
    assert_eq!(client.chunk().2, 2);
    assert_eq!(client.rest(), b"");
    thread.join().unwrap();
}

#[test]
fn tcp_beyond_loopback_needs_tls() {
    let config = |addr: &str| NbdConfig {
        tcp: Some(TcpConfig {
            addr: addr.parse().unwrap(),
            tls: None,
        }),
        ..NbdConfig::default()
    };
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
        let error = NbdServer::start(config(addr)).err().unwrap();
        assert!(matches!(error, NbdServerError::TlsRequired(_)));
        assert!(error.to_string().contains("only with TLS"));
    }
    let server = NbdServer::start(config("127.0.0.1:0")).unwrap();
    let mut stream = std::net::TcpStream::connect(server.tcp_addr().unwrap()).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..8], *b"NBDMAGIC");
}

#[test]
fn a_server_that_makes_way_ends_handshakes_and_leaves_who_comes_then_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    let config = NbdConfig {
        unix: Some(path.clone()),
        ..NbdConfig::default()
    };
    let sockets = NbdSockets::open(&config).unwrap();
    let kept = NbdSockets {
        unix: Some(sockets.unix.as_ref().unwrap().try_clone().unwrap()),
        tcp: None,
    };
    let serve = |sockets| {
        let export = NbdExport {
            name: "disk".to_owned(),
            device: Arc::new(MemoryDevice::new(Sector(8))),
            read_only: false,
        };
        NbdServer::serve(config.clone(), sockets, vec![export]).unwrap()
    };
    let first = serve(sockets);
    let mut early = Client::new(UnixStream::connect(&path).unwrap());
    early.hello();
    first.leave(Duration::ZERO);
    assert_eq!(early.go("disk", &[]), 1);
    // Its last handshake has ended, so it has, too.
    first.leave(Duration::from_secs(60));
    let mut late = Client::new(UnixStream::connect(&path).unwrap());
    let _second = serve(kept);
    late.hello();
    assert_eq!(late.go("disk", &[]), 1);
}
