//! Asking the daemon: naming the device, sending the request, telling of failure in libdevmapper's words.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use thinmap_control::native::{DeviceExports, NativeRequest, NativeResponse};
use thinmap_control::{
    CallError, Client, DeviceInfo, DeviceListEntry, DeviceSelector, DmError, Request, Response,
};
use thinmap_units::{DevNo, DmName, DmUuid, NAME_BYTES_MAX, UUID_BYTES_MAX};

use super::names::{self, Kind};
use super::switches::Switch;
use super::{Dmsetup, Failed, node};
use crate::run_paths::RunPaths;

/// The way to the daemon, opened by the first request.
pub struct Connection {
    paths: RunPaths,
    autostart: bool,
    client: Option<Client>,
}

impl Connection {
    pub fn new(paths: RunPaths, autostart: bool) -> Self {
        Self {
            paths,
            autostart,
            client: None,
        }
    }

    fn client(&mut self) -> Result<&mut Client, io::Error> {
        match self.client {
            Some(ref mut client) => Ok(client),
            None => {
                let client = crate::daemon_start::connect(&self.paths, self.autostart)?;
                Ok(self.client.insert(client))
            }
        }
    }
}

/// Which device a task is about, in the words that messages use. Name and uuid are in mangled form.
#[derive(Clone, Default, Debug)]
pub struct Subject {
    pub name: String,
    pub uuid: String,
    pub dev: Option<DevNo>,
}

impl Subject {
    /// One of uuid, name and number. A name that no device can have is simply not there.
    fn selector(&self) -> Result<DeviceSelector, DmError> {
        let none = |_| DmError::no_device();
        if let Some(dev) = self.dev {
            Ok(DeviceSelector::Dev(dev))
        } else if self.uuid.is_empty() {
            DmName::new(&self.name)
                .map(DeviceSelector::Name)
                .map_err(none)
        } else {
            DmUuid::new(&self.uuid)
                .map(DeviceSelector::Uuid)
                .map_err(none)
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.uuid)?;
        match self.dev {
            Some(dev) => write!(f, "({dev})"),
            None => Ok(()),
        }
    }
}

/// How a task ended without a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskEnd {
    /// A query about a device that does not exist; nothing has been printed.
    Missing,
    /// Failed with this errno, and said so.
    Failed { errno: i32 },
}

impl From<TaskEnd> for Failed {
    fn from(_: TaskEnd) -> Self {
        Self
    }
}

impl Dmsetup<'_> {
    /// The device that the command line names: the argument, or `-u`, or `-j` and `-m`.
    pub(super) fn subject(&mut self, arg: Option<&str>) -> Result<Subject, Failed> {
        if let Some(name) = arg {
            return Ok(Subject {
                name: self.resolve_name(name)?,
                ..Subject::default()
            });
        }
        if let Some(uuid) = self.switches.value(Switch::Uuid).map(str::to_owned) {
            return Ok(Subject {
                uuid: self.mangle_uuid(&uuid)?,
                ..Subject::default()
            });
        }
        if let Some(dev) = self.dev_option()? {
            return Ok(Subject {
                dev: Some(dev),
                ..Subject::default()
            });
        }
        self.fail("No device specified.")
    }

    /// `-j` and `-m`. Without a major (a concise specification has none) the device-mapper one is meant.
    pub(super) fn dev_option(&mut self) -> Result<Option<DevNo>, Failed> {
        let number = |switch| self.switches.number(switch);
        let Some(minor) = number(Switch::Minor).and_then(|minor| u32::try_from(minor).ok()) else {
            return Ok(None);
        };
        let major = match number(Switch::Major) {
            Some(major) => u32::try_from(major).ok().filter(|major| *major > 0),
            None => {
                let devices = self.all_devices()?;
                Some(devices.first().map_or(0, |device| device.dev.major))
            }
        };
        match major {
            Some(major) => Ok(Some(DevNo::new(major, minor))),
            None => {
                self.console
                    .error("Missing major number for persistent device.");
                self.fail("Couldn't create ioctl argument.")
            }
        }
    }

    /// A name as the daemon knows it: from a path by the device it leads to, otherwise mangled.
    pub(super) fn resolve_name(&mut self, name: &str) -> Result<String, Failed> {
        if name.contains('/') {
            return match node::name_of_path(&self.paths.dev_dir, name) {
                Ok(name) => Ok(name),
                Err(text) => match self.name_without_node(name) {
                    Some(name) => Ok(name),
                    None => self.fail(&text),
                },
            };
        }
        self.mangle_name(name)
    }

    /// A device of the device directory or of /dev/mapper that has no node there, because it is reached over NBD alone
    /// or because thinmap's device directory is another.
    fn name_without_node(&mut self, path: &str) -> Option<String> {
        let path = Path::new(path);
        let parent = path.parent()?;
        if parent != self.paths.dev_dir && parent != Path::new("/dev/mapper") {
            return None;
        }
        let last = path.file_name()?.to_str()?;
        let devices = self.all_devices().ok()?;
        let found = devices
            .into_iter()
            .find(|device| device.name.as_str() == last)?;
        Some(found.name.as_str().to_owned())
    }

    /// A name that is no path, mangled.
    pub(super) fn mangle_name(&mut self, name: &str) -> Result<String, Failed> {
        if name.len() > NAME_BYTES_MAX {
            return self.fail(&format!("Name \"{name}\" too long."));
        }
        if let Err(text) = names::check_mangled_once(name, Kind::Name, self.mangling) {
            return self.fail(&text);
        }
        if self.mangling == names::Mangling::None {
            return Ok(name.to_owned());
        }
        names::mangle(name, Kind::Name, self.mangling).or_else(|text| {
            self.console.error(&text);
            self.fail(&format!("Failed to mangle device name \"{name}\"."))
        })
    }

    pub(super) fn mangle_uuid(&mut self, uuid: &str) -> Result<String, Failed> {
        if let Err(text) = names::check_mangled_once(uuid, Kind::Uuid, self.mangling) {
            return self.fail(&text);
        }
        if self.mangling == names::Mangling::None {
            // COMPAT: the field is cut by libdevmapper; here a uuid that does not fit is refused.
            if uuid.len() > UUID_BYTES_MAX {
                return self.fail(&format!("Uuid \"{uuid}\" too long."));
            }
            return Ok(uuid.to_owned());
        }
        names::mangle(uuid, Kind::Uuid, self.mangling).or_else(|text| {
            self.console.error(&text);
            self.fail(&format!("Failed to mangle device uuid \"{uuid}\"."))
        })
    }

    /// A device's name as people read it.
    pub(super) fn shown_name(&mut self, name: &DmName) -> Result<String, Failed> {
        self.shown(name.as_str(), Kind::Name)
    }

    /// A device's uuid as people read it; empty when it has none.
    pub(super) fn shown_uuid(&mut self, uuid: Option<&DmUuid>) -> Result<String, Failed> {
        self.shown(uuid.map_or("", DmUuid::as_str), Kind::Uuid)
    }

    fn shown(&mut self, text: &str, kind: Kind) -> Result<String, Failed> {
        if self.mangling == names::Mangling::None {
            return Ok(text.to_owned());
        }
        names::check_mangled_once(text, kind, self.mangling)
            .and_then(|()| names::unmangle(text, kind, self.mangling))
            .or_else(|text| self.fail(&text))
    }

    /// Sends a request about `subject`. `verb` is libdevmapper's name for the task.
    pub(super) fn task(
        &mut self,
        verb: &str,
        subject: &Subject,
        request: impl FnOnce(DeviceSelector) -> Request,
    ) -> Result<Response, TaskEnd> {
        match subject.selector() {
            Ok(selector) => self.send(verb, subject, &request(selector)),
            Err(error) => Err(self.ioctl_failed(verb, subject, &error.into())),
        }
    }

    /// Like [`Dmsetup::task`] for requests that answer with the device's state.
    pub(super) fn device_task(
        &mut self,
        verb: &str,
        subject: &Subject,
        request: impl FnOnce(DeviceSelector) -> Request,
    ) -> Result<DeviceInfo, TaskEnd> {
        match self.task(verb, subject, request)? {
            Response::Device(info) => Ok(info),
            _ => Err(self.unexpected(verb, subject)),
        }
    }

    /// Sends a request as it is.
    pub(super) fn send(
        &mut self,
        verb: &str,
        subject: &Subject,
        request: &Request,
    ) -> Result<Response, TaskEnd> {
        let client = match self.connection.client() {
            Ok(client) => client,
            Err(error) => return Err(self.no_daemon(&error)),
        };
        match client.run(request) {
            Ok(response) => Ok(response),
            Err(error) => Err(self.ioctl_failed(verb, subject, &error)),
        }
    }

    /// Every device, sorted by name. Fails when a name cannot be shown, after telling of each.
    pub(super) fn list_devices(&mut self) -> Result<Vec<DeviceListEntry>, TaskEnd> {
        let devices = self.all_devices()?;
        let mut shown = Ok(());
        for device in &devices {
            let name = self.shown_name(&device.name).map(drop);
            let uuid = self.shown_uuid(device.uuid.as_ref()).map(drop);
            shown = name.and(uuid).and(shown);
        }
        match shown {
            Ok(()) => Ok(devices),
            Err(Failed) => Err(TaskEnd::Failed {
                errno: Errno::INVAL.raw_os_error(),
            }),
        }
    }

    /// Every device, sorted by name, whatever the name.
    pub(super) fn all_devices(&mut self) -> Result<Vec<DeviceListEntry>, TaskEnd> {
        let request = Request::ListDevices {
            name_prefix: String::new(),
            uuid_prefix: String::new(),
            with_uuids: true,
        };
        match self.send("names", &Subject::default(), &request)? {
            Response::Devices(devices) => Ok(devices),
            _ => Err(self.unexpected("names", &Subject::default())),
        }
    }

    /// Where one device can be reached, or all of them.
    pub(super) fn exports(&mut self, name: Option<&str>) -> Result<Vec<DeviceExports>, TaskEnd> {
        let client = match self.connection.client() {
            Ok(client) => client,
            Err(error) => return Err(self.no_daemon(&error)),
        };
        let request = match name {
            Some(name) => NativeRequest::OpenPath {
                name: name.to_owned(),
            },
            None => NativeRequest::Devices,
        };
        let subject = Subject {
            name: name.unwrap_or_default().to_owned(),
            ..Subject::default()
        };
        match client.native(&request) {
            Ok(NativeResponse::OpenPath { device }) => Ok(vec![device]),
            Ok(NativeResponse::Devices { devices }) => Ok(devices),
            Ok(_) => Err(self.unexpected("mknodes", &subject)),
            Err(error) => Err(self.ioctl_failed("mknodes", &subject, &error)),
        }
    }

    /// The daemon's interface version.
    pub(super) fn interface_version(&mut self) -> Result<[u32; 3], TaskEnd> {
        let client = match self.connection.client() {
            Ok(client) => client,
            Err(error) => return Err(self.no_daemon(&error)),
        };
        client
            .interface_version()
            .map_err(|error| self.ioctl_failed("version", &Subject::default(), &error))
    }

    /// An answer of the wrong kind: daemon and command do not belong together.
    pub(super) fn unexpected(&mut self, verb: &str, subject: &Subject) -> TaskEnd {
        let error = DmError::new(Errno::PROTO, "the daemon's answer makes no sense");
        self.ioctl_failed(verb, subject, &error.into())
    }

    /// A request that the kernel would refuse, and that cannot even be put into a buffer.
    pub(super) fn refused(&mut self, verb: &str, subject: &Subject, error: DmError) -> TaskEnd {
        self.ioctl_failed(verb, subject, &error.into())
    }

    fn ioctl_failed(&mut self, verb: &str, subject: &Subject, error: &CallError) -> TaskEnd {
        let errno = error.errno();
        let query = matches!(verb, "info" | "mknodes" | "status");
        if query && errno == Errno::NXIO.raw_os_error() {
            return TaskEnd::Missing;
        }
        if errno != Errno::INTR.raw_os_error() {
            let reason = errno_text(errno);
            self.console.error(&format!(
                "device-mapper: {verb} ioctl on {subject} failed: {reason}"
            ));
        }
        self.console.daemon_text(&error.text());
        TaskEnd::Failed { errno }
    }

    fn no_daemon(&mut self, error: &io::Error) -> TaskEnd {
        let socket = self.paths.control_socket();
        let reason = match error.raw_os_error() {
            Some(errno) => errno_text(errno),
            None => error.to_string(),
        };
        self.console
            .error(&format!("{}: open failed: {reason}", socket.display()));
        self.console
            .error("Failure to communicate with the thinmap daemon.");
        self.console
            .error("Start it with 'thinmap daemon', or leave THINMAP_NO_AUTOSTART unset.");
        TaskEnd::Failed {
            errno: error.raw_os_error().unwrap_or(Errno::NXIO.raw_os_error()),
        }
    }
}

/// The C library's words for an errno.
pub fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}
