//! A client made of raw bytes, and a device that a test holds in its hand.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses its own part of this"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Extent, Io, Op, QueueLimits};
use thinmap_exports::nbd::{NbdConfig, NbdServer};
use thinmap_units::{BlkStatus, Sector};

pub const MIB: u64 = 1 << 20;

/// A server on a socket in a fresh directory.
pub struct Fixture {
    pub server: Option<NbdServer>,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new(change: impl FnOnce(&mut NbdConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let mut config = NbdConfig {
            unix: Some(socket.clone()),
            queues: 2,
            ..NbdConfig::default()
        };
        change(&mut config);
        Self {
            server: Some(NbdServer::start(config).unwrap()),
            socket,
            _dir: dir,
        }
    }

    /// With a memory device of `mib` as export "disk".
    pub fn with_disk(mib: u64) -> Self {
        let fixture = Self::new(|_| {});
        let device = Arc::new(MemoryDevice::new(Sector::from_bytes(mib * MIB)));
        fixture.server().add_export("disk", device, false).unwrap();
        fixture
    }

    pub fn server(&self) -> &NbdServer {
        self.server.as_ref().unwrap()
    }

    pub fn connect(&self) -> Client {
        Client::new(UnixStream::connect(&self.socket).unwrap())
    }

    /// Connected to an export, with structured replies.
    pub fn open(&self, name: &str) -> Client {
        let mut client = self.connect();
        client.hello();
        client.option(8, &[]);
        assert_eq!(client.option_reply().1, 1);
        assert_eq!(client.go(name, &[]), 1, "GO {name}");
        client
    }
}

/// Waits for something that must happen; only a failing test takes the whole time.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client of raw bytes.
pub struct Client<S = UnixStream> {
    pub stream: S,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self { stream }
    }
}

impl<S: Read + Write> Client<S> {
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The server has closed; what was sent before is read and returned.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server has not closed: {error}"),
        }
        rest
    }

    /// Reads the greeting and answers it.
    pub fn hello(&mut self) {
        assert_eq!(self.bytes(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.u16(), 3);
        self.put(&3u32.to_be_bytes());
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        self.put(&bytes);
    }

    /// Option, type and data of a reply.
    pub fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        let (option, kind, len) = (self.u32(), self.u32(), self.u32());
        (option, kind, self.bytes(len as usize))
    }

    /// All replies to one option, the last of which is an ACK or an error.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.option(option, data);
        let mut replies = Vec::new();
        loop {
            let (answered, kind, data) = self.option_reply();
            assert_eq!(answered, option);
            replies.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// The type of the last reply.
    pub fn go(&mut self, name: &str, infos: &[u16]) -> u32 {
        self.ask(7, &info_data(name, infos)).last().unwrap().0
    }

    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.put(&request(command, flags, cookie, offset, len));
    }

    /// Cookie and error of a simple reply (without data).
    pub fn simple(&mut self) -> (u64, u32) {
        assert_eq!(self.u32(), 0x6744_6698);
        let error = self.u32();
        (self.u64(), error)
    }

    /// Flags, type, cookie and payload of a chunk.
    pub fn chunk(&mut self) -> (u16, u16, u64, Vec<u8>) {
        assert_eq!(self.u32(), 0x668e_33ef);
        let (flags, kind, cookie, len) = (self.u16(), self.u16(), self.u64(), self.u32());
        (flags, kind, cookie, self.bytes(len as usize))
    }

    /// Error of a request that has a simple reply.
    pub fn status_of(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u32 {
        self.request(command, flags, 77, offset, len);
        let (cookie, error) = self.simple();
        assert_eq!(cookie, 77);
        error
    }

    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> u32 {
        let mut bytes = request(1, flags, 5, offset, u32::try_from(data.len()).unwrap());
        bytes.extend(data);
        self.put(&bytes);
        let (cookie, error) = self.simple();
        assert_eq!(cookie, 5);
        error
    }

    /// A read with structured replies: the data or the error.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.request(0, 0, 9, offset, len);
        let (flags, kind, cookie, payload) = self.chunk();
        assert_eq!((flags, cookie), (1, 9));
        match kind {
            1 => {
                assert_eq!(payload[..8], offset.to_be_bytes());
                assert_eq!(payload.len(), 8 + len as usize);
                Ok(payload[8..].to_vec())
            }
            0x8001 => Err(u32::from_be_bytes(payload[..4].try_into().unwrap())),
            other => panic!("chunk type {other}"),
        }
    }
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

pub fn counted(bytes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

pub fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    for info in infos {
        data.extend(info.to_be_bytes());
    }
    data
}

pub fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(counted(query.as_bytes()));
    }
    data
}

/// A memory device that holds requests back, fails them, and says what came.
pub struct HandDevice {
    pub memory: MemoryDevice,
    pub limits: Mutex<QueueLimits>,
    /// While set, requests wait in `held`.
    pub hold: Mutex<bool>,
    pub held: Mutex<Vec<Io>>,
    /// Answer to every request instead of doing it.
    pub fail: Mutex<Option<BlkStatus>>,
    pub seen: Mutex<Vec<(Op, u64, u64, bool, bool)>>,
    pub extents: Mutex<Vec<Extent>>,
}

impl HandDevice {
    pub fn new(bytes: u64) -> Arc<Self> {
        let memory = MemoryDevice::new(Sector::from_bytes(bytes));
        Arc::new(Self {
            limits: Mutex::new(memory.limits()),
            memory,
            hold: Mutex::new(false),
            held: Mutex::default(),
            fail: Mutex::new(None),
            seen: Mutex::default(),
            extents: Mutex::default(),
        })
    }

    /// Lets go what is held, last first, from the calling thread.
    pub fn release_backwards(&self) {
        *self.hold.lock() = false;
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter().rev().for_each(|io| self.submit(io));
    }

    pub fn held(&self) -> usize {
        self.held.lock().len()
    }
}

impl BlockDevice for HandDevice {
    fn limits(&self) -> QueueLimits {
        *self.limits.lock()
    }

    fn size(&self) -> Sector {
        self.memory.size()
    }

    fn submit(&self, io: Io) {
        if *self.hold.lock() {
            return self.held.lock().push(io);
        }
        self.seen.lock().push((
            io.op,
            io.sector.0,
            io.sectors.0,
            io.flags.fua,
            io.flags.no_unmap,
        ));
        let fail = *self.fail.lock();
        match fail {
            Some(status) => io.complete(status),
            None => self.memory.submit(io),
        }
    }

    fn extents(&self, _: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let _ = len;
        out.extend(self.extents.lock().iter().copied());
        Ok(())
    }
}
