//! A device mapper in memory, behind a real control socket, so that commands are tested down to the bytes they send.
//! It keeps tables and states by the kernel's rules as far as dmsetup's words depend on them; it maps nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

use rustix::io::Errno;
use thinmap_control::native::{DaemonInfo, DeviceExports};
use thinmap_control::*;
use thinmap_units::{DevNo, DmName, DmUuid, Sector};

pub const MAJOR: u32 = 253;

#[derive(Clone, Default)]
struct Device {
    uuid: Option<DmUuid>,
    minor: u32,
    live: Option<Table>,
    inactive: Option<Table>,
    suspended: bool,
    open: u32,
    events: u32,
    deferred: bool,
}

#[derive(Clone)]
struct Table {
    lines: Vec<TableLine>,
    read_only: bool,
}

#[derive(Default)]
pub struct Fake {
    devices: Mutex<BTreeMap<String, Device>>,
    changed: Condvar,
}

type Devices = BTreeMap<String, Device>;

impl Fake {
    /// Sets how many openers a device has.
    pub fn open(&self, name: &str, count: u32) {
        self.devices.lock().unwrap().get_mut(name).unwrap().open = count;
    }

    /// Lets an event happen.
    pub fn event(&self, name: &str) {
        self.devices.lock().unwrap().get_mut(name).unwrap().events += 1;
        self.changed.notify_all();
    }

    /// The names of all devices.
    pub fn names(&self) -> Vec<String> {
        self.devices.lock().unwrap().keys().cloned().collect()
    }

    fn with<T>(
        &self,
        selector: &DeviceSelector,
        action: impl FnOnce(&str, &mut Device) -> Result<T, DmError>,
    ) -> Result<T, DmError> {
        let mut devices = self.devices.lock().unwrap();
        let name = find(&devices, selector).ok_or_else(DmError::no_device)?;
        action(&name.clone(), devices.get_mut(&name).unwrap())
    }
}

fn find(devices: &Devices, selector: &DeviceSelector) -> Option<String> {
    let matches = |name: &str, device: &Device| match selector {
        DeviceSelector::Name(wanted) => name == wanted.as_str(),
        DeviceSelector::Uuid(wanted) => device.uuid.as_ref() == Some(wanted),
        DeviceSelector::Dev(dev) => *dev == DevNo::new(MAJOR, device.minor),
    };
    devices
        .iter()
        .find(|(name, device)| matches(name, device))
        .map(|(name, _)| name.clone())
}

fn info(name: &str, device: &Device) -> DeviceInfo {
    let table = |table: &Table| TableInfo {
        target_count: table.lines.len() as u32,
        read_only: table.read_only,
    };
    DeviceInfo {
        name: DmName::new(name).unwrap(),
        uuid: device.uuid.clone(),
        dev: DevNo::new(MAJOR, device.minor),
        open_count: device.open,
        event_nr: device.events,
        suspended: device.suspended,
        internally_suspended: false,
        deferred_remove: device.deferred,
        uevent: false,
        live: device.live.as_ref().map(table),
        inactive: device.inactive.as_ref().map(table),
    }
}

fn error(errno: Errno, text: &str) -> DmError {
    DmError::new(errno, text)
}

fn check_table(minor: u32, lines: &[TableLine]) -> Result<(), DmError> {
    let mut next = Sector::ZERO;
    for line in lines {
        let wrong = |text: &str| {
            let target = &line.target;
            error(
                Errno::INVAL,
                &format!("device-mapper: table: {MAJOR}:{minor}: {target}: {text}"),
            )
        };
        if !["linear", "zero", "error", "striped", "crypt"].contains(&line.target.as_str()) {
            return Err(wrong("unknown target type"));
        }
        if line.len == Sector::ZERO {
            return Err(wrong("zero-length target"));
        }
        if line.start != next {
            return Err(wrong("Gap in table"));
        }
        if line.target == "linear" && split_args(&line.params).len() != 2 {
            return Err(wrong("Invalid argument count"));
        }
        next += line.len;
    }
    Ok(())
}

impl DmService for Fake {
    fn remove_all(&self, _deferred: bool) -> Result<(), DmError> {
        self.devices
            .lock()
            .unwrap()
            .retain(|_, device| device.open > 0);
        Ok(())
    }

    fn list_devices(&self) -> Result<Vec<DeviceListEntry>, DmError> {
        let devices = self.devices.lock().unwrap();
        let entry = |(name, device): (&String, &Device)| DeviceListEntry {
            name: DmName::new(name).unwrap(),
            uuid: device.uuid.clone(),
            dev: DevNo::new(MAJOR, device.minor),
            event_nr: device.events,
        };
        Ok(devices.iter().map(entry).collect())
    }

    fn create(
        &self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        minor: Option<u32>,
    ) -> Result<DeviceInfo, DmError> {
        let mut devices = self.devices.lock().unwrap();
        let taken = |minor: u32| devices.values().any(|device| device.minor == minor);
        let minor = minor.unwrap_or_else(|| (0..).find(|minor| !taken(*minor)).unwrap());
        let same_uuid = uuid.is_some() && devices.values().any(|d| d.uuid.as_ref() == uuid);
        if devices.contains_key(name.as_str()) || same_uuid || taken(minor) {
            return Err(error(Errno::BUSY, ""));
        }
        let device = Device {
            uuid: uuid.cloned(),
            minor,
            ..Device::default()
        };
        devices.insert(name.as_str().to_owned(), device.clone());
        Ok(info(name.as_str(), &device))
    }

    fn remove(&self, selector: &DeviceSelector, deferred: bool) -> Result<Removal, DmError> {
        let removal = self.with(selector, |name, device| {
            if device.open > 0 && !deferred {
                return Err(error(Errno::BUSY, ""));
            }
            device.deferred = device.open > 0;
            Ok(Removal {
                name: DmName::new(name).unwrap(),
                uuid: device.uuid.clone(),
                inactive: device.inactive.is_some(),
                waits: device.deferred,
                uevent: !device.deferred,
            })
        })?;
        if !removal.waits {
            self.devices.lock().unwrap().remove(removal.name.as_str());
            self.changed.notify_all();
        }
        Ok(removal)
    }

    fn cancel_deferred_remove(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| {
            device.deferred = false;
            Ok(info(name, device))
        })
    }

    fn rename(&self, device: &DmName, new_name: &DmName) -> Result<DeviceInfo, DmError> {
        let mut devices = self.devices.lock().unwrap();
        if devices.contains_key(new_name.as_str()) {
            return Err(error(Errno::BUSY, ""));
        }
        let found = devices
            .remove(device.as_str())
            .ok_or_else(DmError::no_device)?;
        devices.insert(new_name.as_str().to_owned(), found.clone());
        Ok(info(new_name.as_str(), &found))
    }

    fn set_uuid(&self, device: &DmName, uuid: &DmUuid) -> Result<DeviceInfo, DmError> {
        self.with(&DeviceSelector::Name(device.clone()), |name, device| {
            if device.uuid.is_some() {
                return Err(error(Errno::INVAL, ""));
            }
            device.uuid = Some(uuid.clone());
            Ok(info(name, device))
        })
    }

    fn suspend(
        &self,
        selector: &DeviceSelector,
        _options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| {
            device.suspended = true;
            Ok(info(name, device))
        })
    }

    fn resume(
        &self,
        selector: &DeviceSelector,
        _options: SuspendOptions,
    ) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| {
            if let Some(table) = device.inactive.take() {
                device.live = Some(table);
            }
            device.suspended = false;
            Ok(info(name, device))
        })
    }

    fn status(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| Ok(info(name, device)))
    }

    fn wait_event(
        &self,
        selector: &DeviceSelector,
        event_nr: u32,
        query: StatusQuery,
        cancel: &CancelToken,
    ) -> Result<DeviceStatus, DmError> {
        let mut devices = self.devices.lock().unwrap();
        loop {
            if cancel.is_cancelled() {
                return Err(error(Errno::INTR, ""));
            }
            let name = find(&devices, selector).ok_or_else(DmError::no_device)?;
            if devices[&name].events != event_nr {
                break;
            }
            let tick = std::time::Duration::from_millis(5);
            devices = self.changed.wait_timeout(devices, tick).unwrap().0;
        }
        drop(devices);
        self.table_status(selector, query)
    }

    fn table_load(
        &self,
        selector: &DeviceSelector,
        lines: Vec<TableLine>,
        read_only: bool,
    ) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| {
            check_table(device.minor, &lines)?;
            device.inactive = Some(Table { lines, read_only });
            Ok(info(name, device))
        })
    }

    fn table_clear(&self, selector: &DeviceSelector) -> Result<DeviceInfo, DmError> {
        self.with(selector, |name, device| {
            device.inactive = None;
            Ok(info(name, device))
        })
    }

    fn table_deps(&self, selector: &DeviceSelector, inactive: bool) -> Result<DeviceDeps, DmError> {
        self.with(selector, |name, device| {
            let table = if inactive {
                &device.inactive
            } else {
                &device.live
            };
            let words = |line: &TableLine| -> Vec<DevNo> {
                line.params
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .collect()
            };
            let devices = table.as_ref().map(|table| {
                let mut devices: Vec<DevNo> = table.lines.iter().flat_map(words).collect();
                devices.dedup();
                devices
            });
            Ok(DeviceDeps {
                info: info(name, device),
                devices,
            })
        })
    }

    fn table_status(
        &self,
        selector: &DeviceSelector,
        query: StatusQuery,
    ) -> Result<DeviceStatus, DmError> {
        self.with(selector, |name, device| {
            let table = if query.inactive {
                &device.inactive
            } else {
                &device.live
            };
            let lines = table.as_ref().map(|table| {
                let mut lines = table.lines.clone();
                if query.kind != StatusKind::Table {
                    lines.iter_mut().for_each(|line| line.params.clear());
                }
                lines
            });
            Ok(DeviceStatus {
                info: info(name, device),
                lines,
            })
        })
    }

    fn target_versions(&self) -> Result<Vec<TargetVersion>, DmError> {
        let target = |name: &str, minor| TargetVersion {
            name: name.to_owned(),
            version: [1, minor, 0],
        };
        Ok(vec![
            target("striped", 6),
            target("linear", 4),
            target("error", 5),
        ])
    }

    fn message(
        &self,
        selector: &DeviceSelector,
        sector: Sector,
        args: &[String],
    ) -> Result<(DeviceInfo, Option<String>), DmError> {
        self.with(selector, |name, device| match args[0].as_str() {
            "echo" => Ok((info(name, device), Some(args[1..].join(" ")))),
            "quiet" if sector == Sector::ZERO => Ok((info(name, device), None)),
            _ => Err(error(
                Errno::INVAL,
                "device-mapper: thin: Unrecognised thin pool target message received",
            )),
        })
    }

    fn set_geometry(&self, selector: &DeviceSelector, _geometry: Geometry) -> Result<(), DmError> {
        self.with(selector, |_, _| Ok(()))
    }
}

impl NativeService for Fake {
    fn daemon_info(&self) -> DaemonInfo {
        DaemonInfo {
            keeper: None,
            version: "test".into(),
            pid: std::process::id(),
            run_dir: "/run".into(),
            dev_dir: "/dev".into(),
        }
    }

    fn stop(&self, _force: bool) -> Result<(), DmError> {
        Ok(())
    }

    fn watch_events(
        &self,
        _client: std::os::unix::net::UnixStream,
        begin: &mut dyn FnMut() -> std::io::Result<()>,
    ) -> std::io::Result<thinmap_control::native::Watching> {
        begin()?;
        Ok(Box::new(()))
    }

    fn exports(&self) -> Result<Vec<DeviceExports>, DmError> {
        let export = |name: String| DeviceExports {
            name,
            file: std::env::current_exe().ok(),
            ..DeviceExports::default()
        };
        Ok(self.names().into_iter().map(export).collect())
    }
}

/// A served fake and a way to run dmsetup on it.
pub struct Bench {
    pub fake: Arc<Fake>,
    pub dir: tempfile::TempDir,
    _server: RunningServer,
}

/// What one run of dmsetup gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let server = Server::bind(&dir.path().join("control.sock")).unwrap();
        std::fs::create_dir(dir.path().join("mapper")).unwrap();
        Self {
            _server: server.start(fake.clone()).unwrap(),
            fake,
            dir,
        }
    }

    pub fn paths(&self) -> crate::run_paths::RunPaths {
        crate::run_paths::RunPaths {
            run_dir: self.dir.path().to_owned(),
            dev_dir: self.dir.path().join("mapper"),
        }
    }

    /// Runs dmsetup with these words.
    pub fn run(&self, args: &[&str]) -> Outcome {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let console = crate::dmsetup::Console {
            out: &mut out,
            err: &mut err,
        };
        let code = crate::dmsetup::run("dmsetup", &args, self.paths(), false, console);
        Outcome {
            code,
            out: String::from_utf8(out).unwrap(),
            err: String::from_utf8(err).unwrap(),
        }
    }

    /// Runs dmsetup, which must succeed, and gives its output.
    pub fn ok(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{args:?}");
        outcome.out
    }

    /// Runs dmsetup, which must fail, and gives what it said.
    pub fn fails(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 1, "{args:?}: {outcome:?}");
        outcome.err
    }
}
