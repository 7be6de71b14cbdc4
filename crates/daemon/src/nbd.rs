//! The NBD server of the configuration, and its sockets, which outlive a daemon.

use std::os::fd::AsFd;
use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_dm::MemoryKeeper;
use thinmap_exports::block_node::DescriptorKeeper;
use thinmap_exports::nbd::{
    NbdConfig, NbdExport, NbdServer, NbdServerError, NbdSockets, TcpConfig, TlsConfig,
};

use crate::config::{Config, NbdSection};
use crate::daemon::Daemon;
use crate::keeper::link::KeeperLink;
use crate::lifecycle::{RunError, keeping};

/// An NBD server that is to be: its sockets take clients, who wait.
pub(crate) struct Nbd {
    config: NbdConfig,
    sockets: NbdSockets,
}

/// Its sockets: the last daemon's where the configuration still wants them, or new ones; the keeper gets them, and lets go of the
/// others. `None` when the configuration wants no NBD.
///
/// # Errors
/// [`RunError::Nbd`] when a socket or a certificate cannot be had.
pub(crate) fn open(config: &Config, link: Option<&KeeperLink>) -> Result<Option<Nbd>, RunError> {
    let section = &config.file.nbd;
    let tcp = match section.tcp {
        Some(addr) => Some(TcpConfig {
            addr,
            tls: tls(section)?,
        }),
        None => None,
    };
    let config = NbdConfig {
        unix: section.unix.then(|| config.run_dir.join("nbd.sock")),
        tcp,
        queues: config.file.queue_count(),
        ..NbdConfig::default()
    };
    let mut sockets = NbdSockets::default();
    if let Some(link) = link {
        sockets.unix = link.take(SOCKETS[0]);
        sockets.tcp = link.take(SOCKETS[1]);
    }
    let were_there = [sockets.unix.is_some(), sockets.tcp.is_some()];
    let opened = sockets.open_missing(&config);
    if let Some(link) = link {
        let now = [&sockets.unix, &sockets.tcp];
        for ((name, was_there), fd) in SOCKETS.into_iter().zip(were_there).zip(now) {
            match fd {
                Some(fd) => link.keep(name, fd.as_fd()).map_err(keeping)?,
                None if was_there => link.forget(name),
                None => {}
            }
        }
    }
    opened.map_err(|e: NbdServerError| RunError::Nbd(e.to_string()))?;
    let wanted = config.unix.is_some() || config.tcp.is_some();
    Ok(wanted.then_some(Nbd { config, sockets }))
}

/// Serves NBD, with all devices there are from the first client on: one that comes back must find its export.
pub(crate) fn start(daemon: &Daemon, nbd: Option<Nbd>) -> Result<Option<NbdServer>, RunError> {
    let Some(Nbd { config, sockets }) = nbd else {
        return Ok(None);
    };
    let mut exports = Vec::new();
    for device in daemon.devices.all() {
        let behind: Option<(Arc<dyn BlockDevice>, bool)> = match device.md.info().live {
            Some(live) => Some((device.md.clone(), live.read_only)),
            None => device
                .stand_in()
                .map(|(dev, read_only)| (dev as _, read_only)),
        };
        if let Some((behind, read_only)) = behind {
            let name = device.md.name();
            exports.push(NbdExport {
                name: name.to_string(),
                device: behind,
                read_only,
            });
            device.control.lock().nbd = Some(name);
        }
    }
    NbdServer::serve(config, sockets, exports)
        .map(Some)
        .map_err(|e| RunError::Nbd(e.to_string()))
}

fn tls(section: &NbdSection) -> Result<Option<TlsConfig>, RunError> {
    match (&section.tls_certificate, &section.tls_key) {
        (Some(cert), Some(key)) => Ok(Some(TlsConfig {
            certificate: cert.clone(),
            key: key.clone(),
            client_authorities: section.tls_client_ca.clone(),
        })),
        (None, None) => Ok(None),
        _ => Err(RunError::Nbd(
            "tls_certificate and tls_key go together".to_owned(),
        )),
    }
}

/// Names under which the keeper holds the Unix and the TCP socket.
const SOCKETS: [&str; 2] = ["nbd-unix", "nbd-tcp"];
