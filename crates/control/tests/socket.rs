//! Client and server over a real socket: blocking requests, dying clients, panics, stopping, strangers' bytes.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use rustix::io::Errno;
use thinmap_control::native::{DaemonInfo, DeviceExports, NativeRequest, NativeResponse, Watching};
use thinmap_control::*;
use thinmap_units::{DevNo, DmName, DmUuid, Sector};

/// Knows one device, `d`; a wait on it lasts until it is cancelled.
#[derive(Default)]
struct One {
    this: Weak<One>,
    /// Waits and watchers.
    waiting: AtomicUsize,
    changed: (Mutex<()>, Condvar),
}

struct StopsWatching(Arc<One>);

impl Drop for StopsWatching {
    fn drop(&mut self) {
        self.0
            .note(|| _ = self.0.waiting.fetch_sub(1, Ordering::SeqCst));
    }
}

impl One {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: DmName::new("d").unwrap(),
            uuid: None,
            dev: DevNo::new(253, 0),
            open_count: 0,
            event_nr: 0,
            suspended: false,
            internally_suspended: false,
            deferred_remove: false,
            uevent: false,
            live: Some(TableInfo {
                target_count: 1,
                read_only: false,
            }),
            inactive: None,
        }
    }

    /// Blocks until `count` waits are under way.
    fn until_waiting(&self, count: usize) {
        let (lock, changed) = &self.changed;
        let mut guard = lock.lock().unwrap();
        while self.waiting.load(Ordering::SeqCst) != count {
            guard = changed.wait(guard).unwrap();
        }
    }

    fn note(&self, change: impl FnOnce()) {
        let _guard = self.changed.0.lock().unwrap();
        change();
        self.changed.1.notify_all();
    }
}

fn refused<T>() -> Result<T, DmError> {
    Err(DmError::new(Errno::OPNOTSUPP, "not in this test"))
}

impl DmService for One {
    fn remove_all(&self, _: bool) -> Result<(), DmError> {
        panic!("a fault in the service");
    }
    fn list_devices(&self) -> Result<Vec<DeviceListEntry>, DmError> {
        // More than the first buffer of a client holds.
        let entry = |number: u32| DeviceListEntry {
            name: DmName::new(&format!("device-{number:04}")).unwrap(),
            uuid: None,
            dev: DevNo::new(253, number),
            event_nr: 0,
        };
        Ok((0..2000).map(entry).collect())
    }
    fn create(
        &self,
        _: &DmName,
        _: Option<&DmUuid>,
        _: Option<u32>,
    ) -> Result<DeviceInfo, DmError> {
        Err(DmError::new(Errno::BUSY, "line one\nline two"))
    }
    fn remove(&self, _: &DeviceSelector, _: bool) -> Result<Removal, DmError> {
        refused()
    }
    fn cancel_deferred_remove(&self, _: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn rename(&self, _: &DmName, _: &DmName) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn set_uuid(&self, _: &DmName, _: &DmUuid) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn suspend(&self, _: &DeviceSelector, _: SuspendOptions) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn resume(&self, _: &DeviceSelector, _: SuspendOptions) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn status(&self, device: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        match device {
            DeviceSelector::Name(name) if name.as_str() == "d" => Ok(self.info()),
            _ => Err(DmError::no_device()),
        }
    }
    fn wait_event(
        &self,
        _: &DeviceSelector,
        _: u32,
        _: StatusQuery,
        cancel: &CancelToken,
    ) -> Result<DeviceStatus, DmError> {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let woken = Arc::clone(&gate);
        cancel.on_cancel(move || {
            *woken.0.lock().unwrap() = true;
            woken.1.notify_all();
        });
        self.note(|| {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        });
        let mut cancelled = gate.0.lock().unwrap();
        while !*cancelled {
            cancelled = gate.1.wait(cancelled).unwrap();
        }
        self.note(|| {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        });
        Err(DmError::new(Errno::INTR, ""))
    }
    fn table_load(
        &self,
        _: &DeviceSelector,
        _: Vec<TableLine>,
        _: bool,
    ) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn table_clear(&self, _: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        refused()
    }
    fn table_deps(&self, _: &DeviceSelector, _: bool) -> Result<DeviceDeps, DmError> {
        refused()
    }
    fn table_status(&self, _: &DeviceSelector, _: StatusQuery) -> Result<DeviceStatus, DmError> {
        refused()
    }
    fn target_versions(&self) -> Result<Vec<TargetVersion>, DmError> {
        Ok(vec![TargetVersion {
            name: "zero".into(),
            version: [1, 1, 0],
        }])
    }
    fn message(
        &self,
        _: &DeviceSelector,
        _: Sector,
        args: &[String],
    ) -> Result<(DeviceInfo, Option<String>), DmError> {
        Ok((self.info(), Some(args.join("|"))))
    }
    fn set_geometry(&self, _: &DeviceSelector, _: Geometry) -> Result<(), DmError> {
        Ok(())
    }
}

impl NativeService for One {
    fn daemon_info(&self) -> DaemonInfo {
        DaemonInfo {
            keeper: None,
            version: "1".into(),
            pid: 7,
            run_dir: "/r".into(),
            dev_dir: "/d".into(),
        }
    }
    fn stop(&self, force: bool) -> Result<(), DmError> {
        if force {
            Ok(())
        } else {
            Err(DmError::new(Errno::BUSY, "d is open"))
        }
    }
    /// One event, right behind the answer.
    fn watch_events(
        &self,
        mut client: UnixStream,
        begin: &mut dyn FnMut() -> std::io::Result<()>,
    ) -> std::io::Result<Watching> {
        begin()?;
        client.write_all(&[0])?;
        self.note(|| _ = self.waiting.fetch_add(1, Ordering::SeqCst));
        Ok(Box::new(StopsWatching(self.this.upgrade().unwrap())))
    }
    fn exports(&self) -> Result<Vec<DeviceExports>, DmError> {
        Ok(vec![DeviceExports {
            name: "d".into(),
            ..DeviceExports::default()
        }])
    }
}

struct Bench {
    service: Arc<One>,
    server: Option<RunningServer>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Arc::new_cyclic(|this| One {
            this: this.clone(),
            ..One::default()
        });
        let server = Server::bind(&dir.path().join("control.sock")).unwrap();
        let server = Some(server.start(service.clone()).unwrap());
        Self {
            service,
            server,
            dir,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("control.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }
}

fn status_of(name: &str) -> Request {
    let device = DeviceSelector::Name(DmName::new(name).unwrap());
    Request::Status {
        device,
        inactive: false,
    }
}

fn wait() -> Request {
    Request::Wait {
        device: DeviceSelector::Name(DmName::new("d").unwrap()),
        event_nr: 0,
        query: StatusQuery {
            kind: StatusKind::Info,
            inactive: false,
            no_flush: false,
        },
    }
}

#[test]
fn calls_answers_and_errors() {
    let bench = Bench::new();
    let mut client = bench.client();
    assert_eq!(client.interface_version().unwrap(), [4, 47, 0]);
    assert_eq!(
        client.run(&status_of("d")).unwrap(),
        Response::Device(bench.service.info())
    );
    assert_eq!(
        client.run(&status_of("x")).unwrap_err().errno(),
        Errno::NXIO.raw_os_error()
    );
    let create = Request::Create {
        name: DmName::new("n").unwrap(),
        uuid: None,
        minor: None,
    };
    let error = client.run(&create).unwrap_err();
    assert_eq!(
        (error.errno(), error.text().as_str()),
        (16, "line one\nline two")
    );
    let unknown = client.ioctl(99, status_of("d").encode(0)).unwrap_err();
    assert_eq!(unknown.errno(), Errno::NOTTY.raw_os_error());
    let versions = client
        .run(&Request::TargetVersion {
            target: "zero".into(),
        })
        .unwrap();
    assert!(matches!(versions, Response::Versions(list) if list[0].version == [1, 1, 0]));
    let missing = client
        .run(&Request::TargetVersion {
            target: "nope".into(),
        })
        .unwrap_err();
    assert_eq!(missing.errno(), Errno::INVAL.raw_os_error());
}

#[test]
fn a_newer_interface_is_refused_and_still_told_ours() {
    let bench = Bench::new();
    let mut buffer = status_of("d").encode(0);
    buffer[4..8].copy_from_slice(&99_u32.to_le_bytes());
    let error = bench.client().ioctl(7, buffer).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL.raw_os_error());
    assert!(
        error
            .text()
            .contains("ioctl interface mismatch: kernel(4.47.0), user(4.99.0), cmd(7)")
    );
}

#[test]
fn long_lists_grow_the_buffer() {
    let bench = Bench::new();
    let request = Request::ListDevices {
        name_prefix: "device-1".into(),
        uuid_prefix: String::new(),
        with_uuids: true,
    };
    let response = bench.client().run(&request).unwrap();
    assert!(matches!(response, Response::Devices(devices) if devices.len() == 1000));
}

#[test]
fn messages_are_split_by_the_kernels_rule() {
    let bench = Bench::new();
    let message = |message: &str| Request::Message {
        device: DeviceSelector::Name(DmName::new("d").unwrap()),
        sector: Sector(0),
        message: message.into(),
    };
    let answer = bench.client().run(&message(r"a  b\ c")).unwrap();
    assert!(matches!(answer, Response::Message { text: Some(text), .. } if text == "a|b c"));
    for wrong in ["", "  ", "@nosuch"] {
        let error = bench.client().run(&message(wrong)).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL.raw_os_error(), "{wrong:?}");
    }
}

#[test]
fn native_requests() {
    let bench = Bench::new();
    let mut client = bench.client();
    let pong = client.native(&NativeRequest::Ping).unwrap();
    assert!(matches!(pong, NativeResponse::Pong(info) if info.pid == 7));
    let busy = client
        .native(&NativeRequest::Stop { force: false })
        .unwrap_err();
    assert_eq!((busy.errno(), busy.text().as_str()), (16, "d is open"));
    assert_eq!(
        client.native(&NativeRequest::Stop { force: true }).unwrap(),
        NativeResponse::Stopping
    );
    let gone = client
        .native(&NativeRequest::OpenPath { name: "x".into() })
        .unwrap_err();
    assert_eq!(gone.errno(), Errno::NXIO.raw_os_error());
}

#[test]
fn events_follow_the_answer_until_the_client_goes() {
    let bench = Bench::new();
    let mut stream = bench.client().watch_events().unwrap();
    let mut event = [1];
    stream.read_exact(&mut event).unwrap();
    assert_eq!(event, [0]);
    // A program may write to the control node; the kernel would refuse it, and nobody reads it here.
    stream.write_all(b"not a request").unwrap();
    bench.service.until_waiting(1);
    drop(stream);
    bench.service.until_waiting(0);
}

#[test]
fn a_panic_fails_one_request_only() {
    let bench = Bench::new();
    let mut client = bench.client();
    let error = client
        .run(&Request::RemoveAll { deferred: false })
        .unwrap_err();
    assert_eq!(error.errno(), Errno::IO.raw_os_error());
    assert!(client.run(&status_of("d")).is_ok());
}

#[test]
fn a_dying_client_ends_its_wait() {
    let bench = Bench::new();
    let mut stream = UnixStream::connect(bench.socket()).unwrap();
    let buffer = wait().encode(0);
    stream.write_all(b"TMC1").unwrap();
    for word in [1, 8, buffer.len() as u32] {
        stream.write_all(&word.to_le_bytes()).unwrap();
    }
    stream.write_all(&buffer).unwrap();
    bench.service.until_waiting(1);
    drop(stream);
    bench.service.until_waiting(0);
}

#[test]
fn stopping_ends_waits_and_removes_the_socket() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let idle = bench.client();
    let waiting = std::thread::spawn(move || client.run(&wait()).unwrap_err().errno());
    bench.service.until_waiting(1);
    bench.server.take().unwrap().stop();
    assert_eq!(waiting.join().unwrap(), Errno::INTR.raw_os_error());
    assert!(!bench.socket().exists());
    drop(idle);
}

#[test]
fn the_socket_is_private_and_has_one_server() {
    let mut bench = Bench::new();
    let mode = std::fs::metadata(bench.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(
        Server::bind(&bench.socket()),
        Err(ServerError::InUse(_))
    ));
    let server = bench.server.take().unwrap();
    server.stop();
    assert!(matches!(
        Server::bind(&bench.socket()),
        Err(ServerError::InUse(_))
    ));
    drop(server);
    // What a killed daemon leaves is replaced.
    std::fs::write(bench.socket(), "").unwrap();
    assert!(Server::bind(&bench.socket()).is_ok());
}

#[test]
fn a_living_server_without_its_lock_is_not_replaced() {
    let bench = Bench::new();
    std::fs::remove_file(bench.socket().with_extension("lock")).unwrap();
    assert!(matches!(
        Server::bind(&bench.socket()),
        Err(ServerError::InUse(_))
    ));
    assert!(bench.client().run(&status_of("d")).is_ok());
}

#[test]
fn nobody_else_can_hold_the_lock() {
    let mut bench = Bench::new();
    let lock = bench.socket().with_extension("lock");
    let mode = || std::fs::metadata(&lock).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    drop(bench.server.take());
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o644)).unwrap();
    let server = Server::bind(&bench.socket()).unwrap();
    assert_eq!(mode(), 0o600, "also one that was there");
    drop(server);
}

#[test]
fn strangers_bytes_close_the_connection_and_nothing_else() {
    let bench = Bench::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"TMC1\x07\0\0\0\0\0\0\0\0\0\0\0",
        b"TMC1\x01\0\0\0\0\0\0\0\xff\xff\xff\xff",
    ] {
        let mut stream = UnixStream::connect(bench.socket()).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    assert!(bench.client().run(&status_of("d")).is_ok());
}
