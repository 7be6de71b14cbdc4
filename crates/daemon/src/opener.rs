//! Finds the devices that tables name: the daemon's own inside the daemon, the host's by opening them.
//!
//! INVARIANT: a device of the daemon is never opened through its own block device: a request would wait for the queue
//! thread that serves it.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use thinmap_block::BlockDevice;
use thinmap_block::backing::{FileDevice, OpenError, OpenMode};
use thinmap_dm::{DeviceId, DeviceName, DeviceOpener, DeviceUse, OpenDevice, OpenDeviceError};
use thinmap_units::{DevNo, DmName};

use crate::devices::{Device, Devices};

thread_local! {
    static PATIENT_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has this thread wait until then for backings that are busy: some targets say only that theirs cannot be opened.
pub(crate) fn patient_until<T>(until: Instant, load: impl FnOnce() -> T) -> T {
    PATIENT_UNTIL.set(Some(until));
    let done = load();
    PATIENT_UNTIL.set(None);
    done
}

/// Tries again until then while a backing is busy.
pub(crate) fn while_busy<T, E>(
    until: Option<Instant>,
    errno: impl Fn(&E) -> i32,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let is_busy = |error: &E| {
        [Errno::BUSY, Errno::AGAIN]
            .iter()
            .any(|busy| busy.raw_os_error() == errno(error))
    };
    loop {
        match open() {
            Err(error) if is_busy(&error) && until.is_some_and(|until| Instant::now() < until) => {
                std::thread::sleep(BUSY_PAUSE);
            }
            opened => return opened,
        }
    }
}

const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// Opens devices for tables.
pub struct Opener {
    devices: Arc<Devices>,
    dev_dir: PathBuf,
    /// Opens what is not ours, in place of the host.
    outside: Option<Arc<dyn DeviceOpener>>,
    /// Host devices in use. The kernel lets every mapped device share a claim; so do we, and only once does the host
    /// see the device opened.
    host: Mutex<HashMap<DeviceId, Arc<Mutex<HostDevice>>>>,
}

/// Locked while it is opened, which may take long: nobody else's business.
#[derive(Default)]
struct HostDevice {
    read_only: Weak<FileDevice>,
    read_write: Weak<FileDevice>,
}

impl HostDevice {
    fn is_open(&self) -> bool {
        self.read_only.strong_count() + self.read_write.strong_count() > 0
    }
}

impl Opener {
    /// An opener that knows `devices`.
    pub fn new(devices: Arc<Devices>, dev_dir: PathBuf) -> Self {
        Self {
            devices,
            dev_dir,
            outside: None,
            host: Mutex::default(),
        }
    }

    /// An opener that takes what is not ours from `outside` and never looks at the host.
    pub fn without_host(devices: Arc<Devices>, outside: Arc<dyn DeviceOpener>) -> Self {
        Self {
            outside: Some(outside),
            ..Self::new(devices, PathBuf::from("/dev/mapper"))
        }
    }

    fn host(&self, path: &Path, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        let metadata = std::fs::metadata(path).map_err(|e| missing(request.spec, &e))?;
        let id = if metadata.file_type().is_block_device() {
            DeviceId::Block(DevNo::from_dev_t(metadata.rdev()))
        } else if metadata.is_file() {
            DeviceId::File {
                dev: metadata.dev(),
                ino: metadata.ino(),
            }
        } else {
            let reason = format!("{}: neither a block device nor a file", path.display());
            return Err(refused(reason, Errno::NODEV));
        };
        let known = self.known(id);
        let mut known = known.lock();
        let open = |exclusive| {
            let mode = OpenMode {
                read_only: request.read_only,
                exclusive,
            };
            while_busy(PATIENT_UNTIL.get(), OpenError::errno, || {
                FileDevice::open(path, mode)
            })
            .map(Arc::new)
            .map_err(|e| OpenDeviceError {
                reason: e.to_string(),
                errno: e.errno(),
            })
        };
        let dev = match (
            known.read_write.upgrade(),
            known.read_only.upgrade(),
            request.read_only,
        ) {
            (Some(read_write), _, _) => read_write,
            (None, Some(read_only), true) => read_only,
            // Ours already, but for reading: the claim is held, so it need not be taken again.
            (None, Some(_), false) => open(false)?,
            (None, None, _) => open(true)?,
        };
        if dev.limits().read_only {
            known.read_only = Arc::downgrade(&dev);
        } else {
            known.read_write = Arc::downgrade(&dev);
        }
        let name = match id {
            DeviceId::Block(dev_no) => DeviceName::Number(dev_no),
            DeviceId::File { .. } => {
                DeviceName::Path(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
            }
        };
        Ok(DeviceUse {
            claim: dev.clone(),
            dev,
            id,
            name,
            read_only: request.read_only,
        })
    }

    fn known(&self, id: DeviceId) -> Arc<Mutex<HostDevice>> {
        let mut host = self.host.lock();
        // One that is locked is being opened.
        host.retain(|_, known| {
            Arc::strong_count(known) > 1 || known.try_lock().is_none_or(|known| known.is_open())
        });
        host.entry(id).or_default().clone()
    }

    /// One of ours, named by a path under the device directory, even where no node could be made. `/dev/mapper/NAME`
    /// means ours too when our nodes are elsewhere, unless there is a node of that name.
    fn by_path(&self, path: &Path) -> Option<Arc<Device>> {
        let folder = path.parent()?;
        if folder != self.dev_dir && (folder != Path::new("/dev/mapper") || path.exists()) {
            return None;
        }
        // dmsetup gives names mangled already; other programs may give them plain.
        let file_name = path.file_name()?.to_str()?;
        let named = |name: &str| self.devices.by_name(&DmName::new(name).ok()?);
        named(file_name).or_else(|| named(&unmangle(file_name)))
    }
}

impl DeviceOpener for Opener {
    fn open(&self, request: OpenDevice<'_>) -> Result<DeviceUse, OpenDeviceError> {
        if let Ok(dev_no) = request.spec.parse::<DevNo>() {
            if DevNo::from_kernel(dev_no.to_kernel()) != dev_no {
                let reason = format!("{dev_no}: no device has such a number");
                return Err(refused(reason, Errno::OVERFLOW));
            }
            if let Some(device) = self.devices.by_dev(dev_no) {
                return device.md.open_for_table(request.by, request.read_only);
            }
            if let Some(outside) = &self.outside {
                return outside.open(request);
            }
            return self.host(&host_path(dev_no, request.spec)?, request);
        }
        let path = Path::new(request.spec);
        if let Some(device) = self.by_path(path) {
            return device.md.open_for_table(request.by, request.read_only);
        }
        if let Some(outside) = &self.outside {
            return outside.open(request);
        }
        if !path.is_absolute() {
            let reason = format!("{}: no such device (give an absolute path)", request.spec);
            return Err(refused(reason, Errno::NODEV));
        }
        // Links lead to a node of ours, to a name in our directory, or to the host.
        let real = path.canonicalize().map_err(|e| missing(request.spec, &e))?;
        if let Some(device) = self.by_path(&real).or_else(|| self.by_node(&real)) {
            return device.md.open_for_table(request.by, request.read_only);
        }
        self.host(&real, request)
    }
}

impl Opener {
    fn by_node(&self, path: &Path) -> Option<Arc<Device>> {
        let metadata = std::fs::metadata(path).ok()?;
        if metadata.file_type().is_block_device() {
            return self.devices.by_dev(DevNo::from_dev_t(metadata.rdev()));
        }
        self.devices
            .all()
            .into_iter()
            .find(|device| device.node.path() == path)
    }
}

/// A path to a host device of which only the number is known.
pub(crate) fn host_path(dev_no: DevNo, spec: &str) -> Result<PathBuf, OpenDeviceError> {
    let known_by_the_kernel = std::fs::read_to_string(format!("/sys/dev/block/{dev_no}/uevent"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("DEVNAME=")
                .map(|name| Path::new("/dev").join(name))
        });
    let path = known_by_the_kernel.filter(|path| {
        std::fs::metadata(path)
            .is_ok_and(|m| m.file_type().is_block_device() && DevNo::from_dev_t(m.rdev()) == dev_no)
    });
    path.ok_or_else(|| refused(format!("{spec}: no such block device"), Errno::NXIO))
}

fn unmangle(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        plain.push_str(&rest[..at]);
        let code = rest
            .get(at + 2..at + 4)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push_str("\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// COMPAT: whatever keeps a name from being found, the kernel says that there is no such device.
fn missing(spec: &str, error: &std::io::Error) -> OpenDeviceError {
    let found = error
        .raw_os_error()
        .map_or(Errno::NODEV, Errno::from_raw_os_error);
    OpenDeviceError {
        reason: format!("{spec}: {found}"),
        errno: Errno::NODEV.raw_os_error(),
    }
}

fn refused(reason: String, errno: Errno) -> OpenDeviceError {
    OpenDeviceError {
        reason,
        errno: errno.raw_os_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mangled_names_come_back() {
        for name in ["plain", "a b", "tab\there", "back\\xslash"] {
            assert_eq!(unmangle(&crate::nodes::mangle(name)), name);
        }
    }
}
