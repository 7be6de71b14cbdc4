//! What the daemon is told at its start: directories from the command line, the rest from a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::access::AccessSection;

/// Everything the daemon needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sockets, locks, logs and the FUSE mount. Mode 0700.
    pub run_dir: PathBuf,
    /// Where device nodes appear: `/dev/mapper`.
    pub dev_dir: PathBuf,
    /// What the configuration file says.
    pub file: ConfigFile,
    /// Where that was read, if it is to be copied for a successor.
    pub source: Option<PathBuf>,
}

/// The last daemon's configuration, for a successor whose own cannot be read.
pub fn last_config(run_dir: &Path) -> PathBuf {
    run_dir.join("config.last")
}

impl Config {
    /// Copies the configuration for successors, in a run directory that is claimed; what an earlier life left is not theirs.
    pub(crate) fn keep_for_successors(&self, is_successor: bool) {
        let copy = last_config(&self.run_dir);
        if !is_successor {
            let _ = std::fs::remove_file(&copy);
        }
        // Best effort: it is needed only if the file breaks later.
        if let Some(source) = &self.source {
            let _ = std::fs::copy(source, &copy);
        }
    }
}

/// The configuration file (TOML). Every key has a default; an unknown key is an error, so that a slip of
/// the pen is not silently ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Queue threads for block devices and NBD; 0 means one per core, at most four.
    pub queues: usize,
    /// The network block device server.
    pub nbd: NbdSection,
    /// Block devices.
    pub block_devices: BlockDevicesSection,
    /// Memory.
    pub memory: MemorySection,
    /// Who may do what.
    pub access: AccessSection,
    /// What happens when the daemon dies.
    pub continuity: ContinuitySection,
    /// The multipath target.
    pub multipath: MultipathSection,
}

/// `[nbd]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdSection {
    /// Serve on `nbd.sock` in the run directory.
    pub unix: bool,
    /// Serve on this address too. Beyond loopback only with TLS.
    pub tcp: Option<SocketAddr>,
    /// Certificate chain (PEM) for TLS.
    pub tls_certificate: Option<PathBuf>,
    /// Private key (PEM) for TLS.
    pub tls_key: Option<PathBuf>,
    /// Certificate authority (PEM) that clients must be signed by.
    pub tls_client_ca: Option<PathBuf>,
}

impl Default for NbdSection {
    fn default() -> Self {
        Self {
            unix: true,
            tcp: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
        }
    }
}

/// `[block_devices]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockDevicesSection {
    /// Make block devices at all; without, devices are reached over NBD only.
    pub enabled: bool,
    /// Names in the device directory are links to the kernel's nodes, as udev makes them, instead of nodes: some programs
    /// learn from a link what the kernel calls a device.
    pub links: bool,
}

impl Default for BlockDevicesSection {
    fn default() -> Self {
        Self {
            enabled: true,
            links: false,
        }
    }
}

/// `[memory]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// Lock the daemon's memory, so that the I/O path is never paged out.
    pub lock: bool,
}

impl Default for MemorySection {
    fn default() -> Self {
        Self { lock: true }
    }
}

/// `[continuity]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContinuitySection {
    /// A keeper holds what must outlive the daemon and starts the next one when it dies.
    pub keeper: bool,
    /// More deaths within a minute and the keeper gives up; 0: it never does for that.
    pub deaths_max: u32,
    /// Seconds until a daemon that hangs ends itself; 0: never.
    pub hang_secs: u32,
}

impl Default for ContinuitySection {
    fn default() -> Self {
        Self {
            keeper: true,
            deaths_max: 10,
            hang_secs: 60,
        }
    }
}

/// `[multipath]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultipathSection {
    /// Seconds for which requests wait for a path with `queue_if_no_path`; 0: for ever. The kernel module's parameter.
    pub queue_if_no_path_timeout_secs: u64,
}

/// Why a configuration cannot be used; names the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what is expected.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

impl ConfigFile {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(e),
        })
    }

    /// Queue threads to start.
    pub fn queue_count(&self) -> usize {
        match self.queues {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4)),
            queues => queues.min(64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config: ConfigFile = toml::from_str("").expect("valid");
        assert!(config.nbd.unix && config.nbd.tcp.is_none() && config.block_devices.enabled);
        assert_eq!(config.multipath.queue_if_no_path_timeout_secs, 0);
        assert!(config.queue_count() >= 1);
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = toml::from_str::<ConfigFile>("[nbd]\ntpc = \"127.0.0.1:10809\"")
            .expect_err("unknown key");
        assert!(error.to_string().contains("tpc"), "{error}");
    }
}
