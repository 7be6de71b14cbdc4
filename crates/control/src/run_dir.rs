//! Where daemon, commands and forwarded programs meet when nobody says otherwise.

use std::path::{Path, PathBuf};

/// The run directory of the system's own daemon, root's.
pub const SYSTEMS_RUN_DIR: &str = "/run/thinmap";
/// Where its devices appear.
pub const SYSTEMS_DEV_DIR: &str = "/dev/mapper";

/// Sockets, locks and logs: /run/thinmap for root, the user's own runtime directory for others.
pub fn default_run_dir() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from(SYSTEMS_RUN_DIR);
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("thinmap"),
        _ => PathBuf::from(format!("/tmp/thinmap-{}", user.as_raw())),
    }
}

/// Device nodes: /dev/mapper for root, `mapper/` in the run directory for others.
pub fn default_dev_dir(run_dir: &Path) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        PathBuf::from(SYSTEMS_DEV_DIR)
    } else {
        run_dir.join("mapper")
    }
}

/// The daemon's control socket.
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
