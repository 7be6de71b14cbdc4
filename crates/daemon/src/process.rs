//! The daemon as a process: its memory, its capabilities, its signals.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::config::Config;
use crate::daemon::Daemon;
use crate::lifecycle::RunError;

/// What keeps a daemon that serves disks from waiting for itself when memory is short.
pub(crate) fn prepare(config: &Config) {
    if let Err(error) = thinmap_runtime::mark_io_flusher() {
        tracing::warn!(error = %error.0, "not marked as an I/O flusher (needs CAP_SYS_RESOURCE): under memory pressure writes may wait for themselves");
    }
    crate::privileges::give_up();
    if config.file.memory.lock {
        // With a limit, locking would succeed now and threads could not be started later.
        let locked = if may_lock_all_memory() {
            thinmap_runtime::lock_memory()
        } else {
            Err(std::io::ErrorKind::PermissionDenied.into())
        };
        if let Err(error) = locked {
            tracing::warn!(%error, "memory is not locked (needs CAP_IPC_LOCK or no memlock limit): the daemon may be paged out");
        }
    }
}

fn may_lock_all_memory() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::IPC_LOCK)
    });
    capable || limit.current.is_none()
}

/// SIGTERM, SIGINT and SIGHUP end the daemon in good order.
pub(crate) fn watch_signals(daemon: &Arc<Daemon>) -> Result<Handle, RunError> {
    let system = |source| RunError::System {
        what: "watch signals",
        source,
    };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system)?;
    let handle = signals.handle();
    let daemon = daemon.clone();
    std::thread::Builder::new()
        .name("thinmap-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                tracing::info!(signal, "asked to end by a signal");
                daemon.stopping.begin(true);
            }
        })
        .map_err(system)?;
    Ok(handle)
}
