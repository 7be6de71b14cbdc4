//! The daemon's native requests: who it is, where devices can be reached, the end.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::SendFlags;
use thinmap_control::native::{DaemonInfo, DeviceExports, Watching};
use thinmap_control::{DmError, NativeService};
use thinmap_dm::Watcher;
use thinmap_exports::block_node::NodeKind;
use thinmap_units::DmName;

use crate::daemon::Daemon;
use crate::devices::Device;

impl NativeService for Daemon {
    fn daemon_info(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            keeper: self.continuity.as_ref().map(|c| c.link.keeper_pid()),
            run_dir: self.run_dir.clone(),
            dev_dir: (self.nodes.as_ref())
                .map_or_else(Default::default, |nodes| nodes.dev_dir().to_owned()),
        }
    }

    fn stop(&self, force: bool) -> Result<(), DmError> {
        if !force && let Some((name, openers)) = self.first_open() {
            let text = format!(
                "{name} is open ({openers} users): unmount or close it first, or stop with --force"
            );
            return Err(DmError::new(Errno::BUSY, text));
        }
        // Still served: who comes in between is not cut off, and this is told.
        if !force {
            self.empty()?;
        }
        self.stopping.begin(force);
        Ok(())
    }

    fn upgrade(&self, binary: &Path) -> Result<(), DmError> {
        let Some(continuity) = &self.continuity else {
            let text = "the daemon runs without a keeper: nothing would hold its devices meanwhile";
            return Err(DmError::new(Errno::OPNOTSUPP, text));
        };
        let told = std::fs::File::open(binary)
            .and_then(|file| continuity.link.upgrade(binary, file.as_fd()));
        told.map_err(|error| {
            let errno = error
                .raw_os_error()
                .map_or(Errno::IO, Errno::from_raw_os_error);
            DmError::new(errno, format!("{}: {error}", binary.display()))
        })?;
        self.stopping.begin_upgrade();
        Ok(())
    }

    fn watch_events(
        &self,
        client: UnixStream,
        begin: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Watching> {
        let watching = self.events().watch(|| {
            begin()?;
            let tell = move || {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                // With no room left it has been told already.
                !matches!(
                    rustix::net::send(&client, &[0], flags),
                    Err(Errno::PIPE | Errno::CONNRESET)
                )
            };
            let watcher: Watcher = Box::new(tell);
            Ok::<_, io::Error>(watcher)
        })?;
        Ok(Box::new(watching))
    }

    fn exports(&self) -> Result<Vec<DeviceExports>, DmError> {
        Ok(self
            .devices
            .all()
            .iter()
            .map(|device| self.exports_of_device(device))
            .collect())
    }
}

impl Daemon {
    fn exports_of_device(&self, device: &Device) -> DeviceExports {
        let (node, nbd) = self.where_visible(device);
        let kind = self.block_nodes.kind();
        let path = node.then(|| device.node.path());
        let is_block = matches!(kind, NodeKind::Loop | NodeKind::Ublk);
        let name = device.md.name();
        DeviceExports {
            name: name.to_string(),
            uuid: device.md.uuid().map(|uuid| uuid.to_string()),
            major: device.dev_no().major,
            minor: device.dev_no().minor,
            sectors: Self::size(device).0,
            node: (self.nodes.as_ref())
                .filter(|_| node && kind != NodeKind::None)
                .map(|nodes| nodes.path(&name)),
            block_device: path.clone().filter(|_| is_block),
            file: path.filter(|_| kind == NodeKind::FuseFile),
            nbd: nbd.map(|export| self.nbd_uri(export.as_str())),
            notes: self.notes.clone(),
        }
    }

    /// Whether the device has a node, and the name of its export.
    fn where_visible(&self, device: &Device) -> (bool, Option<DmName>) {
        if let Some(visible) = device.control.try_lock() {
            return (visible.node, visible.nbd.clone());
        }
        // A command on it may wait for its backing. What it has a table for it should be seen by.
        let is_there = device.md.info().live.is_some() || device.stand_in().is_some();
        let name = || device.md.name();
        let nbd = self
            .nbd
            .read()
            .as_ref()
            .filter(|_| is_there)
            .map(|_| name());
        (is_there, nbd)
    }

    /// The export's address for NBD clients.
    fn nbd_uri(&self, export: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        let escaped: String = export
            .bytes()
            .map(|b| {
                if plain(char::from(b)) {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02X}")
                }
            })
            .collect();
        format!(
            "nbd+unix:///{escaped}?socket={}",
            self.run_dir.join("nbd.sock").display()
        )
    }
}
