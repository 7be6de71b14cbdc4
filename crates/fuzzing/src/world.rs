//! Devices for hostile tables and metadata: memory that asserts that no request reaches beyond its end, found by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, QueueLimits, out_of_range};
use thinmap_dm::{
    DeviceId, DeviceName, DeviceOpener, DeviceUse, Environment, MappedDevice, OpenDevice,
    OpenDeviceError, Registry, SharedState,
};
use thinmap_runtime::{Spawner, ThreadSpawner};
use thinmap_units::{DevNo, DmName, Sector};

/// A device in memory. A request beyond its end is a finding: whoever sends it has not checked what it was told.
pub struct Fenced {
    memory: MemoryDevice,
    refuses: bool,
}

impl Fenced {
    /// A zeroed device.
    pub fn new(size: Sector) -> Arc<Self> {
        Self::with(size, false)
    }

    /// One that refuses such a request, as devices do, for tables of which a kernel does not check the length either.
    pub fn refusing(size: Sector) -> Arc<Self> {
        Self::with(size, true)
    }

    fn with(size: Sector, refuses: bool) -> Arc<Self> {
        let memory = MemoryDevice::new(size);
        Arc::new(Self { memory, refuses })
    }
}

impl BlockDevice for Fenced {
    fn limits(&self) -> QueueLimits {
        self.memory.limits()
    }

    fn size(&self) -> Sector {
        self.memory.size()
    }

    fn submit(&self, io: Io) {
        assert!(
            self.refuses || !out_of_range(&io, self.size()),
            "{:?} of {} sectors at {}: beyond the device's {} sectors",
            io.op,
            io.sectors,
            io.sector,
            self.size()
        );
        self.memory.submit(io);
    }
}

/// Named devices: plain ones are `7:n` too, mapped ones `253:n`.
#[derive(Default)]
pub struct World {
    plain: Mutex<HashMap<String, (DevNo, Arc<dyn BlockDevice>)>>,
    mapped: Mutex<HashMap<String, Arc<MappedDevice>>>,
}

impl World {
    /// A world without devices.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Puts a plain device in, as `name` and as the next `7:n`.
    pub fn add(&self, name: &str, device: Arc<dyn BlockDevice>) {
        let mut plain = self.plain.lock();
        let dev_no = DevNo::new(7, u32::try_from(plain.len() / 2).unwrap_or(u32::MAX));
        plain.insert(name.to_owned(), (dev_no, device.clone()));
        plain.insert(dev_no.to_string(), (dev_no, device));
    }

    /// Takes all plain devices out.
    pub fn clear(&self) {
        self.plain.lock().clear();
    }

    /// Lets go of all devices, which would hold their world for ever.
    pub fn end(&self) {
        self.clear();
        self.mapped.lock().clear();
    }

    /// What mapped devices of this world live in.
    pub fn environment(self: &Arc<Self>) -> Arc<Environment> {
        let spawner = Arc::new(ThreadSpawner::new());
        Arc::new(Environment {
            opener: self.clone(),
            clock: spawner.clock(),
            spawner,
            freezer: None,
            shared: SharedState::default(),
        })
    }

    /// A mapped device without a table.
    pub fn device(&self, env: &Arc<Environment>, name: &str) -> Arc<MappedDevice> {
        let mut mapped = self.mapped.lock();
        let minor = u32::try_from(mapped.len()).unwrap_or(u32::MAX);
        let device = MappedDevice::new(
            env.clone(),
            Registry::new(thinmap_targets::ALL),
            DevNo::new(253, minor),
            DmName::new(name).expect("a name of our own"),
            None,
        );
        mapped.insert(name.to_owned(), device.clone());
        device
    }
}

impl DeviceOpener for World {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let found = self.plain.lock().get(request.spec).cloned();
        if let Some((dev_no, dev)) = found {
            return Ok(DeviceUse {
                dev,
                id: DeviceId::Block(dev_no),
                name: DeviceName::Number(dev_no),
                read_only: request.read_only,
                claim: Arc::new(()),
            });
        }
        let mapped = self.mapped.lock();
        // By name, and by number as tables tell it.
        let by_number = |device: &&Arc<MappedDevice>| device.dev_no().to_string() == request.spec;
        let found = mapped
            .get(request.spec)
            .or_else(|| mapped.values().find(by_number))
            .cloned();
        drop(mapped);
        match found {
            Some(device) => device.open_for_table(request.by, request.read_only),
            None => Err(OpenDeviceError {
                reason: format!("{}: no such device", request.spec),
                errno: 19,
            }),
        }
    }
}
