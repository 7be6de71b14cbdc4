//! What the daemon gives up once it runs: see `docs/security.md` and `docs/decisions/0106-*`.

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What a daemon of root goes on to need.
///
/// Mounts, loop and ublk devices, freezing (SYS_ADMIN); nodes (MKNOD) and their group (CHOWN); images of any owner
/// (DAC_OVERRIDE); who has a device open, which is looked up in /proc (SYS_PTRACE); memory and the I/O path (IPC_LOCK,
/// SYS_RESOURCE); socket buffers that hold a large reply (NET_ADMIN); an NBD port below 1024 (NET_BIND_SERVICE).
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Gives up what is not needed, of the calling thread and those it starts: so before any other thread runs. What cannot be given
/// up is told and kept.
pub fn give_up() {
    // A core would hold guests' data, and keys.
    let no_core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    told(
        "core dumps",
        rustix::process::setrlimit(Resource::Core, no_core),
    );
    let not_dumpable = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    told("being traced", not_dumpable);
    if !rustix::process::geteuid().is_root() {
        // It has no capabilities, and its mounts need a helper that gains them.
        return;
    }
    told(
        "gaining privileges by programs",
        rustix::thread::set_no_new_privs(true),
    );
    drop_capabilities();
}

fn drop_capabilities() {
    let Ok(has) = rustix::thread::capabilities(None) else {
        return;
    };
    // First the bounding set, which needs one that goes with the rest.
    if has.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (CapabilitySet::all() - KEPT).iter() {
            // The newest ones are unknown to older kernels.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    let sets = CapabilitySets {
        effective: has.effective & KEPT,
        permitted: has.permitted & KEPT,
        inheritable: has.inheritable & KEPT,
    };
    told("capabilities", rustix::thread::set_capabilities(None, sets));
}

fn told(what: &str, result: rustix::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what} could not be given up");
    }
}
