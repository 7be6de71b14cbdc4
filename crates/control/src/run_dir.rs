//! Where daemon, commands and forwarded programs meet when nobody says otherwise.

use std::path::{Path, PathBuf};

/// Sockets, locks and logs: /run/thinmap for root, the user's own runtime directory for others.
pub fn default_run_dir() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/thinmap");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("thinmap"),
        _ => PathBuf::from(format!("/tmp/thinmap-{}", user.as_raw())),
    }
}

/// Device nodes: /dev/mapper for root, `mapper/` in the run directory for others.
pub fn default_dev_dir(run_dir: &Path) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        PathBuf::from("/dev/mapper")
    } else {
        run_dir.join("mapper")
    }
}

/// The daemon's control socket.
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}
